"""Ensembles of several games in one job: what a sweep of simulations batches.

The runs of an ensemble lie side by side, filled up to a power of two, each with its own copy of the
game. An ensemble that fills the devices has them to itself, and its runs share the game: steps of
such runs are a third faster.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..base.compiling import compiled
from ..base.times import check_scale, steps_at, steps_between
from ..model.game import first_state_law
from ..model.observable import parameters_and_policies
from ..model.wrapped import WrappedGame, cast
from .capacity import bytes_of_run, check_result, copies_fit, limits_of
from .execution import Execution, plan_execution
from .inputs import Inputs, check_inputs
from .job import Job, Summary
from .moments import GROUP
from .recorders import Tally
from .streams import run_keys


class Plan(NamedTuple):
    """How ensembles are simulated.

    Attributes:
        inputs: what one of them starts from.
        initial_state: the first state, or those of its runs; None to draw them.
        key: a JAX random key.
        scale: N.
        intervals: steps up to each report time, `[K]`.
        together: how many are simulated at once.
        shared: whether one fills the devices, so that its runs share the game.
        size: runs of one, filled up.
        execution: how they are carried out.
    """

    inputs: Inputs
    initial_state: Any
    key: Array
    scale: float
    intervals: np.ndarray
    together: int
    shared: bool
    size: int
    execution: Execution


def plan_ensembles(
    wrapped: WrappedGame,
    params0: Any,
    ts: Any,
    number: int,
    batch_size: int | None,
    *,
    key: Array,
    scale: Any = 1,
    runs: Any = None,
    initial_state: Any = None,
    dtype: Any = None,
) -> Plan:
    """Plans ensembles like a given one.

    Args:
        wrapped: the game and learners of one of them.
        params0: its initial parameters.
        ts: report times.
        number: number of all ensembles.
        batch_size: about how many are simulated at once; by default as many as suit the devices.
        key: a JAX random key.
        scale: N.
        runs: runs of each.
        initial_state: as for `simulate`, the same for all ensembles.
        dtype: float32 or float64.

    Raises:
        ValueError: if an argument does not fit.
    """
    scale = check_scale(scale)
    intervals = steps_between(steps_at(ts, scale)[0], 0)
    one = check_inputs(wrapped, params0, initial_state, None, runs, dtype)
    size = 1 << (one.runs - 1).bit_length()
    own_bytes = bytes_of_run(one._replace(own_game=True, runs=1))
    execution = plan_execution(own_bytes, number * size)
    devices = execution.devices
    shared = 2 * size > len(devices) * execution.width
    if shared or not copies_fit(own_bytes, limits_of(devices[0])):
        shared, together, runs = True, 1, one.runs
        execution = plan_execution(bytes_of_run(one), one.runs)
    else:
        if batch_size is not None:
            per_device = -(-batch_size * size // len(devices))
            execution = plan_execution(own_bytes, number * size, batch_size=per_device)
        runs = execution.width * len(devices)
        together = runs // size
    check_result(one._replace(runs=runs))
    return Plan(
        inputs=one,
        initial_state=initial_state,
        key=key,
        scale=scale,
        intervals=intervals,
        together=together,
        shared=shared,
        size=size,
        execution=execution,
    )


def simulate_ensembles(plan: Plan, wrapped: WrappedGame, params0: Any, numbers: Any) -> Summary:
    """Simulates some ensembles; parameters and policies are observed.

    Args:
        plan: how.
        wrapped: their games and learners, with a leading axis of ensembles on every array.
        params0: their initial parameters, likewise.
        numbers: their numbers, `plan.together` of them: ensemble k uses the key
            `fold_in(plan.key, k)`.

    Returns:
        What has come of them; recorded is the `Tally`.
    """
    one = plan.inputs
    observe, wrapped, params0 = _of_runs(plan.shared, plan.size, wrapped, params0, one.dtype)
    first_states, runs, counted = plan.initial_state, one.runs, None
    if plan.shared:
        keys: Any = functools.partial(run_keys, jax.random.fold_in(plan.key, numbers[0]))
    else:
        keys = _key_words(plan.key, jnp.asarray(numbers), plan.size).__getitem__
        counted = np.tile(np.arange(plan.size) < one.runs, len(numbers))
        runs = counted.size
        if np.ndim(first_states) == 1:
            padded = np.pad(np.asarray(first_states), (0, plan.size - one.runs), mode="edge")
            first_states = np.tile(padded, len(numbers))
    inputs = one._replace(
        wrapped=wrapped,
        params0=params0,
        law=np.asarray(first_state_law(wrapped.game, first_states, several=True), one.dtype),
        runs=runs,
        own_game=not plan.shared,
        own_params=not plan.shared,
    )
    job = Job(
        inputs,
        keys,
        plan.intervals,
        plan.execution,
        scale=plan.scale,
        observe=observe,
        recorders=(Tally(),),
        group=GROUP if plan.shared else min(GROUP, plan.size),
        ensembles=len(numbers),
        counted=counted,
    )
    for _ in job.run():
        pass
    return job.summary()


@functools.partial(jax.jit, static_argnums=2)
def _key_words(key, numbers, size: int):
    """Key words of the runs of ensembles, `[E size, 2]`."""
    runs = jnp.arange(size, dtype=jnp.uint32)
    # One by one, for the same reason.
    words = jax.lax.map(lambda number: run_keys(jax.random.fold_in(key, number), runs), numbers)
    return words.reshape(-1, 2)


@compiled
def _of_runs(shared: bool, size: int, wrapped, params0, dtype):
    """What to observe, games and parameters of all runs; of the only ensemble if it is shared."""

    def of_runs(leaf):
        return leaf[0] if shared else jnp.repeat(leaf, size, axis=0)

    arrays, others = eqx.partition((wrapped, params0), eqx.is_array)
    wrapped, params0 = eqx.combine(jax.tree.map(of_runs, arrays), others)
    return parameters_and_policies(wrapped), *cast((wrapped, params0), dtype)
