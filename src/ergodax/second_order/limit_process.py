"""What the process tends to: its flow x, the covariance C of fluctuations, and the bias b.

All are functions of the flat vector of parameters, pure and unchecked; `fluctuations` explains.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..averaged.drift import flat_drift
from ..averaged.maxima import Crossings, Kink, Maxima, crossings
from ..averaged.units import unit_of
from ..base.codes import RESULTS
from ..model.wrapped import WrappedGame
from ..ode.integrate import Unit, integrate
from ..ode.path import follow
from ..ode.path_derivatives import on_path
from .noise import covariance
from .poisson import Poisson, core_law, inflow, poisson

NEAR = 3.0  # standard deviations from a kink within which nothing is Gaussian
_LONG = 1 / 64


def reach(dtype) -> float:
    """A distance so small that it is near at all scales, in standard deviations at scale 1."""
    return NEAR * float(jnp.finfo(dtype).eps) ** 0.375


class State(NamedTuple):
    """Where the limit stands, or its velocity.

    Attributes:
        x: parameters, `[d]`.
        covariance: C, `[d, d]`.
        bias: b, `[d]`; None if not asked for.
    """

    x: Any
    covariance: Any
    bias: Any


class LimitProcess:
    """Drift, noise and sources of bias of a wrapped game whose parameters are one vector.

    Attributes:
        start: the parameters it was made with, `[d]`.
        unravel: restores the structure of parameters.
        maxima: those that the learners take.
    """

    def __init__(self, wrapped: WrappedGame, params):
        self.wrapped = wrapped
        self.start, self.unravel, self._field = flat_drift(params)
        self.maxima = Maxima(wrapped, self.unravel)
        self.unit = unit_of(wrapped, params)

    def drift(self, x) -> Float[Array, " d"]:
        """F."""
        return self._field(x, self.wrapped)

    def poisson(self, x) -> Poisson:
        """The solution of Poisson's equation."""
        return poisson(self.wrapped, self.unravel(x))

    def linearised(self, x) -> tuple[Float[Array, " d"], Float[Array, "d d"], Float[Array, "d d"]]:
        """F, DF and Sigma."""

        def drift(x):
            solved = self.poisson(x)
            return solved.drift, solved

        slope, solved = jax.jacfwd(drift, has_aux=True)(x)
        return solved.drift, slope, covariance(self.wrapped, solved)

    def averaging(self, x) -> tuple[Poisson, Float[Array, " d"]]:
        """The solution of Poisson's equation, and the source of bias by averaging.

        The latter is `B = sum over c of D_x v(c) [G(c)]`.
        """

        def values(x):
            solved = self.poisson(x)
            return solved.values, solved

        _, push, solved = jax.linearize(values, x, has_aux=True)
        return solved, jnp.einsum("ccd->d", jax.vmap(push)(inflow(self.wrapped, solved)))

    def velocity(self, state: State, scale: Any = None) -> State:
        """dx/dt, dC/dt and db/dt; kinks are smoothed as they are at a scale, if given."""
        x = state.x
        if state.bias is None:
            drift, slope, noise = self.linearised(x)
            spread = slope @ state.covariance
            return State(drift, spread + spread.T + noise, None)
        solved, averaging = self.averaging(x)
        slope, curved = slope_and_curvature(self.drift, x, state.covariance)
        spread = slope @ state.covariance
        spread = spread + spread.T + covariance(self.wrapped, solved)
        # The last term is the error of Euler's method with step 1 / N.
        source = averaging + curved / 2 - slope @ solved.drift / 2
        if scale is not None:
            source = source + self.smoothing(state, scale)
        return State(solved.drift, spread, slope @ state.bias + source)

    def smoothing(self, state: State, scale) -> Float[Array, " d"]:
        """Source of bias near kinks at finite scale, by the best two entries of every row."""
        _, places = self.maxima.best_two(state.x)

        def of_row(row, place):
            kink = self.maxima.kink(self.drift, state.x, row, *place)
            deviation = root(kink.normal @ state.covariance @ kink.normal)
            distance = jnp.abs(kink.gap) * jnp.sqrt(scale) / jnp.where(deviation > 0, deviation, 1)
            tail = jax.scipy.stats.norm.pdf(distance) - distance * jax.scipy.stats.norm.sf(distance)
            return kink.change * jnp.sqrt(scale) * deviation * tail

        return jax.vmap(of_row)(jnp.arange(len(places)), places).sum(axis=0)

    def kinks(self, crossed: Crossings, points) -> Kink:
        """The kinks that are crossed, each at its point of `[L, d]`; zero in unused places."""
        used = crossed.maximum >= 0
        # There any pair of entries will do.
        owned = (jnp.where(used, *pair) for pair in zip(crossed[1:], (0, 0, 1), strict=True))
        kinks = jax.lax.map(lambda given: self.maxima.kink(self.drift, *given), (points, *owned))
        return jax.vmap(lambda use, kink: jax.tree.map(lambda x: jnp.where(use, x, 0), kink))(
            used, kinks
        )

    @staticmethod
    def jump(covariance, kink: Kink) -> Float[Array, " d"]:
        """The jump of b where a kink is crossed."""
        speed = jnp.abs(kink.normal @ kink.drift)
        size = kink.normal @ covariance @ kink.normal / (2 * jnp.where(speed > 0, speed, 1))
        return jnp.where(speed > 0, size * kink.change, 0)

    def margins(self, state: State) -> Float[Array, " M"]:
        """Distance of every maximum from a change, in standard deviations of U."""
        gaps, places = self.maxima.best_two(state.x)
        if not len(gaps):
            return gaps
        least = 1e3 * jnp.finfo(gaps.dtype).eps * jnp.trace(state.covariance)

        def of_row(row, place):
            gap, normal = jax.value_and_grad(self.maxima.difference)(state.x, row, *place)
            variance = normal @ state.covariance @ normal
            # What rounding makes of no noise does not count.
            moved = variance > least * jnp.sum(normal**2)
            return jnp.where(moved, jnp.abs(gap) / root(jnp.where(moved, variance, 1)), jnp.inf)

        return jax.vmap(of_row)(jnp.arange(len(places)), places)

    def rests(self, state: State, span) -> Bool[Array, " M"]:
        """Which maxima rest on a tie: the flow stays within `reach` of it.

        It stays for a `_LONG` part of the time span, and the drift feels the kink.
        """
        _, places = self.maxima.best_two(state.x)

        def of_row(row, place):
            kink = self.maxima.kink(self.drift, state.x, row, *place)
            deviation = root(kink.normal @ state.covariance @ kink.normal)
            stays = jnp.abs(kink.normal @ kink.drift) * _LONG * span < reach(span.dtype) * deviation
            return stays & (kink.jump * span > jnp.sqrt(jnp.finfo(span.dtype).eps))

        near = self.margins(state) < reach(span.dtype)
        return near & jax.vmap(of_row)(jnp.arange(len(places)), places)

    def initial(self, law, with_bias: bool) -> tuple[State, Float[Array, " d"]]:
        """The state at time 0, for a law of the first state of the game, and F there."""
        size = self.start.size
        solved = self.poisson(self.start)
        bias = core_law(self.wrapped, law, solved) @ solved.values if with_bias else None
        return State(self.start, jnp.zeros((size, size), self.start.dtype), bias), solved.drift

    def crossings(self, end, most: int, **options) -> tuple[Crossings, Any, Any]:
        """The kinks that the flow crosses, where it does, and whether they are more than `most`."""
        if not most:
            none, no = jnp.zeros(0, int), jnp.asarray(False)
            points = jnp.zeros((0, self.start.size), self.start.dtype)
            return Crossings(points[:, 0], none, none, none), points, no
        start, wrapped, until = jax.lax.stop_gradient((self.start, self.wrapped, end))
        forwards = options | {"adjoint": None}
        path, _ = follow(
            self._field, start, until, wrapped, first_step=1e-3 * until, unit=self.unit, **forwards
        )
        found, lost = crossings(Maxima(wrapped, self.unravel), path, most)
        if options["adjoint"] is None:
            return found, jax.vmap(path)(found.time), lost
        known = self.start, self.wrapped, found.time, path, options["rtol"]
        points = on_path(*known, vector_field=self._field)

        def differentiable(time, x, *crossing):
            """The same time and x; their derivatives are those of one step of Newton's method."""
            away, normal = jax.value_and_grad(self.maxima.difference)(x, *crossing)
            velocity, before = jax.lax.stop_gradient((self.drift(x), away))
            speed = jax.lax.stop_gradient(normal @ velocity)
            later = (before - away) / jnp.where(speed == 0, 1, speed)
            return time + later, x + later * velocity

        used = found.maximum >= 0
        row = jnp.maximum(found.maximum, 0)
        times, points = jax.vmap(differentiable)(found.time, points, row, found.old, found.new)
        return found._replace(time=jnp.where(used, times, end)), points, lost

    def solve(
        self,
        initial: State,
        drift,
        ts,
        times,
        kinks: Kink | None,
        scale: Any = None,
        **options,
    ) -> tuple[State, Any, RESULTS]:
        """Solves for x, C and b.

        Args:
            initial: the state at time 0.
            drift: F there, `[d]`.
            ts: report times, `[K]`.
            times: when steps end besides, `[L]`: where F has kinks.
            kinks: what is crossed then, if b jumps there.
            scale: as for `velocity`.
            **options: as for `integrate`.

        Returns:
            The state at `ts`, every jump of b `[L, d]`, and how the solve ended.
        """
        start, end = self.start, ts[-1]
        size, reach = self.unit
        square = jnp.outer(size, size)
        with_bias = initial.bias is not None
        unit = Unit(
            State(size, square, size if with_bias else None),
            State(
                reach,
                jnp.full_like(square, jnp.inf),
                jnp.full_like(size, jnp.inf) if with_bias else None,
            ),
        )

        def segment(carry, piece):
            state, saved, result = carry
            begin, until, kink = piece
            inside = jnp.clip(ts, begin, until)
            solved = integrate(
                lambda state, args: self.velocity(state, scale),
                state,
                until,
                begin=begin,
                ts=inside,
                first_step=(until - begin) * 1e-3,
                unit=unit,
                **options,
            )
            belongs = (ts > begin) & (ts <= until)
            saved = jax.tree.map(
                lambda old, new: jnp.where(belongs.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
                saved,
                solved.ys,
            )
            state = solved.end[1]
            jump = None
            if kink is not None:
                jump = self.jump(state.covariance, kink)
                state = state._replace(bias=state.bias + jump)
            result = RESULTS.where(result == RESULTS.successful, solved.result, result)
            return (state, saved, result), jump

        # It starts just ahead, so that a tie takes the side that the flow enters.
        ahead = jnp.sqrt(jnp.finfo(start.dtype).eps) * 1e-2 * end
        entering = initial._replace(x=start + ahead * drift)
        saved = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (ts.size, *leaf.shape)), initial)
        times = jnp.concatenate([jnp.zeros_like(ts[:1]), times, ts[-1:]])
        # The last segment ends without a kink.
        reached = jax.tree.map(lambda x: jnp.append(x, jnp.zeros_like(x[:1]), 0), kinks)
        successful: Any = RESULTS.successful
        (_, saved, result), sizes = jax.lax.scan(
            segment, (entering, saved, successful), (times[:-1], times[1:], reached)
        )
        return saved, None if sizes is None else sizes[:-1], result


def root(variance):
    """Square root with derivative zero, not infinite, at zero."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def slope_and_curvature(function, x, covariance):
    """`D f`, and `D2 f : C`, the sum of second derivatives weighted by C."""

    def along(direction, weighted):
        def slope(x):
            return jax.jvp(function, (x,), (direction,))[1]

        return jax.jvp(slope, (x,), (weighted,))

    columns, curved = jax.vmap(along)(jnp.eye(x.size, dtype=x.dtype), covariance)
    return columns.T, curved.sum(axis=0)
