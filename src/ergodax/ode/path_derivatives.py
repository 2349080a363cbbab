"""Derivatives of an ODE's solution, found along the solution's path with their own error control.

The solution x(t) of `dx/dt = F(x, theta)` has tangents `dy/dt = DF y + dF/dtheta theta'` and
cotangents `dz/dt = -DF^T z`, whose integral against `dF/dtheta` is the gradient. Both are linear,
and each is the transpose of the other, with DF taken along the path that the solver found.

A solver that controls the error of x alone steps across a kink of F, where DF jumps, with steps far
too long for the derivative. Here tangents and cotangents choose their own steps. A rejected step is
searched for a jump of DF; if there is one, the step ends before it and the next begins behind it,
so that every step sees one smooth piece. Nothing needs to be known about where F has kinks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

MAX_STEPS = 16**4
# A path to differentiate along is stored: at up to this many steps, unless the caller says.
STORED_STEPS = 2048
# More report times than this are replaced by interpolation nodes, six in every step of the path.
_MANY_TIMES = 32
# At time 0 derivatives are taken this share of the time span later: an exact tie is broken there.
NUDGE = 1e-9
# A jump is located by dividing a step into _PARTS parts _ROUNDS times.
_PARTS, _ROUNDS = 8, 8
# A step is searched for a jump if its error exceeds what is allowed by this factor.
_SUSPECT = 4.0
# Error of tangents and cotangents per step, in units of the relative tolerance of the solution.
_TOLERANCE = 1.0
# The path itself is solved to this share of the tolerances: kinks lie where it puts them.
PATH_TOLERANCE = 0.1
_LEAST = 8.0  # the smallest tolerance of the path, in units of the working precision
_NODES = (1 - np.cos(np.pi * np.arange(6) / 5)) / 2
# The two parts that each part is compared with: those beside it, or the nearest two at an end.
_BESIDE = np.stack([np.arange(_PARTS) - 1, np.arange(_PARTS) + 1])
_BESIDE[0, 0], _BESIDE[1, -1] = 2, _PARTS - 3
_STAGE_TIMES = np.append(0.0, diffrax.Tsit5.tableau.c)
_STAGE_WEIGHTS = np.array(
    [np.pad(row, (0, 7 - len(row))) for row in [np.zeros(0), *diffrax.Tsit5.tableau.a_lower]]
)
# Where a GPU has a quick and rough product of float32 matrices, JAX takes it unless told not to.
_dot = functools.partial(jnp.tensordot, axes=1, precision="highest")


class Path(NamedTuple):
    """A solution at its solver's steps, with two derivatives by time; rows of no step are last."""

    times: Float[Array, " M"]
    values: Float[Array, "M d"]
    velocities: Float[Array, "M d"]
    accelerations: Float[Array, "M d"]
    count: Any

    def step(self, t: Float[Array, ""]) -> Int[Array, ""]:
        """The step that contains time t."""
        found = jnp.searchsorted(self.times, t, side="right") - 1
        return jnp.clip(found, 0, jnp.maximum(self.count - 2, 0))

    def __call__(self, t: Float[Array, ""]) -> Float[Array, " d"]:
        """The solution at time t: the quintic that fits both ends of the step."""
        i = self.step(t)
        h = self.times[i + 1] - self.times[i]
        s = (t - self.times[i]) / h
        r = 1 - s
        (x0, x1), (v0, v1), (a0, a1) = (jax.lax.dynamic_slice_in_dim(x, i, 2) for x in self[1:4])
        left = (1 + 3 * s + 6 * s**2) * x0 + h * s * ((1 + 3 * s) * v0 + h * s / 2 * a0)
        right = (1 + 3 * r + 6 * r**2) * x1 - h * r * ((1 + 3 * r) * v1 - h * r / 2 * a1)
        return r**3 * left + s**3 * right


@eqx.filter_custom_jvp
def integrate(x0, args, ts, *, vector_field, solver, rtol, atol, max_steps):
    """Solves dx/dt = vector_field(x, args) from x0 at time 0; derivatives as the module says.

    Args:
        x0: the start, a flat vector `[d]`.
        args: a pytree that the vector field depends on.
        ts: report times, increasing, `[K]`.
        vector_field: a function of `(x, args)` that returns `[d]`.
        solver: a diffrax solver.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        max_steps: the largest number of steps; None for the defaults.

    Returns:
        The solution at `ts`, `[K, d]`, and a tuple of what diffrax says of it: the times reached
        (infinite where it failed), statistics, result.
    """
    options = (vector_field, solver, rtol, atol, max_steps or MAX_STEPS)
    solved = diffeqsolve(x0, args, ts, diffrax.SaveAt(ts=ts), diffrax.ForwardMode(), *options)
    return solved.ys, (solved.ts, solved.stats, solved.result)


