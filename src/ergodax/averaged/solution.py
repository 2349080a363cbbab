"""The solution of the averaged ODE as a function that can be differentiated.

Where nothing is being traced, solution, tangents and cotangents are compiled programs of their own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..base.checks import is_concrete
from ..base.codes import RESULTS
from ..base.compiling import ahead, lightly_compiled, transposing
from ..base.linear_map import linear_map
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, integrate
from ..ode.path import Path
from ..ode.path_derivatives import Tangent, differentiable_once, linearise, once, only
from .drift import event_weights, expected_rewards, flat_drift
from .stationary import is_reducible, mixing_time, preserve_rows
from .units import unit_of


def solution(wrapped, params0, ts, **options):
    """The solution, whose derivatives are solved for along its path.

    Where nothing is being traced, solution and derivatives are compiled programs of their own.

    Returns:
        What can be differentiated, parameters, state distributions and rewards at `ts`; and the
        rest, the solver's statistics, how it ended, and the time reached.
    """
    given = wrapped, params0, ts
    if _are_concrete(given):
        return solution_by_steps(*given, **options)  # sooner: there is nothing to differentiate by
    return _differentiable(*given, **options)


def _are_concrete(tree) -> bool:
    return all(map(is_concrete, jax.tree.leaves(tree)))


def _are_unknown(tangents) -> bool:
    """Whether tangents are placeholders, as for `jax.linearize` and reverse mode, and no batch."""
    leaves = jax.tree.leaves(tangents)
    return not (_are_concrete(leaves) or any(hasattr(leaf, "batch_dim") for leaf in leaves))


class _Mode:
    """How the solution that is compiled next will be differentiated."""

    reverse = False


@eqx.filter_custom_jvp
def _differentiable(wrapped, params0, ts, **options):
    return solution_by_steps(wrapped, params0, ts, **options)


@_differentiable.def_jvp
def _solution_jvp(primals, tangents, **options):
    _Mode.reverse = _are_concrete(primals) and _are_unknown(tangents)
    wrapped, params0, ts = primals = primals if _are_concrete(primals) else once(primals)
    moved = only(tangents, primals)
    found, (values, path, tol, sound) = _solve_with_path(*primals, moved=moved, **options)
    known = _Known(wrapped, params0, ts, moved, values, path, tol, sound)
    moving = linear_map(_push, _pull, known, tangents, like=found[0])
    return found, (moving, jax.tree.map(lambda _: None, found[1]))


def solution_by_steps(wrapped, params0, ts, **options):
    """The same, of which the solver's steps are differentiated, as `adjoint` of diffrax does."""
    given = wrapped, params0, ts
    return _described(*given, *_solve(*given, **options))


@lightly_compiled
def _described(wrapped, params0, ts, values, solved):
    """What `solution` returns, of the solution at `ts`, `[K, d]`, and what the solver says."""
    ode = _ODE.of(wrapped, params0)
    saved, stats, ended, end = solved
    met = along(ode.wrapped, ode.unravel, values, end)
    result, end_time = how_ended((ode.start, end), ts, met, saved, ended)
    params = jax.vmap(ode.unravel)(values)
    return (params, met.state_distribution, met.rewards), (stats, result, end_time)


def _begin_described(found, *given, **_):
    """Has what comes next compiled beside what comes first."""
    ahead(_described, *given, *found)


@functools.partial(lightly_compiled, then=_begin_described)
def _solve(wrapped, params0, ts, *, max_steps, adjoint=None, **options):
    """The solution at `ts`, `[K, d]`, and what the solver says."""
    ode = _ODE.of(wrapped, params0)
    solved: Any = integrate(
        *(ode.field, ode.start, ts[-1], ode.wrapped),
        ts=ts,
        adjoint=adjoint,
        max_steps=max_steps or MAX_STEPS,
        stop=no_play(ode.unravel),
        unit=unit_of(wrapped, params0),
        **options,
    )
    kinky = adjoint is not None and not all(learner.smooth for learner in wrapped.learners)
    values = differentiable_once(solved.ys) if kinky else solved.ys
    return values, (solved.ts, solved.stats, solved.result, solved.end[1])


