import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.averaged.basins import wilson_interval


def stateless(payoffs, tau, gamma):
    """Two Q-learners with softmax exploration in a repeated symmetric game without memory."""
    payoffs = np.asarray(payoffs, dtype=float)
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)
    learner = ex.QLearning(1.0, gamma, ex.EpsilonSoftmax(tau))
    return ex.WrappedGame(game, [learner, learner])


def starts(seed, count, low, high):
    tables = np.random.default_rng(seed).uniform(low, high, size=(2, count, 1, 2))
    return tuple(jnp.asarray(table) for table in tables)


def extreme(values, sign):
    """The largest value of sign * a periodic function, from the parabola through its top."""
    values = sign * np.asarray(values)
    k = int(np.argmax(values))
    left, top, right = values[k - 1], values[k], values[(k + 1) % len(values)]
    return sign * (top + (left - right) ** 2 / (8 * (2 * top - left - right)))


@pytest.mark.slow
def test_the_dilemmas_limit_cycle_is_the_published_one():
    wrapped = stateless([[3, 0], [5, 1]], 1.0, 0.8)

    def centred(share):
        logit = np.log(share / (1 - share))
        return jnp.array([[[logit / 2, -logit / 2]]])

    found = ex.basins(wrapped, (centred(0.5), centred(0.48)), 4000.0)
    (cycle,) = found.attractors
    assert cycle.kind == "limit cycle"
    assert cycle.rest is None
    np.testing.assert_allclose(cycle.period, 95.803, atol=5e-4)
    for policy in jax.vmap(wrapped.policies)(cycle.orbit):
        shares = policy[:, 0, 0]
        np.testing.assert_allclose(extreme(shares, -1), 0.006229, atol=5e-7)
        np.testing.assert_allclose(extreme(shares, 1), 0.340247, atol=5e-7)
    np.testing.assert_array_equal(found.labels, [0])


@pytest.mark.slow
def test_all_points_of_a_cycle_belong_to_it():
    wrapped = stateless([[3, 0], [5, 1]], 1.0, 0.8)
    params = starts(0, 150, 4.0, 5.0)
    # One start rests in the unstable focus.
    focus = ex.rest_point(wrapped, wrapped.init())
    assert focus.stability == "unstable"
    params = jax.tree.map(lambda leaf, own: leaf.at[70].set(own), params, focus.params)
    found = ex.basins(wrapped, params, 3000.0)
    cycle, rest = found.attractors
    assert (cycle.kind, rest.kind) == ("limit cycle", "rest point")
    np.testing.assert_allclose(cycle.period, 95.803, atol=5e-4)
    assert rest.rest.stability == "unstable"
    assert rest.period == 0
    np.testing.assert_array_equal(found.labels, np.arange(150) == 70)
    np.testing.assert_allclose(found.shares, [149 / 150, 1 / 150])
    assert found.unidentified == 0


@pytest.mark.slow
def test_coordination_has_two_stable_basins_below_one_half():
    wrapped = stateless(np.eye(2), 0.49, 0.0)
    params = starts(1, 1000, 0.0, 1.0)
    found = ex.basins(wrapped, params, 5000.0)
    shares = [float(wrapped.policies(a.rest.params)[0][0, 0]) for a in found.attractors]
    np.testing.assert_allclose(sorted(shares), [0.378509, 0.621491], atol=5e-7)
    assert [a.rest.stability for a in found.attractors] == ["stable", "stable"]
    # By symmetry both draw one half; five standard deviations.
    np.testing.assert_allclose(found.shares, 0.5, atol=5 * 0.5 / np.sqrt(1000))
    assert found.shares[0] >= found.shares[1]
    low, high = found.intervals.T
    assert np.all((low < found.shares) & (found.shares < high))
    # The labels agree with the ends.
    ends = jax.vmap(wrapped.policies)(found.ends)[0][:, 0, 0]
    np.testing.assert_array_equal(ends > 0.5, np.array(shares)[found.labels] > 0.5)


def test_one_basin_above_one_half():
    wrapped = stateless(np.eye(2), 0.6, 0.0)
    found = ex.basins(wrapped, starts(2, 40, 0.0, 1.0), 1000.0)
    (attractor,) = found.attractors
    np.testing.assert_allclose(wrapped.policies(attractor.rest.params)[0], 0.5, atol=1e-9)
    np.testing.assert_allclose(found.shares, [1.0])


@pytest.mark.slow
def test_starts_still_on_their_way_are_not_identified():
    wrapped = stateless(np.eye(2), 0.49, 0.0)
    with pytest.warns(UserWarning, match="of 5 of 5 starts were not identified"):
        found = ex.basins(wrapped, starts(3, 5, 0.0, 1.0), 0.5)
    assert found.attractors == ()
    assert found.unidentified == 1
    assert found.intervals.shape == (0, 2)


def test_wilson_intervals():
    # Agresti and Coull (1998): 0 of 10 and 5 of 10 at 95%.
    found = wilson_interval(np.array([0, 5, 10]), 10, 0.95)
    expected = [[0.0, 0.27753], [0.23659, 0.76341], [0.72247, 1.0]]
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_wilson_intervals_cover():
    rng = np.random.default_rng(4)
    counts = rng.binomial(200, 0.3, size=20_000)
    low, high = wilson_interval(np.arange(201), 200, 0.95)[counts].T
    # Exact coverage at these numbers is 0.953; five standard errors.
    np.testing.assert_allclose(np.mean((low <= 0.3) & (high >= 0.3)), 0.95, atol=0.012)


def test_bad_input_is_refused():
    wrapped = stateless(np.eye(2), 0.6, 0.0)
    params = starts(0, 3, 0.0, 1.0)
    with pytest.raises(ValueError, match="leading axis of starts of the same length"):
        ex.basins(wrapped, (params[0], params[1][:2]), 10.0)
    with pytest.raises(ValueError, match=r"time must be a positive number; found -1.0"):
        ex.basins(wrapped, params, -1.0)
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\)"):
        ex.basins(wrapped, params, 10.0, confidence=1.0)
    with pytest.raises(ValueError, match="must be finite"):
        ex.basins(wrapped, (params[0], params[1] * np.nan), 10.0)
