"""Runs that start differently, or play different games, in one batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex

pytestmark = pytest.mark.usefixtures("optimised")

KEY = jax.random.key(8)
TIMES = np.array([3.0, 9.0])


def build(theta):
    """A prisoner's dilemma and learners, all of it made from parameters."""
    game = ex.games.prisoners_dilemma(theta["g"])
    first = ex.QLearning(0.2, theta["discount"], ex.EpsilonSoftmax(theta["temperature"], 0.1))
    return ex.WrappedGame(game, [first, ex.Sarsa(0.1, 0.9)])


THETAS = {
    "g": jnp.array([1.2, 1.5, 1.8]),
    "discount": jnp.array([0.0, 0.5, 0.9]),
    "temperature": jnp.array([0.1, 0.5, 2.0]),
}


def rows(tree, run):
    return [np.asarray(leaf)[run] for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [jax.vmap, eqx.filter_vmap])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_every_run_plays_its_own_game(mapped, dtype):
    wrapped = mapped(build)(THETAS)
    params = jax.vmap(lambda theta: build(theta).init())(THETAS)
    options = dict(scale=2, key=KEY, keep_runs=True, dtype=dtype)

    def simulate(wrapped, params, **more):
        with jax.numpy_dtype_promotion("standard"):  # the observable holds float64
            return ex.simulate(wrapped, params, TIMES, observe=wrapped.policies, **options, **more)

    batch = simulate(wrapped, params)
    assert batch.runs == 3
    for run in range(3):
        own = build(jax.tree.map(lambda leaf, r=run: leaf[r], THETAS))
        alone = simulate(own, own.init(), runs=3)
        for a, b in zip(rows(batch.values, run), rows(alone.values, run), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == jnp.float32 else 1e-12)
        assert batch.final.state[run] == alone.final.state[run]


@pytest.mark.slow
def test_every_run_has_its_own_parameters_and_first_state():
    wrapped = build(jax.tree.map(lambda leaf: leaf[1], THETAS))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=(70, *leaf.shape)), wrapped.init())
    states = rng.integers(4, size=70)
    options = dict(scale=2, key=KEY, keep_runs=True)
    batch = ex.simulate(wrapped, params, TIMES, initial_state=states, **options)
    assert batch.runs == 70
    for run in (0, 1, 69):
        one = jax.tree.map(lambda leaf, r=run: leaf[r], params)
        alone = ex.simulate(wrapped, one, TIMES, initial_state=int(states[run]), runs=70, **options)
        for a, b in zip(rows(batch.values, run), rows(alone.values, run), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(runs=4), "the numbers of runs differ: runs has 4, wrapped has 3"),
        (
            dict(initial_state=[0, 1]),
            "wrapped has 3, params0 has 3, initial_state has 2",
        ),
        (dict(initial_state=[0, 1, 4]), "initial_state must be a state, 0 to 3; found 4"),
        (
            dict(initial_state=[0.0, 1.0, 1.5]),
            r"initial_state must be a state, 0 to 3; found \[0.0",
        ),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(options, message):
    wrapped = jax.vmap(build)(THETAS)
    params = jax.vmap(lambda theta: build(theta).init())(THETAS)
    with pytest.raises(ValueError, match=message):
        ex.simulate(wrapped, params, TIMES, key=KEY, **options)


def test_parameters_of_the_wrong_number_of_runs_are_refused():
    wrapped = build(jax.tree.map(lambda leaf: leaf[0], THETAS))
    first, second = wrapped.init()
    uneven = jnp.stack([first] * 3), jnp.stack([second] * 4)
    with pytest.raises(ValueError, match="all arrays in params0 must have a leading axis of runs"):
        ex.simulate(wrapped, uneven, TIMES, key=KEY)


class TestEpsilonGreedy:
    def test_ties_are_broken_at_random(self):
        rule = ex.EpsilonGreedy(0.3)
        np.testing.assert_allclose(rule(jnp.array([1.0, 2.0, 2.0])), [0.1, 0.45, 0.45])
        np.testing.assert_allclose(rule(jnp.zeros(4)), 0.25 * np.ones(4))
        np.testing.assert_allclose(ex.EpsilonGreedy(0)(jnp.array([-1.0, -2.0])), [1.0, 0.0])

    def test_epsilon_is_a_probability(self):
        with pytest.raises(
            ValueError, match=r"EpsilonGreedy.epsilon must be finite and in \[0, 1\]"
        ):
            ex.EpsilonGreedy(1.5)

    @pytest.mark.slow
    def test_it_can_be_simulated_but_not_averaged(self):
        learner = ex.QLearning(0.1, 0.9, ex.EpsilonGreedy(0.1))
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])
        sim = ex.simulate(wrapped, wrapped.init(), [1.0], runs=20_000, key=KEY, initial_state=0)
        # All values are zero before the first step: every action is as likely as any other.
        np.testing.assert_allclose(
            sim.rewards[0], 0.25 * (3 + 1.5 + 3.5 + 2), atol=6 * 0.8 / np.sqrt(20_000)
        )
        for averaged in (ex.drift, ex.jacobian, ex.stationary_distribution, ex.occupation_measure):
            with pytest.raises(ValueError, match=r"agent 0: the policy of QLearning is not cont"):
                averaged(wrapped, wrapped.init())
        with pytest.raises(ValueError, match="such learners can only be simulated"):
            ex.solve(wrapped, wrapped.init(), [1.0])
