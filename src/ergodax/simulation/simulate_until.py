"""The process simulated until each run meets a criterion of its own."""

import functools
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real, UInt32

from ..base.checks import (
    check_concrete,
    check_count,
    check_flag,
    check_key,
    check_path,
    check_type,
    describe,
)
from ..base.codes import RESULTS
from ..base.compiling import compiled
from ..base.text import describe_result
from ..base.times import check_scale
from ..io.identity import identify
from ..io.store import Store
from ..model.clock import check_schedules
from ..model.wrapped import WrappedGame
from ..results.labels import OUTCOME, SETTING, Entries, Label, labelled, of_agents, of_places
from ..results.result import Result, precision
from .capacity import bytes_of_run, check_result
from .continued import check_continued
from .execution import carry_out, plan_execution
from .inputs import check_inputs, check_rows, take
from .pool import Pool, is_lost
from .recorders import AbstractRecorder, check_recorder
from .shared import plan_work
from .simulate import NO_DERIVATIVES, describe_lost
from .step import MISPLAYED, Ensemble, Run, lost_by
from .streams import run_keys
from .until import AbstractWatch, fitted


class StoppedRuns(Result):
    """Simulated runs, each stopped at the step at which it met a criterion.

    In the data set, along `run`: `steps`, `steps_to_convergence`, `reached`, `lost`, what the
    criterion reported as `recorded`, and `final_parameters` and `final_state`.

    Attributes:
        wrapped: the game and its learners; or those of every run, with a leading axis of R runs.
        until: the criterion.
        steps: steps that every run has taken, `[R]`: up to and with the one after which it met the
            criterion, or as many as were allowed.
        reached: which runs met the criterion, `[R]`.
        lost: which runs are lost, as in `Simulation`, `[R]`; they have not reached anything.
        recorded: what the criterion reported of every run when it stopped, each leaf `[R, ...]`.
        final: where every run stopped; `params` and `state` are parts of it.
        scale: N.
        max_steps: steps of a run, at most.
        compensated: whether additions to the parameters were compensated for rounding.
        key_data: words of the random key.
        compile_seconds: time spent compiling.
        run_seconds: time spent simulating.
        steps_taken: steps of all runs in that time.
        result: one of `RESULTS`.
        watching: what the criterion knew of every run when it stopped, each leaf `[R, ...]`: to go
            on.
        compiler: what compiled the steps, as for `simulate`.
    """

    wrapped: WrappedGame
    until: AbstractRecorder = eqx.field(metadata=labelled(SETTING))
    steps: Int[np.ndarray, " R"] = eqx.field(
        metadata=labelled("steps until the run met the criterion, or all it was given", ("run",))
    )
    reached: Bool[np.ndarray, " R"] = eqx.field(
        metadata=labelled("whether the run met the criterion", ("run",))
    )
    lost: Bool[np.ndarray, " R"] = eqx.field(metadata=labelled("whether the run is lost", ("run",)))
    recorded: Any = eqx.field(
        metadata=labelled("what the criterion reported", ("run",), make=of_places)
    )
    final: Ensemble
    scale: float = eqx.field(metadata=labelled(SETTING))
    max_steps: int = eqx.field(metadata=labelled(SETTING))
    compensated: bool = eqx.field(metadata=labelled(SETTING))
    key_data: UInt32[np.ndarray, "..."] = eqx.field(metadata=labelled(SETTING))
    compile_seconds: float
    run_seconds: float
    steps_taken: int
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))
    watching: Any = None
    compiler: str = eqx.field(default="XLA", metadata=labelled(SETTING))

    @property
    def runs(self) -> int:
        """R."""
        return len(self.steps)

    @property
    def params(self) -> Any:
        """Parameters of all agents where every run stopped, each leaf `[R, ...]`."""
        return self.final.params

    @property
    def state(self) -> Any:
        """State of the game in which every run stopped, `[R]`."""
        return self.final.state

    @property
    def steps_to_convergence(self) -> Float[np.ndarray, " R"]:
        """Steps after which nothing happened any more, `[R]`; NaN where a run has not got there.

        Of criteria that wait for k steps without a change, these are `steps` less k: what the
        literature reports. Of others, `steps`.
        """
        waited = self.until.steps if isinstance(self.until, AbstractWatch) else 0
        return np.where(self.reached, self.steps - waited, np.nan)

    @property
    def steps_per_second(self) -> float:
        """Steps of single trajectories per second, compilation apart."""
        return self.steps_taken / self.run_seconds

    def _derived(self) -> Entries:
        """The runs' numbers, steps to convergence, and where the runs stopped."""
        excess = Label("steps after which nothing happened any more", ("run",))
        parameters = Label("parameters where the run stopped", ("run",), make=of_agents)
        return {
            "run": (np.arange(self.runs), Label("run", ("run",), coordinate=True)),
            "runs": (self.runs, SETTING),
            "dtype": (precision(self.final.params), SETTING),
            "steps_to_convergence": (self.steps_to_convergence, excess),
            "final_parameters": (self.final.params, parameters),
            "final_state": (
                self.final.state,
                Label("number of the state where the run stopped", ("run",)),
            ),
        }

    def __repr__(self) -> str:
        met = f"{self.reached.sum()} of {self.runs} runs met the criterion"
        if self.reached.any():
            steps = self.steps_to_convergence[self.reached]
            met += (
                f", in {steps.min():.0f} to {steps.max():.0f} steps, on average {steps.mean():.6g}"
            )
        return f"StoppedRuns({met}: {describe_result(self.result)})"


