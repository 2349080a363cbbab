import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from helpers import (
    assert_close,
    assert_derivatives_close,
    central_difference,
    flatten_derivatives,
    golden_build,
    golden_derivatives,
    learnt_cooperation,
    random_case,
)

CASES = ("pd", "random", "mixed")


def flat_solution(build, theta, ts, **options):
    """The solution at all times, `[K, d]`."""
    params = ex.solve(*build(theta), ts, **options).params
    return jax.vmap(lambda p: ravel_pytree(p)[0])(params)


def bandit(rate):
    """One Q-learner and two arms, the second of which becomes the better one on the way."""
    game = ex.MarkovGame.deterministic(np.zeros((1, 2), int), np.array([[[1.0], [2.0]]]))
    wrapped = ex.WrappedGame(game, [ex.QLearning(rate, 0.5, ex.EpsilonSoftmax(1.0), [3.0, 0.0])])
    return wrapped, wrapped.init()


@pytest.fixture(scope="module")
def jacobians(golden):
    """Jacobians of x(T) by theta in both modes, compiled once for all horizons."""
    found = {}
    for case in CASES:
        build, theta = golden_build(golden, case)

        def end(theta, ts, build=build):
            return flat_solution(build, theta, ts)[-1]

        found[case] = theta, jax.jit(jax.jacrev(end)), jax.jit(jax.jacfwd(end))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES[:2], pytest.param("mixed", marks=pytest.mark.slow)])
def test_derivatives_through_kinks_equal_golden_in_both_modes(golden, jacobians, case):
    theta, reverse, forward = jacobians[case]
    ts, expected = jnp.asarray(golden[case]["times"][-1:]), golden_derivatives(golden, case)
    assert_derivatives_close(reverse(theta, ts), expected, 1e-5)
    assert_derivatives_close(forward(theta, ts), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_derivatives_hold_over_long_horizons(golden, jacobians, case):
    theta, reverse, forward = jacobians[case]
    build, _ = golden_build(golden, case)
    horizon = golden[case]["times"][-1]
    ts = jnp.array([5.0, 40.0]) * horizon
    tight = ex.sensitivities(build, theta, ts, rtol=1e-11, atol=1e-11)
    for k in range(2):
        expected = flatten_derivatives(tight.derivatives, theta)
        expected = {name: leaf[k] for name, leaf in expected.items()}
        assert_derivatives_close(reverse(theta, ts[k : k + 1]), expected, 1e-5)
        assert_derivatives_close(forward(theta, ts[k : k + 1]), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 201, 401])
def test_gradients_of_losses_on_many_times_equal_sensitivities(golden, count):
    build, theta = golden_build(golden, "random")
    ts = jnp.linspace(0.0, 10.0, count)
    weights = np.random.default_rng(0).normal(size=(count, 15))
    found = jax.jit(jax.grad(lambda theta: jnp.sum(weights * flat_solution(build, theta, ts))))
    tight = ex.sensitivities(build, theta, ts, rtol=1e-11, atol=1e-11)
    tangents = flatten_derivatives(tight.derivatives, theta)
    for name, gradient in found(theta).items():
        expected = np.sum(weights * tangents[name])
        scale = np.sqrt(np.sum(tangents[name] ** 2))
        assert abs(gradient - expected) < 1e-5 * scale


@pytest.mark.slow
def test_gradients_in_a_batch_equal_differences():
    def loss(theta):
        learners = [
            ex.QLearning(theta[0], theta[1 + i], ex.EpsilonSoftmax(theta[3], 0.1)) for i in range(2)
        ]
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(theta[4]), learners)
        start = tuple(jnp.linspace(0, 3 + i, 8).reshape(4, 2) for i in range(2))
        solution = ex.solve(wrapped, start, jnp.array([5.0, 40.0]), rtol=1e-10, atol=1e-10)
        return solution.rewards.sum() + solution.params[0][0, 1, 0]

    rng = np.random.default_rng(1)
    low, high = np.array([0.1, 0.5, 0.5, 0.5, 1.2]), np.array([0.5, 0.9, 0.9, 1.5, 1.8])
    thetas = jnp.asarray(rng.uniform(low, high, size=(5, 5)))
    directions = rng.normal(size=(5, 5))
    found = np.sum(jax.jit(jax.vmap(jax.grad(loss)))(thetas) * directions, axis=1)
    batch = jax.jit(jax.vmap(loss))
    expected = central_difference(batch, thetas, directions, step=1e-4)
    assert_close(found, expected, 1e-5)


