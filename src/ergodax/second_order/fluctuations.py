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

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from ..averaged.maxima import name_row, owners
from ..averaged.stationary import check_ergodic, preserve_rows
from ..base.checks import check_count, check_flag, check_function, describe, is_concrete
from ..base.codes import RESULTS
from ..base.compiling import compiled, precise
from ..base.memory import check_room
from ..base.text import describe_result, describe_times
from ..base.times import check_scale, check_times
from ..model.check import check_kinks
from ..model.clock import check_schedules
from ..model.game import check_agent, first_state_law
from ..model.wrapped import WrappedGame
from ..ode.integrate import check_solver
from ..results.labels import (
    OUTCOME,
    SETTING,
    TIME_UNITS,
    TIMES,
    Entries,
    Label,
    labelled,
    of_agents,
)
from ..results.result import Result
from .limit_process import NEAR, LimitProcess, curvature, huge, root
from .poisson import check_covariance, core_law, poisson

_CHECKPOINTS = 32  # in reverse mode, from one report time to the next


class Kinks(NamedTuple):
    """Where the flow crosses kinks of the drift, in order of time; unused entries have row -1.

    Attributes:
        time: when, `[M]`.
        agent: whose maximum changes, `[M]`.
        row: the row of `learner.maximised`, flattened: for Q-learning the state, `[M]`.
        old: the maximising entry before, `[M]`.
        new: the maximising entry after, `[M]`.
        jump: the jump of b, `[M, d]`; zero where bias was not asked for.
    """

    time: Any
    agent: Any
    row: Any
    old: Any
    new: Any
    jump: Any


class Band(NamedTuple):
    """An observable along the flow, with its Gaussian fluctuations at one scale.

    Attributes:
        mean: its value on the flow, corrected for bias where that is known, leaves `[K, ...]`.
        standard_deviation: to leading order in the scale, leaves `[K, ...]`.
    """

    mean: Any
    standard_deviation: Any


class Fluctuations(Result):
    """The averaged flow with its fluctuations and bias.

    In the data set covariance and bias are along `parameter`, with the names of all parameters;
    crossed kinks along `kink`, unless there is a batch of flows.

    Attributes:
        ts: times in unscaled steps, `[K]`.
        params: parameters of all agents on the flow, each leaf `[K, ...]`.
        covariance: C, the covariance of `sqrt(N) (X^N - x)`, `[K, d, d]`, in the order of
            `jax.flatten_util.ravel_pytree(params)`.
        bias: b, `[K, d]`: `E X^N = x + b / N`; None unless asked for.
        initial: law of the first state, `[S]`.
        kinks: the kinks crossed.
        margin: distance of every maximum from a change, in standard deviations of U, `[K, M]`,
            for the rows of all agents in turn.
        wrapped: the game and its learners.
        scale: N, if one was given.
        result: how the solve ended, one of `RESULTS`.
    """

    ts: Float[Array, " K"] = eqx.field(metadata=labelled(TIMES))
    params: Any = eqx.field(
        metadata=labelled("parameters on the flow", ("time",), name="parameters", make=of_agents)
    )
    covariance: Float[Array, "K d d"] = eqx.field(
        metadata=labelled("scale times covariance", ("time", "parameter", "other_parameter"))
    )
    bias: Float[Array, "K d"] | None = eqx.field(
        metadata=labelled("scale times bias of the mean", ("time", "parameter"))
    )
    initial: Float[Array, " S"] = eqx.field(
        metadata=labelled("law of the first state", ("state",), name="first_state")
    )
    kinks: Kinks
    margin: Float[Array, "K M"] = eqx.field(
        metadata=labelled(
            "distance from a kink", ("time", "maximum"), "standard deviations at scale 1"
        )
    )
    wrapped: WrappedGame
    scale: Float[Array, ""] | None = eqx.field(metadata=labelled(SETTING))
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))

    def __repr__(self) -> str:
        parts = "covariance" if self.bias is None else "covariance and bias"
        size = self.covariance.shape[-1]
        return (
            f"Fluctuations({parts} of {size} parameters, {describe_times(self.ts)}: "
            f"{describe_result(self.result)})"
        )

    def _derived(self) -> Entries:
        """The kinks that were crossed."""
        if self.ts.ndim > 1:
            return {}
        crossed = np.asarray(self.kinks.row) >= 0
        return {
            f"kink_{name}": (
                np.asarray(getattr(self.kinks, name))[crossed],
                Label(long_name, ("kink",), units),
            )
            for name, long_name, units in (
                ("time", "when a kink was crossed", TIME_UNITS),
                ("agent", "whose maximum changed", None),
                ("row", "row of the maximum: for Q-learning the state", None),
                ("old", "maximising entry before", None),
                ("new", "maximising entry after", None),
            )
        }

    def near_kink(self, scale: Real[ArrayLike, ""]) -> Bool[Array, " K"]:
        """Times at which x is within three standard deviations of a kink at this scale, `[K]`.

        There the fluctuations are not Gaussian, and neither band nor corrected mean hold. Where C
        is zero, as at the start, nothing is near.
        """
        return jnp.any(
            self.margin * jnp.sqrt(jnp.asarray(check_scale(scale), self.margin.dtype)) < NEAR,
            axis=1,
        )

    def layer(self, scale: Real[ArrayLike, ""]) -> Float[Array, "K d"]:
        """`-E v(x_t, c_k)`, `[K, d]`: what step k = t N still knows of the first state.

        It is added to b. It fades after some mixing times, except in a periodic chain.
        """
        steps = jnp.rint(self.ts * check_scale(scale)).astype(int)
        return _layers(self.wrapped, self.params, self.initial, steps)

    def corrected_mean(self, scale: Real[ArrayLike, ""]) -> Any:
        """`x + b / N`, the layer of the initial state included, leaves `[K, ...]`.

        It is the mean of the process up to `o(1 / N)`.

        Raises:
            ValueError: if the bias was not computed, or was smoothed for another scale.
        """
        return _shifted(self.params, self._shift(scale))

    def _shift(self, scale):
        scale = check_scale(scale)
        if self.bias is None:
            raise ValueError("the bias was not computed: call fluctuations(..., bias=True).")
        if self.scale is not None and is_concrete(self.scale) and scale != self.scale:
            raise ValueError(
                f"the bias was smoothed for scale {float(self.scale):g}, not {scale:g}."
            )
        return (self.bias + self.layer(scale)) / scale

    def band(self, observe: Callable[[Any], Any], *, scale: Real[ArrayLike, ""]) -> Band:
        """Mean and standard deviation of an observable at a scale, by the delta method.

        Args:
            observe: a differentiable function of one parameter set: `wrapped.policies`, or
                `lambda p: ergodax.stationary_distribution(wrapped, p)`.
            scale: N.

        Returns:
            `g(x) + (Dg b + D2g:C / 2) / N`, or g(x) where there is no bias; and
            `sqrt(Dg C Dg^T / N)`.
        """
        scale = check_scale(scale)
        check_function("observe", observe, "the parameters of all agents")
        shift = None if self.bias is None else self._shift(scale)
        return _band(observe, self.params, self.covariance, shift, jnp.asarray(scale, dtype=float))

    def correlation(self, first: int, second: int) -> Float[Array, "K _ _"]:
        """Correlations of two agents' parameters, `[K, d_first, d_second]`; NaN where one is fixed.

        Raises:
            ValueError: if there is no such agent.
        """
        for name, agent in (("first", first), ("second", second)):
            check_agent(self.wrapped.game, agent, name)
        sizes = [sum(leaf[0].size for leaf in jax.tree.leaves(own)) for own in self.params]
        ends = np.cumsum([0, *sizes])
        rows, columns = (slice(ends[i], ends[i + 1]) for i in (first, second))
        deviation = jnp.sqrt(jnp.einsum("kii->ki", self.covariance))
        product = deviation[:, rows, None] * deviation[:, None, columns]
        return jnp.where(product > 0, self.covariance[:, rows, columns] / product, jnp.nan)


