"""Poisson solution and noise covariance: golden values, brute force over all events."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
import oracle
from ergodax.second_order import noise
from helpers import FORMS, assert_close, random_case, unflatten

POINTS = [
    ("pd", "0"),
    ("pd", "1"),
    ("random", "0"),
    ("random", "1"),
    ("mixed", "0"),
    ("mixed", "1"),
    ("actor_critic", ""),
]


@eqx.filter_jit
def by_parts(wrapped, params):
    return noise._covariance_by_parts(wrapped, noise.poisson(wrapped, params))


@pytest.mark.parametrize(("case", "point"), POINTS)
def test_golden(golden, wrapped_games, case, point):
    wrapped, values = wrapped_games[case], golden[case]
    params = unflatten(wrapped, values[f"x{point}"])
    covariance = values[f"Sigma{point}"]
    assert_close(ex.poisson_values(wrapped, params), values[f"v{point}"], 1e-10)
    assert_close(ex.noise_covariance(wrapped, params), covariance, 1e-10)
    assert_close(by_parts(wrapped, params), covariance, 1e-10)
    vector = np.random.default_rng(0).normal(size=len(covariance))
    product = ex.noise_covariance(wrapped, params, vector=vector)
    assert_close(product, covariance @ vector, 1e-10)


def brute_force_case(form, kinds, seed, **options):
    case = random_case(seed, 3, (2, 3), kinds, form, **options)
    v, covariance = oracle.noise(case.game, case.learners, case.flat)
    return case.wrapped, case.params, v, covariance


BRUTE = [("duplicates", ("sarsa", "sarsa")), ("next_state", ("counterfactual", "sarsa"))]
BRUTE += [pytest.param(form, ("q", "actor_critic"), marks=pytest.mark.slow) for form in FORMS]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "kinds"), BRUTE)
def test_brute_force_over_all_events(form, kinds):
    """Unequal action counts, rewards of the next state, duplicate successors, mixed learners."""
    wrapped, params, v, covariance = brute_force_case(form, kinds, 0)
    found = ex.poisson_values(wrapped, params)
    assert_close(np.reshape(found, v.shape), v, 1e-10)
    assert_close(ex.noise_covariance(wrapped, params), covariance, 1e-10)
    assert_close(by_parts(wrapped, params), covariance, 1e-10)
    vector = np.random.default_rng(1).normal(size=len(covariance))
    product = ex.noise_covariance(wrapped, params, vector=vector)
    assert_close(product, covariance @ vector, 1e-10)


def test_random_rewards_add_noise():
    """Duplicate successors with other rewards: not the same as their mean reward."""
    wrapped, params, _, covariance = brute_force_case("duplicates", ("q", "q"), 0)
    game = wrapped.game
    rewards = np.asarray(game.rewards).copy()
    half = game.num_successors // 2
    chances = np.asarray(game.probabilities)
    for k in range(half):
        pair = chances[..., [k, k + half], None]
        rewards[..., [k, k + half], :] = (pair * rewards[..., [k, k + half], :]).sum(
            -2, keepdims=True
        ) / pair.sum(-2)[..., None]
    mean = ex.MarkovGame(game.successors, game.probabilities, rewards)
    same = ex.WrappedGame(mean, wrapped.learners)
    assert_close(
        np.concatenate([np.ravel(leaf) for leaf in ex.drift(same, params)]),
        np.concatenate([np.ravel(leaf) for leaf in ex.drift(wrapped, params)]),
        1e-12,
    )
    less = ex.noise_covariance(same, params)
    added = np.diag(covariance) - np.diag(less)
    assert (added > 0.01 * np.diag(covariance)).all()


def test_transient_states_have_no_noise():
    wrapped, params, _, covariance = brute_force_case("state_action", ("q", "q"), 3, recurrent=2)
    with pytest.warns(UserWarning, match="transient"):
        found = ex.noise_covariance(wrapped, params)
    assert_close(found, covariance, 1e-10)
    assert (np.diag(found) == 0).sum() == 5


def test_positive_semidefinite(mixed, golden):
    params = unflatten(mixed, golden["mixed"]["x1"])
    covariance = np.asarray(ex.noise_covariance(mixed, params))
    assert np.linalg.eigvalsh(covariance)[0] > -1e-14 * np.abs(covariance).max()


def test_derivatives_and_batches(random, golden):
    """Deviation matrix and all that follows, by the parameters, against differences."""
    values = golden["random"]
    rng = np.random.default_rng(0)
    direction, weights = rng.normal(size=(2, 15))

    unravel = ravel_pytree(random.init())[1]

    def norm(flat):
        return weights @ ex.noise_covariance(random, unravel(flat)) @ weights

    x = jnp.asarray(values["x1"])
    slope = jax.jit(jax.grad(norm))(x) @ direction
    step = 1e-6
    points = jnp.stack([x + step * direction, x - step * direction])
    above, below = jax.jit(jax.vmap(norm))(points)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-6)


def test_large_games_take_the_form_by_parts(monkeypatch, random, golden):
    params = unflatten(random, golden["random"]["x1"])
    monkeypatch.setattr(noise, "_DENSE_LIMIT", 0)

    @eqx.filter_jit
    def covariance(wrapped, params):
        return noise.covariance(wrapped, noise.poisson(wrapped, params))

    np.testing.assert_array_equal(covariance(random, params), by_parts(random, params))


@pytest.mark.slow
def test_pricing_game_in_bounded_memory():
    """225 states of two agents with 15 actions: d = 6750, products only."""
    rng = np.random.default_rng(0)
    game = ex.games.repeated(rng.normal(size=(15, 15, 2)))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(1.0))] * 2)
    params = tuple(jnp.asarray(rng.normal(size=(225, 15))) for _ in range(2))
    compiled = noise._noise_product.lower(wrapped, params, jnp.ones(6750)).compile()
    analysis = compiled.compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 6750**2 * 8 / 4
    left, right = rng.normal(size=(2, 6750))
    products = [ex.noise_covariance(wrapped, params, vector=v) for v in (left, right)]
    np.testing.assert_allclose(left @ products[1], right @ products[0], rtol=1e-9)
    assert left @ products[0] > 0


def test_vector_of_another_size_is_refused(random):
    with pytest.raises(ValueError, match=r"vector must have shape \(15,\); found \(3,\)"):
        ex.noise_covariance(random, random.init(), vector=np.ones(3))