def diffeqsolve(x0, args, ts, saveat, adjoint, vector_field, solver, rtol, atol, max_steps):
    """The plain solve by diffrax, with one of diffrax's own adjoints."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: vector_field(x, args)),
        solver,
        t0=0.0,
        t1=ts[-1],
        dt0=None,
        y0=x0,
        args=args,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )


@integrate.def_jvp
def _integrate_jvp(primals, tangents, *, vector_field, solver, rtol, atol, max_steps):
    x0, args, ts = once(primals)
    x0_dot, args_dot, ts_dot = tangents
    moved = jax.tree.map(
        lambda leaf, dot: None if dot is None else leaf, args, args_dot, is_leaf=lambda x: x is None
    )
    options = (vector_field, solver, rtol, atol, max_steps)
    ys, tangent, rest = _follow(x0, args, moved, ts, *options)
    inputs, unravel = ravel_pytree((x0_dot, args_dot))

    def forward(inputs):
        dots = jax.tree.map(lambda dot: dot[None], unravel(inputs))  # pyright: ignore[reportCallIssue]
        return tangent.forward(*dots, ts)[:, 0]

    derivative = jnp.zeros_like(ys)
    if len(inputs):
        derivative = _linear_map(
            forward,
            lambda cotangents: tangent.backward(cotangents, ts, x0_dot is not None),
            inputs,
            ys.shape,
        )
    if ts_dot is not None:
        derivative += ts_dot[:, None] * jax.vmap(vector_field, in_axes=(0, None))(ys, args)
    derivative *= jnp.where(rest[2] == diffrax.RESULTS.successful, 1.0, jnp.nan)
    return (ys, rest), (derivative, jax.tree.map(lambda _: None, rest))


def integrate_with_tangents(
    x0, args, ts, x0_dot, args_dot, stops, *, vector_field, solver, rtol, atol, max_steps
):
    """The solution and p tangents, which are solved for together, with the same steps.

    Args:
        x0: as for `integrate`.
        args: as for `integrate`.
        ts: as for `integrate`.
        x0_dot: how the start moves, `[p, d]`.
        args_dot: how the floating-point arrays of `args` move, each leaf with a leading axis p.
        stops: further times at which steps of the tangents end, in any order, `[S]`; infinite ones
            are left out.
        vector_field: as for `integrate`.
        solver: as for `integrate`.
        rtol: as for `integrate`.
        atol: as for `integrate`.
        max_steps: as for `integrate`.

    Returns:
        The solution `[K, d]` and the tangents `[K, p, d]` at `ts`, NaN if the solve fails, and what
        diffrax says of it, as `integrate` returns it.
    """
    x0, args, ts = once((x0, args, ts))
    moved = eqx.filter(args, eqx.is_inexact_array)
    options = (vector_field, solver, rtol, atol, max_steps)
    ys, tangent, rest = _follow(x0, args, moved, ts, *options)
    tangents = tangent.forward(x0_dot, args_dot, ts, stops)
    return ys, tangents * jnp.where(rest[2] == diffrax.RESULTS.successful, 1.0, jnp.nan), rest


def _follow(x0, args, moved, ts, vector_field, solver, rtol, atol, max_steps):
    """The solution at `ts`, the ODE linearised along its path, and what diffrax says of it."""
    # What rounding leaves of an error estimate cannot be made smaller by shorter steps.
    least = _LEAST * jnp.finfo(x0.dtype).eps
    tolerances = (jnp.maximum(PATH_TOLERANCE * tolerance, least) for tolerance in (rtol, atol))
    options = (vector_field, solver, *tolerances, max_steps or STORED_STEPS)

    saveat = diffrax.SaveAt(subs=(diffrax.SubSaveAt(ts=ts), diffrax.SubSaveAt(t0=True, steps=True)))
    solved: Any = diffeqsolve(x0, args, ts, saveat, diffrax.ForwardMode(), *options)
    (reached, times), (ys, values) = solved.ts, solved.ys
    count = solved.stats["num_accepted_steps"] + 1

    def describe(k, slopes):
        velocity = vector_field(values[k], args)
        side = values[k] + NUDGE * ts[-1] * velocity
        acceleration = jax.jvp(lambda x: vector_field(x, args), (side,), (velocity,))[1]
        return tuple(
            all.at[k].set(one) for all, one in zip(slopes, (velocity, acceleration), strict=True)
        )

    # Not within the solver, which would compile it several times.
    zeros = jnp.zeros_like(values)
    path = Path(times, values, *jax.lax.fori_loop(0, count, describe, (zeros, zeros)), count)

    def velocity(x, moved):
        return vector_field(x, eqx.combine(moved, args))

    tangent = _Tangent(path, velocity, moved, _TOLERANCE * rtol)
    return ys, tangent, (reached, solved.stats, solved.result)


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


def _linear_map(forward, backward, inputs, shape):
    """`forward(inputs)`, an array of the given shape, whose transpose is `backward`.

    The solution z = (u, w) of `u = inputs, w - forward(u) = 0`: of all of JAX's ways to give a
    linear map a transpose of one's own, a linear system is the one that can be batched too.
    """

    def split(z):
        return z[: len(inputs)], z[len(inputs) :]

    def solve(_, z):
        u, w = split(z)
        return jnp.concatenate([u, w + forward(u).ravel()])

    def transpose_solve(_, z):
        u, w = split(z)
        return jnp.concatenate([u + backward(w.reshape(shape)), w])

    right = jnp.concatenate([inputs, jnp.zeros(np.prod(shape, dtype=int), inputs.dtype)])
    # Only derivatives by the map would use the matrix itself, and `once` forbids these.
    solution = jax.lax.custom_linear_solve(lambda z: z, right, solve, transpose_solve)
    return split(solution)[1].reshape(shape)


class _Tangent(NamedTuple):
    """The ODE linearised along a path, by x and by the leaves `moved` of its arguments."""

    path: Path
    velocity: Callable
    moved: Any
    tol: Any

    def at(self, t):
        return self.path(jnp.maximum(t, NUDGE * self.path.times[self.path.count - 1]))

    def forward(self, x0_dot, moved_dot, ts, further=None):
        """Tangents of p moves of the start (None if it does not move) and of the moved leaves.

        All take the same steps, which end at `further` times too. Returns `[K, p, d]`.
        """

        def field(x, y):
            _, push = jax.linearize(self.velocity, x, self.moved)
            return jax.vmap(push)(y, moved_dot)

        def probe(x, y):
            _, push = jax.linearize(lambda x: self.velocity(x, self.moved), x)
            length = _rms(y)[:, None]
            return jax.vmap(push)(y / jnp.where(length > 0, length, 1)).ravel()

        size = self.path.values.shape[1]
        p = len(jax.tree.leaves((x0_dot, moved_dot))[0])
        start = jnp.zeros((p, size), self.path.values.dtype) if x0_dot is None else x0_dot
        stops, count, spread = self.stops(ts)
        if further is not None:
            own, count = stops, count + jnp.sum(jnp.isfinite(further))
            stops = jnp.sort(jnp.append(own, further))
            rows = jnp.searchsorted(stops, own)
            saved_at, spread = spread, lambda values: saved_at(values[rows])
        walk = _Walk(self.at, field, probe, size, self.tol, jnp.zeros(()), stops, count, 1)
        saved = jnp.zeros((len(stops), *start.shape), start.dtype).at[0].set(start)
        step = self.path.times[1] - self.path.times[0]
        _, saved = walk(start, saved, jnp.where(stops[0] == 0, 1, 0), step)
        return spread(saved)

    def backward(self, cotangents, ts, with_start):
        """Cotangents of the start (if it moves) and the moved leaves, as one flat vector."""
        size = cotangents.shape[1]

        def field(x, y):
            _, pull = jax.vjp(self.velocity, x, self.moved)
            return -ravel_pytree(pull(y[:size]))[0]

        def probe(x, y):
            return jax.vjp(lambda x: self.velocity(x, self.moved), x)[1](y[:size])[0]

        stops, count, spread = self.stops(ts)
        like = jax.ShapeDtypeStruct((len(stops), size), cotangents.dtype)
        (added,) = jax.linear_transpose(spread, like)(cotangents)
        largest = jnp.max(jax.vmap(_rms)(added))
        walk = _Walk(self.at, field, probe, size, self.tol, largest, stops, count, -1)
        start = jnp.append(added[count - 1], jnp.zeros_like(ravel_pytree(self.moved)[0]))
        step = self.path.times[self.path.count - 1] - self.path.times[self.path.count - 2]
        y, _ = walk(start, added, count - 2, step)
        return y if with_start else y[size:]

    def stops(self, ts):
        """Where to stop, how many stops there are, and how values there become values at `ts`.

        Stops are `ts` itself, or, if these are many, the nodes of a quintic in every step of the
        path, so that the cost does not grow with their number.
        """
        if len(ts) <= _MANY_TIMES:
            return ts, jnp.asarray(len(ts)), lambda values: values
        path, degree = self.path, len(_NODES) - 1
        widths = jnp.diff(path.times)
        stops = (path.times[:-1, None] + widths[:, None] * _NODES[:-1]).ravel()
        count = degree * (path.count - 1) + 1
        stops = jnp.append(stops, jnp.inf).at[count - 1].set(path.times[path.count - 1])
        step = jax.vmap(path.step)(ts)
        s = (ts - path.times[step]) / widths[step]
        others = [np.delete(_NODES, j) for j in range(degree + 1)]
        weights = [
            jnp.prod((s[:, None] - other) / (node - other), axis=1)
            for node, other in zip(_NODES, others, strict=True)
        ]
        rows = degree * step[:, None] + np.arange(degree + 1)
        return (
            stops,
            count,
            lambda values: jnp.einsum(
                "jk,kj...->k...", jnp.stack(weights), values[rows], precision="highest"
            ),
        )


class _State(NamedTuple):
    """Where a walk stands.

    Attributes:
        t: time.
        y: solution.
        slope: dy/dt, unless `fresh`.
        fresh: whether the slope has still to be found.
        h: length of the next step.
        values: values at the stops, see `_Walk`.
        stop: index of the next stop.
        low: a jump lies between `low` and `high`: found ahead, or sought if `round` is positive.
        high: see `low`.
        found: whether a jump was found ahead.
        round: how often the search for a jump has divided the step; 0 while none goes on.
        searched: whether the step from t has been searched in vain.
        count: number of steps tried and of divisions.
    """

    t: Any
    y: Any
    slope: Any
    fresh: Any
    h: Any
    values: Any
    stop: Any
    low: Any
    high: Any
    found: Any
    round: Any
    searched: Any
    count: Any


class _Walk(NamedTuple):
    """Solves a linear ODE forwards or backwards, from stop to stop and from jump to jump.

    Forwards it begins at time 0, ends at the last stop, and stores y at the stops. Backwards it
    begins at the last stop, ends at time 0, and adds given values to y at the stops.

    Attributes:
        along: the path, x at time t, `[d]`. It is evaluated outside the loops that use it: were it
            compiled into several places, each with its own rounding, the maximum of a row could
            equal none of its entries, and its derivative would be 0 / 0.
        field: dy/dt, a function of x and y, `[n]`, or of several rows of y at once, `[p, n]`.
        probe: a function of x and y, a vector, that jumps where the field does.
        size: d; the error of these first entries of y is controlled, the rest is quadrature.
        tol: error allowed per step, relative to the size of each y, or `floor` if that is larger.
        floor: see `tol`.
        stops: times to stop at, increasing, `[S]`.
        count: how many of `stops` there are; the rest is padding.
        direction: 1 or -1.
    """

    along: Callable
    field: Callable
    probe: Callable
    size: int
    tol: Any
    floor: Any
    stops: Any
    count: Any
    direction: int

    def __call__(self, y, values, stop, step):
        """Returns y at the end, and the values at the stops; NaN if there were too many steps."""
        zero, last = jnp.zeros_like(self.stops[0]), self.stops[self.count - 1]
        begin, end = (zero, last) if self.direction > 0 else (last, zero)
        no = jnp.asarray(False)
        start = _State(
            t=begin,
            y=y,
            slope=jnp.zeros_like(y),
            fresh=~no,
            h=step,
            values=values,
            stop=stop,
            low=begin,
            high=begin,
            found=no,
            round=jnp.asarray(0),
            searched=no,
            count=jnp.asarray(0),
        )
        state = jax.lax.while_loop(
            lambda s: (s.t != end) & (s.count < MAX_STEPS),
            lambda s: jax.lax.cond(s.round > 0, self._divide, lambda s: self._step(s, end), s),
            start,
        )
        reached = jnp.where(state.t == end, 1.0, jnp.nan)
        return reached * state.y, reached * state.values

    def _step(self, s: _State, end) -> _State:
        """Tries one step of Tsitouras' method, at most to the next stop or jump."""
        inside = (s.stop >= 0) & (s.stop < self.count)
        target = jnp.where(inside, self.stops[jnp.clip(s.stop, 0, len(self.stops) - 1)], end)
        limit = jnp.where(s.found, s.low, target)
        full = s.h >= jnp.abs(limit - s.t) * (1 - 1e-9)
        h = jnp.where(full, limit - s.t, self.direction * s.h)
        nodes, weights = jnp.asarray(_STAGE_TIMES), jnp.asarray(_STAGE_WEIGHTS)
        path = jax.vmap(self.along)(jnp.where(full & (nodes == 1), limit, s.t + nodes * h))

        def stage(j, k):
            return k.at[j].set(self.field(path[j], s.y + h * _dot(weights[j], k)))

        k = jnp.zeros((len(_STAGE_TIMES), *s.y.shape), s.y.dtype).at[0].set(s.slope)
        k = jax.lax.fori_loop(jnp.where(s.fresh, 0, 1), len(_STAGE_TIMES), stage, k)
        y = s.y + h * _dot(weights[-1], k)
        error = _rms((h * _dot(jnp.asarray(diffrax.Tsit5.tableau.b_error), k))[..., : self.size])
        before = _rms(s.y[..., : self.size])
        largest = jnp.maximum(before, _rms(y[..., : self.size]))
        allowed = self.tol * jnp.maximum(self.floor, largest)
        excess = error / jnp.where(allowed > 0, allowed, 1)
        excess = jnp.where(jnp.isfinite(excess), excess, jnp.inf)
        # Shorter steps cannot mend what is not finite, and it must not stop the others.
        excess = jnp.max(jnp.where(jnp.isfinite(before), excess, 0))

        accepted = excess <= 1
        at_jump, at_stop = accepted & full & s.found, accepted & full & ~s.found
        search = (excess > _SUSPECT) & ~s.searched
        if self.direction > 0:
            values = s.values.at[s.stop].set(jnp.where(at_stop, y, s.values[s.stop]))
        else:
            values = s.values
            added = jnp.where(at_stop & inside, values[s.stop], 0)
            y = y.at[: self.size].add(added)
        length = jnp.abs(h) * jnp.clip(0.9 * excess**-0.2, 0.2, 5.0)
        # A step cut short says little about the next.
        length = jnp.where(accepted & full, jnp.maximum(length, s.h), length)
        return s._replace(
            t=jnp.where(accepted, jnp.where(full, jnp.where(at_jump, s.high, limit), s.t + h), s.t),
            y=jnp.where(accepted, y, s.y),
            slope=jnp.where(accepted, k[-1], k[0]),
            fresh=at_jump | at_stop,
            h=length,
            values=values,
            stop=jnp.where(at_stop, s.stop + self.direction, s.stop),
            low=jnp.where(search, s.t, s.low),
            high=jnp.where(search, s.t + h, s.high),
            found=s.found & ~at_jump & ~search,
            round=jnp.where(search, 1, 0),
            searched=~accepted,
            count=s.count + 1,
        )

    def _divide(self, s: _State) -> _State:
        """Narrows the search for a jump to the part of the step where the probe jumps most."""
        times = s.low + (s.high - s.low) * jnp.linspace(0, 1, _PARTS + 1)
        probed = jax.lax.map(lambda x: self.probe(x, s.y), jax.vmap(self.along)(times))
        changes = jnp.diff(probed, axis=0)
        # A jump stands out against both parts beside it; what is smooth does not.
        excess = jnp.min(jnp.linalg.norm(changes - changes[_BESIDE], axis=-1), axis=0)
        part = jnp.argmax(excess)
        done = s.round == _ROUNDS
        largest = jnp.max(jnp.linalg.norm(probed, axis=1))
        found = done & (jnp.linalg.norm(changes[part]) > 1e-5 * largest)
        return s._replace(
            low=times[part],
            high=times[part + 1],
            # The step that led here was cut; the whole of what lies before the jump is free again.
            h=jnp.where(found, jnp.maximum(s.h, jnp.abs(times[part] - s.t)), s.h),
            found=found,
            round=jnp.where(done, 0, s.round + 1),
            searched=~found,
            count=s.count + 1,
        )


def _rms(y: Float[Array, "*rows n"]) -> Float[Array, "*rows"]:
    return jnp.sqrt(jnp.mean(y**2, axis=-1))
