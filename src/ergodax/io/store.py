"""Unfinished work on disk: saved completely or not at all, and refused unless it fits.

A file begins with the format's name and version and a digest of all that follows: a table, as JSON,
of what the work depends on and of the arrays, and the arrays themselves, byte by byte.
"""

import copy
import functools
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax.numpy as jnp
import numpy as np

from ..base.files import prepare_folder, target, write
from ..results.result import versions
from .identity import bytes_of, identify

_FORMAT = b"ergodax unfinished work, format "
_VERSION = b"2\n"
# Saving may take this share of the time.
_SHARE = 0.02
_PIECE = "piece-"
# The file that says which shares there are.
PLAN = "plan"

Arrays = dict[str, np.ndarray]


class Store:
    """A file to which an unfinished work is saved now and then."""

    def __init__(self, path: str | os.PathLike[str] | None, work: str, inputs: Mapping[str, Any]):
        """Names the file and what the work is about, and checks that files can be written there.

        Args:
            path: the file; its folder is made if there is none. None saves nothing.
            work: what is done, in one word.
            inputs: all that the results depend on, by names for messages.

        Raises:
            ValueError: if an input cannot be identified.
            OSError: if the folder cannot be made or written.
        """
        self.path = None if path is None else target(path)
        self._next_save = 0.0
        self._about = work, inputs
        if self.path is not None:
            self.identity  # noqa: B018 (refuses inputs that cannot be identified)
            prepare_folder(self.path.parent)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Digests of what the work depends on."""
        return _identify(*self._about)

    @property
    def is_folder(self) -> bool:
        """Whether work is saved there in shares, as several processes do it."""
        if self.path is None:
            return False
        return (self.path / PLAN).exists() or any(self.path.glob(f"*/{PLAN}"))

    def part(self, name: str) -> "Store":
        """The store of a part of the work: a file of the folder that this one's path names.

        Raises:
            ValueError: if the path is a file.
            OSError: if the folder cannot be made or written.
        """
        part = copy.copy(self)
        if self.path is not None:
            if self.path.is_file():
                raise ValueError(
                    f"{str(self.path)!r} was saved by one process alone, which can go on with it; "
                    "several need another path."
                )
            prepare_folder(self.path)
            part.path = self.path / name
        return part

    def make(self, arrays: Callable[[], Arrays]) -> Arrays:
        """What was saved, or what is saved now, by the first of several processes."""
        if self.path is None:
            return arrays()
        with filelock.FileLock(self.path.with_name(f".{self.path.name}.lock")):
            found = self.load()
            if found is None:
                self.save(arrays, now=True)
            return arrays() if found is None else found

    def load(self) -> Arrays | None:
        """Returns what was saved, or None if there is nothing.

        Raises:
            ValueError: if the file is damaged or belongs to other work; it is left untouched.
        """
        if self.path is None or not self.path.exists():
            return None
        return _read(self.path, self.identity)

    def save(self, arrays: Callable[[], Arrays], *, now: bool = False) -> None:
        """Replaces what was saved, unless the last time was only just now.

        Args:
            arrays: returns what to save, by name.
            now: save in any case.

        Warns:
            UserWarning: if the file cannot be written; what was saved before remains.
        """
        if self.path is None or (not now and time.monotonic() < self._next_save):
            return
        before = time.monotonic()
        _write(self.path, self.identity, arrays())
        done = time.monotonic()
        self._next_save = done + (done - before) / _SHARE


class Folder:
    """A folder to which a work is saved piece by piece, each in a file of its own."""

    def __init__(self, path: str | os.PathLike[str] | None, work: str, inputs: Mapping[str, Any]):
        """Names the folder and what the work is about, as `Store` does."""
        self.path = None if path is None else target(path)
        self._about = work, inputs
        if path is not None:
            self.identity  # noqa: B018 (refuses inputs that cannot be identified)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Digests of what the work depends on."""
        return _identify(*self._about)

    def load(self) -> list[Arrays]:
        """Returns all pieces, in the order of their numbers.

        Raises:
            ValueError: if the folder holds anything else, or a piece that is damaged or belongs to
                other work; all is left untouched.
        """
        if self.path is None or not self.path.exists():
            return []
        if not self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is no folder; it was left as it is.")
        # Hidden files are what a process left behind that was killed while it wrote.
        found = sorted(path for path in self.path.iterdir() if not path.name.startswith("."))
        pieces = [path for path in found if path.name.startswith(_PIECE)]
        if found and not pieces:
            raise ValueError(
                f"the folder {str(self.path)!r} is not empty and holds no unfinished work; it was "
                "left untouched."
            )
        return [_read(path, self.identity) for path in pieces]

    def prepare(self) -> None:
        """Makes the folder if there is none; raises OSError if it cannot be written."""
        if self.path is not None:
            prepare_folder(self.path)

    def add(self, number: int, arrays: Arrays) -> None:
        """Saves one piece; warns if it cannot be written."""
        if self.path is not None:
            _write(self.path / f"{_PIECE}{number:08d}", self.identity, arrays)


