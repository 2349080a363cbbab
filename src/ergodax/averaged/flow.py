"""The averaged flow: solves dx/dt = F(x), the limit of the learners' trajectories."""

import warnings
from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_flag, is_concrete
from ..base.codes import RESULTS, is_one_of
from ..base.devices import as_array
from ..base.text import describe_end, describe_times
from ..base.times import check_times
from ..model.clock import check_schedules
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, check_solver
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
from .solution import solution, solution_by_steps
from .stationary import check_ergodic


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
    flow = flow_of(wrapped, params0, ts, rtol, atol, solver, adjoint, max_steps)
    if throw:
        check_reached(flow)
    return flow


def flow_of(
    wrapped: WrappedGame,
    params0: Any,
    ts: Any,
    rtol: Any = 1e-8,
    atol: Any = 1e-8,
    solver: diffrax.AbstractSolver | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
) -> Solution:
    """`solve` without its checks, of what `check_ergodic` returns; never raises."""
    times, *tolerances = (as_array(number, float) for number in (ts, rtol, atol))
    options: dict[str, Any] = dict(zip(("rtol", "atol"), tolerances, strict=True))
    options |= dict(solver=solver, max_steps=max_steps)
    if adjoint is None:
        found = solution(wrapped, params0, times, **options)
    else:
        found = solution_by_steps(wrapped, params0, times, adjoint=adjoint, **options)
    (params, law, rewards), (stats, result, end_time) = found
    return Solution(wrapped, times, params, law, rewards, stats, result, end_time, *tolerances)


def check_reached(solution) -> None:
    """Raises RuntimeError if a solution, or anything with the same fields, ended too early."""
    if is_concrete(solution.end_time) and not is_one_of(solution.result, RESULTS.successful):
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
