"""Shares of a sweep that are done by jobs which know nothing of each other, in one folder."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np

from ..base.checks import describe


def check_part(part: Any, folder: Any, count: int) -> None:
    """Raises ValueError unless a part of so many sets is `(k, n)` or "join", in a folder."""
    whole = (
        isinstance(part, tuple)
        and len(part) == 2
        and all(isinstance(number, int) for number in part)
        and 1 <= part[0] <= part[1] <= count
    )
    if not whole and not (isinstance(part, str) and part == "join"):
        raise ValueError(
            f'part must be (k, n) with k from 1 to n and n up to {count}, or "join"; found '
            f"{describe(part)}."
        )
    if folder is None:
        raise ValueError("part needs a folder, into which all parts are written.")


def check_whole(found: np.ndarray, count: int) -> None:
    """Raises ValueError unless every set was found once."""
    times = np.bincount(found, minlength=count)
    for what, numbers in (("missing", times == 0), ("there twice", times > 1)):
        if numbers.any():
            listed = ", ".join(map(str, np.flatnonzero(numbers)[:5]))
            more = ", .." if numbers.sum() > 5 else ""
            raise ValueError(
                f"the folder does not hold every set once: {numbers.sum()} of {count} are {what} "
                f"(numbers {listed}{more})."
            )


def part_lock(folder: Path | None, part: Any) -> AbstractContextManager:
    """Keeps a part for this process.

    Raises:
        ValueError: if another process is doing it, or the folder's parts are of another number.
    """
    if folder is None or not isinstance(part, tuple):
        return contextlib.nullcontext()
    number, count = part
    folder.mkdir(parents=True, exist_ok=True)
    others = {path.stem.rpartition("-")[2] for path in folder.glob(".part-*-of-*.lock")}
    if others - {str(count)}:
        raise ValueError(
            f"the folder {str(folder)!r} has parts of {', '.join(sorted(others))}; found part "
            f"{number} of {count}, which would do some sets twice."
        )
    lock = filelock.FileLock(folder / f".part-{number}-of-{count}.lock", blocking=False)
    try:
        return lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"part {number} of {count} is being done by another process in {str(folder)!r}."
        ) from None


def with_missing(outcome: Any, done: np.ndarray, count: int) -> Any:
    """What came of the sets that are done, in their places among all; the others are marked."""

    def filled(leaf: np.ndarray) -> np.ndarray:
        kind: Any = {"f": np.nan, "i": -1, "U": "not done"}[leaf.dtype.kind]
        dtype = np.result_type(leaf.dtype, "U8") if leaf.dtype.kind == "U" else leaf.dtype
        all_sets = np.full((count, *leaf.shape[1:]), kind, dtype)
        all_sets[done] = leaf
        return all_sets

    return jax.tree.map(filled, outcome)
