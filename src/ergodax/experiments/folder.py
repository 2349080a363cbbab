"""The folder of an experiment: its file, versions, results and figures."""

import hashlib
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax

from .. import io
from ..base.files import prepare_folder, write
from ..base.version import __version__
from ..plot.png import write_png
from ..replications import Replication
from .experiment import Experiment, Keys
from .source import Source
from .tasks import Tasks

_FILE, _RECORD = "experiment.toml", "record.json"


class Folder:
    """Where an experiment is kept; nothing of another one is overwritten.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, experiment: Experiment):
        """Names the folder and what it is for."""
        self.path = path
        self._experiment = experiment
        self._record = _record_of(experiment)

    @property
    def identity(self) -> dict[str, str]:
        """What the processes of a job must agree on."""
        keys = {name: repr(value) for name, value in self._experiment.keys.model_dump().items()}
        return keys | {name: repr(value) for name, value in self._record.items()}

    def check(self) -> None:
        """Looks whether the folder is new, or holds this experiment, perhaps with fewer tasks.

        Raises:
            ValueError: if it holds another experiment, or one of other versions, naming what
                differs; it is left as it is.
        """
        if (self.path / _FILE).exists():
            self._compare()
        elif self.path.exists() and any(p.name[0] != "." for p in self.path.iterdir()):
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty: give another with --out."
            )

    def open(self) -> None:
        """Checks the folder, and keeps the experiment in it, while no other process does.

        Raises:
            ValueError: as `check`.
            OSError: if the folder cannot be written.
        """
        prepare_folder(self.path)
        with filelock.FileLock(self.path / ".lock"):
            self.check()
            self._keep()

    def _keep(self) -> None:
        """Writes the experiment's file, that of its game, and what it is made with."""
        write(self.path / _FILE, [self._experiment.source.content])
        game = self._experiment.game_file
        if game is not None:
            write(self.path / game.name, [game.read_bytes()])
        write(self.path / _RECORD, [json.dumps(self._record, indent=2).encode(), b"\n"])

    def has(self, task: str) -> bool:
        """Whether the result of a task is there."""
        return (self.path / f"{task}.nc").exists()

    def unfinished(self, task: str) -> Path:
        """Where a task keeps unfinished work."""
        return self.path / f"{task}.unfinished"

    def add(self, task: str, result: Any, figure: Any) -> list[Path]:
        """Writes a result and its figure, if any; returns the files."""
        data, image = self.path / f"{task}.nc", self.path / f"{task}.png"
        files = [data]
        if figure is not None:
            write_png(figure, image)
            files.append(image)
        # Last: a task whose result is there is done.
        result = result.to_xarray() if isinstance(result, Replication) else result
        io.save(result, data, attributes={"experiment": self._experiment.source.content.decode()})
        return files

    def discard(self, task: str) -> None:
        """Removes the unfinished work of a task that is done."""
        path = self.unfinished(task)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _compare(self) -> None:
        """Raises ValueError unless the folder holds this experiment."""
        here = f"the folder {str(self.path)!r}"
        try:
            old = Keys.model_validate(Source(self.path / _FILE).table).model_dump()
            record = json.loads((self.path / _RECORD).read_bytes())
        except (ValueError, OSError) as error:
            raise ValueError(f"{here} holds no experiment that can be read: {error}") from None
        new = self._experiment.keys.model_dump()
        added = {"title", *(k for k in Tasks.model_fields if old[k] is None)}
        found = [k for k in old if old[k] != new[k] and k not in added]
        found += [k for k in record if record[k] != self._record.get(k)]
        if found:
            raise ValueError(
                f"{here} holds another experiment, which differs in {', '.join(found)}: give "
                "another with --out."
            )


def _record_of(experiment: Experiment) -> dict[str, Any]:
    """What the numbers depend on besides the experiment's file."""
    game = experiment.game_file
    devices = sorted({device.device_kind for device in jax.devices()})
    return {
        "versions": {"ergodax": __version__, "Python": platform.python_version()}
        | {name: version(name) for name in ("jax", "jaxlib", "equinox", "diffrax", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}",
        "devices": devices,
        "key_data": jax.random.key_data(jax.random.key(experiment.keys.seed)).tolist(),
        "game file": None if game is None else hashlib.sha256(game.read_bytes()).hexdigest(),
    }
