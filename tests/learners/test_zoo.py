"""Learners of the literature: drift against brute force, simulation against the averaged ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
import oracle_learners
from helpers import flatten, random_kernel, unflatten

SOFTMAX = ex.EpsilonSoftmax(0.7, 0.1)
# Name: the package's learner, the oracle's, and where its parameters may lie.
LEARNERS = {
    "ExpectedSarsa": (
        ex.ExpectedSarsa(0.3, 0.8, SOFTMAX),
        oracle.ExpectedSarsa(0.3, 0.8, 0.7, 0.1),
        "any",
    ),
    "FrequencyAdjustedQLearning": (
        ex.FrequencyAdjustedQLearning(0.3, 0.8, SOFTMAX, frequency=0.3),
        oracle_learners.FrequencyAdjustedQLearning(0.3, 0.8, 0.7, 0.1),
        "any",
    ),
    "Cross": (ex.Cross(0.3, 0.1), oracle_learners.Cross(0.3, 0.1), "simplex"),
    "BushMosteller": (
        ex.BushMosteller(0.3, 0.1, aspiration=0.5),
        oracle_learners.BushMosteller(0.3, 0.1),
        "simplex",
    ),
    "RothErev": (
        ex.RothErev(0.3, forgetting=0.1, experimentation=0.2),
        oracle_learners.RothErev(0.3, 0.0),
        "positive",
    ),
    "ExponentialWeights": (
        ex.ExponentialWeights(0.3, ex.EpsilonSoftmax(1.0, 0.2)),
        oracle_learners.ExponentialWeights(0.3, 0.2),
        "any",
    ),
    "ProjectedGradient": (
        ex.ProjectedGradient(0.3, ex.Projection(1.0, 0.2)),
        oracle_learners.ProjectedGradient(0.3, 0.2),
        "any",
    ),
    "Reinforce": (
        ex.Reinforce(0.3, 0.3, ex.EpsilonSoftmax(1.0, 0.2)),
        oracle_learners.Reinforce(0.3, 0.2),
        "any",
    ),
    "FallingRate": (
        ex.FallingRate(ex.QLearning(0.3, 0.8, SOFTMAX), 0.6),
        oracle_learners.FallingRate(0.3, 0.8, 0.7, 0.1, 0.6),
        "counted",
    ),
}
EVERY = pytest.mark.parametrize("name", LEARNERS)


@pytest.fixture(scope="module")
def game():
    """Three states, two and three actions, rewards between 0 and 1."""
    rng = np.random.default_rng(0)
    kernel = random_kernel(rng, 3, (2, 3))
    rewards = rng.uniform(size=(3, 2, 3, 2))
    return ex.MarkovGame.from_dense(kernel, rewards), oracle.DenseGame.from_dense(kernel, rewards)


def start(name, wrapped, seed):
    """Random parameters of both agents where the learner's may lie, and as flat vectors."""
    rng, region = np.random.default_rng(seed), LEARNERS[name][2]
    flat = []
    for count in wrapped.game.num_actions:
        rows = (wrapped.game.num_states, count)
        if region == "simplex":
            own = rng.dirichlet(np.ones(count), size=rows[0])
        elif region == "positive":
            own = rng.uniform(0.5, 3, size=rows)
        elif region == "counted":  # a table of values, and one of visits
            own = np.stack([rng.normal(size=rows), rng.uniform(1, 3, size=rows)])
        else:
            own = rng.normal(size=rows)
        flat.append(own.ravel())
    return unflatten(wrapped, np.concatenate(flat)), flat


@EVERY
def test_drift_is_that_of_brute_force(name, game):
    learner, plain, _ = LEARNERS[name]
    wrapped = ex.WrappedGame(game[0], [learner] * 2)
    params, flat = start(name, wrapped, 1)
    expected = oracle.drift(game[1], [plain] * 2, flat)
    found = flatten(ex.drift(wrapped, params))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    single = flatten(ex.drift(wrapped, narrow))
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-5)


@EVERY
def test_learners_keep_their_contract(name, game):
    ex.check_learner(LEARNERS[name][0], game[0])


def test_wolf_keeps_its_contract_and_is_for_simulation_only(game):
    ex.check_learner(ex.WolfPHC(), game[0])
    with pytest.raises(ValueError, match="continuous"):
        ex.drift(wrapped := ex.WrappedGame(game[0], [ex.WolfPHC()] * 2), wrapped.init())


@pytest.mark.slow
@EVERY
def test_simulations_follow_the_averaged_equation(name, game):
    wrapped = ex.WrappedGame(game[0], [LEARNERS[name][0]] * 2)
    params, _ = start(name, wrapped, 2)
    found = ex.compare(
        wrapped, params, [0.5, 1.0], scale=256, runs=4096, key=jax.random.key(1)
    ).agreement
    assert not isinstance(found, str), found
    assert max(found.mean_z, found.variance_z) < found.bound, found
