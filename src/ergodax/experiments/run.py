"""Carrying out an experiment in its folder, one task after the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.codes import RESULTS
from ..base.processes import agree, find_team, gather
from ..results.result import Result
from .experiment import Experiment
from .folder import Folder
from .source import PlacedError


def carry_out(
    experiment: Experiment, path: Path, *, part: Any = None, progress: bool = False
) -> Iterator[tuple[str, Any, list[Path]]]:
    """Does what an experiment asks for and is not in its folder yet.

    Args:
        experiment: the experiment.
        path: its folder.
        part: the part of the sweep to be done, and nothing else: `(k, n)`, or "join" for the result
            of all parts.
        progress: whether to show progress bars.

    Yields:
        The name of each task, its result, None if it was there before, and the files written
        by this process: the first one of a job.

    Raises:
        ValueError: if the folder holds something else, or a setting does not fit, naming its line.
        OSError: if the folder cannot be written.
        KeyboardInterrupt: after Ctrl-C; what is unfinished is kept, and nothing of it written.
    """
    team = find_team()
    folder = Folder(path, experiment)
    if team.count > 1:
        folder.check()
        agree(team, folder.identity)
    setup = experiment.setup(progress, part)
    if team.index == 0:
        folder.open()
    # One process looks what is there, before any of them adds to it.
    done = gather(team, [name for name in experiment.tasks if folder.has(name)])[0]
    tasks = experiment.tasks
    if part is not None:
        if "sweep" not in tasks:
            raise ValueError(f"{experiment.source.path} has no sweep, which alone has parts.")
        tasks = {"sweep": tasks["sweep"]}
    for name, task in tasks.items():
        if name in done:
            yield name, None, []
            continue
        try:
            result = task.carry_out(setup, folder.unfinished(name))
        except PlacedError:
            raise
        except (ValueError, TypeError) as error:
            raise experiment.source.error((name,), str(error)) from None
        if _is_interrupted(result):
            raise KeyboardInterrupt
        files = []
        if team.index == 0 and not isinstance(part, tuple):
            files = folder.add(name, result, task.figure(setup, result))
            folder.discard(name)
        yield name, result, files


def _is_interrupted(result: Any) -> bool:
    """Whether a simulation, or that of a comparison, was cut short."""
    simulated: Any = getattr(result, "simulation", result)
    return isinstance(simulated, Result) and bool(
        getattr(simulated, "result", RESULTS.successful) == RESULTS.interrupted
    )