def _begin_pull(found, wrapped, params0, ts, *, moved, **_):
    """Has what reverse mode needs next compiled beside the solution."""
    if _Mode.reverse:
        (outputs, _), (values, path, tol, sound) = found
        known = _Known(wrapped, params0, ts, moved, values, path, tol, sound)
        ahead(_pull, known, outputs, context=transposing)


# One program with what it meets: where derivatives are made, no other one can be compiled ahead.
@functools.partial(lightly_compiled, then=_begin_pull)
def _solve_with_path(wrapped, params0, ts, *, moved, **options):
    """The solution, and what its derivatives by the leaves `moved` are made of."""
    ode = _ODE.of(wrapped, params0)
    values, tangent, solved = linearise(
        *(ode.start, ode.wrapped, only(moved[0], ode.wrapped), ts),
        vector_field=ode.field,
        stop=no_play(ode.unravel),
        unit=unit_of(wrapped, params0),
        **options,
    )
    sound = jnp.where(solved[2] == RESULTS.successful, 1.0, jnp.nan).astype(values.dtype)
    found = _described(wrapped, params0, ts, values, solved)
    return found, (values, tangent.path, tangent.tol, sound)


class _ODE(NamedTuple):
    """The averaged ODE dx/dt = field(x, wrapped) on flat vectors, from `start`."""

    wrapped: WrappedGame
    start: Any
    unravel: Callable
    field: Callable

    @classmethod
    def of(cls, wrapped, params0) -> "_ODE":
        # One flat vector: the solver's arithmetic is then a few operations, whatever the learners.
        return cls(preserve_rows(wrapped), *flat_drift(params0))


class _Known(NamedTuple):
    """What the derivatives of a solution depend on.

    Attributes:
        wrapped: as given to `solution`.
        params0: likewise.
        ts: likewise.
        moved: those leaves of the three that it is differentiated by, None elsewhere.
        values: the solution at `ts`, `[K, d]`.
        path: the solution.
        tol: relative tolerance per step.
        sound: one, or NaN if the solve failed.
    """

    wrapped: WrappedGame
    params0: tuple
    ts: Any
    moved: tuple
    values: Any
    path: Path
    tol: Any
    sound: Any

    @property
    def ode(self) -> _ODE:
        """The ODE."""
        return _ODE.of(self.wrapped, self.params0)

    def begun(self, moved):
        """Start and arguments of the ODE, by game, learners and parameters that move."""
        wrapped, params0 = eqx.combine(moved, (self.wrapped, self.params0))
        return ravel_pytree(params0)[0], only(moved[0], preserve_rows(wrapped))

    def met(self, values, moved):
        """State distributions and rewards, by the solution and the arguments that move."""
        ode = self.ode
        wrapped = eqx.combine(moved, ode.wrapped)

        def look(x):
            weights = event_weights(wrapped, wrapped.policies(ode.unravel(x)))
            return weights.state_distribution, expected_rewards(wrapped, weights.events)

        return jax.vmap(look)(values)

    def tangent(self, moved) -> Tangent:
        """The ODE linearised along the solution."""
        ode = self.ode
        return Tangent(self.path, self.tol, ode.field, ode.wrapped, moved)

    def velocities(self):
        """How fast the solution moves at `ts`."""
        return jax.vmap(self.ode.field, (0, None))(self.values, self.ode.wrapped)


@lightly_compiled
def _push(known: _Known, tangents):
    """Tangents of what can be differentiated, by those of `known.moved`."""
    *given, ts_dot = tangents
    (_, moved), (start, by_moved) = jax.jvp(known.begun, (known.moved[:2],), (tuple(given),))
    column = jax.tree.map(lambda dot: dot[None], by_moved)
    values = known.tangent(moved).forward(start[None], column, known.ts)[:, 0]
    if ts_dot is not None:
        values += ts_dot[:, None] * known.velocities()
    _, met = jax.jvp(known.met, (known.values, moved), (values, by_moved))
    found = jax.vmap(known.ode.unravel)(values), *met
    return jax.tree.map(lambda dot: dot * known.sound, found)


