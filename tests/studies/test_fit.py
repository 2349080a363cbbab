import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ergodax as ex
from helpers import learnt_cooperation

# Cost of a reverse-mode gradient, in solutions of the ODE: what grid searches get in return.
GRADIENT_COST = 5


# Trial steps without gradients: compiles in half the time of the default, enough for these losses.
BACKTRACKING = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20))


def last(params):
    return jax.tree.map(lambda leaf: leaf[-1], params)


def dilemma(theta):
    """Q-learners in the dilemma, optimistic to different degrees."""
    exploration = ex.EpsilonSoftmax(theta["tau"], 0.1)
    first = ex.QLearning(theta["alpha"], theta["gamma"], exploration, 30.0)
    second = ex.QLearning(theta["alpha"], theta["gamma"], exploration, 21.0)
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), [first, second])
    return wrapped, wrapped.init()


# Fitting to simulated data


@pytest.mark.slow
def test_learning_parameters_are_recovered_from_an_observed_mean():
    truth = {"alpha": 0.1, "gamma": 0.9, "tau": 0.5}
    ts, runs = np.linspace(25, 100, 4), 256
    wrapped, params0 = dilemma(truth)
    observed = ex.simulate(
        wrapped, params0, ts, scale=100, runs=runs, key=jax.random.key(0), keep_runs=True
    )
    values = np.concatenate([leaf.reshape(runs, -1) for leaf in observed.values], axis=1)
    mean, covariance = values.mean(axis=0), np.cov(values.T) / runs
    weights = 1 / np.diag(covariance)

    def predict(theta):
        wrapped, params0 = dilemma(theta)
        tables = ex.solve(wrapped, params0, ts).params
        return jnp.concatenate([table.ravel() for table in tables])

    found = ex.fit(
        lambda theta: jnp.mean(weights * (predict(theta) - mean) ** 2),
        {"alpha": 0.05, "gamma": 0.8, "tau": 1.0},
        bounds={"alpha": (0, np.inf), "gamma": (0, 1), "tau": (0, np.inf)},
    )
    assert found.result == ex.RESULTS.successful
    errors, covariance = ex.standard_errors(predict, found.theta, covariance, weights=weights)
    assert covariance.shape == (3, 3)
    for name, value in truth.items():
        estimate, error = float(found.theta[name]), float(errors[name])
        assert abs(estimate / value - 1) < 0.01
        # The mean of a scale of 100 is off the ODE by about one standard error itself.
        assert abs(estimate - value) < 7 * error
        assert 0 < error < 0.01 * value
    # A grid search of the same cost, over one order of magnitude, cannot come as near.
    points = round((GRADIENT_COST * found.evaluations) ** (1 / 3))
    grid = 0.9 / points / 2
    assert grid > 10 * max(abs(float(found.theta[name]) / truth[name] - 1) for name in truth)


# Design


@pytest.mark.slow
def test_temperature_and_learning_rates_for_a_target_of_cooperation():
    bounds = {"tau": (0.1, 10.0), "alpha0": (0.005, 0.5), "alpha1": (0.005, 0.5)}
    payoffs = np.array([[3.0, 0.0], [5.0, 1.0]])
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)

    def cooperation(theta):
        exploration = ex.EpsilonSoftmax(theta["tau"], 0.02)
        first = ex.QLearning(theta["alpha0"], 0.5, exploration, 4.0)
        second = ex.QLearning(theta["alpha1"], 0.5, exploration, 2.0)
        wrapped = ex.WrappedGame(game, [first, second])
        solution = ex.solve(wrapped, wrapped.init(), [40.0], rtol=1e-6, atol=1e-6)
        return jnp.stack([p[0, 0] for p in wrapped.policies(last(solution.params))])

    target = cooperation({"tau": 2.1, "alpha0": 0.013, "alpha1": 0.21})

    def loss(theta):
        return jnp.sum((cooperation(theta) - target) ** 2)

    start = {"tau": 1.0, "alpha0": 0.05, "alpha1": 0.05}
    found = ex.fit(loss, start, bounds=bounds, optimizer=BACKTRACKING, atol=1e-10)
    points = round((GRADIENT_COST * found.evaluations) ** (1 / 3))
    axes = [np.geomspace(*bounds[name], points + 2)[1:-1] for name in start]
    grid = jnp.asarray(np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3))
    names = list(start)
    losses = jax.jit(jax.vmap(lambda x: loss(dict(zip(names, x, strict=True)))))(grid)
    assert found.loss < 1e-8
    assert found.loss < 1e-3 * np.min(losses)
    for name, (low, high) in bounds.items():
        assert low < found.theta[name] < high


