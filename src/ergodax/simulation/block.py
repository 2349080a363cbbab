"""A block of simulation: many steps of many runs on all devices, as one compiled program.

Every device carries its own runs, and nothing passes between devices: a run's numbers do not depend
on how many there are.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from ..base.compiling import compiled
from ..model.clock import ClockedParams, is_clocked
from ..model.wrapped import WrappedGame
from .lanes import Lanes, choose, from_lanes, is_large, over_lanes, to_lanes
from .moments import Moments, of_groups
from .recorders import AbstractRecorder
from .step import (
    DIVERGED,
    MISPLAYED,
    Ensemble,
    Run,
    cumulative_law,
    draw,
    draw_actions,
    later,
    lost_by,
    settle,
    step,
    words_of,
)
from .steps import advanced, is_gpu
from .streams import uniforms

AXIS = "runs"


class Setting(eqx.Module):
    """What stays the same from block to block.

    Attributes:
        wrapped: the game and its learners; with a leading axis of runs on every array if
            `per_run`.
        scale: N.
        observe: what to report, a function of one run's parameters; its arrays, if it holds any,
            have a leading axis of runs too if `per_run`.
        recorders: what is summed up of every run and reported; their arrays likewise.
        compensated: whether additions to the parameters are compensated.
        per_run: whether every run has a wrapped game of its own.
        kept: how many of the observable and the reports are kept of every run, in this order.
        group: runs whose moments are taken together.
        mesh: the devices.
        in_kernel: whether the steps up to a report are to be one kernel of a GPU.
        in_step: whether the clocks of all runs show the same time, so that schedules are evaluated
            once for all; not on a GPU, whose kernel shares no number that changes.
    """

    wrapped: WrappedGame
    scale: Float[Array, ""]
    observe: Callable[[Any], Any]
    recorders: tuple[AbstractRecorder, ...]
    compensated: bool = eqx.field(static=True)
    per_run: bool = eqx.field(static=True)
    kept: int = eqx.field(static=True)
    group: int = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)
    in_kernel: bool = eqx.field(static=True, default=False)
    in_step: bool = eqx.field(default=False, static=True)

    def spread(self, tree: Any) -> Any:
        """Puts every device's runs on it, as blocks of steps return them."""
        if self.mesh.devices.flat[0].platform == "cpu":
            tree = jax.device_get(tree)  # no copy; to divide arrays of JAX takes a program for each
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(AXIS)))


class Stops(NamedTuple):
    """Where the lanes of a block have stopped, each by its own criterion.

    Attributes:
        idle: which lanes carry no run, or one that has stopped, `[R]`.
        at: steps of the block by then, `[R]`; 0 where no run has stopped.
        runs: the runs as they stood there, each leaf `[R, ...]`.
    """

    idle: Bool[Array, " R"]
    at: Int[Array, " R"]
    runs: Run


class Report(NamedTuple):
    """What is reported after an interval of steps.

    Attributes:
        moments: moments of the observable and of what every recorder reports, one entry per group
            of runs; `total` is the number of lost runs: of all, and of those that were lost by the
            policy of every agent, `[1 + n]`.
        values: those of every run that are kept, each leaf `[R, ...]`.
    """

    moments: Moments
    values: tuple


# On processors with AVX-512 the compiler would use only half of every vector register. And it would
# hand small parts of a step, one agent's schedule say, to other threads: that takes longer than to
# compute them. Sums of many lanes would go to a library, which rounds otherwise than its own code:
# a run's numbers would depend on how many there are in a batch.
_COMPILER: dict[str, Any] = {
    "compiler_options": {
        "xla_cpu_prefer_vector_width": 512,
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_experimental_ynn_fusion_type": "",
    }
}


