"""The averaged flow: solves dx/dt = F(x), the limit of the learners' trajectories."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_flag, is_concrete
from ..base.codes import RESULTS
from ..base.compiling import lightly_compiled
from ..base.linear_map import linear_map
from ..base.text import describe_end, describe_times
from ..base.times import check_times
from ..model.clock import check_schedules
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, check_solver, integrate
from ..ode.path import Path
from ..ode.path_derivatives import Tangent, differentiable_once, linearise, once
from ..results.labels import (
    OUTCOME,
    PER_STEP,
    SETTING,
    TIME_UNITS,
    TIMES,
    Entries,
    Label,
    labelled,
    of_agents,
)
from ..results.result import Result, policies
from .drift import event_weights, expected_rewards, flat_drift
from .stationary import check_ergodic, is_reducible, mixing_time, preserve_rows
from .units import unit_of


class Solution(Result):
    """A solution of the averaged ODE.

    Attributes:
        wrapped: the game and its learners.
        ts: times in unscaled steps, `[K]`.
        params: parameters of all agents, each leaf `[K, ...]`.
        state_distribution: stationary distribution of the states at each time, `[K, S]`.
        rewards: expected reward per step of every agent, `[K, n]`.
        stats: the solver's statistics (number of steps and the like).
        result: how the solve ended, one of `RESULTS`.
        end_time: the time reached; `ts[-1]` unless the solve failed.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step.
    """

    wrapped: WrappedGame
    ts: Float[Array, " K"] = eqx.field(metadata=labelled(TIMES))
    params: tuple = eqx.field(
        metadata=labelled("parameters along the ODE", ("time",), name="parameters", make=of_agents)
    )
    state_distribution: Float[Array, "K S"] = eqx.field(
        metadata=labelled(
            "stationary distribution of the states along the ODE", ("time", "state"), "1"
        )
    )
    rewards: Float[Array, "K n"] = eqx.field(
        metadata=labelled("expected reward per step along the ODE", ("time", "agent"), PER_STEP)
    )
    stats: dict
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))
    end_time: Float[Array, ""] = eqx.field(metadata=labelled("time reached", (), TIME_UNITS))
    rtol: Float[Array, ""] = eqx.field(metadata=labelled(SETTING))
    atol: Float[Array, ""] = eqx.field(metadata=labelled(SETTING))

    def _derived(self) -> Entries:
        """Policies along the ODE, and the number of steps."""
        policy = policies(self.wrapped, self.params, self.ts.ndim - 1, True)
        return {
            "policy": (policy, Label("policy along the ODE", ("time",), make=of_agents)),
            "steps": (self.stats["num_steps"], Label("steps of the solver")),
        }

    def __repr__(self) -> str:
        return f"Solution({describe_times(self.ts)}: {describe_end(self)})"


def solve(
    wrapped: WrappedGame,
    params0,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    throw: bool = True,
) -> Solution:
    """Solves dx/dt = F(x) from `params0` at time 0.

    Differentiable by every floating-point array in `wrapped`, by `params0` and by `ts`, in reverse
    mode (`jax.grad`) and forward mode (`jax.jvp`), and works under `jax.vmap`, which runs until its
    slowest member ends.

    Where a learner takes a maximum (Q-learning), F has kinks. Derivatives are right across them:
    they are solved for along the path of the solution, with steps and an error control of their
    own, and each kink is located. At the default tolerance they agree with
    the exact ones to five digits or more, in the largest entry, where kinks are crossed fast.
    Digits are lost where a kink is crossed twice within a solver's step (errors of 5e-3 were
    measured), unless both times are among `ts`: steps end there. A solution that rests on a tie has
    no derivative: what is returned there is the mean of the branches. `ergodax.kinks`, called with
    the same arguments, finds such places and times, and estimates the error. Where the solve fails,
    derivatives are NaN. When it is differentiated, the solution itself is solved to a tenth of the
    tolerances.

    Second derivatives need smooth learners and `adjoint=diffrax.DirectAdjoint()`; otherwise they
    raise NotImplementedError.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0, as `wrapped.init()` returns them.
        ts: times at which to report, increasing, in unscaled steps; may start at 0.
        solver: a diffrax solver; `Tsit5` by default.
        rtol: relative tolerance per step. Action values that lie further from zero than a thousand
            times the unit below are followed as closely as those at that distance.
        atol: tolerance per step in the unit of the parameters: the largest power of 1024 below the
            spread of the agent's rewards, so that results do not depend on the unit of payoffs; at
            most one for learners that do not say `in_payoffs`.
        adjoint: one of diffrax's methods to differentiate, instead of the one described above:
            they differentiate the solver's steps, which across kinks is accurate to about 2e-3.
        max_steps: largest number of solver steps; by default 65536, and 2048 where the solution is
            differentiated, as its path is then stored.
        throw: raise if the solve fails. Under `vmap`, `jit` or `grad` nothing is raised: look at
            `result`.

    Returns:
        The solution at `ts`.

    Raises:
        ValueError: if `ts` is not increasing from 0 on, `params0` does not fit, the state chain has
            several closed classes or is numerically reducible, or a policy is not continuous.
        RuntimeError: if the solve fails and `throw` is true; it says when and why: too many steps,
            an entry that grows without bound, a policy that is none, a reducible chain.

    Example:
        >>> game = ex.games.prisoners_dilemma()
        >>> wrapped = ex.WrappedGame(game, [ex.Sarsa(0.01, 0.9, initial=20.0)] * 2)
        >>> flow = ex.solve(wrapped, wrapped.init(), [0.0, 50.0, 100.0])
        >>> flow
        Solution(3 times from 0 to 100: successful)
        >>> flow.params[0].shape  # of agent 0: time, state, action
        (3, 4, 2)
    """
    ts = check_times(ts)
    most = MAX_STEPS if max_steps is None else max_steps
    rtol, atol = check_solver(rtol, atol, most, solver, adjoint)
    check_flag("throw", throw)
    wrapped, params0 = check_ergodic(wrapped, params0, "params0")
    check_schedules(wrapped.learners, ts)
    warn_single_precision()
    ts, rtol, atol = (jnp.asarray(number, dtype=float) for number in (ts, rtol, atol))
    options = dict(solver=solver, max_steps=max_steps, rtol=rtol, atol=atol)
    if adjoint is None:
        found = _solve(wrapped, params0, ts, **options)
    else:
        found = _solve_by_steps(wrapped, params0, ts, adjoint=adjoint, **options)
    (params, law, rewards), (stats, result, end_time) = found
    solution = Solution(wrapped, ts, params, law, rewards, stats, result, end_time, rtol, atol)
    if throw:
        check_reached(solution)
    return solution


@eqx.filter_custom_jvp
def _solve(wrapped, params0, ts, **options):
    """The solution, whose derivatives are solved for along its path.

    Where nothing is being traced, solution and derivatives are compiled programs of their own.

    Returns:
        What can be differentiated, parameters, state distributions and rewards at `ts`; and the
        rest, the solver's statistics, how it ended, and the time reached.
    """
    return _solution(wrapped, params0, ts, **options)


@_solve.def_jvp
def _solve_jvp(primals, tangents, **options):
    primals = once(primals)
    moved = _only(tangents, primals)
    found, walked = _solve_with_path(*primals, moved, **options)
    known = _Known(*primals, moved, *walked)
    moving = linear_map(_push, _pull, known, tangents, like=found[0])
    return found, (moving, jax.tree.map(lambda _: None, found[1]))


@lightly_compiled
def _solution(wrapped, params0, ts, *, max_steps, **options):
    ode = _ODE.of(wrapped, params0)
    solved: Any = integrate(
        *(ode.field, ode.start, ts[-1], ode.wrapped),
        ts=ts,
        max_steps=max_steps or MAX_STEPS,
        stop=no_play(ode.unravel),
        unit=unit_of(wrapped, params0),
        **options,
    )
    return ode.described(ts, solved.ys, (solved.ts, solved.stats, solved.result, solved.end[1]))


@lightly_compiled
def _solve_by_steps(wrapped, params0, ts, *, max_steps, **options):
    """The same, differentiated by one of diffrax's methods."""
    ode = _ODE.of(wrapped, params0)
    solved: Any = integrate(
        *(ode.field, ode.start, ts[-1], ode.wrapped),
        ts=ts,
        max_steps=max_steps or MAX_STEPS,
        unit=unit_of(wrapped, params0),
        **options,
    )
    smooth = all(learner.smooth for learner in wrapped.learners)
    values = solved.ys if smooth else differentiable_once(solved.ys)
    return ode.described(ts, values, (solved.ts, solved.stats, solved.result, solved.end[1]))


