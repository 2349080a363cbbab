"""The averaged flow: solves dx/dt = F(x), the limit of the learners' trajectories."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_flag, is_concrete
from ..base.codes import RESULTS
from ..base.compiling import lightly_compiled
from ..base.text import describe_end, describe_times
from ..base.times import check_times
from ..model.clock import check_schedules
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, check_solver, integrate
from ..ode.path_derivatives import differentiable_once, solve_differentiably
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
    numbers = [jnp.asarray(number, dtype=float) for number in (ts, rtol, atol)]
    solved = _solve(wrapped, params0, solver, adjoint, max_steps, *numbers)
    solution = Solution(wrapped=wrapped, **solved)
    if throw:
        check_reached(solution)
    return solution


@lightly_compiled
def _solve(wrapped, params0, solver, adjoint, max_steps, ts, rtol, atol) -> dict[str, Any]:
    wrapped = preserve_rows(wrapped)
    # One flat vector: the solver's arithmetic is then a few operations, whatever the learners.
    start, unravel, field = flat_drift(params0)
    unit = unit_of(wrapped, params0)
    tolerances: dict[str, Any] = dict(solver=solver, rtol=rtol, atol=atol, unit=unit)
    if adjoint is None:
        values, (saved, stats, ended, end) = solve_differentiably(
            *(start, wrapped, ts),
            vector_field=field,
            max_steps=max_steps,
            stop=no_play(unravel),
            **tolerances,
        )
    else:
        solved: Any = integrate(
            field,
            start,
            ts[-1],
            wrapped,
            ts=ts,
            adjoint=adjoint,
            max_steps=max_steps or MAX_STEPS,
            **tolerances,
        )
        values, saved, stats, ended = solved.ys, solved.ts, solved.stats, solved.result
        end = solved.end[1]
        if not all(learner.smooth for learner in wrapped.learners):
            values = differentiable_once(values)

    met = along(wrapped, unravel, values, end)
    result, end_time = how_ended((start, end), ts, met, saved, ended)
    return dict(
        ts=ts,
        params=jax.vmap(unravel)(values),
        state_distribution=met.state_distribution,
        rewards=met.rewards,
        stats=stats,
        result=result,
        end_time=end_time,
        rtol=rtol,
        atol=atol,
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
