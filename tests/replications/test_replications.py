"""Published numbers found anew, and that a number that differs is said to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import ergodax as ex
from ergodax import replications
from ergodax.cli import main
from ergodax.replications import agreement, banchio_skrzypacz, den_boer, klein2021
from ergodax.replications.agreement import Quantity, Replication


@pytest.mark.slow
@pytest.mark.parametrize("name", ["den-boer", "goll", "kaisers-tuyls"])
def test_computed_numbers_agree(name):
    found = replications.replicate(name)
    assert found.agrees, str(found)
    assert len(found.quantities) >= 3


def test_thresholds_move_with_the_payoffs():
    """What is compared depends on the game: another market has other thresholds."""
    other = ex.games.two_prices(ex.games.LogitMarket(differentiation=0.3))
    strategy = den_boer.STRATEGIES["grim trigger"]
    assert abs(den_boer.threshold(other, strategy) - 0.514902) > 0.01


def test_agreement():
    assert Quantity("x", "0.227", 0.2271).agrees
    assert Quantity("x", "0.745676", 0.7456767).agrees  # a paper that cuts
    assert not Quantity("x", "0.227", 0.2285).agrees
    sampled = Quantity("x", "1.5", 2.6, 0.2)
    assert sampled.agrees
    np.testing.assert_allclose(sampled.z, 5.5)
    assert not sampled._replace(here=2.61).agrees
    assert not sampled._replace(here=float("nan")).agrees
    assert Quantity("x", None, 3.0).agrees


def test_what_is_printed_and_kept():
    quantities = (
        Quantity("share", "0.5", 0.9, 0.01),
        Quantity("root", "1.25", 1.25, anew=True),
        Quantity("other", None, 2.0),
    )
    found = Replication("A paper (2020)", quantities, notes=("Slow.",))
    lines = str(found).splitlines()
    assert lines[0] == "A paper (2020)"
    assert lines[2].split() == ["quantity", "published", "here", "standard", "error", "z"]
    assert lines[3].split() == ["share", "0.5", "0.9", "0.01", "+40.0"]
    assert lines[4].split() == ["root", "1.25*", "1.25", "-", "-"]
    assert lines[5].split() == ["other", "-", "2", "-", "-"]
    assert lines[-2:] == [
        "Slow.",
        "1 of 2 numbers disagree by more than 5 standard errors and the digits given: share.",
    ]
    data = found.to_xarray()
    np.testing.assert_array_equal(data["published"], [0.5, 1.25, np.nan])
    assert data.sel(quantity="root")["here"] == 1.25
    assert not found.agrees


def test_standard_errors_count_both_samples():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    mean = agreement.mean_of("m", "2.0", values, 3.0, 100)
    np.testing.assert_allclose(mean.standard_error, 3 * np.sqrt(1 / 400 + 1 / 100))
    share = agreement.share_of("s", "0.5", values > 2, 100)
    np.testing.assert_allclose(share.standard_error, 0.5 * np.sqrt(1 / 400 + 1 / 100))
    spread = agreement.statistic_of("d", "3.0", values, lambda v, axis=-1: v.std(axis), 1200)
    # A normal sample's: sigma / sqrt(2 R).
    np.testing.assert_allclose(
        spread.standard_error, 3 / np.sqrt(800) * np.sqrt(1 + 1 / 3), rtol=0.15
    )


def test_turns_are_learnt_from_over_two_periods():
    """Klein's equation (5), from the whole history, against increments from memory."""
    wrapped = klein2021.learners(2, periods=1000)
    game, learner = wrapped.game, klein2021.TurnLearner(0.3, 0.9)
    rng = np.random.default_rng(1)

    @functools.partial(jax.jit, static_argnums=2)
    def step(params, seen, agent):
        return learner.update(params, seen, game, agent)

    params = list(ex.WrappedGame(game, [learner, learner]).init())
    values = [np.zeros((3, 3)) for _ in range(2)]
    state, past = 4, {}
    for _ in range(60):
        mover, standing = divmod(state, 3)
        actions = rng.integers(3, size=2)
        now = (state, *actions)
        following = int(game.successors[now][0])
        rewards = np.asarray(game.rewards[now][0])
        for agent in (0, 1):
            seen = ex.Transition(
                jnp.asarray(state),
                jnp.asarray(actions[agent]),
                jnp.asarray(actions),
                jnp.asarray(rewards[agent]),
                jnp.asarray(following),
            )
            change = step(params[agent], seen, agent)
            table = params[agent].values.at[change.values.index].add(change.values.value)
            params[agent] = klein2021.Memory(
                table, params[agent].other + change.other, params[agent].reward + change.reward
            )
        waiting = 1 - mover
        if waiting in past:
            other, own, reward = past[waiting]
            best = values[waiting][actions[mover]].max()
            target = reward + 0.9 * rewards[waiting] + 0.81 * best
            values[waiting][other, own] += 0.3 * (target - values[waiting][other, own])
        past[mover] = standing, actions[mover], rewards[mover]
        state = following
        for agent in (0, 1):
            np.testing.assert_allclose(params[agent].values, values[agent], atol=1e-12)
    assert (np.stack(values) != 0).sum() > 10


