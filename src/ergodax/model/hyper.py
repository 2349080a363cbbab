"""Hyper-parameters: fields of learners that always hold floating-point arrays, in an interval."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..base.checks import is_concrete
from ..base.text import describe_value

# A hyper-parameter: given as a number or an array, held as an array.
Scalar = Float[Array, ""] | float


def hyper(default: Any = None, *, within: str = "(-inf, inf)", scalar: bool = True) -> Any:
    """Declares a hyper-parameter: a field that always holds a floating-point array.

    Arrays keep one compiled program valid for all values, and can be swept and differentiated.

    Args:
        default: the default value; None makes the field required.
        within: the interval of valid values, e.g. `"[0, 1]"` or `"(0, inf)"`.
        scalar: False where the field may hold an array of any shape.

    Returns:
        An `equinox.field`. Concrete values outside the interval raise ValueError when the module
        is made.
    """
    metadata = {"within": within, "scalar": scalar}
    options = {} if default is None else {"default": default}
    return eqx.field(converter=_as_float_array, metadata=metadata, **options)


def _as_float_array(value) -> Array:
    return jnp.asarray(value, dtype=float)


class HyperModule(eqx.Module):
    """A module whose `hyper` fields are checked when it is made."""

    def __check_init__(self):
        for field in dataclasses.fields(self):
            if "within" not in field.metadata:
                continue
            name, value = f"{type(self).__name__}.{field.name}", getattr(self, field.name)
            if field.metadata["scalar"] and jnp.ndim(value) > 0:
                raise ValueError(
                    f"{name} must be a scalar (each agent has its own learner); found an array of "
                    f"shape {jnp.shape(value)}."
                )
            if is_concrete(value) and not is_within(np.asarray(value), field.metadata["within"]):
                interval = field.metadata["within"]
                raise ValueError(f"{name} must be finite and in {interval}; found {value}.")

    def __repr__(self) -> str:
        settings = [
            f"{field.name}={describe_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
        ]
        return f"{type(self).__name__}({', '.join(settings)})"


def is_within(value: np.ndarray, interval: str) -> bool:
    """Whether all values are finite and in an interval written as for `hyper`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return bool(np.all(np.isfinite(value) & above & below))
