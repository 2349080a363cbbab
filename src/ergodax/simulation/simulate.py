"""The rescaled stochastic process: X_{k+1} = X_k + f(X_k, s_k, a_k, s_{k+1}) / N, in batches.

The host drives compiled blocks of steps, batch by batch of runs; between blocks it merges moments,
shows progress, saves, and can be interrupted.
"""

import functools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real, UInt32

from ..base.checks import (
    check_concrete,
    check_flag,
    check_function,
    check_key,
    check_path,
    check_type,
    describe,
)
from ..base.codes import RESULTS
from ..base.text import describe_result, describe_times
from ..base.times import check_scale, check_times, steps_at, steps_between
from ..io.store import Store
from ..model.clock import check_schedules
from ..model.observable import PARAMETERS, Observable
from ..model.wrapped import WrappedGame
from ..results.labels import (
    OUTCOME,
    PER_STEP,
    SETTING,
    TIMES,
    Entries,
    Label,
    labelled,
    of_agents,
    of_places,
)
from ..results.result import Result, precision
from .capacity import bytes_of_run, check_result
from .continued import check_continued
from .execution import carry_out, plan_execution
from .inputs import Inputs, check_inputs, check_rows, take
from .job import Job
from .recorders import AbstractRecorder, Recorded, Tally, check_recorder
from .shared import plan_work
from .step import Ensemble
from .streams import run_keys

NO_DERIVATIVES = "; it has no derivatives: differentiate ergodax.solve instead"


class Simulation(Result):
    """An ensemble of simulated learning trajectories.

    In the data set mean and variance over runs are `parameters` and `parameters_variance`, or
    likewise `policy` or `observable`, as observed; with `keep_runs` there is `parameters_runs`
    along `run`. What a recorder reported is `recorded`, likewise. Where the runs stand at the end
    are `final_parameters` and `final_state`.

    Attributes:
        wrapped: the game and its learners; or those of every run, with a leading axis of R runs.
        ts: the times really reported, `k / scale`, `[K]`, in unscaled steps.
        steps: the steps k taken by then, `[K]`.
        mean: mean over runs of the observable (by default the parameters), each leaf `[K, ...]`.
        variance: its variance over runs (divisor runs - 1), each leaf `[K, ...]`.
        values: the observable of every run, each leaf `[R, K, ...]`; None unless `keep_runs`.
        state_frequency: share of steps spent in each state since the previous time, mean over runs,
            `[K, S]`; NaN where no step was taken.
        rewards: mean reward per step since the previous time, mean over runs, `[K, n]`; NaN where
            no step was taken.
        observed: what the observable is: `("parameters",)`, `("policy",)` or both, or
            `("observable",)`.
        final: where all runs stand after the last step; None if they were interrupted on the way
            to it.
        scale: N.
        runs: R.
        compensated: whether additions to the parameters were compensated for rounding, as they are
            in float32.
        key_data: words of the random key.
        compile_seconds: time spent compiling.
        run_seconds: time spent simulating.
        steps_taken: steps of all runs in that time.
        result: one of `RESULTS`.
        recorded: what `recorder` reported: mean and variance over runs, each leaf `[K, ...]`, and
            with `keep_runs` the values of every run, `[R, K, ...]`; None without a recorder.
        compiler: what compiled the steps: "XLA", "numba", or "Triton" if they were one kernel of a
            GPU.
    """

    wrapped: WrappedGame
    ts: Float[np.ndarray, " K"] = eqx.field(metadata=labelled(TIMES))
    steps: Int[np.ndarray, " K"] = eqx.field(
        metadata=labelled("step of the simulation", ("time",), name="step", coordinate=True)
    )
    mean: Any = eqx.field(metadata=labelled("mean over runs", ("time",), name="", observed=True))
    variance: Any = eqx.field(
        metadata=labelled("variance over runs", ("time",), name="_variance", observed=True)
    )
    values: Any = eqx.field(
        metadata=labelled("each run", ("run", "time"), name="_runs", observed=True)
    )
    state_frequency: Float[np.ndarray, "K S"] = eqx.field(
        metadata=labelled(
            "share of steps since the previous time, mean over runs", ("time", "state"), "1"
        )
    )
    rewards: Float[np.ndarray, "K n"] = eqx.field(
        metadata=labelled(
            "mean reward per step since the previous time, mean over runs",
            ("time", "agent"),
            PER_STEP,
        )
    )
    observed: tuple[str, ...] = eqx.field(static=True)
    final: Ensemble | None
    scale: float = eqx.field(metadata=labelled(SETTING))
    runs: int = eqx.field(metadata=labelled(SETTING))
    compensated: bool = eqx.field(metadata=labelled(SETTING))
    key_data: UInt32[np.ndarray, "..."] = eqx.field(metadata=labelled(SETTING))
    compile_seconds: float
    run_seconds: float
    steps_taken: int
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))
    recorded: Recorded | None = None
    compiler: str = eqx.field(default="XLA", metadata=labelled(SETTING))

    @property
    def standard_error(self) -> Any:
        """Standard error of `mean`, each leaf `[K, ...]`."""
        return jax.tree.map(lambda v: np.sqrt(v / self.runs), self.variance)

    @property
    def steps_per_second(self) -> float:
        """Steps of single trajectories per second, compilation apart."""
        return self.steps_taken / self.run_seconds

    def _derived(self) -> Entries:
        """The runs' numbers, what was recorded, and where the runs stand at the end."""
        dtype = None if self.final is None else precision(self.final.params)
        run = Label("run", ("run",), coordinate=True)
        entries: Entries = {"run": (np.arange(self.runs), run), "dtype": (dtype, SETTING)}
        for name, over, dims, tree in zip(
            ("recorded", "recorded_variance", "recorded_runs"),
            ("mean over runs", "variance over runs", "each run"),
            (("time",), ("time",), ("run", "time")),
            self.recorded or (),
            strict=False,
        ):
            entries[name] = tree, Label(f"recorded, {over}", dims, make=of_places)
        if self.final is not None:
            parameters = Label("parameters after the last step", ("run",), make=of_agents)
            state = Label("number of the state after the last step", ("run",))
            entries["final_parameters"] = self.final.params, parameters
            entries["final_state"] = self.final.state, state
        return entries

    def __repr__(self) -> str:
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return (
            f"Simulation({runs} at scale {self.scale:g}, {describe_times(self.ts)}: "
            f"{describe_result(self.result)})"
        )


