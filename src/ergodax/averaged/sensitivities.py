"""Sensitivities: how the averaged flow depends on any parametrisation of game, learners and start.

With `dx/dt = F(x, theta)`, the derivative Y of x by theta solves `dY/dt = DF Y + dF/dtheta`, here
along the path of x, all columns together: see `ergodax.ode.path_derivatives`.
"""

import functools
import warnings
from collections.abc import Callable, Sequence

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from ..base.checks import check_flag, check_function, is_concrete
from ..base.codes import RESULTS, is_one_of
from ..base.compiling import lightly_compiled
from ..base.text import describe_end, describe_times
from ..base.times import check_times
from ..model.build import check_build, check_theta
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, check_solver
from ..ode.path_derivatives import once, solve_with_tangents
from ..results.labels import (
    OUTCOME,
    TIME_UNITS,
    TIMES,
    Entries,
    Label,
    labelled,
    of_agents,
    plain_names,
)
from ..results.result import Result
from .drift import flat_drift
from .flow import check_reached, warn_single_precision
from .kinks import TOLERANCE, KinkReport, kinks
from .room import check_slopes, size_of
from .solution import along, how_ended, no_play
from .stationary import check_ergodic, preserve_rows
from .units import unit_of

_MOST_STOPS = 32  # crossings that steps end at


class Sensitivities(Result):
    """The averaged flow and its derivatives by theta.

    In the data set the derivative by a leaf of theta is `by_` and its name, on the dimensions of
    `parameters` and, if the leaf is an array, its axes before `agent`.

    Attributes:
        wrapped: the game and its learners, at theta.
        ts: times in unscaled steps, `[K]`.
        params: parameters of all agents, each leaf `[K, ...]`.
        derivatives: structured like `params`, and below every leaf like theta, as `jax.jacobian`
            has it; each leaf `[K, *shape of the parameter, *shape of theta's leaf]`.
        stats: the solver's statistics.
        result: how the solve ended, one of `RESULTS`.
        end_time: the time reached; `ts[-1]` unless the solve failed.
    """

    wrapped: WrappedGame
    ts: Float[Array, " K"] = eqx.field(metadata=labelled(TIMES))
    params: tuple = eqx.field(
        metadata=labelled("parameters along the ODE", ("time",), name="parameters", make=of_agents)
    )
    derivatives: PyTree
    stats: dict
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))
    end_time: Float[Array, ""] = eqx.field(metadata=labelled("time reached", (), TIME_UNITS))

    @property
    def names(self) -> list[str]:
        """Names of the leaves of theta."""
        by_theta = jax.tree.structure(self.params).flatten_up_to(self.derivatives)[0]
        return [
            jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
            for path, _ in jax.tree_util.tree_leaves_with_path(by_theta)
        ]

    def _derived(self) -> Entries:
        """The derivative by each leaf of theta, whose axes come before those of the parameters."""
        leaves, structure = jax.tree.flatten(self.params)
        by_leaf = zip(*map(jax.tree.leaves, structure.flatten_up_to(self.derivatives)), strict=True)
        entries, along = {}, self.ts.ndim
        for name, plain, own in zip(self.names, plain_names(self.names), by_leaf, strict=True):
            count = own[0].ndim - leaves[0].ndim
            moved = [
                np.moveaxis(np.asarray(by), range(leaf.ndim, by.ndim), range(along, along + count))
                for by, leaf in zip(own, leaves, strict=True)
            ]
            label = Label(
                f"derivative of the parameters by {name}",
                ("time", *(f"{plain}_axis{k}" for k in range(count))),
                make=of_agents,
                axes=f"by_{plain}",
            )
            entries[f"by_{plain}"] = structure.unflatten(moved), label
        return entries

    def __repr__(self) -> str:
        by = ", ".join(self.names)
        return f"Sensitivities({describe_times(self.ts)}, by {by}: {describe_end(self)})"


