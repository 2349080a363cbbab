"""Writing files completely or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def write(path: str | os.PathLike[str], parts: Iterable[Any]) -> None:
    """Writes parts of bytes to a file one after the other, completely or not at all.

    Raises:
        OSError: if the file cannot be written; one that was there is left as it was.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def target(path: str | os.PathLike[str]) -> Path:
    """The place that a path leads to: beyond symbolic links, "~" being the home folder."""
    return Path(os.path.realpath(os.path.expanduser(path)))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lends a temporary path beside `path`, which takes its place if the block succeeds.

    Args:
        path: the file to write or replace. A symbolic link stays, and what it leads to is replaced.

    Yields:
        The path to write to. It is removed if the block fails, and `path` is left as it was.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path = target(path)
    prepare_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lends a temporary folder beside the folder `path`, as `replacing` does for files."""
    path = target(path)
    prepare_folder(path.parent)
    stem = f".{uuid.uuid4().hex}"
    temporary, old = path.with_name(f"{stem}.tmp"), path.with_name(f"{stem}.old")
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def prepare_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder if there is none, and checks that files can be made in it, by making one.

    Raises:
        OSError: if they cannot, naming the folder and the reason.
    """
    probe = target(folder) / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write in the folder {str(folder)!r}: {error.strerror}") from None
