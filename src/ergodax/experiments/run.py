"""Carrying out an experiment in its folder, one task after the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .experiment import Experiment
from .folder import Folder
from .source import PlacedError


def carry_out(
    experiment: Experiment, path: Path, *, progress: bool = False
) -> Iterator[tuple[str, Any, list[Path]]]:
    """Does what an experiment asks for and is not in its folder yet.

    Args:
        experiment: the experiment.
        path: its folder.
        progress: whether to show progress bars.

    Yields:
        The name of each task, its result, None if it was there before, and the files written.

    Raises:
        ValueError: if the folder holds something else, or a setting does not fit, naming its line.
        OSError: if the folder cannot be written.
    """
    folder = Folder(path, experiment)
    setup = experiment.setup(progress)
    folder.keep()
    for name, task in experiment.tasks.items():
        if folder.has(name):
            yield name, None, []
            continue
        try:
            result = task.carry_out(setup, folder.unfinished(name))
        except PlacedError:
            raise
        except (ValueError, TypeError) as error:
            raise experiment.source.error((name,), str(error)) from None
        files = folder.add(name, result, task.figure(setup, result))
        folder.discard(name)
        yield name, result, files
