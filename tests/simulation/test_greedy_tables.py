"""Large greedy tables: the steps that numba compiles are those that XLA compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import greedy_tables

pytest.importorskip("numba", reason="numba is not installed: pip install 'ergodax[numba]'")
pytestmark = pytest.mark.usefixtures("optimised")

KEY = jax.random.key(9)
FADING = ex.schedules.exponential(1.0, rate=2e-3)


def game(outcomes=1, states=5, actions=(5, 4), seed=0):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(states, *actions, len(actions)))
    if outcomes == 1:
        return ex.MarkovGame.deterministic(rng.integers(states, size=rewards.shape[:-1]), rewards)
    law = rng.dirichlet(np.ones(states), size=rewards.shape[:-1])
    return ex.MarkovGame.from_dense(law, rewards)


def greedy(rate=0.1, discount=0.9, epsilon=0.2, kind=ex.QLearning):
    return kind(rate, discount, ex.EpsilonGreedy(epsilon))


CASES = {
    "constant": (lambda: ex.WrappedGame(game(), [greedy(), greedy(0.3)]), 3),
    "fading": (
        lambda: ex.WrappedGame(game(), [greedy(epsilon=FADING), greedy(0.3, epsilon=FADING)]),
        1,
    ),
    "random transitions": (
        lambda: ex.WrappedGame(game(5), [greedy(), greedy(0.2, 0.5, FADING, ex.Sarsa)]),
        2,
    ),
}


def without_numba(function, *arguments, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy_tables, "is_installed", lambda: False)
        return function(*arguments, **options)


def assert_same(found, expected):
    """Whole numbers are equal, others to rounding."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if np.issubdtype(a.dtype, np.floating):
            digits = 1e-5 if a.dtype == np.float32 else 1e-11
            np.testing.assert_allclose(a, b, rtol=digits, atol=digits)
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("random transitions", "float64"),
        pytest.param("constant", "float32", marks=pytest.mark.slow),
        pytest.param("fading", "float64", marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_xla(case, dtype):
    make, scale = CASES[case]
    wrapped = make()
    options = dict(runs=70, scale=scale, key=KEY, dtype=dtype, batch_size=64)
    ts = [0.0, 100.0, 500.0, 1500.0]
    found = ex.simulate(wrapped, wrapped.init(), ts, **options)
    expected = without_numba(ex.simulate, wrapped, wrapped.init(), ts, **options)
    assert (found.compiler, expected.compiler) == ("numba", "XLA")
    np.testing.assert_array_equal(found.state_frequency, expected.state_frequency)
    for name in ("mean", "variance", "rewards", "final"):
        assert_same(getattr(found, name), getattr(expected, name))
    again = ex.simulate(wrapped, None, [1600.0], start=found, **options)
    more = without_numba(ex.simulate, wrapped, None, [1600.0], start=expected, **options)
    assert_same(again.final, more.final)


@pytest.mark.slow
def test_runs_stop_where_they_do_with_xla():
    wrapped = CASES["fading"][0]()
    until = ex.until.greedy_unchanged(300)
    options = dict(max_steps=4000, runs=90, key=KEY, batch_size=64)
    call = ex.simulate_until, wrapped, wrapped.init(), until
    found, expected = call[0](*call[1:], **options), without_numba(*call, **options)
    assert (found.compiler, expected.compiler) == ("numba", "XLA")
    assert len(set(found.steps.tolist())) > 60
    for name in ("steps", "reached", "recorded", "watching", "final"):
        assert_same(getattr(found, name), getattr(expected, name))


@pytest.mark.slow
def test_every_run_has_its_own_game():
    def build(rate):
        fading = ex.schedules.exponential(1.0, rate=rate)
        learners = [greedy(rate * 10, epsilon=fading), greedy(0.2, epsilon=rate)]
        wrapped = ex.WrappedGame(game(), learners)
        return wrapped, wrapped.init()

    many, starts = jax.vmap(build)(jnp.geomspace(3e-3, 3e-2, 5))
    options = dict(max_steps=900, key=KEY)
    call = ex.simulate_until, many, starts, ex.until.greedy_unchanged(100)
    found, expected = call[0](*call[1:], **options), without_numba(*call, **options)
    assert (found.compiler, expected.compiler) == ("numba", "XLA")
    for name in ("steps", "reached", "final"):
        assert_same(getattr(found, name), getattr(expected, name))


@pytest.mark.slow
def test_xla_says_what_diverges():
    wrapped = ex.WrappedGame(game(), [greedy(30.0), greedy()])
    options = dict(runs=70, key=KEY)
    with pytest.warns(UserWarning, match=r"of 70 runs became infinite or NaN") as said:
        ex.simulate(wrapped, wrapped.init(), [1000.0], **options)
    with pytest.warns(UserWarning, match=r"of 70 runs became infinite or NaN") as expected:
        without_numba(ex.simulate, wrapped, wrapped.init(), [1000.0], **options)
    assert str(said[0].message) == str(expected[0].message)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1.0])
def test_ties_are_broken_as_xla_does(epsilon):
    wrapped = ex.WrappedGame(game(), [greedy(0.0, 0.0, epsilon)] * 2)
    rng = np.random.default_rng(0)
    starts = tuple(rng.integers(3, size=(64, 5, width)).astype(float) for width in (5, 4))
    found = ex.simulate(wrapped, starts, [500.0], key=KEY)
    expected = without_numba(ex.simulate, wrapped, starts, [500.0], key=KEY)
    np.testing.assert_array_equal(found.final.state, expected.final.state)
    np.testing.assert_array_equal(found.state_frequency, expected.state_frequency)


class Nothing(ex.AbstractRecorder):
    """Records nothing."""

    def init(self, wrapped, params):
        return jnp.zeros(())

    def update(self, state, event, before, after):
        return state

    def report(self, state):
        return state, state


class Own(ex.QLearning):
    """A user's own."""


@pytest.mark.slow
def test_others_are_left_to_xla():
    wrapped = CASES["constant"][0]()
    small = ex.WrappedGame(game(states=3), [greedy(), greedy()])
    own = ex.WrappedGame(game(), [Own(0.1, 0.9, ex.EpsilonGreedy(0.1)), greedy()])
    soft = ex.WrappedGame(game(), [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(1.0)), greedy()])
    for one, recorder in ((small, None), (own, None), (soft, None), (wrapped, Nothing())):
        options = dict(recorder=recorder, key=KEY)
        assert ex.simulate(one, one.init(), [2.0], **options).compiler == "XLA"