def simulate_until(
    wrapped: WrappedGame,
    params0: Any,
    until: AbstractRecorder,
    *,
    max_steps: int | np.integer,
    key: Array,
    runs: int | np.integer | None = None,
    scale: Real[ArrayLike, ""] = 1,
    initial_state: int | np.integer | str | Int[ArrayLike, " R"] | Sequence | None = None,
    dtype: Any = None,
    start: StoppedRuns | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int | np.integer | None = None,
    devices: Sequence[Any] | None = None,
    progress: bool = False,
) -> StoppedRuns:
    """Simulates independent runs, each until it meets a criterion.

    Runs are those of `simulate` with the same key, step for step. Each stops after the step at
    which its criterion is met, whatever the others do, and gives up its place to one that waits. A
    run that does not meet it within `max_steps` is returned as it stood then; its `reached` is
    false. After an invalid policy was played a run stops too: it is lost, and so are runs whose
    parameters are infinite or NaN where they stopped.

    Ctrl-C ends the simulation early and returns all runs as they stand: those that have met the
    criterion, and those that have not yet; `start` goes on with them. The processes of a job share
    the runs, as in `simulate`; Ctrl-C ends them.

    Args:
        wrapped: as for `simulate`.
        params0: as for `simulate`.
        until: the criterion: `ex.until.greedy_unchanged(100_000)`, `ex.until.settled(..)`, or a
            recorder of your own with a method `done(state)`. Arrays that it holds have a leading
            axis of runs if every run has its own game.
        max_steps: steps of a run, at most, counted as the process takes them: N times as many as
            unscaled ones.
        key: as for `simulate`.
        runs: as for `simulate`.
        scale: as for `simulate`.
        initial_state: as for `simulate`.
        dtype: as for `simulate`.
        start: an earlier result with the same key, scale, criterion and number of runs: runs that
            did not meet the criterion go on, up to a larger `max_steps`.
        checkpoint: as for `simulate`.
        batch_size: as for `simulate`, but at most so many.
        devices: as for `simulate`.
        progress: show a progress bar, in runs.

    Returns:
        Steps, final parameters and state of every run, and which have met the criterion.

    Raises:
        ValueError: if an argument does not fit, the criterion can never be met, a checkpoint is
            damaged or of other work, or the result would not fit into memory.
        OSError: if the checkpoint's folder cannot be made or written.

    Warns:
        UserWarning: if runs are lost or did not meet the criterion, the simulation was interrupted,
            or a checkpoint could not be written; `result` tells of the first three.

    Example:
        >>> game = ex.games.prisoners_dilemma()
        >>> explore = ex.EpsilonGreedy(ex.schedules.exponential(1.0, rate=0.01))
        >>> wrapped = ex.WrappedGame(game, [ex.QLearning(0.3, 0.9, explore)] * 2)
        >>> until = ex.until.greedy_unchanged(500)
        >>> options = dict(max_steps=10_000, runs=20, key=jax.random.key(0))
        >>> found = ex.simulate_until(wrapped, wrapped.init(), until, **options)
        >>> found.reached.all()
        np.True_
    """
    check_concrete("simulate_until", (wrapped, params0, scale), NO_DERIVATIVES)
    max_steps = check_count("max_steps", max_steps)
    _check_until(until, max_steps)
    check_key(key)
    if start is not None:
        check_type("start", start, StoppedRuns, "what simulate_until returned earlier")
    if checkpoint is not None:
        check_path("checkpoint", checkpoint)
    check_flag("progress", progress)
    scale = float(check_scale(scale))
    standing = None
    if start is not None:
        _check_start(start, wrapped, until, key, scale, max_steps)
        # Lost runs do not go on: what they hold is not looked at.
        standing = jax.tree.map(np.nan_to_num, start.final)
    inputs = check_inputs(wrapped, params0, initial_state, standing, runs, dtype)
    check_schedules(inputs.wrapped.learners, np.array([max_steps / scale]), inputs.own_game)
    one, single = inputs.wrapped, until
    if inputs.own_game:
        check_rows("until", until, inputs.runs)
        one, single = take((one, until), 0)
    criterion = fitted(until, one, inputs.like)
    single = fitted(single, one, inputs.like)
    reported = check_recorder(single, one, inputs.like)
    state = jax.eval_shape(single.init, one, inputs.like)
    _check_done(single, state)
    check_result(inputs, (reported, state), 1, True)
    size = bytes_of_run(inputs, state)
    execution = plan_execution(
        size, inputs.runs, devices, batch_size, progress=progress, shared=True
    )
    others = {"key": key, "scale": scale, "until": until, "max_steps": max_steps}
    others |= {"start": None if start is None else start.steps}
    unfinished = Store(checkpoint, "simulation until", inputs._asdict() | others)

    before = time.perf_counter()
    pool, save = plan_work(
        Pool,
        unfinished,
        inputs,
        functools.partial(run_keys, key),
        execution,
        scale=scale,
        until=criterion,
        max_steps=max_steps,
        begun=None if start is None else _begun(start),
    )
    compiled_by = time.perf_counter()
    with execution.bar(inputs.runs, int(pool.stopped.sum()), "run") as bar:
        complete = carry_out(pool, save, bar)
    ended, faults = pool.finish()
    finished, lost = time.perf_counter(), is_lost(faults)
    reported, done = _reports(criterion, ended.recorded[0], inputs.own_game)
    reached = np.asarray(done) & ~lost
    result: Any = RESULTS.successful
    if not complete:
        result = RESULTS.interrupted
        rest = "." if checkpoint is None else f"; {os.fspath(checkpoint)!r} holds the rest."
        warnings.warn(
            f"interrupted: {pool.stopped.sum()} of {inputs.runs} runs have stopped{rest}",
            stacklevel=2,
        )
    elif not (reached | lost).all():
        result = RESULTS.unreached
        warnings.warn(
            f"{(~reached & ~lost).sum()} of {inputs.runs} runs did not meet the criterion within "
            f"max_steps = {max_steps}: they are returned as they stood then.",
            stacklevel=2,
        )
    if lost.any():
        result, text = describe_lost(one, _count(faults, len(one.learners)), inputs.runs)
        warnings.warn(f"{text}.", stacklevel=2)
    return StoppedRuns(
        wrapped=wrapped,
        until=until,
        steps=pool.steps,
        reached=reached,
        lost=lost,
        recorded=jax.device_get(reported),
        final=ended.standing,
        scale=scale,
        max_steps=max_steps,
        compensated=inputs.compensated,
        key_data=np.asarray(jax.random.key_data(key)),
        compile_seconds=compiled_by - before,
        run_seconds=finished - compiled_by,
        steps_taken=int(pool.steps.sum()) - pool.steps_before,
        result=result,
        watching=ended.recorded[0],
        compiler=pool.compiler,
    )