@functools.partial(compiled, **_COMPILER)
def start(
    setting: Setting, keys: UInt32[Array, "R 2"], params0: Any, law: Any, standing: Any = None
) -> Run:
    """The runs before their first step, with nothing recorded yet, each leaf `[R, ...]`.

    Args:
        setting: what is simulated.
        keys: key words of the runs; random numbers are those of step 0.
        params0: initial parameters, each leaf `[R, ...]`.
        law: law of every run's first state, `[R, S]`.
        standing: where the runs stand, if they have begun already.
    """

    def of_run(key, params, law, own):
        wrapped = own if setting.per_run else setting.wrapped
        draws = uniforms(key, words_of(0), wrapped.game.num_agents + 1, law.dtype)
        state, _ = draw(law, draws[-1])
        joint_action, faults = None, jnp.zeros((), jnp.int32)
        if wrapped.needs_next_action:
            joint_action, faults = draw_actions(wrapped.learners, params, state, draws)
        compensation = jax.tree.map(jnp.zeros_like, params) if setting.compensated else None
        return Ensemble(params, compensation, state, joint_action), faults

    def recorded(params, own):
        wrapped, recorders = own
        states = tuple(recorder.init(wrapped, params) for recorder in recorders)
        return jax.tree.map(jnp.asarray, states)

    faults = jnp.zeros(len(keys), jnp.int32)
    if standing is None:
        own = setting.wrapped if setting.per_run else ()
        begun = over_lanes(of_run, *to_lanes((keys, params0, law, own)))
        standing, faults = from_lanes(begun)
    axes = 0, eqx.if_array(0) if setting.per_run else None
    records = eqx.filter_vmap(recorded, in_axes=axes, axis_size=len(keys))
    own = setting.wrapped, setting.recorders
    return Run(standing, records(standing.params, own), faults)


def _in_lanes(setting: Setting, runs: Run) -> Run:
    """The runs as `Lanes`, which share their clocks if these show the same time."""
    in_step = setting.in_step and not is_gpu(setting.mesh)

    def of_agent(own):
        if not (in_step and is_clocked(own)):
            return to_lanes(own)
        # That of a lost run is NaN, as all else that it holds.
        return ClockedParams(to_lanes(own.params), Lanes(jnp.nanmax(own.time), None))

    params, compensation = jax.tree.map(
        of_agent, (runs.standing.params, runs.standing.compensation), is_leaf=is_clocked
    )
    lanes = to_lanes(runs)
    standing = lanes.standing._replace(params=params, compensation=compensation)
    return lanes._replace(standing=standing)


def _from_lanes(runs: Run) -> Run:
    """What `_in_lanes` was given; clocks that were NaN are so again."""
    runs = from_lanes(runs)
    lost = runs.faults & MISPLAYED > 0

    def of_agent(own):
        return own._replace(time=jnp.where(lost, jnp.nan, own.time)) if is_clocked(own) else own

    params = jax.tree.map(of_agent, runs.standing.params, is_leaf=is_clocked)
    return runs._replace(standing=runs.standing._replace(params=params))


