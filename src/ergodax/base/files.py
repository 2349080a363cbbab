"""Writing files completely or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lends a temporary path beside `path`, which takes its place if the block succeeds.

    Args:
        path: the file to write or replace.

    Yields:
        The path to write to. It is removed if the block fails, and `path` is left as it was.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path = Path(path)
    prepare_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lends a temporary folder beside the folder `path`, as `replacing` does for files."""
    path = Path(path)
    prepare_folder(path.parent)
    stem = f".{path.name}.{uuid.uuid4().hex}"
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
    probe = Path(folder) / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write in the folder {str(folder)!r}: {error.strerror}") from None
