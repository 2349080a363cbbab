"""Precision of simulations in float32, and without float64."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ergodax as ex
from helpers import unflatten
from reference import KEY

pytestmark = pytest.mark.usefixtures("optimised")


class Drifting(ex.AbstractLearner):
    """Moves at a constant rate, by a dense and by a sparse increment."""

    rate: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):
        return {"dense": jnp.full(2, 30.0), "sparse": jnp.full((1, 1), 30.0)}

    def policy(self, params, state):
        return jnp.ones(1)

    def update(self, params, transition, game, agent):
        at = (transition.state, transition.action)
        return {"dense": jnp.stack([self.rate, -self.rate]), "sparse": ex.At(at, self.rate)}


@pytest.mark.slow
def test_small_float32_increments_are_not_lost():
    """At N = 1e5 an increment is 1e-7, and the spacing of float32 numbers around 30 is 1.9e-6."""
    scale, time, rate = 1e5, 10.0, 0.01
    game = ex.MarkovGame.deterministic(np.zeros((1, 1), dtype=int), np.full((1, 1, 1), 0.1))
    wrapped = ex.WrappedGame(game, [Drifting(rate)])
    sim = ex.simulate(
        wrapped, wrapped.init(), np.array([0.0, time]), scale=scale, key=KEY, dtype=jnp.float32
    )
    moved = sim.mean[0]
    # One spacing for the rounding of the result; the increment's own rounding is 1e-7 of the way.
    np.testing.assert_allclose(moved["dense"][1], [30.1, 29.9], rtol=0, atol=2e-6)
    np.testing.assert_allclose(moved["sparse"][1], 30.1, rtol=0, atol=2e-6)
    np.testing.assert_allclose(sim.rewards[1], 0.1, rtol=1e-6)

    # Plain float32 additions do not move at all, and lose a per cent of the rewards.
    steps = round(scale * time)
    terms = np.full(steps + 1, rate / scale, np.float32)
    terms[0] = 30.0
    assert np.add.accumulate(terms)[-1] == 30.0
    sum_of_rewards = np.add.accumulate(np.full(steps, 0.1, np.float32))[-1]
    assert abs(sum_of_rewards / steps - 0.1) > 1e-4


@pytest.mark.slow
def test_float32_means_are_exact_to_the_last_place(pd, golden):
    """Sums over hundreds of runs round no more than one number does."""
    params = unflatten(pd, golden["pd"]["x0"])
    sim = ex.simulate(
        pd,
        params,
        np.arange(0.0, 200.0, 20.0),
        scale=10.0,
        runs=512,
        key=KEY,
        dtype=jnp.float32,
        keep_runs=True,
    )
    for mean, values in zip(sim.mean, sim.values, strict=True):
        exact = values.mean(axis=0, dtype=float)
        assert (np.abs(mean - exact) <= np.spacing(exact.astype(np.float32))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "time", "runs"), [(1e4, 20.0, 64), (1e5, 4.0, 16)])
def test_float32_ensembles_agree_with_float64_at_large_scale(pd, golden, scale, time, runs):
    """The same random numbers: only rounding differs, and rarely (2^-24 a draw) an action.

    Single parameters are known to half the spacing of float32 numbers around 30, 1e-6, and means
    of runs are float32 sums. An action that differs moves one run by about 30 alpha / N = 3e-5 at
    N = 1e4, hence the mean by less than 1e-6. The movement by learning is .019 and .0038, and its
    Monte Carlo error 3e-5 and 7e-6.
    """
    params = unflatten(pd, golden["pd"]["x0"])
    options = dict(scale=scale, runs=runs, key=KEY, initial_state=0)
    ts = np.array([0.0, time])
    single = ex.simulate(pd, params, ts, dtype=jnp.float32, **options)
    double = ex.simulate(pd, params, ts, dtype=jnp.float64, **options)
    found, expected = (
        np.concatenate([leaf[1].ravel() for leaf in sim.mean]) for sim in (single, double)
    )
    assert np.abs(expected - golden["pd"]["x0"]).max() > 0.003
    assert np.abs(found - expected).max() < 1e-5
    np.testing.assert_allclose(single.rewards[1], double.rewards[1], rtol=1e-4)
    np.testing.assert_allclose(single.state_frequency[1], double.state_frequency[1], atol=1e-4)


WITHOUT_X64 = """
import warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np
import ergodax as ex
assert not jax.config.jax_enable_x64
learners = [ex.QLearning(0.3, 0.9, ex.EpsilonSoftmax(0.5, 0.1)), ex.Sarsa(0.3, 0.9)]
wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
ts = np.array([0.0, 2.5, 40.0])
sim = ex.simulate(
    wrapped, wrapped.init(), ts, scale=7.0, runs=20, key=jax.random.key(0), keep_runs=True
)
assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((sim.values, sim.final.params)))
assert sim.final.compensation is not None
try:
    ex.simulate(wrapped, wrapped.init(), ts, key=jax.random.key(0), dtype=jnp.float64)
except ValueError as error:
    assert "jax_enable_x64" in str(error)
else:
    raise AssertionError("float64 was not refused")
np.save("values.npy", np.stack(sim.values))
"""


@pytest.mark.slow
def test_simulation_without_x64(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_X64],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    learners = [ex.QLearning(0.3, 0.9, ex.EpsilonSoftmax(0.5, 0.1)), ex.Sarsa(0.3, 0.9)]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(1.5), learners)
    sim = ex.simulate(
        wrapped,
        wrapped.init(),
        np.array([0.0, 2.5, 40.0]),
        scale=7.0,
        runs=20,
        key=KEY,
        keep_runs=True,
        dtype=jnp.float32,
    )
    found = np.load(tmp_path / "values.npy")
    np.testing.assert_allclose(found, np.stack(sim.values), rtol=0, atol=1e-5)