@pytest.mark.slow
def test_command_lists_and_writes(tmp_path, capsys):
    assert main(["replicate", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(replications.PAPERS)
    assert main(["replicate", "kaisers-tuyls", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "0.378509*" in printed
    assert str(tmp_path / "kaisers-tuyls.nc") in printed
    with xarray.open_dataset(tmp_path / "kaisers-tuyls.nc") as data:
        np.testing.assert_allclose(data["here"][0], 0.5)
        assert data.attrs["command"].startswith("ergodax replicate kaisers-tuyls")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "NAME is missing"),
        (["calvano"], "did you mean calvano2020?"),
        (["goll", "--sessions", "100"], "goll has no sessions: it takes no options"),
        (["klein2021", "--grid", "0.1", "1e-5"], "klein2021 has no grid"),
        (["calvano2020", "--sessions", "1"], "whole number from 2"),
        (["calvano2020", "--grid", "0.1,2", "1e-5"], "learning rates must be in"),
        (["calvano2020", "--grid", "a", "1e-5"], "--grid: must be numbers divided by commas"),
    ],
)
def test_bad_options(options, message, capsys, tmp_path):
    assert main(["replicate", *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_single_precision_is_refused():
    with jax.enable_x64(False), pytest.raises(ValueError, match="anew in float64"):
        replications.replicate("goll")


@pytest.mark.slow
def test_auctions_are_measured_by_their_bids(monkeypatch):
    """By the figures' counts, and by sessions too short to settle."""
    for auction, printed in banchio_skrzypacz._COUNTS.items():
        assert sum(printed.values()) == 1000
        mean = sum(bid * count for bid, count in printed.items()) / 1000
        np.testing.assert_allclose(mean, float(banchio_skrzypacz._MEANS[auction][1]), atol=6e-5)
    monkeypatch.setattr(banchio_skrzypacz, "PERIODS", 1500)
    found = banchio_skrzypacz.replicate(6)
    data = found.to_xarray()
    assert not data.settled.any()
    assert not found.agrees
    assert found.notes[0].startswith("12 sessions")
    first, second = data.bid.values
    np.testing.assert_array_equal(data.revenue, [first.max(axis=1), second.min(axis=1)])
    np.testing.assert_allclose(data.bid * 20, np.rint(data.bid * 20))
    assert len(np.unique(data.bid)) > 3


@pytest.mark.slow
def test_auctions():
    found = replications.replicate("banchio-skrzypacz", sessions=40)
    assert found.agrees, str(found)
    assert found.to_xarray().settled.mean() > 0.9


@pytest.mark.slow
def test_klein():
    found = replications.replicate("klein2021", sessions=64)
    assert found.agrees, str(found)