@compiled
def _band(observe, params, covariance, shift, scale) -> Band:
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], params))[1]

    def at(here):
        params, covariance, shift = here
        x, found = ravel_pytree(params)[0], observe(params)
        if not jax.tree.leaves(found):
            raise ValueError(f"observe must return numbers; found {describe(found)}.")
        unravel_value = ravel_pytree(found)[1]

        def flat(x):
            return ravel_pytree(observe(unravel(x)))[0]

        value, slope = flat(x), jax.jacfwd(flat)(x)
        if shift is not None:
            value = value + slope @ shift + curvature(flat, x, covariance) / (2 * scale)
        variance = jnp.sum((slope @ covariance) * slope, axis=1) / scale
        return Band(unravel_value(value), unravel_value(root(variance)))

    return jax.lax.map(at, (params, covariance, shift))


@compiled
def _shifted(params, shift):
    def move(params, shift):
        flat, unravel = ravel_pytree(params)
        return unravel(flat + shift)

    return jax.vmap(move)(params, shift)


def fluctuations(
    wrapped: WrappedGame,
    params0: Any,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    initial_state: int | np.integer | str | None = None,
    bias: bool = False,
    scale: Real[ArrayLike, ""] | None = None,
    max_kinks: int = 8,
    rtol: float = 1e-10,
    atol: float = 1e-10,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int = 16**4,
    throw: bool = True,
) -> Fluctuations:
    """Solves the averaged ODE together with the covariance of the fluctuations, and the bias.

    Differentiable like `solve`, and works under `jax.vmap`. The covariance costs d x d numbers and
    as many Jacobian columns as there are parameters, the bias as many second derivatives.

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
        max_kinks: how many kinks are tracked; more are an error.
        rtol: relative tolerance.
        atol: absolute tolerance, of x, C and b alike.
        adjoint: how to differentiate; as for `solve`.
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
    max_kinks = check_count("max_kinks", max_kinks, least=0)
    bias, throw = check_flag("bias", bias), check_flag("throw", throw)
    scale = None if scale is None else check_scale(scale)
    wrapped, params0 = check_ergodic(wrapped, params0, "params0")
    check_kinks(wrapped)
    check_schedules(wrapped.learners, ts[-1])
    check_covariance("fluctuations", wrapped, params0, times=len(ts), bias=bias)
    size = sum(leaf.size for leaf in jax.tree.leaves(params0))
    check_room(64 * max_kinks * size**2, f"to track {max_kinks} kinks", "lower max_kinks")
    solution = fluctuate(
        wrapped,
        params0,
        jnp.asarray(ts, dtype=float),
        jnp.asarray(first_state_law(wrapped.game, initial_state)),
        scale=None if scale is None else jnp.asarray(scale, dtype=float),
        bias=bias,
        max_kinks=max_kinks,
        rtol=jnp.asarray(rtol, dtype=float),
        atol=jnp.asarray(atol, dtype=float),
        adjoint=adjoint,
        max_steps=max_steps,
    )
    if is_concrete(solution.covariance):
        _report(solution, throw)
    return solution


def _report(solution: Fluctuations, throw: bool) -> None:
    """Raises and warns on the host."""
    rests = bool(solution.result == RESULTS.resting)
    if throw and not rests and solution.result != RESULTS.successful:
        raise RuntimeError(f"the fluctuations could not be solved: {RESULTS[solution.result]}")
    if solution.scale is None and not rests:
        return
    scale = huge(solution.margin.dtype) if rests else float(cast(Any, solution.scale))
    near = np.asarray(solution.margin) * np.sqrt(scale) < NEAR
    if near.any():
        agents, rows, _ = owners(solution.wrapped)
        times = np.asarray(solution.ts)[near.any(axis=1)]
        which = ", ".join(
            f"agent {agents[k]} {name_row(solution.wrapped, int(agents[k]), int(rows[k]))[0]}"
            for k in np.flatnonzero(near.any(axis=0))[:4]
        )
        when = f"at {len(times)} of {len(near)} times, from t = {times[0]:g} to {times[-1]:g}"
        warnings.warn(
            f"{when}, the flow rests on a kink ({which}): the fluctuations are not Gaussian there, "
            "and the bias is of order 1 / sqrt(N): covariance and bias do not hold."
            if rests
            else f"{when}, the flow is within {NEAR:g} standard deviations of a kink ({which}) at "
            f"scale {scale:g}: the fluctuations are not Gaussian there.",
            stacklevel=3,
        )


@compiled
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
    settings = dict(bias=bias, max_kinks=max_kinks, max_steps=max_steps)
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


@precise
def _fluctuate(inputs, *, adjoint, bias, max_kinks, max_steps) -> Fluctuations:
    wrapped, params0, ts, law, scale, rtol, atol = inputs
    owned = owners(wrapped)
    max_kinks = max_kinks if len(owned.agent) else 0
    process = LimitProcess(preserve_rows(wrapped), params0)
    options = dict(rtol=rtol, atol=atol, adjoint=adjoint, max_steps=max_steps)
    crossed, lost = process.crossings(ts[-1], max_kinks, **options)
    # In the limit of large N b jumps at a kink; at a finite scale that is spread in time.
    jumping = bias and scale is None
    saved, jumps, result = process.solve(
        process.initial(law, bias),
        ts,
        crossed if jumping else jax.tree.map(lambda part: part[:0], crossed),
        scale if max_kinks else None,
        **options,
    )
    if jumps is None:
        jumps = jnp.zeros((max_kinks, process.start.size), process.start.dtype)
    margin, resting = jax.lax.map(lambda state: process.margins(state, ts[-1]), saved)
    rests = (result == RESULTS.successful) & jnp.any(resting)
    result = RESULTS.where(rests, RESULTS.resting, result)
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
        result=RESULTS.where(lost, RESULTS.kinks, result),
    )


def linearised(
    solution: Fluctuations,
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "K d d"], Float[np.ndarray, "K d d"]]:
    """F, DF and Sigma along a solution, in NumPy."""
    return jax.device_get(_linearised(solution.wrapped, solution.params))


@compiled
def _linearised(wrapped, params):
    def at(params):
        process = LimitProcess(preserve_rows(wrapped), params)
        return process.linearised(process.start)

    return jax.lax.map(at, params)


@compiled
def _layers(wrapped, params, initial, steps):
    return jax.lax.map(lambda a: _layer(wrapped, a[0], initial, a[1]), (params, steps))


def _layer(wrapped, params, law, steps):
    """`-E v(x, c_k)` after k steps of the chain frozen at x, by repeated squaring."""
    solved = poisson(wrapped, params)

    def square(_, carry):
        law, power, left = carry
        return jnp.where(left % 2 == 1, law @ power, law), power @ power, left // 2

    law, _, _ = jax.lax.fori_loop(0, 54, square, (law, solved.chain, steps))
    return -core_law(wrapped, law, solved) @ solved.values
