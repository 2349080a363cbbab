"""Unfinished work on disk: saved completely or not at all, and refused unless it fits."""

import hashlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..base.files import replacing

_HEADER = b"ergodax checkpoint 1\n"
# Saving may take this share of the time.
_SHARE = 0.02


class Checkpoint:
    """A file to which an unfinished simulation is saved now and then."""

    def __init__(self, path: str | os.PathLike[str] | None, *inputs: Any):
        """Names the file and what the work is about.

        Args:
            path: the file; None saves nothing.
            inputs: pytrees of all that the results depend on.
        """
        self.path = None if path is None else Path(path)
        self._identity = b"" if path is None else _identify(inputs)
        self._next_save = 0.0

    def load(self) -> dict[str, np.ndarray] | None:
        """Returns what was saved, or None if there is no file.

        Raises:
            ValueError: if the file is damaged or belongs to other work; it is left untouched.
        """
        if self.path is None or not self.path.exists():
            return None
        content = self.path.read_bytes()
        if not content.startswith(_HEADER):
            raise ValueError(
                f"{str(self.path)!r} is not a checkpoint of this version; it was left as it is."
            )
        identity, digest, payload = _split(content[len(_HEADER) :])
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(
                f"the checkpoint {str(self.path)!r} is damaged or cut short; it was left as it is."
            )
        if identity != self._identity:
            raise ValueError(
                f"the checkpoint {str(self.path)!r} belongs to another simulation (another key, "
                "game, learners, parameters, times, scale, number of runs or observable); it was "
                "left as it is. Give the same arguments, or another path."
            )
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return dict(archive)

    def save(self, arrays: Callable[[], dict[str, np.ndarray]], *, now: bool = False) -> None:
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
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays())
        payload = buffer.getvalue()
        try:
            with replacing(self.path) as temporary, open(temporary, "wb") as file:
                file.write(_HEADER + self._identity + hashlib.sha256(payload).digest() + payload)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            warnings.warn(
                f"the checkpoint {str(self.path)!r} could not be written ({error}); what it held "
                "before remains, and the simulation goes on.",
                stacklevel=3,
            )
        done = time.monotonic()
        self._next_save = done + (done - before) / _SHARE


def _split(content: bytes) -> tuple[bytes, bytes, bytes]:
    return content[:32], content[32:64], content[64:]


def _identify(inputs: Any) -> bytes:
    """A digest of all arrays and of the structure that holds them."""
    arrays, rest = eqx.partition(inputs, eqx.is_array_like)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        value = np.asarray(leaf)
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    # Functions are known by their names: their addresses differ from process to process.
    structure = f"{jax.tree.structure(arrays)}{jax.tree.leaves(rest)}"
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", structure).encode())
    return digest.digest()
