"""Runs with schedules that share a clock: the same numbers as with a clock of their own."""

import jax
import numpy as np
import pytest

import ergodax as ex
from ergodax import schedules
from ergodax.simulation.inputs import check_inputs

pytestmark = pytest.mark.usefixtures("optimised")

WRAPPED = ex.WrappedGame(
    ex.games.stag_hunt(memory=0),
    [
        ex.Cross(schedules.power(0.1, 0.6), 0.02),
        ex.QLearning(
            schedules.piecewise([0, 4, 9], [0.1, 0.3, 0.0]),
            0.9,
            ex.EpsilonSoftmax(schedules.exponential(0.5, 0.1, 0.2), 0.1),
        ),
    ],
)
RUNS, LOST = 130, 70


def starts(clocks, lost=False):
    """Parameters of runs with these times on their clocks; one may have no policy."""
    params = jax.tree.map(lambda a: np.tile(a, (len(clocks), *(1,) * a.ndim)), WRAPPED.init())
    params[0].params[LOST] *= 6.0 if lost else 1.0
    for own in params:
        own.time[:] = clocks
    return params


def simulate(params0, ts, batch_size=64, start=None):
    options = dict(scale=3, dtype="float32", key=jax.random.key(2), keep_runs=True, start=start)
    return ex.simulate(WRAPPED, params0, np.array(ts), batch_size=batch_size, **options)


def assert_same(found, expected, rows):
    of_both = [(sim.values, sim.final._replace(compensation=None)) for sim in (found, expected)]
    lost = np.isnan(found.final.params[0].time)[rows]  # their clocks' remainders are of no use
    remainders = [sim.final.compensation for sim in (found, expected)]
    for tree, live in ((of_both, slice(None)), (remainders, ~lost)):
        for a, b in zip(*map(jax.tree.leaves, tree), strict=True):
            np.testing.assert_array_equal(a[rows][live], b[rows][live])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of")
def test_a_shared_clock_changes_no_number():
    together, apart = np.zeros(RUNS), np.append(np.zeros(RUNS), 2.0)
    for clocks in (together, apart):
        inputs = check_inputs(WRAPPED, starts(clocks), None, None, None, "float32")
        assert inputs.in_step == (clocks is together)
    found = simulate(starts(together, True), [1.0, 2.5], batch_size=256)
    assert_same(found, simulate(starts(apart, True), [1.0, 2.5]), slice(RUNS))
    assert np.isnan(found.final.params[0].time).nonzero()[0].tolist() == [LOST]

    found, expected = (
        simulate(starts(clocks), [1.0, 2.5], batch_size)
        for clocks, batch_size in ((together, 256), (apart, 64))
    )
    on = simulate(None, [6.0, 7.0], batch_size=256, start=found)
    assert_same(on, simulate(None, [6.0, 7.0], start=expected), slice(RUNS))

    # Runs that start at two times are those of two simulations, each with a clock for all.
    mixed = simulate(starts(np.arange(RUNS) % 2 * 5.0), [1.0, 2.5])
    for k in (0, 1):
        alone = simulate(starts(np.full(RUNS, 5.0 * k)), [1.0, 2.5], batch_size=256)
        assert_same(alone, mixed, slice(k, None, 2))
        np.testing.assert_allclose(alone.final.params[1].time, 5.0 * k + 2 + 1 / 3)
