"""Derivatives of an ODE's solution, found along the solution's path with their own error control.

The solution x(t) of `dx/dt = F(x, theta)` has tangents `dy/dt = DF y + dF/dtheta theta'` and
cotangents `dz/dt = -DF^T z`, whose integral against `dF/dtheta` is the gradient. Both are linear,
and each is the transpose of the other, with DF taken along the path that the solver found.

A solver that controls the error of x alone steps across a kink of F, where DF jumps, with steps far
too long for the derivative. Here tangents and cotangents choose their own steps, and end these at
kinks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..base.codes import RESULTS
from ..base.linear_map import linear_map
from .path import NUDGE, Path, follow
from .walk import Walk, rms

# A path to differentiate along is stored: at up to this many steps, unless the caller says.
STORED_STEPS = 2048
# More report times than this are replaced by interpolation nodes, six in every step of the path.
_MANY_TIMES = 256
# The path itself is solved to this share of the tolerances: kinks lie where it puts them.
PATH_TOLERANCE = 0.1
_LEAST = 8.0  # the smallest tolerances, in units of the working precision
_NODES = (1 - np.cos(np.pi * np.arange(6) / 5)) / 2


def linearise(x0, args, moved, ts, *, vector_field, rtol, atol, max_steps, **options):
    """Solves dx/dt = vector_field(x, args) from x0 at time 0, and linearises it along its path.

    Args:
        x0: the start, a flat vector `[d]`.
        args: a pytree that the vector field depends on.
        moved: the leaves of `args` that the solution is differentiated by, None elsewhere.
        ts: report times, increasing, `[K]`.
        vector_field: a function of `(x, args)` that returns `[d]`.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: the largest number of steps; None for the default.
        **options: solver, unit and when to stop, as for `integrate`.

    Returns:
        The solution at `ts`, `[K, d]`; the linearised ODE; and a tuple of what diffrax says: the
        times reached (infinite where it failed), statistics, result, the last point.
    """
    least = _least(x0.dtype)
    path, solved = follow(
        vector_field,
        x0,
        ts[-1],
        args,
        ts=ts,
        rtol=jnp.maximum(PATH_TOLERANCE * rtol, least),
        atol=jnp.maximum(PATH_TOLERANCE * atol, least),
        max_steps=max_steps or STORED_STEPS,
        **options,
    )
    tangent = Tangent(path, jnp.maximum(rtol, least), vector_field, args, moved)
    return solved.ys, tangent, (solved.ts, solved.stats, solved.result, solved.end[1])


def _least(dtype) -> float:
    """What rounding leaves of an error estimate: shorter steps cannot make it smaller."""
    return _LEAST * float(jnp.finfo(dtype).eps)


@eqx.filter_custom_jvp
def on_path(x0, args, ts, path, rtol, *, vector_field):
    """A path at some times: the solution, which can be differentiated once by its start and `args`.

    Args:
        x0: the start, a flat vector `[d]`.
        args: a pytree that the vector field depends on.
        ts: times, increasing, `[K]`; constants of differentiation, as the path is.
        path: the solution from `x0`.
        rtol: relative tolerance per step of the derivatives.
        vector_field: a function of `(x, args)` that returns `[d]`.

    Returns:
        The solution at `ts`, `[K, d]`.
    """
    return jax.vmap(path)(ts)


@on_path.def_jvp
def _on_path_jvp(primals, tangents, *, vector_field):
    x0, args, ts, path, rtol = once(primals)
    values = jax.vmap(path)(ts)
    tol = jnp.maximum(rtol, _least(x0.dtype))
    tangent = Tangent(path, tol, vector_field, args, only(tangents[1], args))

    def push(known, dots):
        tangent, ts = known
        start, moved = jax.tree.map(lambda dot: dot[None], dots)
        start = jnp.zeros_like(tangent.path.values[:1]) if start is None else start
        return tangent.forward(start, moved, ts)[:, 0]

    def pull(known, bars):
        tangent, ts = known
        start, moved = tangent.backward(bars, ts)
        return None if tangents[0] is None else start, moved

    return values, linear_map(push, pull, (tangent, ts), tangents[:2], like=values)


def only(chosen, tree):
    """The leaves of a tree where another one, or a part of it, has leaves; None elsewhere."""
    return jax.tree.map(
        lambda kept, leaf: None if kept is None else leaf,
        *(chosen, tree),
        is_leaf=lambda leaf: leaf is None,
    )


def solve_with_tangents(x0, args, ts, x0_dot, args_dot, stops, **options):
    """The solution and p tangents, which are solved for together, with the same steps.

    Args:
        x0: as for `linearise`.
        args: as for `linearise`.
        ts: as for `linearise`.
        x0_dot: how the start moves, `[p, d]`.
        args_dot: how the floating-point arrays of `args` move, each leaf with a leading axis p.
        stops: further times at which steps of the tangents end, in any order, `[S]`; infinite ones
            are left out.
        **options: as for `linearise`.

    Returns:
        The solution `[K, d]` and the tangents `[K, p, d]` at `ts`, NaN if the solve fails, and what
        diffrax says of it, as `linearise` returns it.
    """
    x0, args, ts = once((x0, args, ts))
    moved = eqx.filter(args, eqx.is_inexact_array)
    ys, tangent, rest = linearise(x0, args, moved, ts, first_step=1e-4 * ts[-1], **options)
    tangents = tangent.forward(x0_dot, args_dot, ts, stops)
    return ys, tangents * jnp.where(rest[2] == RESULTS.successful, 1.0, jnp.nan), rest


def once(tree):
    """The identity, which refuses to be differentiated: for what a derivative is computed from."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_once(arrays), rest)


