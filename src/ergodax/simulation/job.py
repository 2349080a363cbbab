"""The host's part of a simulation: batches of runs, blocks of steps, and what has come of them.

A batch is as many runs as all devices hold. It is carried through all blocks of steps; then its
moments are merged with those of the batches before it. Moments are those of all runs, or of several
ensembles, equally many consecutive runs each.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..base.devices import as_array
from . import block, greedy_tables
from .execution import Execution
from .inputs import Inputs
from .moments import GROUP, Merger, Moments, merge_tree
from .recorders import AbstractRecorder
from .step import words_of
from .steps import compiler_of, in_kernel_or_loop, is_gpu

# Intervals per block, at most.
_INTERVALS = 32
_NOT_WHOLE = "the checkpoint does not hold what was saved for this work"


class Block(NamedTuple):
    """A block of steps.

    Attributes:
        lengths: steps of its intervals.
        ends: which of them end at a report time.
    """

    lengths: np.ndarray
    ends: np.ndarray


def plan(intervals: np.ndarray, longest: int) -> list[Block]:
    """Distributes intervals over blocks, equally many to each; long ones are cut.

    Args:
        intervals: steps up to each report time, `[K]`.
        longest: steps of a block, at most.
    """
    cut: list[tuple[int, bool]] = []
    for interval in intervals.tolist():
        whole, rest = divmod(interval, longest)
        lengths = [longest] * whole + [rest] * (rest > 0 or not whole)
        cut += [(length, k == len(lengths) - 1) for k, length in enumerate(lengths)]
    blocks: list[list[tuple[int, bool]]] = [[]]
    for interval in cut:
        taken = sum(length for length, _ in blocks[-1])
        if len(blocks[-1]) == _INTERVALS or taken + interval[0] > longest:
            blocks.append([])
        blocks[-1].append(interval)
    blocks = [one for one in blocks if one]
    size = max(len(one) for one in blocks)
    empty = [(0, False)]
    return [
        Block(*(np.array(column) for column in zip(*(b + empty * (size - len(b))), strict=True)))
        for b in blocks
    ]


class Progress(NamedTuple):
    """How far a simulation has come: replaced as a whole, so that no interruption splits it.

    Attributes:
        done: number of runs that are complete.
        mergers: their moments, one of every ensemble.
        batch: the runs under way; None before their first block.
        reports: their moments at the report times of every block done.
    """

    done: int
    mergers: tuple[Merger, ...]
    batch: Any
    reports: tuple[Moments, ...]


class Summary(NamedTuple):
    """What has come of ensembles of runs; each leaf `[E, K, ...]`.

    Attributes:
        mean: mean over runs of the observable and of what every recorder reported, a tuple.
        variance: their variance over runs.
        lost: number of lost runs, of all and by the policy of every agent, `[E, K, 1 + n]`.
    """

    mean: tuple
    variance: tuple
    lost: np.ndarray


class Job:
    """A simulation under way.

    Attributes:
        final: where every run stands at the end, each leaf `[R, ...]`; valid up to `done`.
        values: what is kept of every run, each leaf `[R, K, ...]`.
        steps_before: steps that were taken before it was gone on with.
    """

    def __init__(
        self,
        inputs: Inputs,
        keys: Callable[[Array], Array],
        intervals: np.ndarray,
        execution: Execution,
        *,
        scale: float,
        observe: Callable[[Any], Any],
        recorders: tuple[AbstractRecorder, ...],
        kept: int = 0,
        group: int = GROUP,
        begun: int = 0,
        ensembles: int = 1,
        counted: np.ndarray | None = None,
        before: int = 0,
        saved: dict[str, np.ndarray] | None = None,
    ):
        """Plans the work and compiles it.

        Args:
            inputs: what the runs start from.
            keys: returns the key words of runs, by their numbers.
            intervals: steps up to each report time, `[K]`.
            execution: how it is carried out.
            scale: N.
            observe: what to report of the parameters.
            recorders: what else to report.
            kept: how many of the observable and these are kept of every run.
            group: runs of a group.
            begun: steps already taken.
            ensembles: number of ensembles E. If there are several, each has a power of two of runs,
                at least as many as a group, and a batch holds whole ones.
            counted: which runs count, `[R]`, of every ensemble the first ones; all by default.
            before: number of runs before the first of these, which other jobs do.
            saved: what `state` of an unfinished job returned, to go on from; its width is kept.
        """
        if saved is not None:
            execution = execution._replace(width=_saved_width(saved, inputs.runs))
        self._setting = block.Setting(
            wrapped=inputs.wrapped,
            scale=as_array(scale, float),
            observe=observe,
            recorders=recorders,
            compensated=inputs.compensated,
            per_run=inputs.own_game,
            kept=kept,
            group=group,
            mesh=execution.mesh,
            in_kernel=is_gpu(execution.mesh),
            in_step=inputs.in_step,
        )
        self._inputs, self._keys_of, self._runs = inputs, keys, inputs.runs
        self._observed = observe, recorders
        self._execution, self._begun = execution, begun
        self._batch = execution.width * len(execution.devices)
        self._size = self._runs // ensembles
        # Runs whose moments are merged first: those of one ensemble on one device.
        self._together = min(execution.width, self._size) if ensembles > 1 else execution.width
        self._counting = np.ones(self._runs, bool) if counted is None else counted
        self._blocks = plan(intervals, execution.block_steps)
        self._is_quick = greedy_tables.fits(inputs, recorders, execution.devices)
        self._before = before
        merger = Merger(first=before // self._together)
        self._progress = Progress(0, (merger,) * ensembles, None, ())
        self._begin_batch()
        # A block without steps takes as long as its compilation.
        first = self._blocks[0]
        compiled = jax.block_until_ready(self._advance(first._replace(lengths=0 * first.lengths)))
        self._template = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), compiled)
        runs, report = self._template
        self._times = len(intervals)
        shape = (self._runs, self._times)
        self.final = jax.tree.map(
            lambda a: np.empty(shape[:1] + a.shape[1:], a.dtype), runs.standing
        )
        self.values = jax.tree.map(lambda a: np.empty(shape + a.shape[2:], a.dtype), report.values)
        if saved is not None:
            self._restore(saved)
        self.steps_before = self.steps_done

    @property
    def done(self) -> int:
        """Number of runs that are complete."""
        return self._progress.done

    @property
    def steps_done(self) -> int:
        """Steps taken by all runs together."""
        return self.done * _steps(self._blocks) + self._live * _steps(self._blocks_done)

    @property
    def compiler(self) -> str:
        """What compiles the steps."""
        return "numba" if self._is_quick else compiler_of(self._setting)

    def run(self) -> Iterator[int]:
        """Does the work block by block, yielding the steps that all runs took together."""
        while self.done < self._runs:
            for b in self._blocks[len(self._progress.reports) :]:
                batch, report = self._advance(b)
                moments = self._merge_groups(jax.device_get(report.moments), b.ends)
                self._keep(report.values, b.ends)
                reports = (*self._progress.reports, moments)
                self._progress = self._progress._replace(batch=batch, reports=reports)
                yield self._live * _steps([b])
            self._end_batch()
            if self.done < self._runs:
                self._begin_batch()

    def cut(self) -> int:
        """Gives up what is incomplete, but if no run is complete, the first runs' last times.

        Returns:
            The number of report times that are complete.
        """
        blocks = self._blocks if self.done else self._blocks_done
        count = _times(blocks)
        if not self.done and count:
            last = blocks[-1]
            self._end_batch()
            # Where the runs stand is of use only at a report time.
            if not last.ends[np.flatnonzero(last.lengths)[-1:]].all():
                self.final = None
        return count

    def summary(self) -> Summary:
        """What has come of the complete runs of all ensembles, at the times that are complete."""
        return summarise([merger.result() for merger in self._progress.mergers])

    @property
    def merged(self) -> tuple[list[int], list[Moments]]:
        """The moments of one ensemble so far, and how many batches of a device each holds."""
        (merger,) = self._progress.mergers
        return merger.sizes, merger.merged

    @property
    def _live(self) -> int:
        """Runs of the batch that count."""
        return min(self._batch, self._runs - self.done)

    @property
    def _blocks_done(self) -> list[Block]:
        """Blocks that the batch under way has done."""
        return self._blocks[: len(self._progress.reports)]

    def _begin_batch(self) -> None:
        numbers = np.arange(self.done, self.done + self._batch)
        rows, (observe, recorders) = self._inputs.rows(numbers, self._observed)
        self._setting = dataclasses.replace(
            self._setting, wrapped=rows.wrapped, observe=observe, recorders=recorders
        )
        keys = self._keys_of(as_array(numbers, jnp.uint32))
        batch = block.start(self._setting, keys, rows.params0, rows.law, rows.standing)
        counted = np.zeros(self._batch, bool)
        counted[: self._live] = self._counting[self.done : self.done + self._live]
        self._keys, batch, self._counted = self._setting.spread((keys, batch, counted))
        self._progress = self._progress._replace(batch=batch, reports=())

    def _advance(self, b: Block):
        batch, begun = self._progress.batch, self._begun + _steps(self._blocks_done)
        if not self._is_quick:
            return self._advance_all(batch, begun, b)
        reports = []
        for length, end in zip(b.lengths.tolist(), b.ends, strict=True):
            taken = greedy_tables.advance(
                *(self._setting, self._keys, batch, np.full(self._batch, begun), length),
                np.ones(self._batch, bool),
            )
            interval = Block(np.array([0 if taken else length]), np.array([end]))
            batch = self._setting.spread(taken.runs) if taken else batch
            batch, report = self._advance_all(batch, begun, interval)
            reports.append(report)
            begun += length
        return batch, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *reports)

    def _advance_all(self, batch, begun: int, b: Block):
        lengths, ends = as_array(b.lengths, np.int32), as_array(b.ends)
        words = words_of(begun)
        given = self._keys, batch, self._counted, words, lengths, ends
        self._setting, found = in_kernel_or_loop(block.advance, self._setting, *given)
        return found

    def _merge_groups(self, moments: Moments, ends: np.ndarray) -> Moments:
        """Merges groups, in float64: from `[B, groups]` to `[report times, merged]`."""
        groups = self._together // self._setting.group

        def by_group(leaf):
            leaf = np.asarray(leaf[ends], dtype=float)
            leaf = leaf.reshape(len(leaf), leaf.shape[1] // groups, groups, *leaf.shape[2:])
            return np.moveaxis(leaf, 2, 0)

        return merge_tree(jax.tree.map(by_group, moments))

    def _keep(self, values, ends) -> None:
        known = _times(self._blocks_done)
        rows, times = slice(self.done, self.done + self._live), slice(known, known + ends.sum())

        def store(all_values, new):
            all_values[rows, times] = np.moveaxis(np.asarray(new)[ends, : self._live], 0, 1)

        jax.tree.map(store, self.values, values)

    def _end_batch(self) -> None:
        """Merges the batch's moments and goes on to the next batch."""
        moments = jax.tree.map(lambda *leaves: np.concatenate(leaves), *self._progress.reports)
        done, mergers = self.done, tuple(merger.copy() for merger in self._progress.mergers)
        for k, first in enumerate(range(0, self._live, self._together)):
            own = jax.tree.map(lambda leaf, k=k: leaf[:, k], moments)
            mergers[(done + first) // self._size].add(own)

        def store(all_runs, new):
            if len(all_runs) == len(new):  # large tables are not copied once more
                return np.asarray(new)
            all_runs[done : done + self._live] = np.asarray(new)[: self._live]
            return all_runs

        self.final = jax.tree.map(store, self.final, self._progress.batch.standing)
        self._progress = Progress(done + self._live, mergers, None, ())

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on with one ensemble, by name."""
        done, (merger,), batch, reports = self._progress
        kept = done + (self._live if reports else 0)
        trees = {
            "merged": merger.merged,
            "report": reports,
            "batch": batch,
            "final": jax.tree.map(lambda leaf: leaf[:done], self.final),
            "value": jax.tree.map(lambda leaf: leaf[:kept], self.values),
        }
        arrays = {
            "done": np.array(done),
            "width": np.array(self._execution.width),
            "plan": self._plan_so_far(len(reports)),
            "sizes": np.array(merger.sizes, dtype=int),
        }
        for name, tree in trees.items():
            leaves = enumerate(jax.tree.leaves(tree))
            arrays |= {f"{name}{k}": np.asarray(leaf) for k, leaf in leaves}
        return arrays

    def _plan_so_far(self, blocks: int) -> np.ndarray:
        """Runs of a batch, and the steps of the intervals in its first blocks."""
        lengths = [b.lengths for b in self._blocks[:blocks]]
        return np.concatenate([[self._batch], *lengths])

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `state` returned; raises ValueError if it did not return this."""
        batch, report = self._template
        structure = jax.tree.structure(report.moments)

        def take(name, like, *lead):
            """The next arrays of a name, each like one of a tree, with leading axes of its own."""
            leaves, skipped = jax.tree.leaves(like), len(taken.setdefault(name, []))
            for k, leaf in enumerate(leaves, skipped):
                found = arrays.get(f"{name}{k}", np.zeros(0))
                if found.shape != (*lead, *leaf.shape) or found.dtype != leaf.dtype:
                    raise ValueError(f"{_NOT_WHOLE}: its {name}{k} does not fit.")
                taken[name].append(found)
            return taken[name][skipped:]

        def moments(name, *lead):
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape[2:]), report.moments)
            return structure.unflatten(take(name, like, *lead))

        taken: dict[str, list[np.ndarray]] = {}
        done, sizes, plan = (arrays.get(name, np.zeros(0)) for name in ("done", "sizes", "plan"))
        whole = done.shape == () and sizes.ndim == plan.ndim == 1 and plan.size > 0
        if not whole or {done.dtype, sizes.dtype, plan.dtype} != {np.dtype(int)}:
            raise ValueError(f"{_NOT_WHOLE}.")
        merged = -(-int(done) // self._together)
        if not 0 <= done <= self._runs or (sizes < 1).any() or sizes.sum() != merged:
            raise ValueError(f"{_NOT_WHOLE}: it has {done} runs done, in {sizes}.")
        done, blocks = int(done), 0
        while f"report{blocks * structure.num_leaves}" in arrays:
            blocks += 1
        kept = done + (min(int(plan[0]), self._runs - done) if blocks else 0)
        for name, tree, count in (("final", self.final, done), ("value", self.values, kept)):
            like = jax.tree.map(lambda leaf: leaf[0], tree)
            for all_runs, saved in zip(jax.tree.leaves(tree), take(name, like, count), strict=True):
                all_runs[:count] = saved
        first = self._before // self._together
        mergers = (Merger(sizes.tolist(), [moments("merged", self._times) for _ in sizes], first),)
        self._progress = Progress(done, mergers, None, ())
        if done == self._runs:
            return
        self._begin_batch()
        # A batch begun under another plan starts anew: its numbers will be the same.
        if blocks and np.array_equal(plan, self._plan_so_far(blocks)):
            groups = self._batch // self._together
            reports = [moments("report", b.ends.sum(), groups) for b in self._blocks[:blocks]]
            found = jax.tree.structure(batch).unflatten(take("batch", batch))
            self._progress = Progress(done, mergers, self._setting.spread(found), tuple(reports))


def summarise(results: list[Moments]) -> Summary:
    """Means and variances of ensembles, from the moments of each."""
    moments = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
    runs = moments.count

    def variance(square):
        return square / (runs - 1).reshape(*runs.shape, *(1,) * (square.ndim - 2))

    with np.errstate(invalid="ignore", divide="ignore"):
        return Summary(
            mean=jax.tree.map(np.add, moments.origin, moments.mean),
            variance=jax.tree.map(variance, moments.square),
            lost=moments.total,
        )


def _saved_width(arrays: dict[str, np.ndarray], runs: int) -> int:
    """The width of a saved batch; raises ValueError unless some plan has it."""
    width = arrays.get("width", np.zeros(0))
    whole = width.shape == () and width.dtype.kind in "iu"
    if not whole or width % GROUP or width & (width - 1) or not 0 < width < 2 * max(runs, GROUP):
        raise ValueError(f"{_NOT_WHOLE}: its width is {width}.")
    return int(width)


def _steps(blocks: list[Block]) -> int:
    """Steps of a run in blocks."""
    return sum(int(b.lengths.sum(dtype=np.int64)) for b in blocks)


def _times(blocks: list[Block]) -> int:
    """Report times in blocks."""
    return sum(int(b.ends.sum()) for b in blocks)
