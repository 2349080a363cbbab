"""Results do not depend on the unit of payoffs, nor on where its zero is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.averaged.units import units

FACTORS = [1e-9, 1e-5, 0.03, 1e3, 1e6, 1e9]
SEXES = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
DILEMMA = np.array([[3.0, 0.0], [5.0, 1.0]])


def scaled(payoffs, temperature, discount, factor, shift=0.0, rate=0.1):
    tables = tuple(factor * table + shift for table in payoffs)
    learner = ex.QLearning(rate, discount, ex.EpsilonSoftmax(factor * temperature))
    return ex.WrappedGame(ex.games.repeated(tables, memory=0), [learner, learner])


def starts(count, low, high, factor=1.0, shift=0.0):
    tables = np.random.default_rng(0).uniform(low, high, size=(2, count, 1, 2))
    return tuple(jnp.asarray(factor * table + shift) for table in tables)


def shares(wrapped, params):
    return np.stack(jax.vmap(wrapped.policies)(params))[..., 0, 0]


def first(params):
    return jax.tree.map(lambda leaf: leaf[0], params)


def solved(factor, shift=0.0):
    """A dilemma that goes round: policies at some times."""
    wrapped = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, factor, shift, rate=1.0)
    params0 = first(starts(1, 4.0, 5.0, factor, 5 * shift))
    return shares(wrapped, ex.solve(wrapped, params0, [1.0, 10.0, 60.0]).params)


def at_rest(factor, shift=0.0):
    wrapped = scaled(SEXES, 0.35, 0.0, factor, shift)
    found = ex.rest_points(wrapped, starts(60, 0.0, 2.0, factor, shift))
    stable = [point.stability == "stable" for point in found]
    return np.array([shares(wrapped, jax.tree.map(lambda x: x[None], p.params)) for p in found]), (
        *stable,
        *found.leads_to.tolist(),
    )


def drawn(factor, shift=0.0):
    """Shares of starts, and the rest points they lead to."""
    wrapped = scaled(SEXES, 0.35, 0.0, factor, shift)
    found = ex.basins(wrapped, starts(30, 0.0, 2.0, factor, shift), 3e4)
    assert [one.kind for one in found.attractors] == ["rest point"] * 2
    return np.array([shares(wrapped, one.orbit) for one in found.attractors]), tuple(found.labels)


def test_the_unit_is_one_at_usual_payoffs_and_goes_with_them():
    wrapped = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, 1.0)
    np.testing.assert_array_equal(units(wrapped, wrapped.init()), 1)
    for factor in (2.0**-30, 2.0**30):
        other = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, factor)
        np.testing.assert_array_equal(units(other, other.init()), factor)
    shifted = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, 1.0, 1e5)
    np.testing.assert_array_equal(units(shifted, shifted.init()), 1)


def test_parameters_of_no_known_unit_are_measured_on_the_safe_side():
    def of(factor):
        game = ex.games.repeated((factor * DILEMMA, factor * DILEMMA.T), memory=0)
        wrapped = ex.WrappedGame(game, [ex.ActorCritic(), ex.QLearning()])
        return np.asarray(units(wrapped, wrapped.init()))

    np.testing.assert_array_equal(of(1.0), 1)
    np.testing.assert_array_equal(of(2.0**30), [1] * 3 + [2.0**30] * 2)
    np.testing.assert_array_equal(of(2.0**-30), 2.0**-30)


@pytest.mark.parametrize(("factor", "shift"), [*((f, 0.0) for f in FACTORS), (1.0, 1e5)])
def test_the_flow_does_not_depend_on_the_unit(factor, shift):
    # Shifted values are followed as closely as values of a thousand are.
    limit = 3e-5 if shift else 3e-6
    np.testing.assert_allclose(solved(factor, shift), solved(1.0), atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "shift"), [*((f, 0.0) for f in FACTORS), (1.0, 1e5)])
def test_rest_points_do_not_depend_on_the_unit(factor, shift):
    (found, kinds), (expected, like) = at_rest(factor, shift), at_rest(1.0)
    assert len(expected) == 3
    assert kinds == like
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "shift"), [(1e-5, 0.0), (1e9, 0.0), (1.0, 1e5)])
def test_basins_do_not_depend_on_the_unit(factor, shift):
    (found, labels), (expected, like) = drawn(factor, shift), drawn(1.0)
    assert labels == like
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_limit_cycles_do_not_depend_on_the_unit(factor):
    wrapped = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, factor, rate=1.0)
    (cycle,) = ex.basins(wrapped, starts(2, 4.0, 5.0, factor), 4000.0).attractors
    assert cycle.kind == "limit cycle"
    np.testing.assert_allclose(cycle.period, 95.803, atol=5e-4)  # as published


@pytest.mark.slow
def test_large_payoffs_and_patience_end_at_rest():
    payoffs = np.array([[3.0, 1.5], [3.5, 2.0]])
    wrapped = scaled((payoffs, payoffs.T), 0.5, 0.99, 1e6)
    # An action that falls behind is not tried for ages: they start near.
    nearby = starts(3, -0.05, 0.05)
    params0 = jax.tree.map(lambda leaf: 1e6 * (jnp.array([[[239.84, 240.34]]]) + leaf), nearby)
    (rest,) = ex.basins(wrapped, params0, 1e5).attractors
    assert rest.kind == "rest point"
    assert rest.rest.stability == "stable"
    # One action is worth half a million more whatever the other does.
    share = 1 / (1 + np.exp(1.0))
    np.testing.assert_allclose(shares(wrapped, rest.orbit).ravel(), share, atol=1e-9)


def test_tiny_rewards_are_not_below_the_tolerance():
    game = ex.MarkovGame.deterministic(np.zeros((1, 1), int), np.full((1, 1, 1), 3e-12))
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.2, 0.5)])
    path = ex.solve(wrapped, wrapped.init(), [4.0]).params[0].ravel()
    np.testing.assert_allclose(path, 6e-12 * (1 - np.exp(-0.4)), rtol=1e-6)
    rest = ex.rest_point(wrapped, wrapped.init()).params[0].ravel()
    np.testing.assert_allclose(rest, 6e-12, rtol=1e-12)


@pytest.mark.slow
def test_rest_points_in_single_precision():
    with jax.enable_x64(False):
        wrapped = scaled(SEXES, 0.35, 0.0, 1.0)
        found = ex.rest_points(wrapped, starts(60, 0.0, 2.0))
        assert found[0].params[0].dtype == np.float32
        values = [float(wrapped.policies(point.params)[0][0, 0]) for point in found]
    expected, _ = at_rest(1.0)
    np.testing.assert_allclose(np.sort(values), np.sort(expected[:, 0].ravel()), atol=1e-5)


def traded(factor, shift=0.0):
    """Q-learners in a market of two states whose flow crosses kinks, and their parameters."""
    rng = np.random.default_rng(4)
    kernel = rng.dirichlet(np.ones(2), size=(2, 2, 2))
    rewards = factor * rng.normal(size=(2, 2, 2, 2)) + shift
    learner = ex.QLearning(0.5, 0.6, ex.EpsilonSoftmax(0.5 * factor, 0.1))
    wrapped = ex.WrappedGame(ex.MarkovGame.from_dense(kernel, rewards), [learner, learner])
    params = tuple(factor * rng.normal(size=(2, 2)) + shift / 0.4 for _ in range(2))
    return wrapped, jax.tree.map(jnp.asarray, params)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "shift"), [(1e-9, 0.0), (1e9, 0.0), (1.0, 1e5)])
def test_kinks_and_fluctuations_do_not_depend_on_the_unit(factor, shift):
    def analysed(factor, shift=0.0):
        wrapped, params = traded(factor, shift)
        ts = [1.0, 4.0, 15.0]
        predicted = ex.fluctuations(wrapped, params, ts, bias=True, initial_state=0)
        report = ex.kinks(wrapped, params, ts)
        covariance = ex.stationary_covariance(wrapped, ex.rest_point(wrapped, params))
        return (
            [(tie.kind, tie.agent, tie.row, tie.old, tie.new) for tie in report.ties],
            (predicted.near_kink(10.0).tolist(), np.asarray(predicted.kinks.row).tolist()),
            np.array([tie.time for tie in report.ties]),
            predicted.covariance / factor**2,
            predicted.bias / factor,
            predicted.margin,
            covariance / factor**2,
        )

    (ties, flags, *found), (like, marks, *expected) = analysed(factor, shift), analysed(1.0)
    assert ties == like
    assert len(ties) > 0
    assert flags == marks
    for value, other in zip(found, expected, strict=True):
        finite = np.isfinite(other)
        np.testing.assert_array_equal(np.isfinite(value), finite)
        size = np.abs(np.where(finite, other, 0)).max()
        np.testing.assert_allclose(
            np.where(finite, value, 0), np.where(finite, other, 0), atol=1e-4 * size
        )


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_the_required_scale_and_slopes_do_not_depend_on_the_unit(factor):
    def analysed(factor):
        wrapped, params = traded(factor)
        scale = ex.required_scale(wrapped, params, 2.0, 0.2 * factor, paths=200)

        def build(theta):
            learner = ex.QLearning(theta["rate"], 0.6, ex.EpsilonSoftmax(0.5 * factor, 0.1))
            return ex.WrappedGame(wrapped.game, [learner, learner]), params

        found = ex.sensitivities(build, {"rate": jnp.asarray(0.5)}, [2.0])
        slopes = [np.ravel(part["rate"]) for part in found.derivatives]
        return np.array([scale]), np.concatenate(slopes) / factor

    for value, expected in zip(analysed(factor), analysed(1.0), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-4 * np.abs(expected).max())