@lightly_compiled
def _solve_with_path(wrapped, params0, ts, moved, **options):
    """The solution, and what its derivatives by the leaves `moved` are made of."""
    ode = _ODE.of(wrapped, params0)
    values, tangent, rest = linearise(
        *(ode.start, ode.wrapped, _only(moved[0], ode.wrapped), ts),
        vector_field=ode.field,
        stop=no_play(ode.unravel),
        unit=unit_of(wrapped, params0),
        **options,
    )
    sound = jnp.where(rest[2] == diffrax.RESULTS.successful, 1.0, jnp.nan)
    return ode.described(ts, values, rest), (values, tangent.path, tangent.tol, sound)


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

    def described(self, ts, values, solved):
        """What `_solve` returns, of the solution at `ts`, `[K, d]`, and what the solver says."""
        saved, stats, ended, end = solved
        met = along(self.wrapped, self.unravel, values, end)
        result, end_time = how_ended((self.start, end), ts, met, saved, ended)
        params = jax.vmap(self.unravel)(values)
        return (params, met.state_distribution, met.rewards), (stats, result, end_time)


class _Known(NamedTuple):
    """What the derivatives of a solution depend on.

    Attributes:
        wrapped: as given to `_solve`.
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
        return ravel_pytree(params0)[0], _only(moved[0], preserve_rows(wrapped))

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
    columns = jax.tree.map(lambda dot: dot[None], (start, by_moved))
    values = known.tangent(moved).forward(*columns, known.ts)[:, 0]
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


def _only(chosen, tree):
    """The leaves of a tree where another one, or a part of it, has leaves; None elsewhere."""
    return jax.tree.map(
        lambda kept, leaf: None if kept is None else leaf,
        *(chosen, tree),
        is_leaf=lambda leaf: leaf is None,
    )


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
        reducible = is_reducible(mixing_time(jax.lax.stop_gradient(weights.chain)))
        return weights.state_distribution, rewards, reducible, ~wrapped.are_policies(policies)

    law, rewards, *rest = jax.vmap(look)(jnp.append(values, jax.lax.stop_gradient(end[None]), 0))
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
    result = codes.promote(ended)
    stuck = result != codes.successful
    result = codes.where(stuck & grown, codes.unbounded, result)
    result = codes.where(jnp.any(reached & reducible), codes.reducible, result)
    result = codes.where(last | jnp.any(reached & impossible), codes.invalid_policy, result)
    # Beyond the first time of these nothing is to be trusted.
    reached &= ~jnp.cumsum((reducible | impossible) & reached).astype(bool)
    return result, jnp.max(jnp.where(reached, ts, 0.0))


def check_reached(solution) -> None:
    """Raises RuntimeError if a solution, or anything with the same fields, ended too early."""
    if is_concrete(solution.end_time) and solution.result != RESULTS.successful:
        raise RuntimeError(
            f"the averaged ODE was solved only up to t = {float(solution.end_time):.6g} of "
            f"{float(solution.ts[-1]):.6g}: {RESULTS[solution.result]}"
        )


def warn_single_precision() -> None:
    """Warns if JAX computes in float32."""
    if jnp.result_type(float) != jnp.float64:
        warnings.warn(
            "solving in float32: tolerances below about 1e-6 cannot be met and derivatives are "
            'rough. For float64 call jax.config.update("jax_enable_x64", True) first.',
            stacklevel=3,
        )