@pytest.mark.slow
def test_the_derivative_by_a_time_is_the_drift():
    wrapped, params0 = bandit(0.5)
    tight = {"rtol": 1e-11, "atol": 1e-11}

    def end(t):
        return ravel_pytree(ex.solve(wrapped, params0, jnp.stack([t]), **tight).params)[0]

    found = jax.jit(jax.jacrev(end))(jnp.asarray(1.0))
    params = ex.solve(wrapped, params0, [1.0], **tight).params
    params = jax.tree.map(lambda leaf: leaf[-1], params)
    assert_close(found, ravel_pytree(ex.drift(wrapped, params))[0], 1e-8)


@pytest.mark.slow
def test_the_derivative_at_the_start_is_the_identity():
    wrapped, params0 = bandit(0.5)
    x0, unravel = ravel_pytree(params0)

    def start(x):
        return ravel_pytree(ex.solve(wrapped, unravel(x), jnp.array([0.0])).params)[0]

    np.testing.assert_array_equal(jax.jacrev(start)(x0), np.eye(len(x0)))


@pytest.mark.slow
def test_derivatives_of_a_failed_solve_are_not_numbers():
    def total(rate, max_steps):
        return flat_solution(bandit, rate, jnp.array([10.0]), max_steps=max_steps).sum()

    slope = jax.jit(jax.grad(total), static_argnums=1)
    assert np.isnan(slope(0.5, 4))
    assert np.isfinite(slope(0.5, 2048))


@pytest.mark.slow
def test_gradients_at_an_exact_symmetry_are_finite_however_little_is_optimised():
    # Two identical learners stay identical; the module compiles with little optimisation.
    values, slopes = jax.jit(lambda e: jax.vmap(jax.value_and_grad(learnt_cooperation))(e))(
        jnp.array([0.5 - 1e-3, 0.5, 0.5 + 1e-3])
    )
    assert_close(slopes[1], (values[2] - values[0]) / 2e-3, 1e-5)


# Second derivatives


@pytest.fixture(scope="module")
def smooth():
    return random_case(3, 2, (2,), ("actor_critic",))


def loss_by_rate(case, adjoint):
    def loss(rate):
        wrapped = eqx.tree_at(lambda w: w.learners[0].learning_rate, case.wrapped, rate)
        return ex.solve(wrapped, case.params, jnp.array([3.0]), adjoint=adjoint).rewards[-1, 0]

    return loss


@pytest.mark.slow
def test_second_derivatives_of_smooth_learners(smooth):
    loss = loss_by_rate(smooth, diffrax.DirectAdjoint())
    slope = jax.jit(jax.grad(loss_by_rate(smooth, None)))
    found = jax.jit(jax.hessian(loss))(0.4)
    assert_close(found, central_difference(slope, 0.4, 1.0, step=1e-2), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [None, diffrax.DirectAdjoint(), diffrax.ForwardMode()])
def test_second_derivatives_across_kinks_are_refused(golden, adjoint):
    build, theta = golden_build(golden, "random")

    def loss(rate):
        wrapped, params0 = build(theta | {"alpha": rate})
        return ex.solve(wrapped, params0, jnp.array([1.0]), adjoint=adjoint).params[0][-1, 0, 0]

    derivative = jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.grad
    for first, second in ((derivative, derivative), (derivative, jax.jacfwd)):
        with pytest.raises(NotImplementedError, match="learners without kinks"):
            second(first(loss))(0.5)


def test_second_derivatives_of_smooth_learners_by_default_say_what_to_do(smooth):
    with pytest.raises(NotImplementedError, match=r"adjoint=diffrax\.DirectAdjoint"):
        jax.grad(jax.grad(loss_by_rate(smooth, None)))(0.4)
