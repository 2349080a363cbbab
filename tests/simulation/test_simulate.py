"""What a simulation reports: observables, kept runs, moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from reference import KEY

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.slow
def test_kept_runs_and_observables_have_run_and_time_axes(small):
    ts = np.array([0.0, 3.0, 9.0, 12.0, 13.0])
    options = dict(runs=21, key=KEY, keep_runs=True, batch_size=16)
    sim = ex.simulate(small.wrapped, small.params, ts, **options)
    for leaf, start in zip(*map(jax.tree.leaves, (sim.values, small.params)), strict=True):
        assert leaf.shape == (21, 5, *start.shape)
    observed = ex.simulate(
        small.wrapped, small.params, ts, observe=small.wrapped.policies, **options
    )
    expected = jax.vmap(jax.vmap(small.wrapped.policies))(jax.tree.map(jnp.asarray, sim.values))
    for found, mean, policy in zip(observed.values, observed.mean, expected, strict=True):
        assert found.shape == (21, 5, 3, 2)
        np.testing.assert_allclose(found, policy, rtol=1e-13)
        np.testing.assert_allclose(mean, np.mean(policy, axis=0), rtol=1e-13)
    # What is observed does not change the runs.
    for found, expected in zip(*map(jax.tree.leaves, (observed.final, sim.final)), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_any_function_of_the_parameters_can_be_observed(small):
    def observe(params):
        return {"best": jnp.argmax(params[0][0]), "greedy": params[1][0, 0] > params[1][0, 1]}

    ts = np.array([1.0, 60.0])
    options = dict(runs=50, key=KEY, keep_runs=True, batch_size=16)
    sim = ex.simulate(small.wrapped, small.params, ts, **options)
    observed = ex.simulate(small.wrapped, small.params, ts, observe=observe, **options)
    best = np.argmax(sim.values[0][:, :, 0], axis=-1)
    greedy = sim.values[1][:, :, 0, 0] > sim.values[1][:, :, 0, 1]
    np.testing.assert_array_equal(observed.values["best"], best)
    np.testing.assert_array_equal(observed.values["greedy"], greedy)
    np.testing.assert_allclose(observed.mean["best"], best.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(observed.variance["greedy"], greedy.var(axis=0, ddof=1), rtol=1e-12)
    assert 0 < observed.mean["greedy"][1] < 1


def test_a_single_run_has_no_variance(small):
    sim = ex.simulate(small.wrapped, small.params, np.array([0.0, 5.0]), key=KEY)
    assert sim.runs == 1
    assert sim.values is None
    for leaf in jax.tree.leaves((sim.variance, sim.standard_error)):
        assert np.isnan(leaf).all()
    for leaf in jax.tree.leaves(sim.mean):
        assert np.isfinite(leaf).all()
