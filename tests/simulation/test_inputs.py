"""What runs start from, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import annotations_off
from reference import KEY, assert_counts

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.slow
def test_the_first_state_by_number_by_name_or_from_the_initial_law():
    initial = np.array([0.5, 0.0, 0.1, 0.15, 0.25])
    names = ["calm", "never", "rain", "storm", "fog"]
    next_state = np.zeros((5, 2), dtype=int)
    game = ex.MarkovGame.deterministic(
        next_state, np.zeros((5, 2, 1)), initial=initial, state_names=names
    )
    wrapped = ex.WrappedGame(game, [ex.QLearning()])

    def first(**options):
        sim = ex.simulate(wrapped, wrapped.init(), np.zeros(1), key=KEY, **options)
        assert np.isnan(sim.state_frequency).all()
        return sim.final.state

    for number, name in enumerate(names):
        assert first(runs=20, initial_state=number).tolist() == [number] * 20
        assert first(runs=20, initial_state=name).tolist() == [number] * 20
    drawn = first(runs=50_000, batch_size=4096)
    assert_counts(np.bincount(drawn, minlength=5), initial)


@pytest.mark.slow
def test_numbers_may_be_integers_or_of_numpy(small):
    ts, expected = np.arange(3), None
    for scale, runs, state in [
        (10.0, 2, 1),
        (10, 2, 1),
        (np.int64(10), np.int64(2), np.int64(1)),
        (np.float32(10), np.int32(2), np.int32(1)),
    ]:
        sim = ex.simulate(
            small.wrapped, small.params, ts, scale=scale, runs=runs, initial_state=state, key=KEY
        )
        assert sim.steps.tolist() == [0, 10, 20]
        expected = sim.mean[0] if expected is None else expected
        np.testing.assert_array_equal(sim.mean[0], expected)


INVALID = [
    (dict(runs=0), "runs must be a positive integer; found 0."),
    (dict(runs=-3), "runs must be a positive integer; found -3."),
    (dict(runs=2.0), "runs must be a positive integer; found 2.0."),
    (dict(runs=True), "runs must be a positive integer; found True."),
    (dict(batch_size=0), "batch_size must be a positive integer; found 0."),
    (dict(batch_size=1.5), "batch_size must be a positive integer; found 1.5."),
    (dict(scale=0.0), "scale must be a positive number; found 0.0."),
    (dict(scale=-1.0), "scale must be a positive number; found -1.0."),
    (dict(scale=float("nan")), "scale must be a positive number; found nan."),
    (dict(scale=float("inf")), "scale must be a positive number; found inf."),
    (dict(scale=np.ones(2)), "scale must be a positive number; found array([1., 1.])."),
    (dict(dtype=jnp.float16), "dtype must be float32 or float64; found float16."),
    (dict(dtype=int), "dtype must be float32 or float64; found int64."),
    (dict(initial_state="XX"), "initial_state 'XX' is not a state; the states are CC, CD, DC, DD."),
    (dict(initial_state=4), "initial_state must be a state, 0 to 3; found 4."),
    (dict(initial_state=-1), "initial_state must be a state, 0 to 3; found -1."),
    (dict(ts=np.array([])), "ts must be a non-empty list of times; found shape (0,)."),
    (
        dict(ts=np.array([0.0, 2.0, 1.0])),
        "ts must be finite, not negative and increasing; found ts[2] = 1.0 after 2.0.",
    ),
    (dict(ts=np.array([-1.0])), "ts must be finite, not negative and increasing; found ts[0]"),
    (
        dict(ts=np.array([1.0, 3e9])),
        "2999999999 steps between two report times are too many (2^31 - 1 at most); add report "
        "times.",
    ),
    (dict(ts=np.array([2.2e9])), "2200000000 steps between two report times are too many"),
    (dict(ts=np.array([3.0]), scale=1e9), "3000000000 steps between two report times"),
]


@pytest.mark.parametrize(("options", "message"), INVALID)
def test_arguments_that_do_not_fit_are_refused(options, message):
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [ex.QLearning(), ex.QLearning()])
    arguments = dict(ts=np.arange(3.0), key=KEY) | options
    with annotations_off(), pytest.raises(ValueError, match=re.escape(message)):
        ex.simulate(wrapped, wrapped.init(), **arguments)


def test_parameters_that_do_not_fit_are_refused():
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [ex.QLearning(), ex.ActorCritic()])
    first, second = wrapped.init()

    def refuse(params, message):
        with annotations_off(), pytest.raises(ValueError, match=re.escape(message)):
            ex.simulate(wrapped, params, np.arange(3.0), key=KEY)

    refuse((first,), "with one pytree for each of 2 agents; found tuple of")
    refuse([first, second], "one pytree for each of 2 agents; found list of length 2.")
    refuse((first, first), "params0 of agent 1 must have the structure")
    refuse((first.T[:, :3], second), "params0 of agent 0 must have shape (4, 2); found (2, 3).")
    wrong = second._replace(V=jnp.zeros(5))
    refuse((first, wrong), "params0 of agent 1.V must have shape (4,); found (5,).")
    lost = second._replace(theta=second.theta.at[1, 0].set(jnp.nan))
    refuse((first, lost), "params0 of agent 1.theta must be finite; found")
    refuse((first.at[0, 0].set(jnp.inf), second), "params0 of agent 0 must be finite; found")
