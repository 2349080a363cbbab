"""Hyper-parameters that change with time: learning rates that fall, exploration that fades.

Pass a schedule where a learner or an exploration rule takes a number. Times are in unscaled steps:
a schedule means the same at every scale.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_array, check_choice, check_function, is_concrete
from ..base.devices import as_array
from .hyper import AbstractSchedule, HyperModule, Scalar, hyper


class Exponential(HyperModule, AbstractSchedule):
    """`end + (start - end) exp(-rate t)`: exploration as in Calvano et al. 2020.

    Attributes:
        start: the value at time 0.
        rate: decay per unscaled step.
        end: the value after long.

    Example:
        >>> fading = ex.schedules.exponential(0.5, rate=0.01)
        >>> learner = ex.QLearning(0.1, 0.9, ex.EpsilonSoftmax(1.0, fading))
    """

    start: Scalar = hyper(1.0)
    rate: Scalar = hyper(1e-3, within="[0, inf)")
    end: Scalar = hyper(0.0)

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the value at time t."""
        return self.end + (self.start - self.end) * jnp.exp(-self.rate * t)


class Power(HyperModule, AbstractSchedule):
    """`start (1 + t / delay)^-power`: the rates of Robbins and Monro 1951 for power in (1/2, 1].

    Attributes:
        start: the value at time 0.
        power: how fast it falls.
        delay: after so many unscaled steps it has fallen by the factor `2^-power`.
    """

    start: Scalar = hyper(1.0)
    power: Scalar = hyper(0.6, within="[0, inf)")
    delay: Scalar = hyper(1.0, within="(0, inf)")

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the value at time t."""
        return self.start * (1 + t / self.delay) ** -self.power


class Piecewise(AbstractSchedule):
    """Values at given times: joined by straight lines, or each held until the next.

    Attributes:
        times: increasing, `[K]`; before the first and after the last the value is constant.
        values: at these times, `[K]`.
        between: "linear" or "constant".
    """

    times: Float[Array, " K"]
    values: Float[Array, " K"]
    between: str = eqx.field(static=True)

    def __init__(
        self,
        times: Real[ArrayLike, " K"] | Sequence,
        values: Real[ArrayLike, " K"] | Sequence,
        *,
        between: str = "linear",
    ):
        """Makes the schedule.

        Raises:
            ValueError: unless there are as many values as times, and these increase.
        """
        self.times = as_array(check_array("times", times), float)
        self.values = as_array(check_array("values", values), float)
        self.between = check_choice("between", between, ("linear", "constant"))
        if self.times.ndim != 1 or self.times.shape != self.values.shape or not self.times.size:
            raise ValueError(
                f"times and values must be as many; found shapes {self.times.shape} and "
                f"{self.values.shape}."
            )
        if is_concrete(self.times) and not (np.diff(self.times) > 0).all():
            raise ValueError(f"times must increase; found {times}.")

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the value at time t."""
        if self.between == "linear":
            return jnp.interp(t, self.times, self.values)
        reached = jnp.sum(t >= self.times)
        return self.values[jnp.maximum(reached - 1, 0)]


class FromFunction(AbstractSchedule):
    """Any function of time, such as a schedule of optax.

    Numbers inside the function are fixed: sweeps and gradients reach only the other schedules.

    Attributes:
        function: of the time t in unscaled steps, where optax counts steps.
    """

    function: Callable[[Any], Any] = eqx.field(static=True)

    def __check_init__(self):
        check_function("function", self.function, "the time")

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the value at time t."""
        return jnp.asarray(self.function(t), dtype=float)


exponential, power, piecewise, from_optax = Exponential, Power, Piecewise, FromFunction
