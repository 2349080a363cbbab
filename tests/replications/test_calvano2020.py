"""Table 1 of Calvano et al. (2020): what is measured of sessions, by play; and a few sessions."""

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import ergodax as ex
from ergodax import replications
from ergodax.replications import agreement, calvano2020

MARKET = ex.games.LogitMarket()
GAME = ex.games.bertrand(MARKET, num_prices=3)
PRICES = np.asarray(MARKET.price_grid(3)[0])
PROFIT = np.asarray(GAME.rewards[0, :, :, 0])  # [own, other, firm]


@pytest.fixture(scope="module")
def case():
    """Tables of eight sessions, where they ended, and what is measured of them."""
    rng = np.random.default_rng(3)
    params = tuple(rng.normal(size=(8, 9, 3)) for _ in range(2))
    states = rng.integers(9, size=8)
    return params, states, calvano2020.measure(MARKET, GAME, params, states)


def played(strategies, state, periods, forced=None):
    """Actions of both firms; `forced` maps a period to a firm and its action."""
    shown = []
    for period in range(periods):
        actions = [int(own[state]) for own in strategies]
        if forced is not None and period == forced[0]:
            actions[forced[1]] = forced[2](actions)
        shown.append(actions)
        state = 3 * actions[0] + actions[1]
    return np.array(shown)


def best_against(firm):
    """The best price of one period against the other firm's."""
    own = np.moveaxis(PROFIT[..., firm], firm, 0)
    return lambda actions: int(own[:, actions[1 - firm]].argmax())


@pytest.mark.slow
def test_sessions_are_measured_by_playing_them(case):
    params, states, data = case
    assert data.cycle_length.max() > 1
    assert 0 < data.deviations_unprofitable.mean() < 1
    nash, monopoly = (
        float(MARKET.profits(p())[0]) for p in (MARKET.nash_prices, MARKET.monopoly_prices)
    )
    for session in range(8):
        strategies = [table[session].argmax(axis=1) for table in params]
        after = played(strategies, states[session], 9)[-1]
        state = 3 * after[0] + after[1]
        cycle = [state]
        while True:
            state = 3 * strategies[0][state] + strategies[1][state]
            if state == cycle[0]:
                break
            cycle.append(state)
        one = data.isel(session=session)
        np.testing.assert_array_equal(one.strategy, strategies)
        assert one.cycle_length == len(cycle)
        pairs = np.array([divmod(state, 3) for state in cycle])
        np.testing.assert_allclose(one.price, PRICES[pairs].mean(axis=0))
        profit = np.mean([PROFIT[tuple(pair)] for pair in pairs], axis=0)
        np.testing.assert_allclose(one.profit, profit)
        np.testing.assert_allclose(one.profit_gain, (profit.mean() - nash) / (monopoly - nash))
        assert one.symmetric == (len(cycle) == 1 and pairs[0][0] == pairs[0][1])
        for direction, rule in (("down", best_against), ("up", lambda firm: lambda actions: 2)):
            mean = np.mean(
                [
                    PRICES[
                        played(strategies, start, 16, (1, firm, rule(firm)))[:, [firm, 1 - firm]]
                    ]
                    for firm in (0, 1)
                    for start in cycle
                ],
                axis=0,
            )
            np.testing.assert_allclose(one.response.sel(direction=direction).values.T, mean)


