"""Simulations whose runs are divided between processes; every one of them has all results.

Runs are cut into shares of consecutive ones. A process carries its shares out one after the other,
each as a work of its own; then moments are merged in the tree of all runs, whoever simulated them,
so that the numbers are those of one process. Shares are saved in files of one folder, which any
number of processes can go on with.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from ..base.processes import agree, gather, in_step
from ..io.store import PLAN, Arrays, Store
from .execution import Execution
from .inputs import Inputs
from .job import Job, Summary, summarise
from .moments import Merger
from .pool import Pool

# Shares of each process, at most: as many more processes can go on with the rest.
_SHARES = 8


class _Shares:
    """The shares of all processes, of which this one carries out its own.

    Attributes:
        runs: number of all runs.
    """

    def __init__(
        self,
        store: Store,
        runs: int,
        execution: Execution,
        size: int,
        begin: Callable[[int, int, Execution, Arrays | None], Any],
    ):
        """Divides the work, and begins the first share of this process.

        Args:
            store: says what the work depends on, and where shares are saved.
            runs: number of all runs.
            execution: how each share is carried out.
            size: runs of a share.
            begin: begins a work, from the share's first run, its end, how it is carried out and
                what was saved.

        Raises:
            ValueError: if processes do not agree on the work.
        """
        self._team, self._store, self._begin, self.runs = execution.team, store, begin, runs
        if self._team.count > 1:
            agree(self._team, store.identity)
        width, firsts = np.array(execution.width), np.arange(0, runs, size)
        # The plan of those who began counts, whatever would suit those who go on.
        plan = store.part(PLAN).make(lambda: {"width": width, "firsts": firsts})
        plan = gather(self._team, plan)[0]
        self._execution = execution._replace(width=int(plan["width"]))
        firsts = plan["firsts"].tolist()
        shares = list(zip(firsts, [*firsts[1:], runs], strict=True))
        self._own = shares[self._team.index :: self._team.count]
        self._begun = self._begin_share(*self._own[0]) if self._own else None

    def carry_out(
        self, finish: Callable[[Any], Any], join: Callable[[list], None]
    ) -> Iterator[int]:
        """Does the work of all processes, yielding about how much all have done in each block.

        Args:
            finish: what is needed of a share's work when it is done.
            join: takes this of all shares, in the order of their runs.
        """
        found: list[tuple[int, Any]] = []
        work = self._carry_out_own(finish, found)
        try:
            for done in in_step(self._team, work):
                yield done * self._team.count
        finally:
            work.close()  # saves what is under way
        gathered = gather(self._team, found)
        shares = sorted((share for own in gathered for share in own), key=lambda share: share[0])
        join([share for _, share in shares])

    def _carry_out_own(self, finish, found) -> Generator[int, None, None]:
        for first, end in self._own:
            work, self._begun = self._begun or self._begin_share(first, end), None
            save = self._share(first).save
            try:
                for done in work.run():
                    save(work.state)
                    yield done
            finally:
                save(work.state, now=True)
            found.append((first, finish(work)))

    def _begin_share(self, first: int, end: int) -> Any:
        return self._begin(first, end, self._execution, self._share(first).load())

    def _share(self, first: int) -> Store:
        return self._store.part(f"share-{first:012d}")


class SharedJob:
    """A simulation under way in several processes; used like a `Job`.

    Attributes:
        final: where every run stands at the end, each leaf `[R, ...]`.
        values: what is kept of every run, each leaf `[R, K, ...]`.
        done: number of runs.
        compiler: what compiled the steps.
        steps_done: steps of all runs together since it was gone on with; known at the end.
    """

    final: Any
    values: Any

    def __init__(
        self, store: Store, inputs: Inputs, keys, intervals, execution: Execution, **options: Any
    ):
        """Divides the work, and compiles it; `store` says what it depends on, and saves shares.

        All other arguments are those of `Job`.
        """
        observed = options.pop("observe"), options.pop("recorders")

        def begin(first: int, end: int, execution: Execution, saved: Arrays | None) -> Job:
            part, (observe, recorders) = inputs.part(first, end - first, observed)
            own = {"observe": observe, "recorders": recorders, "saved": saved, **options}
            return Job(part, _from(keys, first), intervals, execution, before=first, **own)

        batch = execution.width * len(execution.devices)
        batches = -(-inputs.runs // batch)
        size = batch * max(1, batches // (_SHARES * execution.team.count))
        self._shares = _Shares(store, inputs.runs, execution, size, begin)
        self.done, self.steps_done, self.compiler, self._merger = 0, 0, "", Merger()

    def run(self) -> Iterator[int]:
        """Does the work, yielding about how many steps all processes took together."""

        def finish(job: Job) -> tuple:
            steps = np.array([job.steps_done - job.steps_before])
            return job.merged, steps, job.final, job.values, np.array([job.compiler])

        yield from self._shares.carry_out(finish, self._join)

    def state(self) -> Arrays:
        """Nothing: shares are saved by themselves."""
        return {}

    def cut(self) -> int:
        """Nothing is given up: interrupted processes end."""
        raise KeyboardInterrupt

    def summary(self) -> Summary:
        """What has come of all runs."""
        return summarise([self._merger.result()])

    def _join(self, shares: list) -> None:
        for (sizes, moments), *_ in shares:
            for size, one in zip(sizes, moments, strict=True):
                self._merger.add(one, size)
        steps, self.final, self.values, used = _joined([share[1:] for share in shares])
        self.compiler = ", ".join(np.unique(used))
        self.steps_done = int(steps.sum())
        self.done = self._shares.runs


class SharedPool:
    """A simulation whose runs stop one by one, in several processes; used like a `Pool`.

    Attributes:
        steps: steps that every run has taken, `[R]`.
        stopped: which runs have stopped, `[R]`.
        compiler: what compiled the steps.
        steps_before: steps of all runs together before it was gone on with.
    """

    def __init__(self, store: Store, inputs: Inputs, keys, execution: Execution, **options: Any):
        """Divides the work, and compiles it; `store` says what it depends on, and saves shares.

        All other arguments are those of `Pool`.
        """
        criterion, begun = options.pop("until"), options.pop("begun")

        def begin(first: int, end: int, execution: Execution, saved: Arrays | None) -> Pool:
            part, until = inputs.part(first, end - first, criterion)
            standing = None if begun is None else jax.tree.map(lambda a: a[first:end], begun)
            own = {"until": until, "begun": standing, "saved": saved, **options}
            return Pool(part, _from(keys, first), execution, **own)

        size = -(-inputs.runs // execution.team.count)
        self._shares = _Shares(store, inputs.runs, execution, size, begin)
        self.steps, self.stopped = np.zeros(inputs.runs, int), np.zeros(inputs.runs, bool)
        self._ended: Any = None
        self.steps_before, self.compiler = 0, ""

    def run(self) -> Iterator[int]:
        """Does the work, yielding about how many runs have stopped in all processes."""

        def finish(pool: Pool) -> tuple:
            used = np.array([pool.compiler])
            return pool.finish(), pool.steps, pool.stopped, np.array([pool.steps_before]), used

        yield from self._shares.carry_out(finish, self._join)

    def state(self) -> Arrays:
        """Nothing: shares are saved by themselves."""
        return {}

    def finish(self) -> tuple[Any, np.ndarray]:
        """Where all runs stand, and how runs were lost."""
        if self._ended is None:
            raise KeyboardInterrupt
        return self._ended

    def _join(self, shares: list) -> None:
        self._ended, self.steps, self.stopped, before, used = _joined(shares)
        self.compiler = ", ".join(np.unique(used))
        self.steps_before = int(before.sum())


def plan_work(kind: type[Job | Pool], store: Store, *given: Any, **options: Any) -> tuple[Any, Any]:
    """A work of this process, or one shared with others, and what saves it.

    Args:
        kind: of the work.
        store: where it is saved, and what it depends on.
        *given: what `kind` is given, the execution last.
        **options: likewise.
    """
    if is_shared(store, given[-1]):
        shared: Any = SharedJob if kind is Job else SharedPool
        return shared(store, *given, **options), save_nothing
    return kind(*given, saved=store.load(), **options), store.save


def is_shared(store: Store, execution: Execution) -> bool:
    """Whether several processes do the work, or have begun it."""
    return execution.team.count > 1 or store.is_folder


def save_nothing(state: Callable[[], Arrays], *, now: bool = False) -> None:
    """Stands for `Store.save` where shares are saved by themselves."""


def _from(keys: Callable[[Array], Array], first: int) -> Callable[[Array], Array]:
    """Key words of runs by their numbers within a share."""
    return lambda numbers: keys(numbers + np.uint32(first))


def _joined(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
