"""Report times, in unscaled steps, and the steps of the rescaled process that they stand for."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .checks import check_array, check_number, is_concrete


def check_times(ts: Any) -> Any:
    """Checks report times: one axis, finite, not negative, increasing.

    Returns:
        The times as an array of NumPy; as they are, if JAX traces them.

    Raises:
        ValueError: otherwise, naming the first time that does not fit.
    """
    ts = check_array("ts", ts, "a non-empty list of times")
    if np.ndim(ts) != 1 or np.shape(ts)[0] == 0:
        raise ValueError(f"ts must be a non-empty list of times; found shape {np.shape(ts)}.")
    if not is_concrete(ts):
        return ts
    times = np.asarray(ts, dtype=float)
    bad = ~np.isfinite(times) | (times < 0)
    bad[1:] |= np.diff(times) <= 0
    if bad.any():
        k = int(np.argmax(bad))
        raise ValueError(
            f"ts must be finite, not negative and increasing; found ts[{k}] = {times[k]}"
            + (f" after {times[k - 1]}." if k else ".")
        )
    return times


def check_scale(scale: Any) -> Any:
    """Returns a scale as a float, or as it is if JAX traces it.

    Raises:
        ValueError: unless it is a positive number.
    """
    return check_number("scale", scale, "(0, inf)")


def steps_at(ts, scale: float) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Steps k = floor(scale t) of the rescaled process, and the times k / scale they stand for.

    A product within 1e-9 (relative, at most 1e-3) of an integer counts as that integer, so that
    decimal fractions of time land where they should.

    Raises:
        ValueError: if there are more than 2^53 steps, which float64 cannot count.
    """
    product = np.asarray(ts, dtype=float) * scale
    if product.max() > 2**53:
        raise ValueError(
            f"t = {np.max(ts):g} at scale {scale:g} takes {product.max():.1e} steps; at most 2^53 "
            "can be counted."
        )
    nearest = np.rint(product)
    close = np.abs(product - nearest) <= np.clip(1e-9 * nearest, 1e-9, 1e-3)
    steps = np.where(close, nearest, np.floor(product)).astype(np.int64)
    return steps, steps / scale


def steps_between(steps: Int[np.ndarray, " K"], begun: int) -> Int[np.ndarray, " K"]:
    """Steps up to each of them, from the one before or from those already taken.

    Raises:
        ValueError: if there are more at once than the kernel counts.
    """
    intervals = np.diff(steps, prepend=begun)
    if intervals.max() >= 2**31:
        raise ValueError(
            f"{intervals.max()} steps between two report times are too many (2^31 - 1 at most); "
            "add report times."
        )
    return intervals
