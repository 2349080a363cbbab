"""Checks of what users give: each returns the value in the form that the package works with.

Messages name the argument and say what it must be, what was found and, where one can guess it, what
to write instead. Of values that are traced by JAX only shapes and types are known: they pass.
"""

import difflib
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LONGEST = 80  # letters of a value that a message repeats
_ANY = "(-inf, inf)"


def is_concrete(value) -> bool:
    """Whether the value can be looked at (it is not being traced by JAX)."""
    return not isinstance(value, Tracer)


def describe(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tracer) or (isinstance(value, jax.Array | np.ndarray) and value.size > 4):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = repr(value)
    return text if len(text) <= _LONGEST and "\n" not in text else f"a {type(value).__name__}"


def as_real(value: Any) -> Any:
    """The value as an array of real numbers, of JAX where it is of JAX; None if it is not of them.

    Real are Python's and NumPy's numbers, `fractions.Fraction` and what pandas holds of them, by
    themselves, in arrays, or in lists of equal lengths. Truth values, texts and dates are not.
    """
    if not isinstance(value, jax.Array):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            try:
                return as_real(jnp.asarray(value))
            except (TypeError, ValueError):
                return None
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):  # of unequal lengths
            return None
        if value.dtype == object:
            single = [isinstance(x, numbers.Real) and not isinstance(x, bool) for x in value.flat]
            if not single or not all(single):
                return None
            value = value.astype(float)
    integers = jnp.issubdtype(value.dtype, np.integer) and value.dtype.kind != "m"
    return value if integers or jnp.issubdtype(value.dtype, np.floating) else None


def is_within(value: Any, interval: str) -> bool:
    """Whether all values are finite and in an interval, written as `"[0, 1]"` or `"(0, inf)"`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return bool(np.all(np.isfinite(value) & above & below))


def check_number(name: str, value: Any, within: str = _ANY) -> Any:
    """Returns a finite number in an interval as a float; if it is traced, as it is.

    Raises:
        ValueError: if it is none.
    """
    found = as_real(value)
    if found is not None and np.ndim(found) == 0 and not is_concrete(found):
        return found
    if found is None or np.ndim(found) > 0 or not is_within(np.asarray(found), within):
        kind = {_ANY: "a finite number", "(0, inf)": "a positive number"}
        what = kind.get(within, f"a number in {within}")
        raise ValueError(f"{name} must be {what}; found {describe(value)}.")
    return float(found)


def check_count(name: str, count: Any, least: int = 1) -> int:
    """Returns an integer that is not too small; raises ValueError if it is none."""
    integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not integer or count < least:
        what = {0: "0 or a positive integer", 1: "a positive integer"}
        raise ValueError(
            f"{name} must be {what.get(least, f'an integer, at least {least}')}; found "
            f"{describe(count)}."
        )
    return int(count)


def check_numbers(**numbers: Any) -> list[Any]:
    """Returns finite numbers given by their names; raises ValueError for the first that is none."""
    return [check_number(name, number) for name, number in numbers.items()]


def check_array(name: str, value: Any, what: str = "an array of numbers") -> Any:
    """Returns an array of real numbers, of NumPy or of JAX, of any shape and values.

    Raises:
        ValueError: if it is none.
    """
    found = as_real(value)
    if found is None:
        raise ValueError(f"{name} must be {what}; found {describe(value)}.")
    return found


def check_flag(name: str, value: Any) -> bool:
    """Returns a truth value; raises ValueError if it is none."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; found {describe(value)}.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Returns one of some texts; raises ValueError if it is none of them."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {listed}; found {describe(value)}.")
    return value


def check_type(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    """Returns an object of a class; raises ValueError saying what is needed if it is none."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {what}; found {describe(value)}.")
    return value


def check_function(name: str, value: Any, what: str) -> Any:
    """Returns a function; raises ValueError saying of what it must be one if it is none."""
    if not callable(value):
        raise ValueError(f"{name} must be a function of {what}; found {describe(value)}.")
    return value


def check_path(name: str, path: Any) -> Any:
    """Returns the name of a file or folder; raises ValueError if it is none."""
    return check_type(name, path, (str, os.PathLike), "the name of a file or folder")


def check_key(key: Any, name: str = "key") -> Any:
    """Returns a single random key of JAX; raises ValueError if it is none."""
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = hasattr(key, "dtype") and key.dtype == np.uint32
    if not typed and not raw:
        raise ValueError(
            f"{name} must be a random key of JAX, e.g. jax.random.key(0); found {describe(key)}."
        )
    if np.ndim(key) != (0 if typed else 1):
        raise ValueError(f"{name} must be one random key; found several, of shape {key.shape}.")
    return key


def check_mapping(name: str, value: Any, example: str) -> Any:
    """Returns a dictionary by names; raises ValueError with an example if it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a dictionary, e.g. {example}; found {describe(value)}.")
    return value


def check_concrete(function: str, tree: Any, instead: str = "") -> None:
    """Raises ValueError if an array is traced by JAX, for functions that look at values."""
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves(tree)):
        raise ValueError(
            f"{function} looks at values: call it outside jit, grad and vmap{instead}."
        )


def check_known(
    what: str, given: Iterable[str], known: Iterable[str], others: Mapping[str, str] | None = None
) -> None:
    """Raises TypeError if a name is not known, with the one that was probably meant.

    Args:
        what: that takes the names.
        given: the names.
        known: all that it takes.
        others: what known names are called elsewhere; several are divided by spaces.
    """
    known = tuple(known)
    for name in given:
        if name not in known:
            called = (others or {}).get(name, "").split()
            meant = [*called, *difflib.get_close_matches(name, known, 1)]
            hint = next((f"; did you mean {one}?" for one in meant if one in known), ":")
            raise TypeError(f"{what} takes no {name!r}{hint} it takes {', '.join(known)}.")