@pytest.mark.slow
def test_the_smallest_exploration_that_restores_competitive_play():
    def loss(theta):
        excess = jnp.maximum(learnt_cooperation(theta["epsilon"]) - 0.25, 0)
        return theta["epsilon"] + 1e3 * excess**2

    start, bounds = {"epsilon": 0.5}, {"epsilon": (0, 1)}
    found = ex.fit(loss, start, bounds=bounds, optimizer=BACKTRACKING, rtol=1e-6)
    smallest = float(found.theta["epsilon"])
    curve = jax.jit(jax.vmap(learnt_cooperation))
    # Below it cooperation lasts; from it on play is competitive.
    below, here, above = curve(jnp.array([smallest - 1e-4, smallest, smallest + 1e-4]))
    assert below > 0.25 + 1e-3
    assert abs(here - 0.25) < 1e-3
    assert above < 0.25 - 1e-3
    grid = jnp.linspace(0, 1, GRADIENT_COST * found.evaluations)
    best = float(grid[np.argmax(curve(grid) <= 0.25)])
    assert smallest < best


# The optimiser


@pytest.mark.slow
def test_minima_within_every_kind_of_bounds():
    minima = {"free": -3.0, "above": 2.5, "below": -4.0, "between": 0.75, "table": [[0.2, 0.9]]}
    bounds = {
        "above": (2.0, np.inf),
        "below": (-np.inf, -1.0),
        "between": (0.0, 1.0),
        "table": (0, 1),
    }
    start = {"free": 1.0, "above": 9.0, "below": -1.5, "between": 0.1, "table": [[0.5, 0.5]]}

    def loss(theta):
        return sum(jnp.sum((theta[name] - jnp.array(minima[name])) ** 2) for name in minima)

    found = ex.fit(loss, start, bounds=bounds, rtol=0, atol=1e-16)
    for name, minimum in minima.items():
        np.testing.assert_allclose(found.theta[name], minimum, atol=1e-6)
        np.testing.assert_allclose(found.gradient[name], 0, atol=1e-5)
    first = loss({name: jnp.array(value) for name, value in start.items()})
    np.testing.assert_allclose(found.losses[0], first, rtol=1e-12)
    assert found.loss == found.losses.min()
    assert found.evaluations >= len(found.losses)


def test_the_gradient_is_that_by_the_bounded_parameters():
    def loss(theta):
        return 3 * theta["p"] + theta["q"] ** 2

    with pytest.warns(UserWarning, match="all 2 steps"):
        found = ex.fit(
            loss, {"p": 0.5, "q": 2.0}, bounds={"p": (0, 1), "q": (0, np.inf)}, max_steps=2
        )
    np.testing.assert_allclose(found.gradient["p"], 3, rtol=1e-9)
    np.testing.assert_allclose(found.gradient["q"], 2 * found.theta["q"], rtol=1e-9)
    assert found.result != ex.RESULTS.successful


def test_any_optimiser_of_optax_will_do():
    found = ex.fit(
        lambda theta: (theta["x"] - 2.0) ** 2,
        {"x": 5.0},
        bounds={"x": (0, np.inf)},
        optimizer=optax.adam(0.05),
        max_steps=500,
        atol=1e-10,
    )
    np.testing.assert_allclose(found.theta["x"], 2, atol=1e-3)
    assert found.evaluations == len(found.losses)


def line(theta, data):
    x, y = data
    return jnp.sum((theta["slope"] * x + theta["level"] - y) ** 2)


@pytest.mark.slow
def test_one_program_serves_all_data_of_a_shape():
    compiled, start, x = [], {"slope": 0.0, "level": 0.0}, np.linspace(0, 1, 5)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    ex.fit(line, start, (x, 2 * x + 1))
    jax.monitoring.register_event_duration_secs_listener(listen)
    found = ex.fit(line, {"slope": 1.0, "level": -1.0}, (x, 1 - 3 * x))
    assert compiled == []
    np.testing.assert_allclose([found.theta["slope"], found.theta["level"]], [-3, 1], atol=1e-5)
    ex.fit(line, start, (x[1:], x[1:]))
    assert compiled  # the listener does listen


# Standard errors


def test_standard_errors_of_a_linear_model_are_exact():
    rng = np.random.default_rng(5)
    design = rng.normal(size=(12, 3)) * [1.0, 1e-4, 1e3]
    root = rng.normal(size=(12, 12))
    covariance, weights = root @ root.T, rng.uniform(0.5, 2, 12)

    def predict(theta):
        return design @ jnp.concatenate([theta["pair"], theta["single"][None]])

    theta = {"single": 2.0, "pair": jnp.array([1.0, 3.0])}
    errors, found = ex.standard_errors(predict, theta, covariance, weights=weights)
    estimator = np.linalg.solve(design.T * weights @ design, design.T * weights)
    expected = estimator @ covariance @ estimator.T
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(errors["pair"], np.sqrt(np.diag(expected)[:2]), rtol=1e-8)
    np.testing.assert_allclose(errors["single"], np.sqrt(expected[2, 2]), rtol=1e-8)
    # Against estimates from simulated observations; five standard errors of a variance.
    noise = rng.multivariate_normal(np.zeros(12), covariance, size=4000)
    spread = (noise @ estimator.T).var(axis=0) / np.diag(expected)
    np.testing.assert_allclose(spread, 1, atol=5 * np.sqrt(2 / 4000))


