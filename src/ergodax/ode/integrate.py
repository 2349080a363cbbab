"""Solves dx/dt = F(x) by steps with error control.

An explicit Runge-Kutta method is run by a loop of our own around its tableau: F stands in the
program once, for all stages of all steps, and nothing in it calls the
host. Diffrax solves for what is left: implicit methods, and derivatives of a solver's steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..base.checks import check_count, check_number, check_type
from ..base.codes import RESULTS
from ..base.compiling import precise
from .batching import anywhere, select

MAX_STEPS = 16**4
# What rounding leaves of an error estimate, in units of the working precision.
_LEAST = 16
# The control of steps, as in diffrax's `PIDController`.
_SAFETY, _SHORTEN, _LENGTHEN = 0.9, 0.2, 10.0


class Unit(NamedTuple):
    """What tolerances are relative to: numbers, or structured like x.

    Attributes:
        size: `atol` is relative to it.
        reach: `rtol` is relative to x, or to this where x is larger: that x lies far from zero is
            no reason to follow it less closely.
    """

    size: Any = 1.0
    reach: Any = jnp.inf


class Solved(NamedTuple):
    """A solution; infinite where it did not get.

    Attributes:
        ts: report times, `[K]`; None where none were asked for.
        ys: the solution there, leaves `[K, ...]`.
        end: the last time reached, and the solution there.
        path: ends of all steps `[M + 1]`, the solution there `[M + 1, ...]` and its slopes, the
            start first; None unless kept.
        stats: how many steps were made, taken and refused.
        result: how it ended, one of `RESULTS`.
    """

    ts: Any
    ys: Any
    end: tuple[Any, Any]
    path: tuple[Any, ...] | None
    stats: dict
    result: Any


def check_solver(
    rtol: Any,
    atol: Any,
    max_steps: Any,
    solver: Any = None,
    adjoint: Any = None,
) -> tuple[Any, Any]:
    """Checks how an ODE shall be solved; returns both tolerances, as floats or traced.

    Raises:
        ValueError: if one is not positive, or another argument does not fit.
    """
    check_count("max_steps", max_steps)
    if solver is not None:
        kind = diffrax.AbstractSolver
        check_type("solver", solver, kind, "a solver of diffrax, e.g. diffrax.Tsit5()")
    if adjoint is not None:
        check_type("adjoint", adjoint, diffrax.AbstractAdjoint, "an adjoint of diffrax")
    return check_number("rtol", rtol, "(0, inf)"), check_number("atol", atol, "(0, inf)")


@precise
def integrate(
    field: Callable,
    start: Any,
    end: Any,
    args: Any = None,
    *,
    rtol: Any,
    atol: Any,
    ts: Any = None,
    keep: bool = False,
    begin: Any = 0.0,
    first_step: Any = 0.01,
    solver: diffrax.AbstractSolver | None = None,
    stop: Callable | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = MAX_STEPS,
    unit: Unit | None = None,
) -> Solved:
    """The solution of dx/dt = field(x, args) from a start; never raises, see its `result`.

    It can be differentiated in forward mode.

    Args:
        field: a function of `(x, args)` that returns dx/dt, structured like x.
        start: x at the time `begin`.
        end: until when; not before `begin`.
        args: a pytree that the field depends on.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
        ts: report times, increasing, from `begin` to `end`, `[K]`.
        keep: keep the ends of all steps.
        begin: from when.
        first_step: length of the first step.
        solver: a diffrax solver; `Tsit5` by default.
        stop: a function of x, dx/dt and `args` that says when to end before `end`; explicit
            methods only.
        adjoint: one of diffrax's methods to differentiate its steps, which then end at `ts`.
        max_steps: the largest number of steps; with an adjoint, from one report time to the next.
        unit: of x; one by default. Its reach is for explicit methods only.
    """
    unit = Unit() if unit is None else unit
    solver = diffrax.Tsit5() if solver is None else solver
    options: dict[str, Any] = dict(rtol=rtol, atol=atol, max_steps=max_steps)
    forwards = adjoint is None or isinstance(adjoint, diffrax.ForwardMode)
    if forwards and isinstance(solver, diffrax.AbstractERK):
        method = _Explicit(solver, field, args, stop=stop, unit=unit, **options)
        return method.solve(start, begin, end, ts, keep, first_step)
    size = _like(unit.size, start)
    # In reverse mode diffrax traces the field once more, later.
    term = diffrax.ODETerm(precise(lambda t, y, args: _over(field(_times(y, size), args), size)))
    solve = functools.partial(
        diffrax.diffeqsolve,
        term,
        solver,
        dt0=None,
        args=args,
        stepsize_controller=diffrax.PIDController(rtol, atol),
        adjoint=diffrax.ForwardMode() if adjoint is None else adjoint,
        max_steps=max_steps,
        throw=False,
    )
    solved = _by_diffrax(solve, _over(start, size), begin, end, ts, keep)
    path = solved.path
    if path is not None:
        values = _times(path[1], size)
        path = path[0], values, jax.vmap(field, (0, None))(values, args)
    return solved._replace(
        ys=None if ts is None else _times(solved.ys, size),
        end=(solved.end[0], _times(solved.end[1], size)),
        path=path,
    )


def _like(part: Any, x: Any) -> Any:
    """A number, or a pytree like x, as a pytree like x."""
    if jax.tree.structure(part) == jax.tree.structure(x):
        return part
    return jax.tree.map(lambda leaf: jnp.asarray(part, leaf.dtype), x)


def _times(x, size):
    return jax.tree.map(lambda x, size: x * jnp.broadcast_to(size, x.shape), x, size)


def _over(x, size):
    return jax.tree.map(jnp.divide, x, size)


class _Standing(NamedTuple):
    """Where a solve stands.

    Attributes:
        t: time.
        x: the solution.
        slope: dx/dt, once known.
        next: where the step begun ends.
        begun: whether the slope is known.
        steps: how many were tried.
        taken: how many were taken.
        stopped: whether it is to end.
    """

    t: Any
    x: Any
    slope: Any
    next: Any
    begun: Any
    steps: Any
    taken: Any
    stopped: Any


class _Explicit:
    """An explicit Runge-Kutta method, by its tableau."""

    def __init__(
        self, solver: diffrax.AbstractERK, field, args, *, rtol, atol, stop, max_steps, unit
    ):
        tableau: Any = solver.tableau
        self.solver, self.tableau, self.field, self.args = solver, tableau, field, args
        self.rtol, self.atol, self.stop, self.max_steps = rtol, atol, stop, max_steps
        self.unit: Unit = unit
        self.stages = len(tableau.b_sol)
        rows = [np.zeros(0), *tableau.a_lower]
        self.weights = np.array([np.pad(row, (0, self.stages - len(row))) for row in rows])
        self.order: Any = solver.error_order(diffrax.ODETerm(lambda t, x, args: field(x, args)))

    def solve(self, start, begin, end, ts, keep, first_step) -> Solved:
        x, unravel = ravel_pytree(start)
        unit = Unit(*(self._flat(part, start) for part in self.unit))
        begin, end = (jnp.asarray(t, jnp.result_type(float)) for t in (begin, end))
        zero, no = jnp.asarray(0), jnp.asarray(False)
        first = jnp.minimum(begin + first_step, end)
        standing = _Standing(begin, x, jnp.zeros_like(x), begin, no, zero, zero, no)
        reports = path = None
        if ts is not None:
            # Where there is no way to go, the start is the solution at all report times.
            none = jnp.where(begin == end, x, jnp.full((len(ts), x.size), jnp.inf, x.dtype))
            reports = jnp.where(begin == end, len(ts), 0), none
        if keep:
            times = jnp.full(self.max_steps + 1, jnp.inf, begin.dtype).at[0].set(begin)
            rows = jnp.full((self.max_steps + 1, x.size), jnp.inf, x.dtype)
            path = times, rows.at[0].set(x), jnp.zeros_like(rows)

        def field(x):
            return ravel_pytree(self.field(unravel(x), self.args))[0]

        def advance(carry):
            before, reports, path = carry
            going = unfinished(before)
            slopes = self._slopes(field, before)
            after = jax.lax.cond(
                before.begun,
                lambda: self._step(before, slopes, end, unit),
                lambda: before._replace(slope=slopes[-1], next=first, begun=~no),
            )
            after = select(going, after, before)
            taken = after.taken > before.taken
            if reports is not None:
                reports = self._report(before, after, slopes, taken, ts, *reports)
            if path is not None:
                fresh = taken | (after.begun & ~before.begun)
                place = jnp.where(fresh, after.taken, len(path[0]))
                path = tuple(
                    part.at[place].set(value, mode="drop")
                    for part, value in zip(path, (after.t, after.x, after.slope), strict=True)
                )
            return after, reports, path

        def unfinished(standing):
            going = (standing.t < end) & ~standing.stopped
            return going & (standing.steps < self.max_steps)

        standing, reports, path = jax.lax.while_loop(
            lambda carry: anywhere(unfinished(carry[0])), advance, (standing, reports, path)
        )
        if path is not None and not self.tableau.fsal:
            path = *path[:2], jax.vmap(field)(path[1])
        codes: Any = RESULTS
        there = (standing.t >= end) | standing.stopped
        reached = ys = None
        if ts is not None and reports is not None:
            reached = jnp.where(jnp.arange(len(ts)) < reports[0], ts, jnp.inf)
            ys = jax.vmap(unravel)(reports[1])
        stats = {
            "num_steps": standing.steps,
            "num_accepted_steps": standing.taken,
            "num_rejected_steps": standing.steps - standing.taken,
            "max_steps": self.max_steps,
        }
        return Solved(
            ts=reached,
            ys=ys,
            end=(standing.t, unravel(standing.x)),
            path=None if path is None else (path[0], *map(jax.vmap(unravel), path[1:])),
            stats=stats,
            result=codes.where(there, codes.successful, codes.max_steps_reached),
        )

    def _slopes(self, field, standing: _Standing):
        """dx/dt in all stages of a step, `[stages, d]`; the last is that at its end if FSAL.

        A step of no length, with all stages at x, finds the first slope.
        """
        x, h = standing.x, (standing.next - standing.t).astype(standing.x.dtype)
        weights = jnp.asarray(self.weights, x.dtype)

        def stage(j, slopes):
            return slopes.at[j].set(field(x + h * weighted(weights[j], slopes)))

        slopes = jnp.zeros((self.stages, x.size), x.dtype).at[0].set(standing.slope)
        return jax.lax.fori_loop(int(self.tableau.fsal), self.stages, stage, slopes)

    @staticmethod
    def _flat(part, start):
        sizes = jax.tree.map(lambda u, x: jnp.broadcast_to(u, x.shape), _like(part, start), start)
        return ravel_pytree(sizes)[0]

    def _step(self, s: _Standing, slopes, end, unit: Unit) -> _Standing:
        """One step: taken if its error is small enough; and where the next one ends."""
        h = (s.next - s.t).astype(s.x.dtype)
        tableau = self.tableau
        x = s.x + h * weighted(jnp.asarray(tableau.b_sol, s.x.dtype), slopes)
        error = h * weighted(jnp.asarray(tableau.b_error, s.x.dtype), slopes)
        error, old, new = jax.lax.stop_gradient((error, s.x, x))
        error = jnp.where(jnp.isnan(error), jnp.inf, error)
        new = jnp.where(jnp.isnan(new).any(), old, new)
        size = jnp.maximum(jnp.abs(old), jnp.abs(new))
        least = _LEAST * jnp.finfo(x.dtype).eps * size
        relative = jnp.maximum(self.rtol * jnp.minimum(size, unit.reach), least)
        share = _norm(error / (self.atol * unit.size + relative))
        taken = share < 1
        factor = jnp.clip(
            _SAFETY * (1 / share) ** (1 / self.order),
            jnp.where(taken, 1.0, _SHORTEN),
            jnp.where(taken, _LENGTHEN, _SAFETY),
        )
        t = jnp.where(taken, s.next, s.t)
        until = t + (s.next - s.t) * factor.astype(s.t.dtype)
        # A last step is not to be so short that rounding shows.
        last = until > end - 100 * jnp.finfo(end.dtype).eps * jnp.abs(end)
        until = jnp.where(last, jnp.where(taken, end, t + 0.5 * (end - t)), until)
        stopped = s.stopped if self.stop is None else self.stop(s.x, slopes[0], self.args)
        taken &= ~stopped
        return s._replace(
            t=jnp.where(taken, s.next, s.t),
            x=jnp.where(taken, x, s.x),
            slope=jnp.where(taken, slopes[-1], slopes[0]),
            next=until,
            steps=s.steps + 1,
            taken=s.taken + taken.astype(s.taken.dtype),
            stopped=stopped,
        )

    def _report(self, before: _Standing, after: _Standing, slopes, taken, ts, index, values):
        """Evaluates a step that was taken at the report times within it."""
        step = self.solver.interpolation_cls(
            t0=before.t,
            t1=before.next,
            y0=before.x,
            y1=after.x,
            k=(before.next - before.t).astype(slopes.dtype) * slopes,
        )

        return report(step, taken, before.next, ts, index, values)


def weighted(weights, slopes):
    """The weighted sum of a step's few slopes `[stages, ...]`.

    A product with so short a vector would be compiled into a routine of its own.
    """
    return jnp.sum(weights.reshape(-1, *(1,) * (slopes.ndim - 1)) * slopes, axis=0)


def report(step, taken, until, ts, index, values):
    """Evaluates a step, if it was taken, at the report times within it, and counts these."""

    def inside(carry):
        index, _ = carry
        return taken & (index < len(ts)) & (ts[index] <= until)

    def write(carry):
        index, values = carry
        return index + 1, values.at[index].set(step.evaluate(ts[index]))

    return jax.lax.while_loop(inside, write, (index, values))


def _by_diffrax(solve, start, begin, end, ts, keep) -> Solved:
    """The same by diffrax, with steps that end at report times.

    Diffrax would check report times of its own on the host, and no program that calls the host is
    kept by JAX's cache of compiled programs.
    """
    codes: Any = diffrax.RESULTS
    begin, end = (jnp.asarray(t, jnp.result_type(float)) for t in (begin, end))
    path, stops = None, end[None] if ts is None else jnp.append(ts, end)
    if keep:
        solved: Any = solve(y0=start, t0=begin, t1=end, saveat=diffrax.SaveAt(t0=True, steps=True))
        path = solved.ts, solved.ys

    def go_on(carry, stop):
        t, x, counts, result = carry
        going = result == codes.successful
        until = jnp.where(going, stop, t)
        solved: Any = solve(y0=x, t0=t, t1=until, saveat=diffrax.SaveAt(t1=True))
        x = jax.tree.map(lambda x, new: jnp.where(until > t, new[0], x), x, solved.ys)
        result = codes.where(going, solved.result, result)
        counts = {name: count + solved.stats[name] for name, count in counts.items()}
        return (until, x, counts, result), (jnp.where(going, stop, jnp.inf), x)

    counts = {f"num_{kind}steps": jnp.asarray(0) for kind in ("", "accepted_", "rejected_")}
    standing = begin, start, counts, codes.successful
    (t, x, counts, result), (times, values) = jax.lax.scan(go_on, standing, stops)
    return Solved(
        ts=None if ts is None else times[:-1],
        ys=None if ts is None else jax.tree.map(lambda leaf: leaf[:-1], values),
        end=(t, x),
        path=path,
        stats=counts | {"max_steps": solve.keywords["max_steps"]},
        result=RESULTS.promote(result),
    )


def _norm(x):
    """Root mean square."""
    return jnp.sqrt(jnp.mean(x**2))
