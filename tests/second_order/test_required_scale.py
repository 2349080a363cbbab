"""The required scale, by simulation at every ratio of noise to what is of order 1 / N."""

import jax
import numpy as np
import pytest

import ergodax as ex

TOLERANCE, END = 0.005, 3.0


def alternating(noise, rate=1.0):
    """Two states in turn, one action, rewards 1 +- noise in the first and +- noise in the other."""
    signs = np.array([1.0, -1.0]) * noise
    game = ex.MarkovGame(
        np.array([[[1, 1]], [[0, 0]]]),
        np.full((2, 1, 2), 0.5),
        np.stack([1 + signs, signs])[:, None, :, None],
    )
    wrapped = ex.WrappedGame(game, [ex.QLearning(rate, 0.5)])
    return wrapped, wrapped.init()


def share_within(wrapped, params, scale, first):
    """Share of simulated runs that stay within the tolerance at all steps."""
    ts = np.arange(1, int(END * scale) + 1) / scale
    flow = np.asarray(ex.solve(wrapped, params, ts).params[0])
    sim = ex.simulate(
        wrapped,
        params,
        ts,
        scale=scale,
        runs=1000,
        key=jax.random.key(1),
        initial_state=first,
        keep_runs=True,
    )
    distance = np.abs(np.asarray(sim.values[0]) - flow).max(axis=(1, 2, 3))
    return np.mean(distance <= TOLERANCE)


# The scale at which 95 % of simulated runs stay within.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "simulated"), [(0.0, 101), (1e-4, 101), (1e-3, 101.5), (4e-3, 107), (1e-2, 126)]
)
def test_it_is_that_of_simulation_whatever_the_noise(noise, simulated):
    wrapped, params = alternating(noise)
    scale = ex.required_scale(wrapped, params, END, TOLERANCE, initial_state=0)
    assert abs(scale / simulated - 1) < 0.015


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, None])
@pytest.mark.parametrize("noise", [1e-3, 1e-2, 3e-2])
def test_that_share_of_runs_stays_within(noise, first):
    wrapped, params = alternating(noise)
    scale = ex.required_scale(wrapped, params, END, TOLERANCE, initial_state=first)
    if noise == 1e-3:  # nearly a step
        assert share_within(wrapped, params, 0.98 * scale, first) < 0.5
        assert share_within(wrapped, params, 1.03 * scale, first) > 0.99
    else:
        error = np.sqrt(0.95 * 0.05 / 1000)
        assert abs(share_within(wrapped, params, scale, first) - 0.95) < 5 * error + 0.01


@pytest.mark.slow
def test_where_nothing_is_learned_any_scale_will_do():
    wrapped, params = alternating(0.1, rate=0.0)
    assert ex.required_scale(wrapped, params, END, TOLERANCE, paths=100) == 0


def test_as_many_paths_as_memory_does_not_hold_are_refused():
    wrapped, params = alternating(0.1)
    with pytest.raises(ValueError, match=r"paths must be at most 33554432 .* found 1000000000"):
        ex.required_scale(wrapped, params, END, TOLERANCE, paths=10**9)