@jax.custom_jvp
def _once(arrays):
    return arrays


@_once.defjvp
def _once_jvp(primals, tangents):
    raise NotImplementedError(
        "second derivatives of a solution need learners without kinks (no maximum; the property "
        "`smooth` of a learner says so) and `solve(..., adjoint=diffrax.DirectAdjoint())`."
    )


@jax.custom_jvp
def differentiable_once(x):
    """The identity, whose derivative refuses to be differentiated again."""
    return x


@differentiable_once.defjvp
def _differentiable_once_jvp(primals, tangents):
    return once(primals[0]), tangents[0]


class Tangent(NamedTuple):
    """The ODE linearised along a path, by x and by leaves of its arguments.

    Attributes:
        path: the solution.
        tol: relative tolerance per step of tangents and cotangents.
        vector_field: a function of `(x, args)`.
        args: its arguments.
        moved: those of their leaves that move, None elsewhere.
    """

    path: Path
    tol: Any
    vector_field: Callable
    args: Any
    moved: Any

    def velocity(self, x, moved):
        """dx/dt."""
        return self.vector_field(x, eqx.combine(moved, self.args))

    def at(self, t):
        """The solution at time t, beside an exact tie at the start."""
        return self.path(jnp.maximum(t, NUDGE * self.path.times[self.path.count - 1]))

    def forward(self, x0_dot, moved_dot, ts, further=None):
        """Tangents of p moves of the start and of the moved leaves.

        All take the same steps, which end at `further` times too. Returns `[K, p, d]`.
        """

        def field(x, y):
            _, push = jax.linearize(self.velocity, x, self.moved)
            return jax.vmap(push)(y, moved_dot)

        size = self.path.values.shape[1]
        stops = ts[-1:] if further is None else jnp.sort(jnp.append(further, ts[-1]))
        count = jnp.sum(jnp.isfinite(stops))
        walk = Walk(self.at, field, size, self.tol, jnp.zeros(()), stops, count, 1)
        step = self.path.times[1] - self.path.times[0]
        return walk(x0_dot, ts, jnp.broadcast_to(x0_dot, (len(ts), *x0_dot.shape)), step)[1]

    def backward(self, cotangents, ts):
        """Cotangents of the start and the moved leaves, by those of the solution at `ts`."""
        size = cotangents.shape[1]

        def field(x, y):
            _, pull = jax.vjp(self.velocity, x, self.moved)
            return -ravel_pytree(pull(y[:size]))[0]

        stops, count, spread = self.stops(ts)
        like = jax.ShapeDtypeStruct((len(stops), size), cotangents.dtype)
        (added,) = jax.linear_transpose(spread, like)(cotangents)
        largest = jnp.max(jax.vmap(rms)(added))
        walk = Walk(self.at, field, size, self.tol, largest, stops, count, -1)
        by_moved, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, self.moved))
        start = jnp.append(added[count - 1], by_moved.astype(added.dtype))
        step = self.path.times[self.path.count - 1] - self.path.times[self.path.count - 2]
        y, _ = walk(start, stops, added, step)
        return y[:size], unravel(y[size:])

    def stops(self, ts):
        """Where to stop, how many stops there are, and how values there become values at `ts`.

        For cotangents, which are added where a step ends. Stops are `ts` itself, or, if these are
        many, the nodes of a quintic in every step of the path, so that the cost does not grow with
        their number.
        """
        if len(ts) <= _MANY_TIMES:
            return ts, jnp.asarray(len(ts)), lambda values: values
        path, degree = self.path, len(_NODES) - 1
        widths = jnp.diff(path.times)
        stops = (path.times[:-1, None] + jnp.multiply.outer(widths, _NODES[:-1])).ravel()
        count = degree * (path.count - 1) + 1
        stops = jnp.append(stops, jnp.inf).at[count - 1].set(path.times[path.count - 1])
        step, s = jax.vmap(path.locate)(ts)
        others = [np.delete(_NODES, j) for j in range(degree + 1)]
        weights = [
            jnp.prod(jnp.subtract.outer(s, other) / (node - other)[None], axis=1)
            for node, other in zip(_NODES, others, strict=True)
        ]
        rows = jnp.add.outer(degree * step, np.arange(degree + 1, dtype=step.dtype))
        return (
            stops,
            count,
            lambda values: jnp.einsum(
                "jk,kj...->k...", jnp.stack(weights), values[rows], precision="highest"
            ),
        )