def sensitivities(
    build: Callable,
    theta: PyTree,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int | None = None,
    throw: bool = True,
) -> Sensitivities:
    """Solves the averaged ODE together with its derivatives by theta.

    The cost grows with the number of entries of theta: for many entries and one loss, `jax.grad`
    through `solve` is cheaper. Many report times cost what few cost. Derivatives at kinks are as
    `solve` describes; but if the flow crosses a tie and is back so soon that a step may have passed
    over it, all is solved a second time, with steps that end at both crossings (not under a JAX
    transformation).

    Args:
        build: a function of theta that returns `(wrapped, params0)`: a wrapped game and the
            parameters at time 0. Pure JAX; it must not decide on values of theta. A function made
            anew for every call is compiled anew.
        theta: a pytree of floating-point numbers or arrays: one agent's temperature, a learning
            rate shared by all, a payoff, an initial table...
        ts: times at which to report, increasing, in unscaled steps; may start at 0.
        solver: a diffrax solver; `Tsit5` by default.
        rtol: relative tolerance per step: of the solution, entry by entry, and of the derivative by
            every entry of theta, relative to its root mean square over the parameters. At least
            8 times the working precision, 1e-6 in float32.
        atol: absolute tolerance per step, of the solution; at least the same.
        max_steps: largest number of solver steps, 2048 by default: the solution's path is stored.
        throw: raise if the solve fails or a derivative is not finite. Under a JAX transformation
            nothing is raised: look at `result`.

    Returns:
        Solution and derivatives at `ts`.

    Raises:
        ValueError: if theta is not of floating-point numbers, `build` does not return a wrapped
            game and its parameters, or what it returns changes its structure with theta (naming the
            leaf), or as `solve`.
        RuntimeError: if the solve fails (when and why), or a derivative is not finite (by which
            leaf of theta).

    Warns:
        UserWarning: if derivatives may be off by more than 1e-4 of their size, since the flow
            touches a tie of a maximum, rests on it, or crosses it so slowly that it is not known
            when; see `ergodax.kinks`; or if that could not be found out. Not under a JAX
            transformation.
    """
    check_function("build", build, "theta")
    theta = check_theta(theta)
    ts = check_times(ts)
    most = MAX_STEPS if max_steps is None else max_steps
    rtol, atol = check_solver(rtol, atol, most, solver)
    check_flag("throw", throw)
    wrapped, params0 = check_build(build, theta)
    wrapped, params0 = check_ergodic(wrapped, params0, "params0")
    count = size_of(theta)
    check_slopes(
        f"derivatives by {count} entries of theta",
        wrapped,
        params0,
        "take the gradient of one number by `jax.grad` through `solve`, or fewer entries",
        columns=count,
        kept=0,
        beside=np.shape(ts)[0] * count * size_of(params0),
    )
    warn_single_precision()
    times, *tolerances = (jnp.asarray(number, dtype=float) for number in (ts, rtol, atol))
    solve = functools.partial(_sensitivities, build, theta, times, solver, *tolerances, max_steps)
    found = Sensitivities(wrapped, *solve(jnp.full(_MOST_STOPS, jnp.inf)))
    if is_concrete(found.end_time) and is_one_of(found.result, RESULTS.successful):
        try:
            report = kinks(wrapped, params0, ts, solver=solver, rtol=rtol, atol=atol)
        except RuntimeError as error:
            report = KinkReport((), wrapped)
            warnings.warn(f"derivatives were not checked for kinks: {error}", stacklevel=2)
        if any(tie.jump * tie.visit > TOLERANCE for tie in report.ties):
            stops = report.stops[:_MOST_STOPS]
            padded = np.pad(stops, (0, _MOST_STOPS - len(stops)), constant_values=np.inf)
            found = Sensitivities(wrapped, *solve(jnp.asarray(padded)))
            report = report.stopped_at(stops)
        if report.error > TOLERANCE:
            warnings.warn(f"derivatives are uncertain: {report!r}", stacklevel=2)
    if throw:
        check_reached(found)
        _check_finite(found, theta)
    return found


@lightly_compiled
def _sensitivities(build, theta, ts, solver, rtol, atol, max_steps, stops):
    flat, unravel_theta = ravel_pytree(theta)
    wrapped, params0 = build(theta)
    _, unravel, field = flat_drift(params0)

    def built(flat):
        wrapped, params0 = build(unravel_theta(flat))
        return ravel_pytree(params0)[0], eqx.filter(preserve_rows(wrapped), eqx.is_inexact_array)

    (x0, _), push = jax.linearize(built, once(flat))
    x0_dot, wrapped_dot = jax.vmap(push)(jnp.eye(len(flat), dtype=flat.dtype))
    values, tangents, (saved, stats, ended, end) = solve_with_tangents(
        x0,
        preserve_rows(wrapped),
        ts,
        x0_dot,
        wrapped_dot,
        stops,
        vector_field=field,
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        unit=unit_of(wrapped, params0),
        stop=no_play(unravel),
    )
    by_entry = jax.vmap(jax.vmap(unravel))(tangents)  # like params, leaves [K, p, ...]
    derivatives = jax.tree.map(
        lambda leaf: _map_last(unravel_theta, jnp.moveaxis(leaf, 1, -1)), by_entry
    )

    met = along(wrapped, unravel, values, end)
    result, end_time = how_ended((x0, end), ts, met, saved, ended)
    return ts, jax.vmap(unravel)(values), derivatives, stats, result, end_time


def _map_last(function, x):
    """Maps a function of a vector over all but the last axis."""
    for _ in range(x.ndim - 1):
        function = jax.vmap(function)
    return function(x)


def _check_finite(found: Sensitivities, theta) -> None:
    """Raises RuntimeError naming the first leaf of theta by which a derivative is not finite."""
    if not is_concrete(found.end_time):
        return
    outer = jax.tree.structure(found.params)
    for per_theta in outer.flatten_up_to(found.derivatives):
        for path, leaf in jax.tree_util.tree_leaves_with_path(per_theta):
            if not np.isfinite(leaf).all():
                value = dict(jax.tree_util.tree_leaves_with_path(theta))[path]
                raise RuntimeError(
                    f"the derivative by theta{jax.tree_util.keystr(path)} = {value} is not finite."
                )