def _identify(work: str, inputs: Mapping[str, Any]) -> dict[str, str]:
    common = {"versions": (versions(), jnp.result_type(float).name)}
    return {"work": work} | {
        name: identify(value, name) for name, value in {**common, **inputs}.items()
    }


def _write(path: Path, identity: dict[str, str], arrays: Arrays) -> None:
    """Replaces a file; a failure is a warning, for it must not end the work."""
    named = {name: np.asarray(array) for name, array in arrays.items()}
    table = {name: [array.dtype.str, array.shape] for name, array in named.items()}
    text = json.dumps({"identity": identity, "arrays": table}).encode()
    parts = [len(text).to_bytes(8, "little"), text, *map(bytes_of, named.values())]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        write(path, [_FORMAT, _VERSION, digest.digest(), *parts])
    except OSError as error:
        warnings.warn(
            f"{str(path)!r} could not be written ({error}); what it held before remains, and the "
            f"{identity['work']} goes on.",
            stacklevel=4,
        )


def _read(path: Path, identity: dict[str, str]) -> Arrays:
    """Returns the arrays of a file; raises ValueError unless it is whole and of this work."""

    def refuse(why: str) -> ValueError:
        return ValueError(f"{str(path)!r} {why}; it was left as it is.")

    if not path.is_file():
        raise refuse("is no file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})") from None
    if not content.startswith(_FORMAT):
        raise refuse("holds no unfinished work of ergodax")
    content = memoryview(content)[len(_FORMAT) :]
    if content[: len(_VERSION)] != _VERSION:
        raise refuse("was written by another version of ergodax")
    digest, content = content[len(_VERSION) :][:32], content[len(_VERSION) + 32 :]
    damaged = "is damaged or cut short"
    if hashlib.sha256(content).digest() != digest:
        raise refuse(damaged)
    size = int.from_bytes(content[:8], "little")
    try:
        table = json.loads(bytes(content[8 : 8 + size]))
        found, arrays = dict(table["identity"]), _arrays(table["arrays"], content[8 + size :])
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        raise refuse(damaged) from None
    differing = [k for k in {**identity, **found} if identity.get(k) != found.get(k)]
    if differing:
        raise refuse(
            f"belongs to another {found.get('work')}, which differs in {', '.join(differing)}; "
            "give the same arguments, or another path"
        )
    return arrays


def _arrays(table: Mapping[str, Any], content: memoryview) -> Arrays:
    """The arrays of a table, after a check that they fill the content; raises ValueError."""
    arrays, start = {}, 0
    for name, (kind, shape) in table.items():
        dtype = np.dtype(kind)
        size = dtype.itemsize * math.prod(shape)
        if dtype.kind not in "biufcSU" or min(shape, default=0) < 0 or start + size > len(content):
            raise ValueError
        arrays[name] = np.ndarray(shape, dtype, content, start).copy()
        start += size
    if start != len(content):
        raise ValueError
    return arrays
