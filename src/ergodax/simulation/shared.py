"""A simulation whose runs are divided between processes; every one of them has all results.

Runs are cut into shares of consecutive ones. A process carries its shares out one after the other,
each as a job of its own; then moments are merged in the tree of all runs, whoever simulated them,
so that the numbers are those of one process. Shares are saved in files of one folder, which any
number of processes can go on with.
"""

from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from ..base.processes import agree, gather, in_step
from ..io.store import Arrays, Store
from .execution import Execution
from .inputs import Inputs
from .job import Job, Summary, summarise
from .moments import Merger

# Shares of each process, at most: as many more processes can go on with the rest.
_SHARES = 8


class SharedJob:
    """A simulation under way in several processes; used like a `Job`.

    Attributes:
        final: where every run stands at the end, each leaf `[R, ...]`.
        values: what is kept of every run, each leaf `[R, K, ...]`.
        done: number of runs.
        steps_done: steps that all runs together have taken since it was begun or gone on with.
    """

    final: Any
    values: Any

    def __init__(
        self,
        store: Store,
        inputs: Inputs,
        keys: Callable[[Array], Array],
        intervals: np.ndarray,
        execution: Execution,
        *,
        observe: Callable[[Any], Any],
        recorders: tuple,
        **options: Any,
    ):
        """Divides the work, and compiles it; `store` says what it depends on, and saves shares.

        All other arguments are those of `Job`.

        Raises:
            ValueError: if processes do not agree on the work.
        """
        self._team = execution.team
        if self._team.count > 1:
            agree(self._team, store.identity)
        self._store, self._inputs, self._keys, self._intervals = store, inputs, keys, intervals
        self._observed, self._options = (observe, recorders), options
        # The plan of those who began counts, whatever would suit those who go on.
        plan = store.part("plan").make(lambda: _plan(inputs.runs, execution))
        plan = gather(self._team, plan)[0]
        self._execution = execution._replace(width=int(plan["width"]))
        firsts = plan["firsts"].tolist()
        self._shares = list(zip(firsts, [*firsts[1:], inputs.runs], strict=True))
        self._own = self._shares[self._team.index :: self._team.count]
        self._next = self._job(*self._own[0]) if self._own else None
        self.done, self.steps_done = 0, 0

    def carry_out(self, save: Any, bar: tqdm) -> bool:
        """Does the work, and shows how far it has come.

        Args:
            save: not used: shares are saved in the folder.
            bar: the progress bar, in steps of all runs.

        Returns:
            True: Ctrl-C ends all processes.
        """
        found: list[tuple] = []
        work = self._carry_out_shares(found)
        try:
            for taken in in_step(self._team, work):
                self.steps_done += taken
                bar.update(taken * self._team.count)
        finally:
            work.close()  # saves what is under way
        gathered = gather(self._team, (self.steps_done, found))
        self.steps_done = sum(steps for steps, _ in gathered)
        shares = sorted((share for _, own in gathered for share in own), key=lambda share: share[0])
        self._merger = Merger()
        for _, (sizes, moments), *_ in shares:
            for size, one in zip(sizes, moments, strict=True):
                self._merger.add(one, size)
        self.final, self.values = (
            jax.tree.map(lambda *leaves: np.concatenate(leaves), *(share[k] for share in shares))
            for k in (2, 3)
        )
        self.done = self._inputs.runs
        return True

    def cut(self) -> int:
        """Nothing is given up: interrupted processes end."""
        return len(self._intervals)

    def summary(self) -> Summary:
        """What has come of all runs."""
        return summarise([self._merger.result()])

    def _carry_out_shares(self, found: list[tuple]) -> Generator[int, None, None]:
        for first, end in self._own:
            job, self._next = self._next or self._job(first, end), None
            save = self._share(first).save
            try:
                for taken in job.run():
                    save(job.state)
                    yield taken
            finally:
                save(job.state, now=True)
            found.append((first, job.merged, job.final, job.values))

    def _job(self, first: int, end: int) -> Job:
        part, (observe, recorders) = self._inputs.part(first, end - first, self._observed)
        return Job(
            part,
            self._keys,
            self._intervals,
            self._execution,
            observe=observe,
            recorders=recorders,
            before=first,
            saved=self._share(first).load(),
            **self._options,
        )

    def _share(self, first: int) -> Store:
        return self._store.part(f"share-{first:012d}")


def _plan(runs: int, execution: Execution) -> Arrays:
    """The first runs of all shares, and the runs of a device's batch."""
    batch = execution.width * len(execution.devices)
    batches = -(-runs // batch)
    each = max(1, batches // (_SHARES * execution.team.count))
    return {"width": np.array(execution.width), "firsts": np.arange(0, runs, each * batch)}


def plan_job(store: Store, inputs: Inputs, keys, intervals, execution: Execution, **options: Any):
    """A job of this process, or one that it shares with others: arguments are those of `Job`."""
    if execution.team.count == 1 and not store.is_folder:
        return Job(inputs, keys, intervals, execution, saved=store.load(), **options)
    return SharedJob(store, inputs, keys, intervals, execution, **options)
