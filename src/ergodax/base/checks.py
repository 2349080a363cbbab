"""Checks of single values."""

from typing import Any

import numpy as np
from jax.core import Tracer


def is_concrete(value) -> bool:
    """Whether the value can be looked at (it is not being traced by JAX)."""
    return not isinstance(value, Tracer)


def check_count(name: str, count: Any) -> int:
    """Returns a positive integer, or raises ValueError."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"{name} must be a positive integer; found {count!r}.")
    return int(count)