@lightly_compiled
def _pull(known: _Known, cotangents):
    """Cotangents of `known.moved`: the transpose of `_push`."""
    params, *met = jax.tree.map(lambda bar: bar * known.sound, cotangents)
    (_, moved), pull_begun = jax.vjp(known.begun, known.moved[:2])
    _, pull_met = jax.vjp(known.met, known.values, moved)
    more, by_moved = pull_met(tuple(met))
    values = jax.vmap(lambda own: ravel_pytree(own)[0])(params) + more
    start, by_path = known.tangent(moved).backward(values, known.ts)
    by_moved = jax.tree.map(jnp.add, by_moved, by_path)
    (given,) = pull_begun((start, by_moved))
    ts = None if known.moved[2] is None else jnp.sum(values * known.velocities(), axis=1)
    return *given, ts


def no_play(unravel: Callable) -> Callable:
    """Ends a solve where a policy is none: a function of x, its velocity and the wrapped game."""

    def stop(x, _, wrapped):
        return ~wrapped.are_policies(wrapped.policies(unravel(x)))

    return stop


class Met(NamedTuple):
    """Policies and state chains along a solution.

    Attributes:
        state_distribution: stationary law of the states at the report times, `[K, S]`.
        rewards: expected reward per step of every agent there, `[K, n]`.
        reducible: whether the state chain is reducible, there and at the last point, `[K + 1]`.
        impossible: whether a policy is none, there and at the last point, `[K + 1]`.
    """

    state_distribution: Array
    rewards: Array
    reducible: Array
    impossible: Array


def along(wrapped: WrappedGame, unravel: Callable, values, end) -> Met:
    """What is met along a solution.

    Args:
        wrapped: a game and its learners.
        unravel: makes parameters of a flat vector.
        values: the solution at the report times, `[K, d]`.
        end: where it came to, `[d]`.
    """

    def look(x):
        policies = wrapped.policies(unravel(x))
        weights = event_weights(wrapped, policies)
        rewards = expected_rewards(wrapped, weights.events)
        reducible = is_reducible(mixing_time(weights.chain, weights.state_distribution))
        return weights.state_distribution, rewards, reducible, ~wrapped.are_policies(policies)

    every = jnp.append(values, jax.lax.stop_gradient(end[None]), 0)
    # A core has what belongs to one point near it, and the program is sooner compiled; a GPU would
    # wait for every one.
    met = jax.lax.map(look, every) if jax.default_backend() == "cpu" else jax.vmap(look)(every)
    law, rewards, *rest = met
    return Met(law[:-1], rewards[:-1], *rest)


def how_ended(ends: tuple, ts, met: Met, saved, ended) -> tuple[RESULTS, Float[Array, ""]]:
    """How a solve ended, and the last report time that is to be trusted.

    Args:
        ends: where the solve began and came to, `[d]` each.
        ts: report times, `[K]`.
        met: what it met.
        saved: the times as the solver returns them, infinite where it did not get, `[K]`.
        ended: the solver's result.
    """
    begin, end = ends
    reached = jnp.isfinite(saved)
    reducible, impossible, last = met.reducible[:-1], met.impossible[:-1], met.impossible[-1]
    grown = ~jnp.all(jnp.isfinite(end))
    # A solver that is stuck so much further from zero than it began is stuck for that reason.
    much = jnp.finfo(end.dtype).eps ** -0.5
    grown |= jnp.max(jnp.abs(end)) > much * (1 + jnp.max(jnp.abs(begin)))
    codes: Any = RESULTS
    stuck = ended != codes.successful
    result = codes.where(stuck & grown, codes.unbounded, ended)
    result = codes.where(jnp.any(reached & reducible), codes.reducible, result)
    result = codes.where(last | jnp.any(reached & impossible), codes.invalid_policy, result)
    # Beyond the first time of these nothing is to be trusted.
    reached &= ~jnp.cumsum((reducible | impossible) & reached).astype(bool)
    return result, jnp.max(jnp.where(reached, ts, 0.0))
