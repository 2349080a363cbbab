"""Memory: what there is, and refusals of what does not fit."""

import os
from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that can be had, or None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_room(needed: int, what: str, instead: str) -> None:
    """Raises ValueError if memory does not suffice.

    Args:
        needed: bytes.
        what: needs them.
        instead: what to do about it.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs {needed / 2**30:.3g} GiB but {available / 2**30:.3g} GiB of memory are "
            f"available: {instead}."
        )
