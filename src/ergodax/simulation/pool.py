"""The host's part of a simulation whose runs stop one by one, each by its own criterion.

Runs share lanes: one that has stopped gives up its place to the next, between blocks. When few are
left, they move to fewer lanes. What is known of a run, where it stands after so many steps, has a
row in arrays of the host; while it is under way, its lane knows better.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..base.compiling import compiled
from ..base.devices import as_array
from . import block, greedy_tables
from .capacity import limits_of, width_of
from .execution import Execution
from .inputs import Inputs, rows_of
from .moments import GROUP
from .recorders import AbstractRecorder
from .step import DIVERGED, MISPLAYED, Run, settle, words_of
from .steps import compiler_of, in_kernel_or_loop, is_gpu

# A block ends when this share of the lanes is idle and runs are waiting. That is looked at after so
# many steps of a lane, over all lanes of a device.
_IDLE, _LOOK = 1 / 8, 2**19
_NOT_WHOLE = "the checkpoint does not hold what was saved for this work"


class Lots(NamedTuple):
    """The runs under way: replaced as a whole, so that no interruption splits it.

    Attributes:
        numbers: the run of each lane, `[W]`; -1 if it is idle.
        steps: steps that it has taken, `[W]`.
        setting: what is simulated.
        keys: key words, `[W, 2]`.
        runs: where the runs stand, each leaf `[W, ...]`.
        stopped: which of all runs have stopped, `[R]`.
    """

    numbers: np.ndarray
    steps: np.ndarray
    setting: block.Setting
    keys: Any
    runs: Run
    stopped: np.ndarray


class Pool:
    """A simulation under way.

    Attributes:
        runs: what is known of every run, each leaf `[R, ...]`; valid where `known`.
        steps: steps that it has taken, `[R]`.
        known: for which runs this is known, `[R]`; all others have not begun.
    """

    def __init__(
        self,
        inputs: Inputs,
        keys: Callable[[Array], Array],
        execution: Execution,
        *,
        scale: float,
        until: AbstractRecorder,
        max_steps: int,
        begun: tuple[Run, np.ndarray, np.ndarray] | None = None,
        saved: dict[str, np.ndarray] | None = None,
    ):
        """Plans the work and compiles it.

        Args:
            inputs: what the runs start from.
            keys: returns the key words of runs, by their numbers.
            execution: how it is carried out.
            scale: N.
            until: the criterion.
            max_steps: steps of a run, at most.
            begun: where runs stand that go on, the steps they have taken, and which have stopped.
            saved: what `state` of an unfinished pool returned, to go on from.
        """
        self._inputs, self._keys_of, self._execution = inputs, keys, execution
        self._until, self._most = until, max_steps
        self._is_quick = greedy_tables.fits(inputs, (until,), execution.devices)
        self._setting = block.Setting(
            wrapped=inputs.wrapped,
            scale=as_array(scale, float),
            observe=_nothing,
            recorders=(until,),
            compensated=inputs.compensated,
            per_run=inputs.own_game,
            kept=0,
            group=GROUP,
            mesh=execution.mesh,
            in_kernel=is_gpu(execution.mesh),
        )
        self.known = np.zeros(inputs.runs, bool)
        self.steps = np.zeros(inputs.runs, np.int64)
        stopped = np.zeros(inputs.runs, bool)
        width = self._width(inputs.runs)
        # What stands in the lanes is only looked at for its form here.
        setting, keys_of, runs = self._load(np.arange(width))
        self.runs: Run = jax.tree.map(
            lambda a: np.zeros((inputs.runs, *a.shape[1:]), a.dtype), runs
        )
        if begun is not None:
            self.runs, self.steps, stopped = (jax.tree.map(np.array, part) for part in begun)
            self.known[:] = True
        if saved is not None:
            stopped = self._restore(saved)
        idle = np.full(width, -1)
        self._lots = Lots(idle, np.zeros_like(idle), setting, keys_of, runs, stopped)
        self._advance(self._lots, 0, 0)  # takes as long as its compilation
        self.steps_before = int(self.steps.sum())

    @property
    def stopped(self) -> np.ndarray:
        """Which runs have stopped, `[R]`."""
        return self._lots.stopped

    @property
    def compiler(self) -> str:
        """What compiles the steps."""
        return "numba" if self._is_quick else compiler_of(self._setting)

    def run(self) -> Iterator[int]:
        """Does the work block by block, yielding how many runs have stopped in each."""
        while not self.stopped.all():
            self._fill()
            before = self.stopped.sum()
            self._work()
            yield int(self.stopped.sum() - before)

    def _width(self, runs: int) -> int:
        """Lanes for so many runs on all devices."""
        width, devices = self._execution.width, self._execution.devices
        return width_of(width, 0, runs, len(devices), limits_of(devices[0])) * len(devices)

    def _fill(self) -> None:
        """Gives idle lanes to waiting runs, and moves to fewer lanes if that is enough."""
        lots, width = self._lots, self._width(int(np.sum(~self.stopped)))
        numbers, steps = lots.numbers, lots.steps
        if width < len(numbers):
            self._set_down()
            numbers, steps = np.full(width, -1), np.zeros(width, np.int64)
        waiting = ~lots.stopped
        waiting[numbers[numbers >= 0]] = False
        taken = np.flatnonzero(numbers < 0)[: waiting.sum()]
        if not len(taken):
            return
        began = np.flatnonzero(waiting)[: len(taken)]
        new, numbers, steps = np.zeros(width, bool), numbers.copy(), steps.copy()
        new[taken], numbers[taken], steps[taken] = True, began, self.steps[began]
        setting, keys, runs = self._load(numbers, self.known[numbers] & new)
        if width == len(lots.numbers) and not new.all():
            runs = _choose(jnp.asarray(new), runs, lots.runs)
        self._lots = Lots(numbers, steps, setting, keys, self._setting.spread(runs), lots.stopped)

    def _load(
        self, numbers: np.ndarray, known: np.ndarray | None = None
    ) -> tuple[block.Setting, Any, Run]:
        """What is simulated in lanes, their keys, and where their runs stand before they go on.

        Args:
            numbers: the run of each lane, or -1.
            known: which of them go on from their rows.
        """
        numbers = np.clip(numbers, 0, self._inputs.runs - 1)
        rows, (until,) = self._inputs.rows(numbers, (self._until,))
        setting = dataclasses.replace(self._setting, wrapped=rows.wrapped, recorders=(until,))
        keys = self._keys_of(as_array(numbers, jnp.uint32))
        runs = block.start(setting, keys, rows.params0, rows.law, rows.standing)
        if known is not None and known.any():
            found = jax.tree.map(lambda leaf: leaf[numbers], self.runs)
            runs = _choose(jnp.asarray(known), jax.tree.map(jnp.asarray, found), runs)
        keys, runs = self._setting.spread((keys, runs))
        return setting, keys, runs

    def _work(self) -> None:
        """One block."""
        lots = self._lots
        width, narrower = len(lots.numbers), GROUP * len(self._execution.devices)
        # As long as runs are waiting, idle lanes are a waste; and later lanes beyond half.
        fewest = width // 2 if width > narrower else 0
        if np.sum(~lots.stopped) > np.sum(lots.numbers >= 0):
            fewest = width - max(int(width * _IDLE), 1)
        runs, stops, taken = self._advance(lots, self._execution.block_steps, fewest)
        idle, at, taken = jax.device_get((stops.idle, stops.at, taken))
        places = np.flatnonzero(idle & (lots.numbers >= 0))
        ended = lots.numbers[places]
        self._keep(ended, stops.runs, places)
        self.steps[ended] = lots.steps[places] + at[places]
        stopped, numbers = lots.stopped.copy(), lots.numbers.copy()
        stopped[ended], numbers[places] = True, -1
        self.known[ended] = True
        self._lots = Lots(numbers, lots.steps + taken, lots.setting, lots.keys, runs, stopped)

    def _advance(self, lots: Lots, length: int, fewest: int):
        if self._is_quick:
            taken = greedy_tables.advance(
                *(lots.setting, lots.keys, lots.runs, lots.steps, length),
                *(lots.numbers >= 0, self._most - lots.steps),
            )
            if taken is not None:
                idle: Any = (lots.numbers < 0) | taken.stopped
                return taken.runs, block.Stops(idle, taken.at, taken.runs), length
        left = np.clip(self._most - lots.steps, 0, 2**31 - 1).astype(np.int32)
        own = lots.numbers < 0, left, words_of(lots.steps)
        idle, left, words = self._setting.spread(own)
        look = max(_LOOK // self._execution.width, 1)
        limits = [as_array(count, jnp.int32) for count in (length, look)]
        limits.append(as_array(fewest))
        setting = dataclasses.replace(lots.setting, in_kernel=self._setting.in_kernel)
        given = lots.keys, lots.runs, idle, words, left, *limits
        setting, found = in_kernel_or_loop(block.advance_until, setting, *given)
        self._setting = dataclasses.replace(self._setting, in_kernel=setting.in_kernel)
        return found

    def _keep(self, numbers: np.ndarray, runs: Run, places: np.ndarray) -> None:
        """Writes the runs of some lanes to their rows."""
        if not len(places):
            return
        # Padded, so that few programs are compiled.
        padded = np.resize(places, 1 << (len(places) - 1).bit_length())
        found = jax.device_get(rows_of(runs, padded))

        def store(all_runs, new):
            all_runs[numbers] = new[: len(numbers)]

        jax.tree.map(store, self.runs, found)

    def _set_down(self) -> None:
        """Writes the runs under way to their rows."""
        lots = self._lots
        places = np.flatnonzero(lots.numbers >= 0)
        numbers = lots.numbers[places]
        self._keep(numbers, lots.runs, places)
        self.steps[numbers] = lots.steps[places]
        self.known[numbers] = True

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on, by name."""
        self._set_down()
        rows = np.flatnonzero(self.known)
        arrays = {"numbers": rows, "steps": self.steps[rows], "stopped": self.stopped[rows]}
        leaves = enumerate(jax.tree.leaves(self.runs))
        return arrays | {f"run{k}": leaf[rows] for k, leaf in leaves}

    def _restore(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Takes what `state` returned; raises ValueError if it did not return this.

        Returns:
            Which runs have stopped.
        """
        empty = np.zeros(0)
        rows, steps, ended = (arrays.get(name, empty) for name in ("numbers", "steps", "stopped"))
        whole = rows.dtype == steps.dtype == int and ended.dtype == bool
        whole &= rows.ndim == 1 and rows.shape == steps.shape == ended.shape
        if not whole or (np.diff(rows, prepend=-1) < 1).any() or (rows >= len(self.known)).any():
            raise ValueError(f"{_NOT_WHOLE}.")
        if (steps < 0).any() or (steps > self._most).any():
            raise ValueError(f"{_NOT_WHOLE}: its steps do not fit.")
        for k, leaf in enumerate(jax.tree.leaves(self.runs)):
            found = arrays.get(f"run{k}", empty)
            if found.shape != (len(rows), *leaf.shape[1:]) or found.dtype != leaf.dtype:
                raise ValueError(f"{_NOT_WHOLE}: its run{k} does not fit.")
            leaf[rows] = found
        stopped = np.zeros(len(self.known), bool)
        self.known[rows], self.steps[rows], stopped[rows] = True, steps, ended
        return stopped

    def finish(self) -> tuple[Run, np.ndarray]:
        """Where all runs stand, those that have not begun before their first step.

        Returns:
            The runs, those lost by an invalid policy marked by NaN, and how runs were lost, as
            `settle` says it, `[R]`.
        """
        self._set_down()
        width, missing = len(self._lots.numbers), np.flatnonzero(~self.known)
        for first in range(0, len(missing), width):
            numbers = missing[first : first + width]
            begun = self._load(np.resize(numbers, width))[2]
            self._keep(numbers, begun, np.arange(len(numbers)))
        leaves = jax.tree.leaves(self.runs.standing.params)
        finite = [np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]
        faults = self.runs.faults
        settled = np.asarray(settle(faults, ~np.stack(finite).all(axis=0)))
        for leaf in leaves:
            leaf[(settled & MISPLAYED) > 0] = np.nan
        return self.runs, settled


def is_lost(faults: np.ndarray) -> np.ndarray:
    """Which runs are lost, by their settled faults."""
    return (faults & (DIVERGED | MISPLAYED)) > 0


def _nothing(params: Any) -> tuple:
    return ()


@compiled
def _choose(which, chosen, others):
    """Rows of the first where chosen, of the second elsewhere."""

    def of_leaf(a, b):
        return jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(of_leaf, chosen, others)
