"""Schedules: against closed forms, exact laws of small processes, and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax import schedules
from helpers import annotations_off, central_difference

ALONE = ex.MarkovGame(  # one state, one action, rewards 0 or 2
    np.zeros((1, 1, 2), int), np.full((1, 1, 2), 0.5), np.array([[[[0.0], [2.0]]]])
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.exponential(2.0, 0.5, 0.3), lambda t: 0.3 + 1.7 * np.exp(-0.5 * t)),
        (schedules.power(2.0, 0.6, 3.0), lambda t: 2 * (1 + t / 3) ** -0.6),
        (schedules.piecewise([1.0, 3.0], [4.0, 0.0]), lambda t: np.interp(t, [1, 3], [4, 0])),
        (
            schedules.piecewise([0.0, 2.0], [4.0, 1.0], between="constant"),
            lambda t: 4.0 if t < 2 else 1.0,
        ),
        (
            schedules.from_optax(optax.exponential_decay(1.0, 10, 0.5)),
            lambda t: 0.5 ** (t / 10),
        ),
    ],
)
def test_values(schedule, expected):
    for t in (0.0, 0.7, 2.0, 5.0):
        np.testing.assert_allclose(schedule(jnp.asarray(t)), expected(t), rtol=1e-6)


@pytest.mark.parametrize(
    ("rate", "total"),
    [
        (schedules.power(1.0, 1.0), lambda t: np.log1p(t)),
        (schedules.power(1.0, 0.6), lambda t: ((1 + t) ** 0.4 - 1) / 0.4),
        (schedules.exponential(0.5, 0.2), lambda t: 2.5 * (1 - np.exp(-0.2 * t))),
    ],
)
def test_the_averaged_equation_has_its_closed_form(rate, total):
    """dQ/dt = alpha(t) (1 - Q)."""
    wrapped = ex.WrappedGame(ALONE, [ex.QLearning(rate, 0.0)])
    ts = np.array([1.0, 5.0, 20.0])
    flow = ex.solve(wrapped, wrapped.init(), ts)
    expected = 1 - np.exp(-total(ts))
    np.testing.assert_allclose(flow.params[0].params[:, 0, 0], expected, rtol=1e-7)
    np.testing.assert_allclose(flow.params[0].time, ts, rtol=1e-12)


@pytest.mark.slow
def test_gradients_reach_into_schedules():
    game = ex.games.prisoners_dilemma()

    def end(theta):
        learner = ex.Sarsa(
            schedules.power(theta[0], theta[1], theta[2]),
            0.9,
            ex.EpsilonSoftmax(0.5, schedules.exponential(theta[3], theta[4])),
            initial=jnp.array([21.0, 20.0]),
        )
        wrapped = ex.WrappedGame(game, [learner] * 2)
        return ex.solve(wrapped, wrapped.init(), [8.0]).params[0].params[0, 0, 0]

    theta = jnp.array([0.3, 0.6, 4.0, 0.5, 0.2])
    slope = jax.jit(jax.grad(end))(theta)
    compiled = jax.jit(end)
    for k, unit in enumerate(np.eye(5)):
        np.testing.assert_allclose(
            slope[k], central_difference(compiled, theta, unit, 1e-3), rtol=2e-5, atol=1e-8
        )


@pytest.mark.slow
def test_fluctuations_and_bias_of_falling_rates():
    """X += alpha(k / N) (r - X) / N: mean and variance by their exact recursions."""
    rate, scale, end = schedules.power(1.5, 0.8, 2.0), 4096, 6.0
    wrapped = ex.WrappedGame(ALONE, [ex.QLearning(rate, 0.0)])
    found = ex.fluctuations(wrapped, wrapped.init(), [end], bias=True)
    steps = np.asarray(jax.vmap(rate)(jnp.arange(int(end * scale)) / scale)) / scale
    mean = variance = 0.0
    for step in steps:
        mean += step * (1 - mean)
        variance = (1 - step) ** 2 * variance + step**2  # rewards have variance 1
    x = float(found.params[0].params[0, 0, 0])
    np.testing.assert_allclose(found.covariance[0, 0, 0], scale * variance, rtol=3 / scale)
    np.testing.assert_allclose(found.bias[0, 0], scale * (mean - x), rtol=30 / scale)
    assert abs(found.bias[0, 0]) > 1e-3
    # The clock is exact.
    np.testing.assert_allclose(found.covariance[0, 1], 0, atol=1e-14)
    np.testing.assert_allclose(found.bias[0, 1], 0, atol=1e-12)


class Earned(ex.AbstractLearner):
    """Adds up rewards; its policy depends on time alone."""

    exploration: ex.AbstractExploration

    def init(self, game, agent, *, key):
        return jnp.zeros(())

    def policy(self, params, state):
        return self.exploration(jnp.array([1.0, 0.0]) + 0 * params)

    def update(self, params, transition, game, agent):
        return transition.reward + 0 * params


@pytest.mark.slow
def test_bias_knows_that_the_stationary_law_moves():
    """The mean of sum r(s_k) / N by the exact law of s_k, against x + (b + layer) / N."""
    rng = np.random.default_rng(0)
    kernel, rewards = rng.dirichlet(np.ones(3), size=(3, 2)), rng.normal(size=(3, 2, 1))
    game = ex.MarkovGame.from_dense(kernel, rewards, initial=np.array([1.0, 0.0, 0.0]))
    epsilon = schedules.exponential(0.9, 0.7)
    wrapped = ex.WrappedGame(game, [Earned(ex.EpsilonSoftmax(0.2, epsilon))])
    scale, end = 512, 2.0
    found = ex.fluctuations(wrapped, wrapped.init(), [end], bias=True)
    law, mean = np.array([1.0, 0.0, 0.0]), 0.0
    policies = jax.vmap(lambda t: wrapped.at(t).policies((jnp.zeros(()),))[0])(
        jnp.arange(int(scale * end)) / scale
    )
    for policy in np.asarray(policies):
        mean += np.einsum("s,sa,sa->", law, policy, rewards[..., 0]) / scale
        law = np.einsum("s,sa,sat->t", law, policy, kernel)
    x = float(found.params[0].params[0])
    shift = float(found.corrected_mean(scale)[0].params[0]) - x
    np.testing.assert_allclose(shift * scale, scale * (mean - x), rtol=20 / scale)


@pytest.mark.slow
def test_simulation_follows_the_equation():
    learner = ex.QLearning(
        schedules.power(1.0, 0.6), 0.5, ex.EpsilonSoftmax(1.0, schedules.exponential(0.8, 0.5))
    )
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, ex.Sarsa(0.2, 0.5)])
    params0, ts, scale, runs = start(wrapped), [1.0, 2.0], 128, 4096
    found = ex.simulate(wrapped, params0, ts, scale=scale, runs=runs, key=jax.random.key(0))
    theory = ex.fluctuations(wrapped, params0, ts, bias=True)
    mean, expected = (
        jax.vmap(lambda params: ravel_pytree(params)[0])(params)
        for params in (found.mean, theory.corrected_mean(scale))
    )
    variance = jnp.einsum("kii->ki", theory.covariance) / scale
    moved = variance > 1e-12
    assert moved.sum() == 32  # all values, and not the clock
    z = (mean - expected)[moved] / jnp.sqrt(variance[moved] / runs)
    # 32 numbers; terms of order 1/N^2 are a small part of a standard error.
    assert jnp.abs(z).max() < 5.5
    np.testing.assert_allclose(found.mean[0].time, ts, rtol=1e-12)


def start(wrapped):
    """Values far from ties."""
    first, second = wrapped.init()
    apart = jnp.array([[3.0, 1.0]] * 4)
    return first._replace(params=apart), second + apart


def test_time_stands_still_on_demand():
    learner = ex.QLearning(schedules.power(0.5, 1.0), 0.9)
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, ex.Sarsa(0.1)])
    frozen = wrapped.at(4.0)
    np.testing.assert_allclose(frozen.learners[0].learning_rate, 0.1)
    assert [own.shape for own in frozen.init()] == [(4, 2), (4, 2)]
    for analysis in (ex.rest_point, ex.stationary_covariance):
        with pytest.raises(ValueError, match=r"agent 0: QLearning.*wrapped\.at\(t\)"):
            analysis(wrapped, wrapped.init())
    several = jax.tree.map(lambda leaf: leaf[None], wrapped.init())
    with pytest.raises(ValueError, match="rest points are defined"):
        ex.rest_points(wrapped, several)
    with pytest.raises(ValueError, match="basins are defined"):
        ex.basins(wrapped, several, 10.0)


@pytest.mark.slow
def test_learners_with_schedules_keep_the_contract():
    learner = ex.QLearning(schedules.power(0.5, 1.0), exploration=ex.EpsilonSoftmax(1.0, 0.1))
    ex.check_learner(learner, ex.games.prisoners_dilemma())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ex.QLearning(schedules.piecewise([0, 5], [0.1, -0.1])), "is -0.0.* at t = "),
        (
            lambda: ex.QLearning(exploration=ex.EpsilonSoftmax(1.0, schedules.exponential(1.5))),
            r"EpsilonSoftmax\.epsilon must be finite and in \[0, 1\]; its schedule is 1\.5 at",
        ),
    ],
)
def test_schedules_that_leave_the_interval(make, message):
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), [make()] * 2)
    with pytest.raises(ValueError, match=message):
        ex.simulate(wrapped, wrapped.init(), [8.0], scale=1, runs=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="agent 0"):
        ex.solve(wrapped, wrapped.init(), [8.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.piecewise([0.0, 1.0], [1.0]), "must be as many"),
        (lambda: schedules.piecewise([1.0, 0.0], [1.0, 2.0]), "times must increase"),
        (lambda: schedules.piecewise([0.0], [1.0], between="cubic"), "between must be"),
        (lambda: schedules.from_optax(3), "function must be"),
        (lambda: schedules.power(1.0, -1.0), "power must be"),
        (lambda: ex.QLearning(initial=schedules.power()), "initial must be"),
    ],
)
def test_bad_schedules(make, message):
    with annotations_off(), pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_schedules_are_swept():
    game = ex.games.prisoners_dilemma()

    def build(theta):
        learner = ex.Sarsa(schedules.exponential(0.2, theta["rate"]), 0.9, initial=[2.0, 1.0])
        wrapped = ex.WrappedGame(game, [learner] * 2)
        return wrapped, wrapped.init()

    swept = ex.sweep(build, {"rate": jnp.array([0.1, 1.0])}, [3.0])
    for k, rate in enumerate((0.1, 1.0)):
        wrapped, params0 = build({"rate": rate})
        expected = ex.solve(wrapped, params0, [3.0]).params[0].params
        found = swept["parameters_agent0_params"].isel(rate=k)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
