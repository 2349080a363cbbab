"""Learners of the literature: drift against brute force, simulation against the averaged ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
import oracle
import oracle_learners
from ergodax.averaged.drift import average
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
    "DoubleQLearning": (
        ex.DoubleQLearning(0.3, 0.8, SOFTMAX, selection=ex.EpsilonSoftmax(0.4)),
        oracle_learners.SoftDoubleQLearning(0.3, 0.8, 0.7, 0.1),
        "doubled",
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


FIRST = [own[0] for own in LEARNERS.values()]
FIRST += [ex.QLearning(0.1, 0.9), ex.ActorCritic(0.1, 0.1, 0.9), ex.WolfPHC()]


@pytest.mark.parametrize("number", range(len(FIRST)))
def test_first_parameters_need_no_program(number):
    game = ex.games.repeated((np.zeros((2, 7 + number)),) * 2)  # of no other test's size
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **rest: compiled.append(event) if "backend_compile" in event else None
    )
    params = FIRST[number].init(game, 1, key=None)
    assert compiled == []
    jax.monitoring.clear_event_listeners()
    for leaf in jax.tree.leaves(params):
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type


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
        elif region == "doubled":
            own = rng.normal(size=(2, *rows))
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
    events = oracle_learners.tossed(game[1]) if name == "DoubleQLearning" else game[1]
    expected = oracle.drift(events, [plain] * 2, flat)
    found = flatten(ex.drift(wrapped, params))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    single = flatten(ex.drift(wrapped, narrow))
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@EVERY
def test_learners_keep_their_contract(name, game):
    ex.check_learner(LEARNERS[name][0], game[0])


@pytest.mark.slow
def test_wolf_keeps_its_contract_and_is_for_simulation_only(game):
    ex.check_learner(ex.WolfPHC(), game[0])
    with pytest.raises(ValueError, match="continuous"):
        ex.drift(wrapped := ex.WrappedGame(game[0], [ex.WolfPHC()] * 2), wrapped.init())


@pytest.mark.slow
def test_double_q_learning_has_the_noise_of_its_coin(game):
    """Beside SARSA, whose events have next actions too."""
    learners = LEARNERS["DoubleQLearning"][0], ex.Sarsa(0.2, 0.6, SOFTMAX)
    plain = LEARNERS["DoubleQLearning"][1], oracle.Sarsa(0.2, 0.6, 0.7, 0.1)
    wrapped, rng = ex.WrappedGame(game[0], learners), np.random.default_rng(4)
    flat = [rng.normal(size=12), rng.normal(size=9)]
    params = unflatten(wrapped, np.concatenate(flat))
    values, expected = oracle.noise(oracle_learners.tossed(game[1], (0,)), plain, flat)
    np.testing.assert_allclose(ex.noise_covariance(wrapped, params), expected, atol=1e-10)
    found = ex.poisson_values(wrapped, params).reshape(values.shape)
    np.testing.assert_allclose(found, values, atol=1e-10)


@pytest.mark.slow
def test_greedy_double_q_learning_is_for_simulation_only(game):
    learner = ex.DoubleQLearning(0.3, 0.8, SOFTMAX)
    ex.check_learner(learner, game[0])
    wrapped = ex.WrappedGame(game[0], [learner] * 2)
    params, flat = start("DoubleQLearning", wrapped, 5)
    plain = [oracle_learners.DoubleQLearning(0.3, 0.8, 0.7, 0.1)] * 2
    expected = oracle.drift(oracle_learners.tossed(game[1]), plain, flat)
    found = jax.jit(average)(wrapped, params).drift  # as it is between two jumps
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="of DoubleQLearning is not continuous"):
        ex.drift(wrapped, params)


CLIMBING = np.array([[1.1, 0.0, 0.3], [0.0, 0.8, 0.7], [0.3, 0.2, 0.5]])


@pytest.mark.parametrize(("draws", "memory"), [(1, 0), (2, 1), (2, 2), (3, 2)])
def test_lenient_learners_see_the_expected_maximum(draws, memory):
    """The lenient replicator of Panait et al. 2008, and lenient FAQ of Bloembergen et al. 2011."""
    game = ex.games.bimatrix(CLIMBING, CLIMBING.T + 0.1, memory=memory)
    faq = ex.FrequencyAdjustedQLearning(0.3, 0.0, SOFTMAX, frequency=0.05)
    wrapped = ex.WrappedGame(game, [ex.Lenient(own, draws) for own in (ex.Cross(0.3), faq)])
    x, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.1, 0.9])
    y = oracle.eps_softmax(q, 0.7, 0.1)
    found = ex.drift(wrapped, (jnp.asarray(x[None]), jnp.asarray(q[None])))
    first = oracle_learners.lenient_rewards(CLIMBING, y, draws)
    second = oracle_learners.lenient_rewards(CLIMBING + 0.1, x, draws)
    np.testing.assert_allclose(found[0][0], 0.3 * x * (first - x @ first), rtol=1e-10)
    np.testing.assert_allclose(found[1][0], 0.3 * 0.05 * (second - q), rtol=1e-10)


def test_lenient_learners_forgive_what_any_of_the_others_did():
    rng = np.random.default_rng(0)
    tables = rng.uniform(size=(3, 2, 3, 2))
    game = ex.games.repeated(tuple(tables), memory=1)
    wrapped = ex.WrappedGame(game, [ex.Lenient(ex.Cross(0.3))] * 3)
    x = [rng.dirichlet(np.ones(count)) for count in game.num_actions]
    found = ex.drift(wrapped, tuple(jnp.asarray(own[None]) for own in x))
    for agent in range(3):
        table = np.moveaxis(tables[agent], agent, 0).reshape(len(x[agent]), -1)
        others = np.outer(*(x[k] for k in range(3) if k != agent)).ravel()
        best = oracle_learners.lenient_rewards(table, others, 2)
        expected = 0.3 * x[agent] * (best - x[agent] @ best)
        np.testing.assert_allclose(found[agent][0], expected, rtol=1e-10)


@pytest.mark.slow
def test_lenient_learners_keep_their_contract_and_say_what_they_need(game):
    faq = ex.FrequencyAdjustedQLearning(0.1, 0.0)
    ex.check_learner(ex.Lenient(faq, 2), ex.games.stag_hunt())
    with pytest.raises(ValueError, match="learner must learn from its reward"):
        ex.Lenient(ex.CounterfactualQLearning())
    faq = ex.Lenient(faq, 3)
    lottery = ex.games.repeated_lottery(np.ones((2, 2, 2, 2)) * [[[[1.0]]], [[[2.0]]]], [0.5, 0.5])
    for other in (game[0], ex.games.stag_hunt(), lottery, ex.games.two_state_dilemma()):
        with pytest.raises(ValueError, match=r"Lenient\(draws=3\) needs .* memory=2\)"):
            ex.WrappedGame(other, [faq] * 2).init()


@pytest.mark.slow
def test_simulated_lenient_learners_follow_the_averaged_equation():
    game = ex.games.bimatrix(CLIMBING, CLIMBING.T, memory=1)
    wrapped = ex.WrappedGame(game, [ex.Lenient(ex.QLearning(0.3, 0.5, SOFTMAX))] * 2)
    start = (jnp.array([[0.3, 0.1, 0.2]]),) * 2
    found = ex.compare(
        wrapped, start, [0.5, 1.0], scale=256, runs=4096, key=jax.random.key(1)
    ).agreement
    assert not isinstance(found, str), found
    assert max(found.mean_z, found.variance_z) < found.bound, found


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
