"""The path of a solution: a quintic in every step of the solver, and where one takes a level.

A quintic is held by its six Bezier points, which say more than coefficients: it lies between the
least and the largest of them, so that one without a negative point is nowhere negative.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .batching import anywhere
from .integrate import integrate

# Slopes are taken this share of the time span ahead: an exact tie is broken by where the flow goes.
NUDGE = 1e-9
_HALVINGS = 60


class Path(NamedTuple):
    """A solution at its solver's steps, with two derivatives by time; rows of no step are last."""

    times: Float[Array, " M"]
    values: Float[Array, "M d"]
    velocities: Float[Array, "M d"]
    accelerations: Float[Array, "M d"]
    count: Any

    def ends(self, step: Int[Array, ""]):
        """Length of a step, and the solution with its two derivatives at both ends, `[2, d]`."""
        times, *ends = (jax.lax.dynamic_slice_in_dim(part, step, 2) for part in self[:4])
        return times[1] - times[0], ends

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " d"]:
        """The solution at time t."""
        return self.within(*self.locate(t))

    def locate(self, t: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """The step that contains time t, and when within it, 0..1."""
        found = jnp.searchsorted(self.times, t, side="right") - 1
        step = jnp.clip(found, 0, jnp.maximum(self.count - 2, 0))
        return step, (t - self.times[step]) / self.ends(step)[0]

    def within(self, step: Int[Array, ""], s: Float[Array, ""]) -> Float[Array, " d"]:
        """The solution within a step, at s = 0..1."""
        length, ends = self.ends(step)
        return evaluate(quintic(length, *ends), s)


def follow(
    field: Callable, start: Any, end: Any, args: Any = None, *, ts: Any = None, **options
) -> tuple[Path, Any]:
    """Solves dx/dt = field(x, args) and keeps its path, besides the solution at `ts` if given.

    Args:
        field: as for `integrate`.
        start: the start, a flat vector `[d]`.
        end: until when; from 0 on.
        args: as for `integrate`.
        ts: report times, `[K]`.
        **options: as for `integrate`.

    Returns:
        The path, and what `integrate` returns.
    """
    solved: Any = integrate(field, start, end, args, ts=ts, keep=True, **options)
    times, values, velocities = solved.path
    count = solved.stats["num_accepted_steps"] + 1

    def describe(carry):
        k, accelerations = carry
        side = values[k] + NUDGE * end * velocities[k]
        _, acceleration = jax.jvp(lambda x: field(x, args), (side,), (velocities[k],))
        place = jnp.where(k < count, k, len(values))
        return k + 1, accelerations.at[place].set(acceleration, mode="drop")

    # After the solve: within it, the field would be compiled several times. Its reverse-mode
    # derivative does not exist: a path is a constant of differentiation.
    _, accelerations = jax.lax.while_loop(
        lambda carry: anywhere(carry[0] < count), describe, (0, jnp.zeros_like(values))
    )
    return Path(times, values, velocities, accelerations, count), solved


def quintic(length, values, velocities, accelerations) -> list:
    """Bezier points of the quintic that fits value, slope and curvature at both ends of a step.

    Args:
        length: of the step.
        values: at both ends, a pair of arrays of any shape.
        velocities: derivatives by time, likewise.
        accelerations: second derivatives, likewise.
    """
    (x0, x1), (v0, v1), (a0, a1) = values, velocities, accelerations
    first, second = length / 5, length**2 / 20
    return [
        x0,
        x0 + first * v0,
        x0 + 2 * first * v0 + second * a0,
        x1 - 2 * first * v1 + second * a1,
        x1 - first * v1,
        x1,
    ]


def evaluate(points, s) -> Any:
    """A polynomial with the given Bezier points at s = 0..1, in NumPy or JAX."""
    degree, value, power, rest = len(points) - 1, points[0], s, 1 - s
    for k in range(1, degree + 1):  # Horner's scheme in 1 - s
        value = rest * value + math.comb(degree, k) * power * points[k]
        power = s * power
    return value


def level_times(
    points: Float[Array, " n"], level: Any
) -> tuple[Float[Array, " n"], Float[Array, " n-1"]]:
    """When a polynomial takes a level, in order of time.

    Returns:
        The ends of pieces of 0..1 in which it is monotone; and for each piece when it takes the
        level, or the end that comes nearer to it. Some pieces may be needless, or have no length.
    """
    degree = len(points) - 1

    def refine(ends, derivative):
        points, level = derivative
        times = bisect(lambda s: evaluate(points, s) - level, ends[:-1], ends[1:])
        return jnp.append(jnp.zeros_like(times[:1]), times), (ends, times)

    # The levels of a derivative divide 0..1 for the one before, from a straight line on.
    levels = jnp.zeros(degree, points.dtype).at[-1].set(level)
    derivatives = jnp.tensordot(_derivatives(degree), points, axes=1, precision="highest")
    whole = jnp.ones_like(points).at[0].set(0)
    _, (ends, times) = jax.lax.scan(refine, whole, (derivatives.astype(points.dtype), levels))
    return ends[-1], times[-1]


def _derivatives(degree: int) -> np.ndarray:
    """Makes of Bezier points those of all derivatives, the linear one first, `[n-1, n, n]`.

    All are written as polynomials of the full degree, and up to a factor.
    """
    made = []
    for order in range(degree - 1, -1, -1):
        matrix = np.diff(np.eye(degree + 1), order, axis=0)
        for n in range(degree - order, degree):  # raises the degree from n to n + 1
            up = np.zeros((n + 2, n + 1))
            k = np.arange(n + 1)
            up[k, k], up[k + 1, k] = 1 - k / (n + 1), (k + 1) / (n + 1)
            matrix = up @ matrix
        made.append(matrix)
    return np.stack(made)


def bisect(function: Callable, low: Float[Array, " n"], high: Float[Array, " n"]):
    """Where a function, monotone from each `low` to `high`, is zero, or its end nearer to zero."""
    left, right = function(low), function(high)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        before = function(middle) * left > 0
        return jnp.where(before, middle, low), jnp.where(before, high, middle)

    found = sum(jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))) / 2
    nearer = jnp.where(jnp.abs(left) <= jnp.abs(right), low, high)
    return jnp.where(left * right < 0, found, nearer)
