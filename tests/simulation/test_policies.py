"""Policies while they are played: only possible actions are drawn, and what is none is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import step
from reference import KEY

pytestmark = pytest.mark.usefixtures("optimised")

# The learner of README: its propensities become negative if payoffs are.
README = ex.RothErev(0.01, forgetting=1.0, experimentation=0.0)


@pytest.mark.slow
def test_runs_whose_policy_became_negative_are_lost_and_named():
    payoffs = np.array([[1, 0.8], [-0.5, -0.2]])
    game = ex.games.repeated((payoffs, payoffs.T), memory=0)
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.01, 0.5), README])
    ts, options = np.linspace(0, 2000, 5), dict(runs=128, key=KEY, keep_runs=True)
    with pytest.warns(UserWarning, match=r"played a policy of agent 1 \(RothErev\)") as caught:
        sim = ex.simulate(wrapped, wrapped.init(), ts, observe=wrapped.policies, **options)
    assert sim.result == ex.RESULTS.invalid_policy
    lost = np.isnan(sim.values[1][:, -1]).all(axis=(1, 2))
    assert 0 < lost.sum() < 128
    assert str(caught[0].message).startswith(f"{lost.sum()} of 128 runs are lost: {lost.sum()} of")
    # Nothing that is reported of any run is outside [0, 1], though some runs went there and back.
    kept = sim.values[1][np.isfinite(sim.values[1])]
    assert kept.min() >= 0
    assert kept.max() <= 1
    np.testing.assert_array_equal(np.isnan(sim.final.params[0]).all(axis=(1, 2)), lost)
    with pytest.raises(ValueError, match="must be finite"):
        ex.simulate(wrapped, None, [2000.0, 2001.0], start=sim, **options)


class Passing(ex.AbstractLearner):
    """Plays properly but for one step: the one in which its clock shows `when`."""

    bad: jax.Array = ex.hyper(scalar=False)
    when: jax.Array = ex.hyper(50.0)

    def init(self, game, agent, *, key):
        return jnp.zeros(1)

    def policy(self, params, state):
        bad = jnp.where(self.bad == 9, jnp.nan, self.bad)
        return jnp.where(params[0] == self.when, bad, jnp.array([0.25, 0.75]))

    def update(self, params, transition, game, agent):
        return jnp.ones(1)


class PassingSarsa(Passing):
    """The same, drawing its next action before it learns."""

    needs_next_action = True


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Passing, PassingSarsa])
@pytest.mark.parametrize("bad", [(1.3, -0.3), (0.8, -0.3), (0.5, 0.4), (9, 0.5), (0.5, 0.6)])
def test_a_single_bad_step_does_not_slip_through(kind, bad):
    game = ex.games.prisoners_dilemma(1.5)
    for when in (0.0, 50.0):
        wrapped = ex.WrappedGame(game, [ex.QLearning(0.1), kind(np.array(bad, float), when)])
        with pytest.warns(UserWarning, match="3 of 3 runs"):
            sim = ex.simulate(wrapped, wrapped.init(), [40.0, 90.0], runs=3, key=KEY)
        assert np.isfinite(sim.mean[0][0]).all() == (when > 0)
        assert np.isnan(sim.mean[0][1]).all()
        assert sim.result != ex.RESULTS.successful


@pytest.mark.parametrize("count", [2, 3, 32, 33, 201])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_possible_indices_are_drawn(count, dtype):
    """At both ends of the uniform numbers, with impossible entries first, last and between."""
    rng = np.random.default_rng(0)
    draw = jax.jit(jax.vmap(jax.vmap(step.draw, (None, 0)), (0, None)))
    laws = rng.dirichlet(np.full(count, 0.3), size=400) * (rng.random((400, count)) < 0.6)
    laws[:, rng.integers(count)] += 1e-3
    laws = (laws / laws.sum(axis=1, keepdims=True)).astype(dtype)
    numbers = np.array([2**-24, 0.1, 0.5, 0.9, 1 - 2**-23, 1 - 2**-24], dtype)
    index, valid = draw(laws, numbers)
    assert (np.take_along_axis(laws, np.asarray(index), axis=1) > 0).all()
    assert valid.all()
    # Rounding apart it is the inverse of the distribution function.
    ends = np.cumsum(laws.astype(float), axis=1)
    found, rounding = np.asarray(index), count * np.finfo(dtype).eps
    above = np.take_along_axis(ends, found, axis=1) >= numbers - rounding
    below = np.take_along_axis(ends - laws, found, axis=1) <= numbers + rounding
    assert (above & below).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outcomes_are_possible_whatever_the_rounding(dtype):
    rng = np.random.default_rng(1)
    laws = rng.dirichlet(np.full(201, 0.3), size=300) * (rng.random((300, 201)) < 0.6)
    laws = (laws / laws.sum(axis=1, keepdims=True)).astype(dtype)
    ends = np.asarray(step.cumulative_law(jnp.asarray(laws)))
    assert (np.diff(ends, axis=1) >= 0).all()
    # The number that stands at the beginning of a cell is in a cell of positive probability.
    for numbers in (ends, np.nextafter(ends, 0), np.full_like(ends, 1 - 2**-24)):
        numbers = np.clip(numbers, 2**-24, 1 - 2**-24)
        index = (numbers[:, :, None] >= ends[:, None, :]).sum(axis=-1)
        assert (np.take_along_axis(laws, index, axis=1) > 0).all()
