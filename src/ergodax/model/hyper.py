"""Hyper-parameters: fields of learners that always hold floating-point arrays, in an interval."""

import abc
import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..base.checks import (
    as_real,
    check_array,
    check_flag,
    check_known,
    describe,
    is_concrete,
    is_within,
)
from ..base.devices import as_array
from ..base.text import describe_value

_INTERVAL = re.compile(r"[\[(]\s*-?(inf|[\d.]+)\s*,\s*-?(inf|[\d.]+)\s*[\])]")


class AbstractSchedule(eqx.Module):
    """A hyper-parameter that changes with time: subclass it and write `__call__`.

    Its fields, declared with `hyper`, can be swept and differentiated like any other.
    """

    @abc.abstractmethod
    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the value at time t, in unscaled steps."""


if TYPE_CHECKING:  # learners compute with it as with a number: schedules are replaced before
    Scalar = Any
else:
    # A hyper-parameter: given as a number, an array or a schedule; numbers are held as arrays.
    Scalar = Float[Array, ""] | float | AbstractSchedule


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
    check_flag("scalar", scalar)
    if not isinstance(within, str) or not _INTERVAL.fullmatch(within):
        raise ValueError(
            f'within must be an interval such as "[0, 1]" or "(0, inf)"; found {describe(within)}.'
        )
    if default is not None:
        check_array("default", default, "a number or an array of them")
    metadata = {"within": within, "scalar": scalar}
    options = {} if default is None else {"default": default}
    return eqx.field(converter=_as_float_array, metadata=metadata, **options)


# Names of other packages and papers for the same.
_OTHERS = {
    "alpha": "learning_rate",
    "alpha_v": "critic_rate",
    "lr": "learning_rate",
    "step_size": "learning_rate",
    "gamma": "discount",
    "tau": "temperature exploration",
    "eps": "epsilon exploration",
    "temperature": "exploration",
    "epsilon": "exploration",
    "policy": "exploration",
}


def _as_float_array(value) -> Any:
    found = as_real(value)
    # What is no number is refused when the module is made, by the name of its field.
    return value if found is None else as_array(found, float)


class HyperModule(eqx.Module):
    """A module whose `hyper` fields are checked when it is made."""

    def __new__(cls, *args, **kwargs):
        """Refuses keywords that are no fields, and says which was meant."""
        if kwargs:
            known = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
            if not any(one.kind is one.VAR_KEYWORD for one in known.values()):
                check_known(cls.__name__, kwargs, known, _OTHERS)
        return super().__new__(cls)

    def __check_init__(self):
        for field in dataclasses.fields(self):
            if "within" not in field.metadata:
                continue
            name, value = f"{type(self).__name__}.{field.name}", getattr(self, field.name)
            if isinstance(value, AbstractSchedule) and field.metadata["scalar"]:
                continue  # its interval is checked where the times are known
            if not isinstance(value, jax.Array) or not value.size:
                raise ValueError(f"{name} must be a number; found {describe(value)}.")
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