def simulate(
    wrapped: WrappedGame,
    params0: Any,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    scale: Real[ArrayLike, ""] = 1,
    runs: int | np.integer | None = None,
    key: Array,
    initial_state: int | np.integer | str | Int[ArrayLike, " R"] | Sequence | None = None,
    observe: Callable[[Any], Any] = PARAMETERS,
    recorder: AbstractRecorder | None = None,
    keep_runs: bool = False,
    dtype: Any = None,
    start: Simulation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int | np.integer | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Simulation:
    """Simulates independent runs of the rescaled learning process.

    Time t is step `floor(scale t)`. A run's random numbers depend on `key`, its number and the step
    alone, and neither runs nor moments on `batch_size`, `devices`, `ts` or interruptions: to the
    last bit on processors. They have 23 bits in either precision: an action of probability below
    6e-8 may never be drawn.

    Runs are spread over all devices of JAX's default kind, unless `jax.default_device` names one;
    see `use_all_cores` for those of a processor. In a job of several processes that
    `jax.distributed` connects, all of them call it and share the runs, unless `devices` or
    `jax.default_device` name devices: each gets the result, bit for bit that of one process.

    A run is lost from the first report on after it drew an action from a policy that was negative,
    NaN or summed to something else than one, by more than 1e-4, or after its parameters became
    infinite or NaN; all that is reported of the former is NaN. Policies of states that are not
    visited are not looked at. Ctrl-C ends the simulation early and returns the
    runs that are complete, or, if none is, the times that the first ones have reached; `result`
    says so.

    Args:
        wrapped: a game and its learners; or one for every run, all arrays with a leading axis of R
            runs, as `jax.vmap` of a function that builds them returns it.
        params0: parameters of all agents at time 0; or those of every run, with a leading axis.
            Not looked at if `start` is given.
        ts: times at which to report, increasing, in unscaled steps; may start at 0.
        scale: N: updates are N times smaller and N times as many. 1 is the original algorithm.
        runs: number of independent runs R; 1 by default, or as many as there are given inputs.
        key: a JAX random key.
        initial_state: the first state, by number or name, or the number of every run's, `[R]`;
            drawn from the game's initial law by default.
        observe: what to report, a function of one run's parameters, e.g. `wrapped.policies`; the
            parameters themselves by default. A function compiles once: define it outside loops. If
            every run has its own game, so it has arrays that `observe` holds.
        recorder: what else to sum up of every run, step by step: time averages, first passages,
            histograms; see `AbstractRecorder`. It begins anew with `start`.
        keep_runs: also return the observable, and what is recorded, of every run.
        dtype: float32 or float64; that of `params0` by default. Float32 additions are compensated.
        start: an earlier simulation with the same key, scale and number of runs that is to go on;
            `ts` then lies beyond its end.
        checkpoint: a file to which unfinished work is saved between blocks, and from which it goes
            on if the file is there; several processes make a folder of files, with which any number
            of processes can go on.
        batch_size: runs simulated together on one device, rounded up to 64 times a power of two; by
            default as many as suit the device's cache or, on a GPU, its memory.
        devices: JAX devices to use, of one kind; by default as above.
        progress: show a progress bar.

    Returns:
        The ensemble's moments, state frequencies and rewards at `ts`, and where its runs ended.

    Raises:
        ValueError: if an argument does not fit, a checkpoint is damaged or of other work, or the
            result would not fit into memory; if the processes of a job do not agree.
        RuntimeError: if a process of the job was lost.
        OSError: if the checkpoint's folder cannot be made or written.

    Warns:
        UserWarning: if runs are lost, the simulation was interrupted, or a checkpoint
            could not be written; `result` tells of the first two.

    Example:
        >>> game = ex.games.prisoners_dilemma()
        >>> wrapped = ex.WrappedGame(game, [ex.Sarsa(0.01, 0.9, initial=20.0)] * 2)
        >>> ex.simulate(wrapped, wrapped.init(), [100.0], scale=10, runs=64, key=jax.random.key(0))
        Simulation(64 runs at scale 10, t = 100: successful)
    """
    check_concrete("simulate", (wrapped, params0, ts, scale), NO_DERIVATIVES)
    reported = check_times(ts)
    check_key(key)
    check_function("observe", observe, "the parameters of one run")
    if recorder is not None:
        check_type("recorder", recorder, AbstractRecorder, "an AbstractRecorder")
    if start is not None:
        check_type("start", start, Simulation, "an earlier Simulation")
    if checkpoint is not None:
        check_path("checkpoint", checkpoint)
    check_flag("keep_runs", keep_runs)
    check_flag("progress", progress)
    scale = float(check_scale(scale))
    if start is not None:
        _check_start(start, wrapped, key, scale, reported)
    standing = None if start is None else start.final
    run = prepare(
        wrapped,
        check_inputs(wrapped, params0, initial_state, standing, runs, dtype),
        reported,
        scale=scale,
        key=key,
        observe=observe,
        recorder=recorder,
        keep_runs=keep_runs,
        start=start,
        checkpoint=checkpoint,
        batch_size=batch_size,
        devices=devices,
        progress=progress,
    )
    return run()


def prepare(
    wrapped: WrappedGame,
    inputs: Inputs,
    ts: Float[np.ndarray, " K"],
    *,
    scale: float,
    key: Array,
    observe: Callable[[Any], Any],
    recorder: AbstractRecorder | None = None,
    keep_runs: bool = False,
    start: Simulation | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int | np.integer | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> Callable[[], Simulation]:
    """Plans and compiles what `simulate` does; returns the function that does it.

    All but `inputs` are arguments of `simulate` that were checked.
    """
    steps, times = steps_at(ts, scale)
    begun = 0 if start is None else int(start.steps[-1])
    intervals = steps_between(steps, begun)
    check_schedules(inputs.wrapped.learners, times, inputs.own_game)
    observe = Observable.of(observe)
    recorders = () if recorder is None else (recorder,)
    shapes = _shapes(inputs, observe, recorders)
    kept = len(shapes) if keep_runs else 0
    check_result(inputs, shapes, len(times), keep_runs)
    size = bytes_of_run(inputs, shapes[1:])
    execution = plan_execution(
        size, inputs.runs, devices, batch_size, progress=progress, shared=True
    )
    others = {"key": key, "ts": steps, "scale": scale, "observe": observe, "recorder": recorder}
    others |= {"keep_runs": keep_runs, "start": begun}
    unfinished = Store(checkpoint, "simulation", inputs._asdict() | others)

    before = time.perf_counter()
    job, save = plan_work(
        Job,
        unfinished,
        inputs,
        functools.partial(run_keys, key),
        intervals,
        execution,
        scale=scale,
        observe=observe,
        recorders=(*recorders, Tally()),
        kept=kept,
        begun=begun,
    )
    compile_seconds, steps_before = time.perf_counter() - before, job.steps_done

    def run() -> Simulation:
        started = time.perf_counter()
        with execution.bar(inputs.runs * int(steps[-1] - begun), steps_before) as bar:
            complete = carry_out(job, save, bar)
        run_seconds = time.perf_counter() - started

        count = len(times) if complete else job.cut()
        if not count:
            raise KeyboardInterrupt
        summary = jax.tree.map(lambda leaf: leaf[0], job.summary())
        (*means, (state_frequency, rewards)), (*variances, _) = summary.mean, summary.variance
        values = jax.tree.map(lambda leaf: leaf[: job.done, :count], job.values)
        observed, *recorded = map(Recorded, means, variances, values or [None] * len(means))
        result: Any = RESULTS.successful if complete else RESULTS.interrupted
        if job.done < inputs.runs or count < len(times):
            rest = "." if checkpoint is None else f"; {os.fspath(checkpoint)!r} holds the rest."
            until = (
                f"{job.done} of {inputs.runs} runs are complete, up to t = {times[count - 1]:.6g}"
            )
            warnings.warn(f"interrupted: {until}{rest}", stacklevel=3)
        if summary.lost[-1, 0]:
            result, text = describe_lost(wrapped, summary.lost[-1], job.done)
            first = times[np.argmax(summary.lost[:, 0] > 0)]
            played = summary.lost[-1, 1:].any()
            hint = "." if played else ": are the updates too large for their scale?"
            warnings.warn(f"{text}, the first by t = {first:.6g}{hint}", stacklevel=3)
        return Simulation(
            # Of the runs that are complete, like all else.
            wrapped=take(wrapped, slice(job.done)) if inputs.own_game else wrapped,
            ts=times[:count],
            steps=steps[:count],
            mean=observed.mean,
            variance=observed.variance,
            values=observed.values,
            state_frequency=state_frequency,
            rewards=rewards,
            observed=observe.names,
            final=jax.tree.map(lambda leaf: leaf[: job.done], job.final),
            scale=scale,
            runs=job.done,
            compensated=inputs.compensated,
            key_data=np.asarray(jax.random.key_data(key)),
            compile_seconds=compile_seconds,
            run_seconds=run_seconds,
            steps_taken=job.steps_done - steps_before,
            result=result,
            recorded=recorded[0] if recorded else None,
            compiler=job.compiler,
        )

    return run


def _shapes(inputs: Inputs, observe, recorders) -> tuple:
    """Shapes and dtypes of the observable and of every recorder's report, of one run."""
    wrapped = inputs.wrapped
    if inputs.own_game:
        check_rows("observe", observe, inputs.runs)
        check_rows("recorder", recorders, inputs.runs)
        wrapped, observe, recorders = take((wrapped, observe, recorders), 0)
    reports = (check_recorder(recorder, wrapped, inputs.like) for recorder in recorders)
    observed = jax.eval_shape(observe, inputs.like)
    if not jax.tree.leaves(observed):
        raise ValueError(f"observe must return numbers; found {describe(observed)}.")
    return observed, *reports


def describe_lost(wrapped: WrappedGame, lost, runs: int) -> tuple[Any, str]:
    """How an ensemble ended in which runs are lost, as a result code and a text.

    Args:
        wrapped: the game and its learners.
        lost: the number of lost runs, and of those lost by the policy of every agent, `[1 + n]`.
        runs: number of all runs.
    """
    text = f"{lost[0]:.0f} of {runs} runs became infinite or NaN"
    for agent, number in enumerate(lost[1:]):
        if number > 0:
            learner = type(wrapped.learners[agent]).__name__
            text = (
                f"{lost[0]:.0f} of {runs} runs are lost: {number:.0f} of them played a policy of "
                f"agent {agent} ({learner}) that is negative, NaN or does not sum to one"
            )
            return RESULTS.invalid_policy, text
    return RESULTS.nonfinite, text


def _check_start(start: Simulation, wrapped, key, scale: float, ts) -> None:
    """Raises ValueError unless an earlier simulation can go on."""
    check_continued(start, wrapped, key, scale)
    first = steps_at(ts, scale)[0][0]
    if first < start.steps[-1]:
        raise ValueError(
            f"start has reached t = {start.ts[-1]:g}; ts must not begin before, at "
            f"{first / scale:g}."
        )