def test_losses_are_those_of_discounted_play(case):
    params, _, data = case
    weights = 0.95 ** np.arange(400)
    for session in (0, 3, 6):
        strategies = [table[session].argmax(axis=1) for table in params]
        losses, unprofitable = np.zeros((9, 2)), []
        for state in range(9):
            for firm in (0, 1):
                worth = [
                    weights
                    @ PROFIT[tuple(played(strategies, state, 400, (0, firm, lambda _, a=a: a)).T)][
                        :, firm
                    ]
                    for a in range(3)
                ]
                own = worth[strategies[firm][state]]
                losses[state, firm] = 1 - own / max(worth)
                actions = [int(each[state]) for each in strategies]
                unprofitable.append(worth[best_against(firm)(actions)] < own - 1e-9)
        one = data.isel(session=session)
        after = played(strategies, case[1][session], 30)
        on_cycle = np.isin(np.arange(9), 3 * after[9:, 0] + after[9:, 1])
        np.testing.assert_allclose(one.loss_on_path, losses[on_cycle].mean(), atol=1e-7)
        np.testing.assert_allclose(one.loss_elsewhere, losses[~on_cycle].mean(), atol=1e-7)
        assert one.no_gain_by_one_deviation == (losses[on_cycle] < 1e-6).all()
        share = np.reshape(unprofitable, (9, 2))[on_cycle].mean()
        np.testing.assert_allclose(one.deviations_unprofitable, share)


@pytest.fixture
def small(monkeypatch):
    """Three prices, and sessions of a few thousand periods."""
    monkeypatch.setattr(calvano2020, "bertrand", lambda market: GAME)
    monkeypatch.setattr(calvano2020, "UNCHANGED", 500)


@pytest.mark.slow
def test_a_grid_is_measured(small, tmp_path):
    options = {"sessions": 4, "checkpoint": tmp_path / "sessions.h5"}
    found = replications.replicate("calvano2020", grid=((0.15, 0.3), (1e-2,)), **options)
    assert [quantity.name for quantity in found.quantities] == [
        f"{what}, alpha {alpha}, beta 0.01"
        for alpha in ("0.15", "0.3")
        for what in ("profit gain", "million periods")
    ]
    assert found.agrees  # nothing is published of these
    data = found.to_xarray()
    assert data.profit_gain.shape == (2, 4)
    np.testing.assert_allclose(data.learning_rate, [0.15, 0.3])
    assert (data.periods[0] != data.periods[1]).any()


@pytest.mark.slow
def test_sessions_that_do_not_converge_are_named(small, monkeypatch):
    monkeypatch.setattr(calvano2020, "_MOST_PERIODS", 600)
    with pytest.warns(UserWarning, match="did not meet the criterion"):
        found = calvano2020.replicate(4)
    assert not found.agrees
    assert "alpha = 0.15, beta = 4e-06: 4 sessions did not converge" in str(found)
    assert found.data.profit_gain.shape == (4,)
    figure = found.draw()
    assert isinstance(figure, Figure)
    assert [ax.get_xlabel() for ax in figure.axes][2:] == [
        "periods around a deviation downwards",
        "periods around a deviation upwards",
    ]


@pytest.mark.slow
def test_firms_without_memory_and_patience_compete():
    """Table A1 of the appendix: no memory, delta = 0, alpha = .25, beta = 1e-3: gain .185."""
    game = ex.games.bertrand(MARKET, memory=0)
    explore = ex.EpsilonGreedy(ex.schedules.exponential(1.0, 1e-3))
    starts = [ex.initial_values(game, firm, "uniform play", discount=0.0) for firm in (0, 1)]
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.25, 0.0, explore, start) for start in starts])
    runs = ex.simulate(
        wrapped, wrapped.init(), [0.0, 15_000.0], runs=1000, key=jax.random.key(0), dtype="float32"
    )
    chosen, _ = ex.outcomes.greedy(game, tuple(own.params for own in runs.final.params))
    profits = ex.outcomes.play(game, chosen).rewards.mean(axis=1)
    nash, monopoly = (
        float(MARKET.profits(p())[0]) for p in (MARKET.nash_prices, MARKET.monopoly_prices)
    )
    gain = np.asarray(ex.outcomes.profit_gain(profits, nash, monopoly))
    found = agreement.mean_of("gain", "0.185", gain, gain.std(), 1000)
    assert found.agrees, found
    assert found.standard_error < 0.01
