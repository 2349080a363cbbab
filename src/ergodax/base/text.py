"""Short texts about values and outcomes, for the `repr` of learners and results."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checks import is_concrete
from .codes import RESULTS

_LARGEST = 4  # arrays of more entries are named by type and shape


def describe_value(value: Any) -> str:
    """A number or small array as it was given; a large or traced one by its type and shape."""
    if not hasattr(value, "dtype"):
        return repr(value)
    if is_concrete(value) and value.size <= _LARGEST:
        numbers = ", ".join(f"{number:.6g}" for number in np.ravel(value))
        return numbers if value.ndim == 0 else f"[{numbers}]"
    return f"{value.dtype}{list(value.shape)}"


def describe_times(ts: Any) -> str:
    """How many times there are, and from when to when."""
    count = ts.shape[-1]
    if not is_concrete(ts) or ts.ndim > 1:
        return f"{count} times"
    if count == 1:
        return f"t = {float(ts[0]):.6g}"
    return f"{count} times from {float(ts[0]):.6g} to {float(ts[-1]):.6g}"


def describe_result(result: RESULTS) -> str:
    """How a computation ended: in words, or for a batch how many of it were successful."""
    successful: Any = result == RESULTS.successful
    if not is_concrete(successful):
        return "traced"
    if np.ndim(successful) > 0:
        return f"{np.sum(successful)} of {np.size(successful)} successful"
    if successful:
        return "successful"
    return str(RESULTS[result]).split(". ")[0].split(": ")[0].rstrip(".")


def describe_end(solution: Any) -> str:
    """How a solution of the averaged ODE ended, and when if too early."""
    text = describe_result(solution.result)
    if text in ("successful", "traced") or np.ndim(solution.end_time) > 0:
        return text
    return f"{text}, at t = {float(solution.end_time):.6g}"


def in_columns(rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Rows of text in columns, two spaces apart; each column to its left or right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    side = str.rjust if right else str.ljust
    return "\n".join("  ".join(map(side, row, widths)).rstrip() for row in rows)
