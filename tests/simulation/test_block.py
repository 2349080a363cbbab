"""Blocks of steps: report times, the counter of steps, runs that diverge."""

import jax
import numpy as np
import pytest

import ergodax as ex
from ergodax.simulation import block, job
from helpers import random_case
from reference import KEY, Replay, rows

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.slow
def test_steps_beyond_the_first_word_of_the_counter(monkeypatch):
    """The step number carries into its second word, and from block to block of report times."""
    offset, original = 2**33 - 20, job.words_of
    for module in (job, block):
        monkeypatch.setattr(module, "words_of", lambda step: original(step + offset))
    # Five states: no other test has compiled a program of these shapes.
    case = random_case(12, 5, (2, 3), ("q", "sarsa"), "next_state")
    ts = np.arange(61.0)
    sim = ex.simulate(case.wrapped, case.params, ts, runs=2, key=KEY, keep_runs=True)
    for run in range(2):
        replay = Replay(case, KEY, run, 60, 1.0, np.full(5, 0.2), offset)
        np.testing.assert_allclose(rows(sim.values)[run], replay.params, rtol=1e-11, atol=1e-12)
        assert sim.final.state[run] == replay.states[-1]


@pytest.mark.slow
def test_reported_times_are_those_of_the_steps_taken(small):
    ts = np.array([0.0, 0.3, 1.0, 2.1])
    sim = ex.simulate(small.wrapped, small.params, ts, scale=3.7, runs=4, key=KEY, keep_runs=True)
    assert sim.steps.tolist() == [0, 1, 3, 7]
    np.testing.assert_array_equal(sim.ts, np.array([0, 1, 3, 7]) / 3.7)
    assert (sim.scale, sim.runs) == (3.7, 4)
    for values, mean, start in zip(
        *map(jax.tree.leaves, (sim.values, sim.mean, small.params)), strict=True
    ):
        np.testing.assert_array_equal(values[:, 0], np.broadcast_to(start, values[:, 0].shape))
        np.testing.assert_allclose(mean[0], start, rtol=1e-14)
    assert all((leaf[0] < 1e-28).all() for leaf in jax.tree.leaves(sim.variance))
    assert sim.compile_seconds > 0
    assert sim.run_seconds > 0
    np.testing.assert_allclose(sim.steps_per_second, 4 * 7 / sim.run_seconds)
    assert sim.result == ex.RESULTS.successful


@pytest.mark.slow
def test_many_report_times(small):
    """More than fit into one block, with a last block that is not full."""
    few, many = np.array([0.0, 40.0, 75.0]), np.arange(76.0)
    options = dict(runs=20, key=KEY, keep_runs=True, scale=0.5)
    sparse = ex.simulate(small.wrapped, small.params, few, **options)
    dense = ex.simulate(small.wrapped, small.params, many, **options)
    np.testing.assert_array_equal(dense.steps, np.arange(76) // 2)
    np.testing.assert_array_equal(rows(dense.values)[:, [0, 40, 75]], rows(sparse.values))
    np.testing.assert_array_equal(dense.final.state, sparse.final.state)
    taken = np.diff(dense.steps, prepend=0)
    assert (np.isnan(dense.rewards).all(axis=1) == (taken == 0)).all()
    earned = np.nancumsum(dense.rewards * taken[:, None], axis=0)[[40, 75]]
    np.testing.assert_allclose(np.diff(earned, axis=0), sparse.rewards[2:] * 17, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [512, 16])
def test_diverging_runs_warn_and_leave_the_others_alone(batch_size):
    # Runs that start in state 0 stay there and are infinite at once; those in state 1 are not.
    rewards = np.array([[[1e300]], [[1.0]]])
    game = ex.MarkovGame.deterministic(np.array([[0], [1]]), rewards)
    wrapped = ex.WrappedGame(game, [ex.QLearning(1e10, 0.5)])
    ts, options = np.array([0.0, 1.0, 3.0]), dict(key=KEY, keep_runs=True, batch_size=batch_size)
    with pytest.warns(UserWarning, match="became infinite or NaN") as caught:
        sim = ex.simulate(wrapped, wrapped.init(), ts, runs=40, **options)
    lost = sim.final.state == 0
    assert 0 < lost.sum() < 40
    assert [str(warning.message) for warning in caught] == [
        f"{lost.sum()} of 40 runs became infinite or NaN, the first by t = 1: are the updates too "
        "large for their scale?"
    ]
    assert sim.result == ex.RESULTS.nonfinite

    values = sim.values[0][..., 0]
    assert not np.isfinite(values[lost, 1:, 0]).any()
    path = [0.0]
    for _ in range(3):
        path.append(path[-1] + 1e10 * (1 + 0.5 * path[-1] - path[-1]))
    expected = np.broadcast_to([path[0], path[1], path[3]], values[~lost, :, 1].shape)
    np.testing.assert_allclose(values[~lost, :, 1], expected, rtol=1e-14)
    assert (values[~lost, :, 0] == 0).all()
    # Moments say that they are not finite, entry by entry; frequencies stay.
    assert not np.isfinite(sim.mean[0][1:, 0]).any()
    np.testing.assert_allclose(sim.mean[0][:, 1, 0], values[..., 1].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(sim.state_frequency[1:, 0], lost.mean(), rtol=1e-14)


def test_ensembles_that_stay_finite_do_not_warn(small):
    sim = ex.simulate(small.wrapped, small.params, np.array([0.0, 20.0]), runs=20, key=KEY)
    assert sim.result == ex.RESULTS.successful