@functools.partial(compiled, **_COMPILER)
def advance(
    setting: Setting,
    keys: UInt32[Array, "R 2"],
    runs: Run,
    live: Bool[Array, " R"],
    counter: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    lengths: Int[Array, " B"],
    due: Bool[Array, " B"],
) -> tuple[Run, Report]:
    """Advances all runs over consecutive intervals of steps.

    Args:
        setting: what is simulated.
        keys: key words of the runs.
        runs: the runs, each leaf `[R, ...]`.
        live: `[R]`, which runs count.
        counter: words of the number of steps already taken.
        lengths: steps of each interval.
        due: whether a report is due after it. If not, what the report holds is of no use, and the
            recorders go on.

    Returns:
        The runs at the end, and the reports with a leading axis `[B]`.

    Raises:
        Refused: if the steps are to be one kernel, and there is none.
    """
    cumulative = cumulative_law(setting.wrapped.game.probabilities)
    data, static = eqx.partition(
        (setting.wrapped, cumulative, setting.recorders, setting.observe), eqx.is_array
    )
    num_agents = setting.wrapped.game.num_agents
    by_run, everywhere = PartitionSpec(AXIS), PartitionSpec()
    of_data = by_run if setting.per_run else everywhere

    def of_device(keys, runs, live, data, counter, lengths, due, scale):
        keys, runs = to_lanes(keys), _in_lanes(setting, runs)
        own = to_lanes(data) if setting.per_run else ()

        def of_run(taken, shared, own, run):
            """A run after one step more than so many of the interval."""
            (begun, scale, of_all), (key, mine) = shared, own
            of_step = mine if setting.per_run else of_all
            return step(eqx.combine(of_step, static[:3]), scale, key, later(begun, taken + 1), run)

        def interval(carry, length_and_due):
            (words, run), (length, due) = carry, length_and_due
            shared = words, scale, () if setting.per_run else data[:3]
            run = advanced(of_run, length, shared, (keys, own[:3]), run, setting)
            words = later(words, length)
            report, after = report_of(run)
            run = jax.tree.map(lambda a, b: jnp.where(due, a, b), after, _from_lanes(run))
            return (words, _in_lanes(setting, run)), report

        def report_of(run):
            def of_run(params, recorded, own):
                of_all = own if setting.per_run else data
                _, _, recorders, observe = eqx.combine(of_all, static)
                reports = [r.report(state) for r, state in zip(recorders, recorded, strict=True)]
                values = observe(params), *(reported for reported, _ in reports)
                return values, tuple(state for _, state in reports)

            found = over_lanes(of_run, run.standing.params, run.recorded, own, ordered=True)
            run, (values, started) = from_lanes((run, found))
            leaves = jax.tree.leaves(run.standing.params)
            finite = [jnp.isfinite(leaf).reshape(live.shape[0], -1).all(axis=1) for leaf in leaves]
            faults = settle(run.faults, ~jnp.stack(finite).all(axis=0))
            misplayed = faults & MISPLAYED > 0
            lost = [faults & (DIVERGED | MISPLAYED) > 0]
            lost += [misplayed & (faults & lost_by(k) > 0) for k in range(num_agents)]
            total = jnp.stack(lost, axis=1).astype(jnp.result_type(float))

            def mark(leaf):  # what such a run holds is of no use
                if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                    return leaf
                return jnp.where(misplayed.reshape(-1, *(1,) * (leaf.ndim - 1)), jnp.nan, leaf)

            params, values = jax.tree.map(mark, (run.standing.params, values))
            least = leaves[0].dtype
            with jax.numpy_dtype_promotion("standard"):  # observables are of any type
                floats = jax.tree.map(lambda v: v.astype(jnp.result_type(v, least)), values)
            moments = of_groups(floats, total, live, setting.group)
            run = Run(run.standing._replace(params=params), started, faults)
            return Report(moments, values[: setting.kept]), run

        (_, runs), reports = jax.lax.scan(interval, (counter, runs), (lengths, due))
        return _from_lanes(runs), reports

    return jax.shard_map(
        of_device,
        mesh=setting.mesh,
        in_specs=(*(by_run,) * 3, of_data, *(everywhere,) * 4),
        out_specs=(by_run, PartitionSpec(None, AXIS)),
        check_vma=False,
    )(keys, runs, live, data, counter, lengths, due, setting.scale)


