"""Beyond the averaged ODE: the Gaussian fluctuations around it, and its bias.

At scale N the rescaled process is `X^N = x + U / sqrt(N) + b / N + ..` around the flow x of F:

- U is Gaussian, `dU = DF U dt + Sigma^(1/2) dW`; its covariance solves
  `dC/dt = DF C + C DF^T + Sigma`, `C(0) = 0`, and `Cov X^N = C / N + O(1 / N^2)`.
- `E X^N = x + b / N + o(1 / N)` with `db/dt = DF b + 1/2 D2F:C + B - 1/2 DF F` from
  `b(0) = sum over c of rho(c) v(c)`, rho the law of the first core state: the sources are the
  curvature of F, the lag of averaging behind the parameters
  `B = sum over c of D_x v(c) [G(c)]`, Euler's error, and the start.

Where a learner takes a maximum, F has kinks. Where x crosses one transversally, b jumps by
`c n^T C n / (2 |n . F|)`, with `n = grad l` for the difference l of the two values, and
`c = (DF_new - DF_old) n / |n|^2`. At finite N runs cross at different times, and the jump is the
integral of `c sqrt(N) sd psi(|l| sqrt(N) / sd)`, `psi(u) = phi(u) - u (1 - Phi(u))`,
`sd^2 = n^T C n`. Staying near a kink, within about three standard deviations, the fluctuations
are not Gaussian and the bias is of order `1 / sqrt(N)`: the theory does not hold, and at no N where
x rests on a kink.

First order: Kerzreho (2025). Second order: derived for this package, and checked against exact laws
and simulation.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, Real

from ..averaged.maxima import Crossings, Kink, name_row, owners
from ..averaged.stationary import check_ergodic, preserve_rows
from ..base.checks import check_count, check_flag, is_concrete
from ..base.codes import RESULTS, is_one_of
from ..base.compiling import ahead, lightly_compiled, precise, quickly_compiled
from ..base.devices import as_array
from ..base.memory import check_room
from ..base.times import check_scale, check_times
from ..model.check import check_kinks
from ..model.clock import check_schedules
from ..model.game import first_state_law
from ..model.wrapped import WrappedGame
from ..ode.integrate import check_solver
from .limit_process import NEAR, LimitProcess, State, reach
from .poisson import check_covariance
from .prediction import Fluctuations, Kinks

_TRACKED = 8, 64  # kinks, by default: at first, and if these do not suffice
_CHECKPOINTS = 32  # in reverse mode, from one report time to the next


def fluctuations(
    wrapped: WrappedGame,
    params0: Any,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    initial_state: int | np.integer | str | None = None,
    bias: bool = False,
    scale: Real[ArrayLike, ""] | None = None,
    max_kinks: int | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-10,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 16**4,
    throw: bool = True,
) -> Fluctuations:
    """Solves the averaged ODE together with the covariance of the fluctuations, and the bias.

    Differentiable, once where a learner takes a maximum, and works under `jax.vmap`: by the steps
    of the solver, none of which passes over a kink then. By default, derivatives have at least five
    digits behind kinks too. The covariance costs d x d numbers and as many Jacobian columns as
    there are parameters, the bias as many second derivatives.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        ts: times at which to report, increasing, in unscaled steps; may start at 0.
        initial_state: the first state, by number or name, for the bias; drawn from the game's
            initial law by default.
        bias: also compute the bias b.
        scale: N. If given, kinks are smoothed as they are at that scale, and times within three
            standard deviations of a kink are warned of. The limit of large N by default, where b
            jumps at a kink.
        max_kinks: how many kinks are tracked; more are an error. By default 8, and where these do
            not suffice 64 (8 under `vmap`, `jit` or `grad`).
        rtol: relative tolerance.
        atol: absolute tolerance, of x, C and b alike.
        adjoint: how to differentiate the solver's steps; in reverse mode by default.
        max_steps: most steps of the solver between two kinks.
        throw: raise if the solve fails, rather than report it in `result`.

    Returns:
        Flow, covariance, bias and kinks.

    Raises:
        ValueError: as `solve`; if `initial_state` is not a state, or memory does not suffice.
        RuntimeError: where `throw` is true, if the solve fails, or more kinks are crossed than
            tracked: then x slides along a kink, or nearly so, and the theory does not hold.

    Warns:
        UserWarning: if the flow rests on a kink at some of the times, where the theory holds at no
            scale (`result` says so too); or if a scale is given at which it does not hold at some.
    """
    ts = check_times(ts)
    rtol, atol = check_solver(rtol, atol, max_steps, None, adjoint)
    tracked = _TRACKED if max_kinks is None else (check_count("max_kinks", max_kinks, least=0),)
    bias, throw = check_flag("bias", bias), check_flag("throw", throw)
    if scale is not None:
        scale = as_array(check_scale(scale), float)
    wrapped, params0 = check_ergodic(wrapped, params0, "params0")
    check_kinks(wrapped)
    check_schedules(wrapped.learners, ts)
    check_covariance("fluctuations", wrapped, params0, times=np.shape(ts)[0], bias=bias)
    size = sum(leaf.size for leaf in jax.tree.leaves(params0))

    times, law = as_array(ts, float), first_state_law(wrapped.game, initial_state)
    options: dict[str, Any] = dict(scale=scale, bias=bias, adjoint=adjoint, max_steps=max_steps)
    options |= {"rtol": as_array(rtol, float), "atol": as_array(atol, float)}

    def solve(most: int) -> Fluctuations:
        check_room(64 * most * size**2, f"to track {most} kinks", "lower max_kinks")
        return fluctuate(wrapped, params0, times, as_array(law), max_kinks=most, **options)

    solution = solve(tracked[0])
    for most in tracked[1:]:
        if is_concrete(solution.covariance) and is_one_of(solution.result, RESULTS.kinks):
            solution = solve(most)
    if is_concrete(solution.covariance):
        resting = None
        if is_one_of(solution.result, RESULTS.resting):
            # Ties that only pass, or that the drift does not feel, are rare, and told here.
            resting = np.asarray(_resting(solution))
            if not resting.any():
                solution = eqx.tree_at(lambda s: s.result, solution, RESULTS.successful)
        _report(solution, resting, throw)
    return solution


@quickly_compiled
def _resting(solution):
    """Which maxima rest on a tie, at all times, `[K, M]`."""
    first = jax.tree.map(lambda leaf: leaf[0], solution.params)
    process = LimitProcess(preserve_rows(solution.wrapped), first)

    def at(here):
        params, covariance = here
        return process.rests(State(ravel_pytree(params)[0], covariance, None), solution.ts[-1])

    return jax.lax.map(at, (solution.params, solution.covariance))


def _report(solution: Fluctuations, resting: np.ndarray | None, throw: bool) -> None:
    """Raises and warns on the host."""
    if throw and not is_one_of(solution.result, RESULTS.successful, RESULTS.resting):
        raise RuntimeError(f"the fluctuations could not be solved: {RESULTS[solution.result]}")
    if is_one_of(solution.result, RESULTS.resting):
        _warn(
            solution,
            resting,
            "rests on a kink ({}): the fluctuations are not Gaussian there, and the bias is of "
            "order 1 / sqrt(N): covariance and bias do not hold.",
        )
    elif solution.scale is not None:
        scale = float(solution.scale)
        _warn(
            solution,
            np.asarray(solution.margin) * np.sqrt(scale) < NEAR,
            f"is within {NEAR:g} standard deviations of a kink ({{}}) at scale {scale:g}: the "
            "fluctuations are not Gaussian there.",
        )


def _warn(solution: Fluctuations, near: Any, text: str) -> None:
    """Warns of the maxima that are near a tie, `[K, M]`, if any are."""
    times = np.asarray(solution.ts)[near.any(axis=1)]
    if len(times):
        agents, rows, _ = owners(solution.wrapped)
        which = ", ".join(
            f"agent {agents[k]} {name_row(solution.wrapped, int(agents[k]), int(rows[k]))[0]}"
            for k in np.flatnonzero(near.any(axis=0))[:4]
        )
        warnings.warn(
            f"at {len(times)} of {len(near)} times, from t = {times[0]:g} to {times[-1]:g}, the "
            f"flow {text.format(which)}",
            stacklevel=4,
        )


def fluctuate(
    wrapped: WrappedGame,
    params0,
    ts,
    law,
    *,
    scale: Any = None,
    bias: bool = True,
    max_kinks: int = 8,
    rtol: Any = 1e-10,
    atol: Any = 1e-10,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 16**4,
) -> Fluctuations:
    """`fluctuations` without its checks, for a law of the first state; pure."""
    inputs = wrapped, params0, ts, law, scale, rtol, atol
    settings: dict[str, Any] = dict(bias=bias, max_kinks=max_kinks, max_steps=max_steps)
    if all(map(is_concrete, jax.tree.leaves(inputs))):
        return _fluctuate(inputs, adjoint=adjoint, **settings)
    return _as_one_program(inputs, adjoint=adjoint, **settings)


@lightly_compiled
def _as_one_program(inputs, *, adjoint, **settings):
    if adjoint is not None:
        return _fluctuate(inputs, adjoint=adjoint, **settings)
    return _fluctuate_differentiably(inputs, **settings)


@eqx.filter_custom_vjp
def _fluctuate_differentiably(inputs, **settings):
    return _fluctuate(inputs, adjoint=None, **settings)


@_fluctuate_differentiably.def_fwd
def _forwards(perturbed, inputs, **settings):
    return _fluctuate(inputs, adjoint=None, **settings), None


@_fluctuate_differentiably.def_bwd
@precise
def _backwards(residuals, cotangents, perturbed, inputs, **settings):
    # Only here are the solver's steps differentiated: most calls need no such program.
    moved, fixed = eqx.partition(inputs, perturbed)

    def outputs(moved):
        adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=_CHECKPOINTS)
        found = _fluctuate(eqx.combine(moved, fixed), adjoint=adjoint, **settings)
        return jax.tree.map(
            lambda cotangent, leaf: None if cotangent is None else leaf,
            cotangents,
            found,
            is_leaf=lambda leaf: leaf is None,
        )

    _, pull = eqx.filter_vjp(outputs, moved)
    return pull(cotangents)[0]


def _fluctuate(inputs, *, max_kinks, **options) -> Fluctuations:
    """Programs that are compiled side by side where nothing is being traced."""
    max_kinks = max_kinks if len(owners(inputs[0]).agent) else 0
    begun = _begin(inputs, max_kinks=max_kinks, **options)
    kinks = None
    if begun.points is not None:
        maximum = begun.crossed.maximum
        crosses = not is_concrete(maximum) or np.any(np.asarray(maximum) >= 0)
        kinks = (_kinks if crosses else _no_kinks)(inputs, begun.crossed, begun.points)
    return _along(inputs, begun, kinks, **options)


class _Begun(NamedTuple):
    """What is known before fluctuations are.

    Attributes:
        crossed: the kinks that the flow crosses.
        points: where, `[L, d]`, if b jumps there.
        lost: whether there are more.
        initial: the state at time 0.
        drift: F there.
    """

    crossed: Crossings
    points: Any
    lost: Any
    initial: State
    drift: Any


def _begin_along(begun, inputs, *, max_kinks, **options):
    """Has what comes next compiled beside what comes first."""
    kinks = None if begun.points is None else _no_kinks(inputs, begun.crossed, begun.points)
    ahead(_along, inputs, begun, kinks, **options)


# It takes a tenth of the time of what follows, at most, so that to compile it sooner is worth more.
@functools.partial(quickly_compiled, then=_begin_along)
def _begin(inputs, *, bias, max_kinks, **options) -> _Begun:
    wrapped, params0, ts, law, scale, rtol, atol = inputs
    process = LimitProcess(preserve_rows(wrapped), params0)
    crossed, points, lost = process.crossings(ts[-1], max_kinks, rtol=rtol, atol=atol, **options)
    # In the limit of large N b jumps at a kink; at a finite scale that is spread in time.
    points = points if bias and scale is None and max_kinks else None
    return _Begun(crossed, points, lost, *process.initial(law, bias))


@quickly_compiled
def _kinks(inputs, crossed: Crossings, points) -> Kink:
    """What the kinks are like that the flow crosses; zero in unused places."""
    return LimitProcess(preserve_rows(inputs[0]), inputs[1]).kinks(crossed, points)


def _no_kinks(inputs, crossed: Crossings, points) -> Kink:
    """The same where the flow crosses none: most need no such program."""
    none = np.zeros(points.shape, points.dtype)
    return Kink(*jax.device_put((none[:, 0], none, none, none)))


@lightly_compiled
def _along(inputs, begun: _Begun, kinks: Kink | None, *, bias, **options) -> Fluctuations:
    wrapped, params0, ts, law, scale, rtol, atol = inputs
    crossed, max_kinks = begun.crossed, len(begun.crossed.time)
    process = LimitProcess(preserve_rows(wrapped), params0)
    # If it is differentiated too: how C moves with the time of a kink is in no step across it.
    ends_there = kinks is not None or options["adjoint"] is not None
    saved, jumps, result = process.solve(
        begun.initial,
        begun.drift,
        ts,
        crossed.time if ends_there else crossed.time[:0],
        kinks,
        scale if max_kinks else None,
        rtol=rtol,
        atol=atol,
        **options,
    )
    if jumps is None:
        jumps = jnp.zeros((max_kinks, process.start.size), process.start.dtype)
    margin = jax.lax.map(process.margins, saved)
    rests = (result == RESULTS.successful) & jnp.any(margin < reach(margin.dtype))
    result = RESULTS.where(rests, RESULTS.resting, result)
    owned = owners(wrapped)
    agents, rows = (jnp.asarray(np.append(part, -1))[crossed.maximum] for part in owned[:2])
    return Fluctuations(
        ts=ts,
        params=jax.vmap(process.unravel)(saved.x),
        covariance=saved.covariance,
        bias=saved.bias,
        initial=law,
        kinks=Kinks(crossed.time, agents, rows, crossed.old, crossed.new, jumps),
        margin=margin,
        wrapped=wrapped,
        scale=scale,
        result=RESULTS.where(begun.lost, RESULTS.kinks, result),
    )
