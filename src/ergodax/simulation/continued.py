"""Whether an earlier simulation was one of the same work, so that it can be gone on with."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..io.identity import identify


def _digest(value: Any, name: str) -> str:
    """What tells it from others, however its arrays came about."""
    return identify(jax.tree.map(lambda a: np.asarray(a) if eqx.is_array(a) else a, value), name)


def check_continued(start: Any, wrapped, key, scale: float) -> None:
    """Raises ValueError unless an earlier simulation was one of the same work."""
    for part in ("game", "learners"):
        ours, theirs = (_digest(getattr(w, part), part) for w in (wrapped, start.wrapped))
        if ours != theirs:
            raise ValueError(f"start was simulated with another value of {part}; give the same.")
    if start.final is None:
        raise ValueError("start was interrupted between report times and cannot go on.")
    if not np.array_equal(start.key_data, jax.random.key_data(key)):
        raise ValueError("start was made with another key; its runs go on only with their own.")
    if start.scale != scale:
        raise ValueError(f"start has scale {start.scale:g}; found scale {scale:g}.")