@functools.partial(compiled, **_COMPILER)
def advance_until(
    setting: Setting,
    keys: UInt32[Array, "R 2"],
    runs: Run,
    idle: Bool[Array, " R"],
    counters: tuple[UInt32[Array, " R"], UInt32[Array, " R"]],
    left: Int[Array, " R"],
    length: Int[Array, ""],
    look: Int[Array, ""],
    fewest: Int[Array, ""],
) -> tuple[Run, Stops, Int[Array, ""]]:
    """Advances runs until each is done by the first recorder, `setting.recorders[0].done`.

    A run also stops after an invalid policy was played, and after its last step. The code of a step
    is that of `advance`. A lane whose run has stopped goes on, to no purpose: what counts is set
    aside at the step of the stop. On a GPU, which would wait at every step for the host to look
    whether to go on, it holds still instead.

    Args:
        setting: what is simulated.
        keys: key words of the runs.
        runs: the runs, each leaf `[R, ...]`.
        idle: `[R]`, which lanes carry no run.
        counters: words of the number of steps already taken by each run, `[R]`.
        left: steps after which a run stops in any case, `[R]`.
        length: steps of the block, at most.
        look: after so many steps is looked how many runs are still under way.
        fewest: the block ends early when no more than these are, on all devices.

    Returns:
        The runs at the end, where they stopped, and the steps of the block.

    Raises:
        Refused: if the steps are to be one kernel, and there is none.
    """
    # Outside a kernel a large array would be written anew at every step in order to hold still.
    holds = is_gpu(setting.mesh) and not any(
        is_large(leaf.shape[1:]) for leaf in jax.tree.leaves(runs.recorded)
    )
    holds = holds or setting.in_kernel
    cumulative = cumulative_law(setting.wrapped.game.probabilities)
    data, static = eqx.partition((setting.wrapped, cumulative, setting.recorders), eqx.is_array)
    by_run, everywhere = PartitionSpec(AXIS), PartitionSpec()
    of_data = by_run if setting.per_run else everywhere

    def of_device(keys, runs, idle, counters, left, data, length, look, fewest, scale):
        keys, runs = to_lanes((keys, runs))
        own = to_lanes(data) if setting.per_run else ()

        def stopped(run, own, taken, idle):
            def of_run(recorded, faults, own):
                _, _, recorders = eqx.combine(own if setting.per_run else data, static)
                return jnp.asarray(recorders[0].done(recorded[0]), bool) | (faults > 0)

            done = from_lanes(over_lanes(of_run, run.recorded, run.faults, own))
            return ~idle & (done | (taken >= left))

        def one_step(carry):
            taken, run, _, idle = carry

            def of_run(key, words, run, own):
                of_step = eqx.combine(own if setting.per_run else data, static)
                return step(of_step, scale, key, words, run)

            words = to_lanes(later(counters, taken + 1))
            run = over_lanes(of_run, keys, words, run, own)
            return taken + 1, run, stopped(run, own, taken + 1, idle), idle

        def until_one_stops(end, carry):
            taken, run, stops = carry
            now = stopped(run, own, taken, stops.idle)
            taken, run, now, _ = jax.lax.while_loop(
                lambda carry: (carry[0] < end) & ~jnp.any(carry[2]),
                one_step,
                (taken, run, now, stops.idle),
            )
            aside = jax.lax.cond(
                jnp.any(now), lambda: choose(now, run, stops.runs), lambda: stops.runs
            )
            at = jnp.where(now, taken, stops.at)
            return taken, run, Stops(stops.idle | now, at, aside)

        def until_look(carry):
            end = jnp.minimum(carry[0] + look, length)
            carry = jax.lax.while_loop(
                lambda carry: carry[0] < end, functools.partial(until_one_stops, end), carry[:3]
            )
            return *carry, jax.lax.psum(jnp.sum(~carry[2].idle), AXIS)

        def step_or_hold(taken, shared, own, run_and_stop):
            """A run after one step more, and at which it stopped; if it has, as it is."""
            (begun, scale, of_all), (key, counter, left, mine) = shared, own
            of_step = eqx.combine(mine if setting.per_run else of_all, static)
            until, (run, at) = of_step[2][0], run_and_stop
            taken, live = begun + taken + 1, at < 0
            run = step(of_step, scale, key, later(counter, taken), run, live)
            done = jnp.asarray(until.done(run.recorded[0]), bool) | (run.faults > 0)
            return run, jnp.where(live & (done | (taken >= left)), taken, at)

        def look_later(carry):
            taken, run_and_stop, _ = carry
            count = jnp.minimum(look, length - taken)
            shared = taken, scale, () if setting.per_run else data
            mine = keys, *to_lanes((counters, left)), own
            run_and_stop = advanced(step_or_hold, count, shared, mine, run_and_stop, setting)
            under_way = jax.lax.psum(jnp.sum(run_and_stop[1].array < 0), AXIS)
            return taken + count, run_and_stop, under_way

        zero, under_way = jnp.zeros((), jnp.int32), jax.lax.psum(jnp.sum(~idle), AXIS)

        def goes_on(carry):
            return (carry[0] < length) & (carry[-1] > fewest)

        if holds:
            at = jnp.where(idle | stopped(runs, own, zero, idle), zero, -1)
            taken, (runs, at), _ = jax.lax.while_loop(
                goes_on, look_later, (zero, (runs, to_lanes(at)), under_way)
            )
            runs, at = from_lanes((runs, at))
            return runs, Stops(at >= 0, jnp.maximum(at, 0), runs), taken
        stops = Stops(idle, jnp.zeros_like(left), runs)
        taken, runs, stops, _ = jax.lax.while_loop(
            goes_on, until_look, (zero, runs, stops, under_way)
        )
        return from_lanes(runs), stops._replace(runs=from_lanes(stops.runs)), taken

    return jax.shard_map(
        of_device,
        mesh=setting.mesh,
        in_specs=(*(by_run,) * 5, of_data, *(everywhere,) * 4),
        out_specs=(by_run, by_run, everywhere),
        check_vma=False,
    )(keys, runs, idle, counters, left, data, length, look, fewest, setting.scale)