def _check_until(until: Any, max_steps: int) -> None:
    """Raises ValueError unless it is a criterion that can be met."""
    if not isinstance(until, AbstractRecorder) or not callable(getattr(until, "done", None)):
        found = f"{type(until).__name__}, which has none" * isinstance(until, AbstractRecorder)
        raise ValueError(
            "until must be a recorder with a method done(state), e.g. "
            f"ex.until.greedy_unchanged(100_000); found {found or describe(until)}."
        )
    if isinstance(until, AbstractWatch) and until.steps > max_steps:
        raise ValueError(
            f"until can never be met: it waits for {until.steps} steps without a change, and "
            f"max_steps is {max_steps}."
        )


def _check_done(until: Any, state: Any) -> None:
    """Raises ValueError unless `done` returns one truth value."""
    done = jax.eval_shape(until.done, state)
    if getattr(done, "shape", None) != () or done.dtype != bool:
        raise ValueError(
            f"until.done must return one truth value, e.g. of a comparison; found {describe(done)}."
        )


def _check_start(start: StoppedRuns, wrapped, until, key, scale: float, max_steps: int) -> None:
    """Raises ValueError unless an earlier result can go on."""
    check_continued(start, wrapped, key, scale)
    if identify(start.until, "until") != identify(until, "until"):
        raise ValueError(f"start waited for another criterion, {start.until}; give the same.")
    if max_steps < start.steps.max():
        raise ValueError(
            f"start has taken {start.steps.max()} steps; max_steps must not be fewer; found "
            f"{max_steps}."
        )


def _begun(start: StoppedRuns) -> tuple[Run, np.ndarray, np.ndarray]:
    """Where the runs of an earlier result stand, their steps, and which have stopped."""
    faults: Any = start.lost.astype(np.int32)
    return Run(start.final, (start.watching,), faults), start.steps, start.reached | start.lost


@compiled
def _reports(until: Any, state: Any, own: bool) -> tuple[Any, Any]:
    """What the criterion reports of every run, and whether it is met."""

    def of_run(until, state):
        return until.report(state)[0], until.done(state)

    return eqx.filter_vmap(of_run, in_axes=(eqx.if_array(0) if own else None, 0))(until, state)


def _count(faults: np.ndarray, agents: int) -> np.ndarray:
    """The number of lost runs, and of those lost by the policy of every agent, `[1 + n]`."""
    misplayed = (faults & MISPLAYED) > 0
    by_agent = [np.sum(misplayed & ((faults & lost_by(k)) > 0)) for k in range(agents)]
    return np.array([np.sum(is_lost(faults)), *by_agent])