@pytest.mark.slow
def test_errors_cover_the_true_value_where_the_ode_is_biased():
    """A temperature estimated from means of 100 runs at N = 1, without a kink."""
    ts, runs, repeats, truth = np.array([10.0, 20.0, 40.0]), 100, 300, {"tau": 1.0}
    payoffs = np.array([[3.0, 0.0], [5.0, 1.0]])
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)

    def build(theta):
        learner = ex.Sarsa(0.1, 0.0, ex.EpsilonSoftmax(theta["tau"], 0.1))
        wrapped = ex.WrappedGame(game, [learner] * 2)
        return wrapped, wrapped.init()

    def predict(theta):
        return flat(ex.solve(*build(theta), ts, rtol=1e-6, atol=1e-6).params)

    def flat(params):
        return jnp.concatenate([leaf.ravel() for leaf in params])

    sim = ex.simulate(*build(truth), ts, runs=runs * repeats, key=jax.random.key(1), keep_runs=True)
    values = np.concatenate([np.reshape(v, (repeats, runs, -1)) for v in sim.values], axis=2)
    slope = np.asarray(jax.jacfwd(lambda tau: predict({"tau": tau}))(1.0))
    expected = np.asarray(predict(truth))
    bias = flat(ex.fluctuations(*build(truth), ts, bias=True).corrected_mean(1.0)) - expected
    covered = {"without": 0, "with": 0}
    for own in values:
        covariance = np.cov(own.T) / runs
        weights = 1 / np.diag(covariance)
        away = slope * weights @ (own.mean(axis=0) - expected) / (slope**2 @ weights)
        for name, given in (("without", None), ("with", bias)):
            errors, _ = ex.standard_errors(predict, truth, covariance, weights=weights, bias=given)
            covered[name] += abs(away) < 1.96 * float(errors["tau"])
    error = np.sqrt(0.95 * 0.05 / repeats)
    assert covered["without"] / repeats < 0.95 - 5 * error
    assert covered["with"] / repeats > 0.95 - 2 * error


def test_parameters_that_are_not_determined_are_refused():
    def predict(theta):
        return jnp.array([1.0, 2.0, 3.0]) * (theta["a"] + theta["b"])

    with pytest.raises(ValueError, match="do not determine the parameters 'a', 'b'"):
        ex.standard_errors(predict, {"a": 1.0, "b": 2.0}, np.eye(3))
    with pytest.raises(ValueError, match="predict returns 3 values"):
        ex.standard_errors(predict, {"a": 1.0, "b": 2.0}, np.eye(4))


# Bad input


def test_derivatives_that_are_not_finite_name_the_parameter():
    def loss(theta):
        return theta["good"] ** 2 + jnp.sqrt(theta["bad"])

    with pytest.raises(RuntimeError, match=r"derivative of the loss by 'bad' is inf at .*bad = 0"):
        ex.fit(loss, {"good": 1.0, "bad": 0.0})
    with pytest.raises(RuntimeError, match="the loss is nan at good = 1"):
        ex.fit(loss, {"good": 1.0, "bad": -1.0})
    with pytest.raises(RuntimeError, match="derivative of the predictions by 'bad'"):
        ex.standard_errors(
            lambda theta: jnp.stack([theta["good"], jnp.sqrt(theta["bad"])]),
            {"good": 1.0, "bad": 0.0},
            np.eye(2),
        )


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"y": (0, 1)}, "'y' is not a parameter"),
        ({"x": (1, 1)}, "bounds of 'x' must be low < high"),
        ({"x": (0, 1)}, r"theta0\['x'\] must lie in \(0\.0, 1\.0\); found 2"),
        ({"x": (2, np.inf)}, r"theta0\['x'\] must lie in \(2\.0, inf\)"),
    ],
)
def test_bad_bounds_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        ex.fit(lambda theta: theta["x"] ** 2, {"x": 2.0}, bounds=bounds)


@pytest.mark.parametrize("unit", [1e-18, 1e-9, 1.0, 1e18])
def test_fits_do_not_depend_on_the_unit_of_the_loss(unit):
    found = ex.fit(lambda theta: unit * jnp.sum((theta["x"] - 2) ** 4), {"x": jnp.zeros(2)})
    np.testing.assert_allclose(found.theta["x"], 2, atol=0.05)
