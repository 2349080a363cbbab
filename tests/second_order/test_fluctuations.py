"""Fluctuations and bias along the flow: golden values, exact cases, simulation."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

import ergodax as ex
from ergodax.second_order.limit_process import LimitProcess, slope_and_curvature
from ergodax.second_order.stationary_covariance import lyapunov
from helpers import TURN, assert_close, flatten, flatten_times, turning, unflatten


@pytest.fixture(scope="module")
def solved(golden, wrapped_games):
    """Flow, covariance, bias and kinks of the golden cases, on demand."""
    done = {}

    def solve(case):
        if case not in done:
            values, wrapped = golden[case], wrapped_games[case]
            start = unflatten(wrapped, values["x0"])
            done[case] = ex.fluctuations(
                wrapped, start, values["times"], initial_state=0, bias=True
            )
        return done[case]

    return solve


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pd", "random", pytest.param("mixed", marks=pytest.mark.slow)])
def test_golden(golden, solved, case):
    values, found = golden[case], solved(case)
    assert_close(flatten_times(found.params), values["x_t"], 1e-7)
    assert_close(found.covariance, values["C_t"], 1e-6)
    assert_close(found.bias, values["b_t_from_state0"], 1e-5)
    kinks = values["kinks"]
    count = len(kinks)
    parts = (found.kinks.agent, found.kinks.row, found.kinks.old, found.kinks.new)
    for part, expected in zip(parts, kinks.T[1:], strict=True):
        np.testing.assert_array_equal(part[:count], expected)
    np.testing.assert_allclose(found.kinks.time[:count], kinks[:, 0], rtol=1e-6)
    assert (np.asarray(found.kinks.row)[count:] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["pd", "random", "mixed", "actor_critic"])
def test_golden_sources_of_bias(golden, wrapped_games, case):
    values, wrapped = golden[case], wrapped_games[case]
    point = "" if case == "actor_critic" else "1"
    x = jnp.asarray(values[f"x{point}"])
    process = LimitProcess(wrapped, wrapped.init())

    @jax.jit
    def sources(x, covariance):
        _, averaging = process.averaging(x)
        slope, curved = slope_and_curvature(process.drift, x, covariance)
        return slope, averaging, -slope @ process.drift(x) / 2, curved

    test = jnp.asarray(values.get("testC", np.eye(x.size)))
    slope, averaging, euler, curved = sources(x, test)
    assert_close(slope, values[f"DF{point}"], 1e-10)
    assert_close(averaging, values[f"B{point}_averaging"], 1e-8)
    assert_close(euler, values[f"B{point}_euler"], 1e-8)
    if "testC" in values:
        assert_close(curved, values["D2F1_testC"], 1e-8)


@pytest.mark.parametrize("case", ["random", "mixed"])
def test_golden_stationary_covariance(golden, wrapped_games, case):
    values, wrapped = golden[case], wrapped_games[case]
    params = unflatten(wrapped, values["fixed_point"])
    assert_close(ex.stationary_covariance(wrapped, params), values["C_stationary"], 1e-8)


def test_unstable_singular_and_other_points_are_refused(golden, pd, random):
    params = unflatten(pd, golden["pd"]["fixed_point"])
    with pytest.raises(ValueError, match=r"unstable: the eigenvalues .* 4\.24\de-05[+-]0\.00047"):
        ex.stationary_covariance(pd, params)
    near = unflatten(random, golden["random"]["fixed_point"] + 0.01)
    with pytest.raises(ValueError, match="drift does not vanish"):
        ex.stationary_covariance(random, near)
    still = ex.WrappedGame(random.game, [ex.QLearning(0.0)] * 2)
    with pytest.raises(ValueError, match="singular"):
        ex.stationary_covariance(still, still.init())


def test_lyapunov_equation_has_derivatives_and_batches():
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(3, 4, 4)) - 4 * np.eye(4)
    roots = rng.normal(size=(3, 4, 4))
    noises = roots @ roots.transpose(0, 2, 1)
    found = jax.vmap(lyapunov)(slopes, noises)
    residual = slopes @ found + found @ slopes.transpose(0, 2, 1) + noises
    np.testing.assert_allclose(residual, 0, atol=1e-12)
    weights, moved = rng.normal(size=(2, 4, 4))

    def value(slope):
        return jnp.sum(weights * lyapunov(slope, jnp.asarray(noises[0])))

    slope, step = jnp.asarray(slopes[0]), 1e-5
    difference = (value(slope + step * moved) - value(slope - step * moved)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(value)(slope) * moved), difference, rtol=1e-7)
    np.testing.assert_allclose(jax.jvp(value, (slope,), (moved,))[1], difference, rtol=1e-7)


def bandit(rate=1.0):
    """One agent, one state, two actions with random rewards, no kinks (discount 0)."""
    rewards = np.array([[[[1.0], [-1.0]], [[2.0], [0.5]]]])
    game = ex.MarkovGame(np.zeros((1, 2, 2), int), np.full((1, 2, 2), 0.5), rewards)
    return ex.WrappedGame(game, [ex.QLearning(rate, 0.0, ex.EpsilonSoftmax(1.0, 0.2))])


def exact_moments(rate, steps, scale):
    """Mean and covariance of the bandit after some steps: the law of X over all histories."""
    points, chances = np.zeros((1, 2)), np.ones(1)
    for _ in range(steps):
        weights = np.exp(points)
        policy = 0.8 * weights / weights.sum(axis=1, keepdims=True) + 0.1
        moved, total = [], []
        for action, rewards in enumerate([(1.0, -1.0), (2.0, 0.5)]):
            for reward in rewards:
                after = points.copy()
                after[:, action] += rate * (reward - points[:, action]) / scale
                moved.append(after)
                total.append(chances * policy[:, action] / 2)
        points, chances = np.concatenate(moved), np.concatenate(total)
    mean = chances @ points
    return mean, (points - mean).T @ (chances[:, None] * (points - mean))


@pytest.mark.slow
def test_exact_law_of_a_tiny_process():
    """N (E X - x) and N Cov X at N = 4, 8, extrapolated, against all 4^k histories."""
    end = 1.0
    found = ex.fluctuations(bandit(), bandit().init(), [end], bias=True)
    x = flatten_times(found.params)[0]
    scales, biases, covariances = (3, 6, 9), [], []
    for scale in scales:
        mean, covariance = exact_moments(1.0, int(scale * end), scale)
        biases.append(scale * (mean - x))
        covariances.append(scale * covariance)
    # A parabola in 1/N through three scales, at 1/N = 0.
    inverse = 1 / np.array(scales)
    weights = np.linalg.solve(np.vander(inverse, 3, increasing=True).T, [1.0, 0.0, 0.0])
    np.testing.assert_allclose(weights @ np.array(biases), found.bias[0], atol=5e-4)
    limit = np.tensordot(weights, covariances, 1)
    np.testing.assert_allclose(limit, found.covariance[0], atol=5e-4)
    assert np.abs(found.bias[0]).min() > 0.03


@pytest.mark.slow
def test_periodic_chain_keeps_its_first_state():
    """One action, two states in turn: X is deterministic, and b with its layer is exact."""
    game = ex.MarkovGame.deterministic(np.array([[1], [0]]), np.array([[[1.0]], [[3.0]]]))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.5, 0.5)])
    scale, ts = 1000.0, np.array([0.0, 0.001, 0.002, 1.0, 1.001])
    found = ex.fluctuations(wrapped, wrapped.init(), ts, initial_state=1, bias=True)
    sim = ex.simulate(
        wrapped, wrapped.init(), ts, scale=scale, initial_state=1, key=jax.random.key(0)
    )
    exact = flatten_times(sim.mean)
    corrected = flatten_times(found.corrected_mean(scale))
    np.testing.assert_allclose(corrected, exact, atol=3 / scale**2)
    assert np.abs(flatten_times(found.params) - exact).max() > 100 / scale**2
    np.testing.assert_allclose(found.covariance, 0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ex.Sarsa, ex.QLearning])
def test_moments_and_coverage_by_simulation(kind):
    """Random rewards on duplicate successors; SARSA's noise is not Q-learning's."""
    rng = np.random.default_rng(3)
    successors = np.tile([0, 1, 0, 1], (2, 2, 2, 1))
    chances = np.concatenate([rng.dirichlet([1, 1], size=(2, 2, 2))] * 2, axis=-1) / 2
    game = ex.MarkovGame(successors, chances, rng.normal(size=(2, 2, 2, 4, 2)))
    initial = rng.normal(size=(2, 2)) * 2
    learners = [kind(0.5, 0.5, ex.EpsilonSoftmax(1.0, 0.1), initial)] * 2
    wrapped = ex.WrappedGame(game, learners)
    scale, runs, ts = 200.0, 8192, [1.0, 2.0]
    found = ex.fluctuations(wrapped, wrapped.init(), ts, initial_state=0, bias=True)
    sim = ex.simulate(
        wrapped,
        wrapped.init(),
        ts,
        scale=scale,
        runs=runs,
        key=jax.random.key(0),
        initial_state=0,
        keep_runs=True,
    )
    kept = ~np.asarray(found.near_kink(scale))
    assert kept.any()
    variance = np.einsum("kii->ki", found.covariance)[kept] / scale
    bound = scipy.stats.norm.isf(1e-7 / variance.size)
    mean = flatten_times(found.corrected_mean(scale))[kept]
    z = (flatten_times(sim.mean)[kept] - mean) / np.sqrt(variance / runs)
    assert np.abs(z).max() < bound
    relative = flatten_times(sim.variance)[kept] / variance - 1
    # Next order: a few per cent at N = 200.
    assert np.abs(relative).max() < bound * np.sqrt(2 / runs) + 0.03
    values = np.concatenate([leaf.reshape(runs, 2, -1) for leaf in sim.values], axis=2)[:, kept]
    inside = np.mean(np.abs(values - mean) < 2 * np.sqrt(variance), axis=0)
    nominal = scipy.stats.chi2.cdf(4, 1)
    error = bound * np.sqrt(nominal * (1 - nominal) / runs)
    np.testing.assert_allclose(inside, nominal, atol=error + 0.015)


@pytest.mark.slow
def test_band_is_the_delta_method(golden, mixed, solved):
    found, scale = solved("mixed"), 100.0
    band = found.band(mixed.policies, scale=scale)
    k = 5
    params = jax.tree.map(lambda leaf: leaf[k], found.params)
    x, unravel = ravel_pytree(params)

    def policies(x):
        return ravel_pytree(mixed.policies(unravel(x)))[0]

    slope = jax.jacfwd(policies)(x)
    variance = np.diag(slope @ golden["mixed"]["C_t"][k] @ slope.T) / scale
    at = jax.tree.map(lambda leaf: leaf[k], band)
    np.testing.assert_allclose(flatten(at.standard_deviation), np.sqrt(variance), rtol=1e-5)
    hessian = jax.jacfwd(jax.jacfwd(policies))(x)
    shift = slope @ golden["mixed"]["b_t_from_state0"][k]
    shift = shift + np.einsum("oij,ij->o", hessian, golden["mixed"]["C_t"][k]) / 2
    np.testing.assert_allclose(flatten(at.mean), policies(x) + shift / scale, atol=1e-5)


def test_correlation_between_agents(golden, solved):
    found = solved("random")
    C = golden["random"]["C_t"][4]
    deviation = np.sqrt(np.diag(C))
    expected = (C / np.outer(deviation, deviation))[:6, 6:]
    np.testing.assert_allclose(found.correlation(0, 1)[4], expected, atol=1e-6)
    assert np.isnan(found.correlation(0, 1)[0]).all()
    with pytest.raises(ValueError, match="second must be the number of an agent, 0 to 1; found 2"):
        found.correlation(0, 2)


@pytest.mark.slow
def test_kinks_beyond_those_tracked_are_an_error(golden, random):
    values = golden["random"]
    start = unflatten(random, values["x0"])
    with pytest.raises(RuntimeError, match="More kinks are crossed than tracked"):
        ex.fluctuations(random, start, values["times"], bias=True, max_kinks=4)


@pytest.mark.slow
def test_many_kinks_are_tracked_without_being_asked_for():
    """Values that begin in the wrong order change places in every one of eight states."""
    game = ex.games.random_ergodic(jax.random.key(0), 8, (3,))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.2, 0.1, ex.EpsilonSoftmax(1.0, 0.1))])
    paid = np.sum(game.probabilities * game.rewards[..., 0], axis=-1)
    start = (jnp.asarray(4 * (paid.mean(axis=1, keepdims=True) - paid)),)
    crossings = sorted(tie.time for tie in ex.kinks(wrapped, start, [0.0, 400.0]).ties)
    assert len(crossings) == 12
    found = ex.fluctuations(wrapped, start, [400.0]).kinks
    np.testing.assert_allclose(found.time[found.agent >= 0], crossings, rtol=1e-5)


@pytest.mark.slow
def test_two_crossings_within_a_short_time_are_found():
    """Both lie in the same of 2048 equal parts of the time."""
    theta = {"alpha": jnp.asarray(0.5), "lead": jnp.asarray(-2e-5)}
    wrapped, params0 = turning(theta)
    found = ex.fluctuations(wrapped, params0, [400.0]).kinks
    first, second = np.flatnonzero(np.asarray(found.agent) == 0)
    assert (found.old[first], found.new[first]) == (0, 1)
    assert (found.old[second], found.new[second]) == (1, 0)
    begin, end = found.time[first], found.time[second]
    assert np.floor(begin / 400 * 2048) == np.floor(end / 400 * 2048)
    assert abs((begin + end) / 2 - TURN) < 1e-3
    ts = np.array([begin - 0.01, (begin + end) / 2, end + 0.01])
    table = np.asarray(ex.solve(wrapped, params0, ts, rtol=1e-12, atol=1e-12).params[0])[:, 0]
    np.testing.assert_array_equal(np.sign(table[:, 0] - table[:, 1]), [1, -1, 1])


@pytest.mark.slow
def test_smoothed_kinks_have_the_same_jump_in_the_limit(golden, random, solved):
    """Two kinks by t = 1.81; at finite scale b moves by the same amounts, spread in time."""
    values = golden["random"]
    start = unflatten(random, values["x0"])
    ts = values["times"][3:4]
    sharp = np.asarray(solved("random").bias[3:4])
    jump = np.asarray(solved("random").kinks.jump)[:2]
    errors = []
    for scale in (1e3, 1e4):
        smooth = ex.fluctuations(
            random, start, ts, initial_state=0, bias=True, scale=scale, rtol=1e-7, atol=1e-7
        )
        errors.append(np.abs(smooth.bias - sharp).max())
    size = np.abs(jump).max()
    assert errors[1] < 0.1 * size, (errors, size)
    assert errors[1] < 0.6 * errors[0], (errors, size)


@pytest.mark.slow
def test_times_near_a_kink_are_warned_of(golden, pd):
    start = unflatten(pd, golden["pd"]["x0"])
    with pytest.warns(UserWarning, match=r"within 3 standard deviations of a kink .*agent 1"):
        ex.fluctuations(pd, start, [996.0], scale=1.0)


@pytest.mark.slow
def test_derivative_by_the_learning_rate():
    def variance(rate):
        wrapped = bandit(rate)
        return ex.fluctuations(wrapped, wrapped.init(), [0.5, 1.0], bias=False).covariance[1, 0, 0]

    step = 1e-4
    batch = jax.jit(jax.vmap(variance))(jnp.array([1.0 + step, 1.0 - step, 1.0]))
    value, slope = jax.jit(jax.value_and_grad(variance))(1.0)
    np.testing.assert_allclose(slope, (batch[0] - batch[1]) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(batch[2], value, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reverse", "forward", "reverse, without bias"])
def test_derivatives_behind_kinks(mode):
    """Agent 0 changes its mind and back again: at each time, before, between and after."""
    with_bias, ts = "without" not in mode, [1.0, 6.0, 30.0]

    def found(theta, **options):
        given = turning({"alpha": theta[0], "lead": theta[1]})
        solved = ex.fluctuations(*given, ts, bias=with_bias, max_kinks=4, **options)
        crossed = jnp.argsort(solved.kinks.agent != 0)[:2]  # those of agent 0
        parts = [solved.kinks.time[crossed], *solved.covariance[:, :2, :2].reshape(3, -1)]
        return [*parts, *solved.bias[:, :2]] if with_bias else parts

    def difference(k, step=1.5e-3):
        move = step * jnp.eye(2)[k]
        ends = [found(theta + j * move, rtol=1e-12, atol=1e-12) for j in range(-3, 4)]
        weights = np.array([-1, 9, -45, 0, 45, -9, 1]) / (60 * step)
        return [np.tensordot(weights, np.stack(part), 1) for part in zip(*ends, strict=True)]

    theta = jnp.array([0.5, -0.3])
    if mode == "forward":
        slopes = jax.jit(jax.jacfwd(lambda x: found(x, adjoint=diffrax.ForwardMode())))(theta)
    else:
        slopes = jax.jit(jax.jacrev(found))(theta)
    columns = [difference(k) for k in range(len(theta))]
    for slope, *column in zip(slopes, *columns, strict=True):
        expected = np.stack(column, axis=-1)
        assert_close(slope, expected, 1e-5)


def test_bad_input(random):
    start = random.init()
    with pytest.raises(ValueError, match="initial_state must be a state, 0 to 2; found 3"):
        ex.fluctuations(random, start, [1.0], initial_state=3)
    with pytest.raises(ValueError, match="'x' is not a state"):
        ex.fluctuations(random, start, [1.0], initial_state="x")
    with pytest.raises(ValueError, match="scale must be a positive number"):
        ex.fluctuations(random, start, [1.0], scale=0)
    greedy = ex.WrappedGame(random.game, [ex.QLearning(exploration=ex.EpsilonGreedy())] * 2)
    with pytest.raises(ValueError, match="not continuous"):
        ex.fluctuations(greedy, greedy.init(), [1.0])
    found = ex.fluctuations(bandit(), bandit().init(), [1.0])
    with pytest.raises(ValueError, match="bias was not computed"):
        found.corrected_mean(10.0)


def coins(discount):
    """Two agents, two actions, rewards +1 or -1 whatever is done: both are tied for ever."""
    successors = np.zeros((1, 2, 2, 2), int)
    rewards = np.broadcast_to(np.array([1.0, -1.0])[:, None], (1, 2, 2, 2, 2))
    game = ex.MarkovGame(successors, np.full(successors.shape, 0.5), rewards, state_names=["home"])
    learner = ex.QLearning(1.0, discount, ex.EpsilonSoftmax(1.0, 0.1))
    wrapped = ex.WrappedGame(game, [learner] * 2)
    return wrapped, wrapped.init()


@pytest.mark.slow
def test_resting_on_a_kink_is_said():
    wrapped, params = coins(0.9)
    rests = pytest.warns(UserWarning, match=r"rests on a kink \(agent 0 state home, agent 1")
    with rests:
        found = ex.fluctuations(wrapped, params, [0.0, 1.0, 3.0], bias=True)
    assert found.result == ex.RESULTS.resting
    assert "rests on a kink" in repr(found)
    # N (E X - x) grows with N: there is no bias of order 1 / N.
    shift = []
    for scale in (25.0, 400.0):
        sim = ex.simulate(wrapped, params, [3.0], scale=scale, runs=4096, key=jax.random.key(0))
        shift.append(scale * np.mean([table[0] for table in sim.mean]))
        error = scale * np.sqrt(sim.variance[0][0, 0, 0] / 4096)
        assert error < 0.4
    assert shift[1] > 3 * shift[0] > 3
    with rests:
        ex.required_scale(wrapped, params, 3.0, 0.2, paths=100)
    compared = ex.compare(*coins(0.9), [0.0, 1.0], scale=10, runs=8, key=jax.random.key(0))
    assert compared.agreement == "not computed (no time is far enough from a kink)"


@pytest.mark.slow
def test_a_tie_that_the_drift_does_not_feel_is_no_kink():
    found = ex.fluctuations(*coins(0.0), [3.0])
    assert found.result == ex.RESULTS.successful
    assert float(found.margin.max()) == 0


@pytest.mark.slow
def test_a_crossing_at_a_report_time_is_no_rest():
    wrapped, params0 = turning({"alpha": jnp.asarray(0.5), "lead": jnp.asarray(-0.3)})
    time = float(ex.fluctuations(wrapped, params0, [40.0]).kinks.time[0])
    found = ex.fluctuations(wrapped, params0, [time, 40.0])
    assert float(found.margin.min()) < 1e-6
    assert found.result == ex.RESULTS.successful
