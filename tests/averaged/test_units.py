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


@pytest.mark.parametrize(("factor", "shift"), [*((f, 0.0) for f in FACTORS), (1.0, 1e5)])
def test_rest_points_do_not_depend_on_the_unit(factor, shift):
    (found, kinds), (expected, like) = at_rest(factor, shift), at_rest(1.0)
    assert len(expected) == 3
    assert kinds == like
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(("factor", "shift"), [(1e-5, 0.0), (1e9, 0.0), (1.0, 1e5)])
def test_basins_do_not_depend_on_the_unit(factor, shift):
    (found, labels), (expected, like) = drawn(factor, shift), drawn(1.0)
    assert labels == like
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_limit_cycles_do_not_depend_on_the_unit(factor):
    wrapped = scaled((DILEMMA, DILEMMA.T), 1.0, 0.8, factor, rate=1.0)
    (cycle,) = ex.basins(wrapped, starts(2, 4.0, 5.0, factor), 4000.0).attractors
    assert cycle.kind == "limit cycle"
    np.testing.assert_allclose(cycle.period, 95.803, atol=5e-4)  # as published


def test_large_payoffs_and_patience_end_at_rest():
    payoffs = np.array([[3.0, 1.5], [3.5, 2.0]])
    wrapped = scaled((payoffs, payoffs.T), 0.5, 0.99, 1e6)
    # An action that falls behind is not tried for ages: they start near.
    nearby = starts(3, -0.05, 0.05)
    params0 = jax.tree.map(lambda leaf: 1e6 * (jnp.array([239.84, 240.34]) + leaf), nearby)
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


def test_rest_points_in_single_precision():
    with jax.enable_x64(False):
        wrapped = scaled(SEXES, 0.35, 0.0, 1.0)
        found = ex.rest_points(wrapped, starts(60, 0.0, 2.0))
        assert found[0].params[0].dtype == np.float32
        values = [float(wrapped.policies(point.params)[0][0, 0]) for point in found]
    expected, _ = at_rest(1.0)
    np.testing.assert_allclose(np.sort(values), np.sort(expected[:, 0].ravel()), atol=1e-5)
