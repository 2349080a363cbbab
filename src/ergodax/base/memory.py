"""How much memory there is, and what would not fit into it."""

import os
from pathlib import Path


def check_memory(needed: float | int, what: str, instead: str) -> None:
    """Checks that something fits into the memory that is available.

    Args:
        needed: its size in bytes.
        what: what it is, with its size in numbers.
        instead: what to do if it does not fit.

    Raises:
        ValueError: if it does not fit.
    """
    available = _available()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} would need {needed / 2**30:.3g} GiB but {available / 2**30:.3g} GiB of memory "
            f"are available: {instead}."
        )


def _available() -> int | None:
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
