"""The host's part of a simulation: rounds of runs, blocks of steps, and what has come of them.

A round is as many runs as all devices hold. It is carried through all blocks of steps; then its
moments are merged with those of the rounds before it. Moments are those of all runs, or of several
ensembles, equally many consecutive runs each.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from . import block
from .inputs import Inputs
from .moments import Merger, Moments, merge_tree
from .step import words_of

# Stretches of steps per block.
_STRETCHES = 32


class Block(NamedTuple):
    """A block of steps.

    Attributes:
        lengths: steps of its stretches.
        ends: which stretches end at a report time.
    """

    lengths: np.ndarray
    ends: np.ndarray


def plan(intervals: np.ndarray, longest: int) -> list[Block]:
    """Cuts intervals between report times into blocks of equally many stretches.

    Args:
        intervals: steps up to each report time, `[K]`.
        longest: steps of a block, at most.
    """
    stretches: list[tuple[int, bool]] = []
    for interval in intervals.tolist():
        whole, rest = divmod(interval, longest)
        lengths = [longest] * whole + [rest] * (rest > 0 or not whole)
        stretches += [(length, k == len(lengths) - 1) for k, length in enumerate(lengths)]
    groups: list[list[tuple[int, bool]]] = [[]]
    for stretch in stretches:
        taken = sum(length for length, _ in groups[-1])
        if len(groups[-1]) == _STRETCHES or taken + stretch[0] > longest:
            groups.append([])
        groups[-1].append(stretch)
    groups = [group for group in groups if group]
    size = max(len(group) for group in groups)
    empty = [(0, False)]
    return [
        Block(*(np.array(column) for column in zip(*(g + empty * (size - len(g))), strict=True)))
        for g in groups
    ]


class Progress(NamedTuple):
    """How far a simulation has come: replaced as a whole, so that no interruption splits it.

    Attributes:
        done: number of runs that are complete.
        mergers: their moments, one of every ensemble.
        ensemble: where the runs of this round stand; None before its first block.
        records: their moments, one entry per block done.
    """

    done: int
    mergers: tuple[Merger, ...]
    ensemble: Any
    records: tuple[Moments, ...]


class Summary(NamedTuple):
    """What has come of ensembles of runs; each leaf `[E, K, ...]`.

    Attributes:
        mean: mean over runs of the observable.
        variance: its variance over runs.
        state_frequency: share of steps in each state since the previous time.
        rewards: mean reward per step since then; like the share NaN where no step was taken.
        lost: number of runs no longer finite.
    """

    mean: Any
    variance: Any
    state_frequency: np.ndarray
    rewards: np.ndarray
    lost: np.ndarray


class Job:
    """A simulation under way.

    Attributes:
        final: where every run stands at the end, each leaf `[R, ...]`; valid up to `done`.
        values: the observable of every run, each leaf `[R, K, ...]`; None unless kept.
    """

    def __init__(
        self,
        setting: block.Setting,
        inputs: Inputs,
        keys: Callable[[Array], Array],
        *,
        width: int,
        begun: int,
        intervals: np.ndarray,
        block_steps: int,
        ensembles: int = 1,
        counted: np.ndarray | None = None,
    ):
        """Plans the work and compiles it.

        Args:
            setting: what is simulated.
            inputs: what the runs start from.
            keys: returns the key words of runs, by their numbers.
            width: runs of one device.
            begun: steps already taken.
            intervals: steps up to each report time, `[K]`.
            block_steps: steps of a block, at most.
            ensembles: number of ensembles E. If there are several, each has a power of two of runs,
                at least as many as a group of `setting`, and a round holds whole ones.
            counted: which runs count, `[R]`, of every ensemble the first ones; all by default.
        """
        self._setting, self._observe = setting, setting.observe
        self._inputs, self._keys_of, self._runs = inputs, keys, inputs.runs
        self._width, self._round, self._begun = width, width * setting.mesh.size, begun
        self._size = self._runs // ensembles
        # Runs of one ensemble on one device.
        self._chunk = width if ensembles == 1 else min(width, self._size)
        self._counting = np.ones(self._runs, bool) if counted is None else counted
        self._intervals, self._blocks = intervals, plan(intervals, block_steps)
        self._progress = Progress(0, (Merger(),) * ensembles, None, ())
        self._begin_round()
        # A block without steps takes as long as its compilation.
        first = self._blocks[0]
        self._template = jax.device_get(self._advance(0 * first.lengths))
        ensemble, record = self._template
        shape = (self._runs, len(intervals))
        self.final = jax.tree.map(lambda a: np.empty(shape[:1] + a.shape[1:], a.dtype), ensemble)
        self.values = jax.tree.map(lambda a: np.empty(shape + a.shape[2:], a.dtype), record.values)

    @property
    def done(self) -> int:
        """Number of runs that are complete."""
        return self._progress.done

    @property
    def steps_done(self) -> int:
        """Steps taken by all runs together."""
        lengths = [int(b.lengths.sum()) for b in self._blocks]
        return self.done * sum(lengths) + self._live * sum(lengths[: len(self._progress.records)])

    def run(self) -> Iterator[int]:
        """Does the work block by block, yielding the steps that all runs took together."""
        while self.done < self._runs:
            for b in self._blocks[len(self._progress.records) :]:
                ensemble, record = self._advance(b.lengths)
                moments = self._of_chunks(jax.device_get(record.moments))
                self._keep(record.values, b.ends)
                records = (*self._progress.records, moments)
                self._progress = self._progress._replace(ensemble=ensemble, records=records)
                yield self._live * int(b.lengths.sum(dtype=np.int64))
            self._end_round()
            if self.done < self._runs:
                self._begin_round()

    def cut(self) -> int:
        """Gives up what is incomplete, but if no run is complete, the first runs' last times.

        Returns:
            The number of report times that are complete.
        """
        blocks = self._blocks if self.done else self._blocks[: len(self._progress.records)]
        count = sum(int(b.ends.sum()) for b in blocks)
        if not self.done and count:
            last = blocks[-1]
            self._end_round()
            # Where the runs stand is of use only at a report time.
            if not last.ends[np.flatnonzero(last.lengths)[-1:]].all():
                self.final = None
        return count

    def summary(self) -> Summary:
        """What has come of the complete runs of all ensembles, at the times that are complete."""
        results = [merger.result() for merger in self._progress.mergers]
        moments = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
        visits, rewards, lost = moments.total
        runs = moments.count
        taken = (runs * self._intervals[: runs.shape[1]])[..., None]

        def variance(square):
            return square / (runs - 1).reshape(*runs.shape, *(1,) * (square.ndim - 2))

        with np.errstate(invalid="ignore", divide="ignore"):
            return Summary(
                mean=jax.tree.map(np.add, moments.origin, moments.mean),
                variance=jax.tree.map(variance, moments.square),
                state_frequency=visits / taken,
                rewards=rewards / taken,
                lost=lost,
            )

    @property
    def _live(self) -> int:
        """Runs of the round that count."""
        return min(self._round, self._runs - self.done)

    def _begin_round(self) -> None:
        rows, observe = self._inputs.rows(self.done, self._round, self._observe)
        self._setting = dataclasses.replace(self._setting, wrapped=rows.wrapped, observe=observe)
        numbers = jnp.arange(self.done, self.done + self._round, dtype=jnp.uint32)
        keys = self._keys_of(numbers)
        ensemble = rows.ensemble
        if ensemble is None:
            ensemble = block.start(self._setting, keys, rows.params0, rows.law)
        counted = np.zeros(self._round, bool)
        counted[: self._live] = self._counting[self.done : self.done + self._live]
        self._keys, ensemble, self._counted = self._spread((keys, ensemble, counted))
        self._progress = self._progress._replace(ensemble=ensemble, records=())

    def _spread(self, tree):
        """Puts every device's runs on it, as `block.advance` returns them."""
        return jax.device_put(tree, NamedSharding(self._setting.mesh, PartitionSpec(block.AXIS)))

    def _advance(self, lengths):
        taken = sum(int(b.lengths.sum()) for b in self._blocks[: len(self._progress.records)])
        return block.advance(
            self._setting,
            self._keys,
            self._progress.ensemble,
            self._counted,
            words_of(self._begun + taken),
            lengths.astype(np.int32),
        )

    def _lengths_done(self, blocks: int) -> list[int]:
        """Steps of the stretches in the first blocks."""
        return [int(length) for b in self._blocks[:blocks] for length in b.lengths]

    def _of_chunks(self, moments: Moments) -> Moments:
        """Merges the groups `[B, G]` of every chunk of the round, in float64: `[B, chunks]`."""
        groups = self._chunk // self._setting.group

        def by_group(leaf):
            leaf = np.asarray(leaf, dtype=float)
            leaf = leaf.reshape(leaf.shape[0], -1, groups, *leaf.shape[2:])
            return np.moveaxis(leaf, 2, 0)

        return merge_tree(jax.tree.map(by_group, moments))

    def _keep(self, values, ends) -> None:
        known = sum(int(b.ends.sum()) for b in self._blocks[: len(self._progress.records)])
        rows, times = slice(self.done, self.done + self._live), slice(known, known + ends.sum())

        def store(all_values, new):
            all_values[rows, times] = np.moveaxis(np.asarray(new)[ends, : self._live], 0, 1)

        jax.tree.map(store, self.values, values)

    def _end_round(self) -> None:
        """Merges the round's moments and goes on to the next round."""
        ends = np.concatenate([b.ends for b in self._blocks[: len(self._progress.records)]])
        last = np.flatnonzero(ends)
        first = np.concatenate([[0], last[:-1] + 1])
        records = self._progress.records
        moments = jax.tree.map(lambda *parts: np.concatenate(parts)[: last[-1] + 1], *records)
        visits, rewards, lost = moments.total
        moments = jax.tree.map(lambda leaf: leaf[last], moments)
        sums = (np.add.reduceat(visits, first), np.add.reduceat(rewards, first), lost[last])
        moments = moments._replace(total=sums)
        done, mergers = self.done, tuple(merger.copy() for merger in self._progress.mergers)
        for chunk, first in enumerate(range(0, self._live, self._chunk)):
            own = jax.tree.map(lambda leaf, k=chunk: leaf[:, k], moments)
            mergers[(done + first) // self._size].add(own)

        def store(all_runs, new):
            all_runs[done : done + self._live] = np.asarray(new)[: self._live]

        jax.tree.map(store, self.final, self._progress.ensemble)
        self._progress = Progress(done + self._live, mergers, None, ())

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on with one ensemble, by name."""
        done, (merger,), ensemble, records = self._progress
        kept = done + (self._live if records else 0)
        trees = {
            "part": merger.parts,
            "record": records,
            "ensemble": ensemble,
            "final": jax.tree.map(lambda leaf: leaf[:done], self.final),
            "value": jax.tree.map(lambda leaf: leaf[:kept], self.values),
        }
        arrays = {
            "done": np.array(done),
            "width": np.array(self._width),
            "round": np.array([self._round, *self._lengths_done(len(records))]),
            "sizes": np.array(merger.sizes, dtype=int),
        }
        for name, tree in trees.items():
            leaves = enumerate(jax.tree.leaves(tree))
            arrays |= {f"{name}{k}": np.asarray(leaf) for k, leaf in leaves}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `state` returned."""

        def leaves(name):
            count = sum(1 for key in arrays if key.rstrip("0123456789") == name)
            return [arrays[f"{name}{k}"] for k in range(count)]

        ensemble, record = self._template
        structure = jax.tree.structure(self._of_chunks(record.moments))
        size = structure.num_leaves

        def moments(name):
            found = leaves(name)
            return [structure.unflatten(found[k : k + size]) for k in range(0, len(found), size)]

        whole = jax.tree.leaves((self.final, self.values))
        for all_runs, part in zip(whole, leaves("final") + leaves("value"), strict=True):
            all_runs[: len(part)] = part
        mergers = (Merger(arrays["sizes"].tolist(), moments("part")),)
        self._progress = Progress(int(arrays["done"]), mergers, None, ())
        if self.done == self._runs:
            return
        self._begin_round()
        # A round begun under another plan starts anew: its numbers will be the same.
        records = tuple(moments("record"))
        same = arrays["round"].tolist() == [self._round, *self._lengths_done(len(records))]
        if records and same:
            found = jax.tree.structure(ensemble).unflatten(leaves("ensemble"))
            self._progress = Progress(self.done, mergers, self._spread(found), records)
