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
are not Gaussian and the bias is of order `1 / sqrt(N)`: the theory does not hold.

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

from ..averaged.stationary import check_ergodic, preserve_rows
from ..base.checks import is_concrete
from ..base.codes import RESULTS
from ..base.text import describe_result, describe_times
from ..base.times import check_scale, check_times
from ..model.game import first_state_law
from ..model.wrapped import WrappedGame
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
from .noise import covariance, inflow, poisson

_GRID = 2048  # cells in which changes of a maximum are looked for
_NEAR = 3.0  # standard deviations from a kink within which nothing is Gaussian


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
        return jnp.any(self.margin * jnp.sqrt(jnp.asarray(scale)) < _NEAR, axis=1)

    def layer(self, scale: Real[ArrayLike, ""]) -> Float[Array, "K d"]:
        """`-E v(x_t, c_k)`, `[K, d]`: what step k = t N still knows of the first state.

        It is added to b. It fades after some mixing times, except in a periodic chain.
        """
        steps = jnp.rint(self.ts * jnp.asarray(scale)).astype(int)
        return _layers(self.wrapped, self.params, self.initial, steps)

    def corrected_mean(self, scale: Real[ArrayLike, ""]) -> Any:
        """`x + b / N`, the layer of the initial state included, leaves `[K, ...]`.

        It is the mean of the process up to `o(1 / N)`.

        Raises:
            ValueError: if the bias was not computed, or was smoothed for another scale.
        """
        return _shifted(self.params, self._shift(scale))

    def _shift(self, scale):
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
        first = jax.tree.map(lambda leaf: leaf[0], self.params)
        unravel = ravel_pytree(first)[1]
        unravel_value = ravel_pytree(observe(first))[1]
        shift = None if self.bias is None else self._shift(scale)

        def at(params, covariance, shift):
            x = ravel_pytree(params)[0]

            def flat(x):
                return ravel_pytree(observe(unravel(x)))[0]

            value, slope = flat(x), jax.jacfwd(flat)(x)
            if shift is not None:
                value = value + slope @ shift + _curvature(flat, x, covariance) / (2 * scale)
            variance = jnp.einsum("oi,ij,oj->o", slope, covariance, slope) / scale
            return unravel_value(value), unravel_value(_sqrt(variance))

        return Band(*jax.lax.map(lambda a: at(*a), (self.params, self.covariance, shift)))

    def correlation(self, first: int, second: int) -> Float[Array, "K _ _"]:
        """Correlations of two agents' parameters, `[K, d_first, d_second]`; NaN where one is fixed.

        Raises:
            ValueError: if there is no such agent.
        """
        count = len(self.params)
        for agent in (first, second):
            if not 0 <= agent < count:
                raise ValueError(f"agent must be 0 to {count - 1}; found {agent}.")
        sizes = [sum(leaf[0].size for leaf in jax.tree.leaves(own)) for own in self.params]
        ends = np.cumsum([0, *sizes])
        rows, columns = (slice(ends[i], ends[i + 1]) for i in (first, second))
        deviation = jnp.sqrt(jnp.einsum("kii->ki", self.covariance))
        product = deviation[:, rows, None] * deviation[:, None, columns]
        return jnp.where(product > 0, self.covariance[:, rows, columns] / product, jnp.nan)


@eqx.filter_jit
def _shifted(params, shift):
    def move(params, shift):
        flat, unravel = ravel_pytree(params)
        return unravel(flat + shift)

    return jax.vmap(move)(params, shift)


def _sqrt(variance):
    """Square root with derivative zero, not infinite, at zero."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def _curvature(function, x, covariance):
    """`D2 f : C`, the sum of second derivatives weighted by C."""

    def along(direction, weighted):
        def slope(x):
            return jax.jvp(function, (x,), (direction,))[1]

        return jax.jvp(slope, (x,), (weighted,))[1]

    return jax.vmap(along)(jnp.eye(x.size, dtype=x.dtype), covariance).sum(axis=0)


class Dynamics:
    """Drift, noise and sources of bias as functions of the flat parameter vector."""

    def __init__(self, wrapped: WrappedGame, unravel):
        self.wrapped, self.unravel = wrapped, unravel

    def solved(self, x):
        """Stationary law, drift and Poisson solution."""
        return poisson(self.wrapped, self.unravel(x))

    def drift(self, x):
        """F, `[d]`."""
        return self.solved(x).drift

    def noise(self, x):
        """Sigma, `[d, d]`."""
        return covariance(self.wrapped, self.solved(x))

    def linearise(self, x) -> tuple[Any, Any]:
        """DF and the source of bias by averaging, `B = sum over c of D_x v(c) [G(c)]`."""

        def both(x):
            solved = self.solved(x)
            return solved.drift, solved.values

        directions = jnp.eye(x.size, dtype=x.dtype)
        directions = jnp.concatenate([directions, inflow(self.wrapped, self.solved(x))])
        drifts, values = jax.vmap(lambda w: jax.jvp(both, (x,), (w,))[1])(directions)
        slope, values = drifts[: x.size].T, values[x.size :]
        return slope, jnp.einsum("ccd->d", values)

    def rows(self, x):
        """All rows of which a maximum is taken, one list entry `[rows, A_i]` per agent or None."""
        params = self.unravel(x)
        rows = []
        for learner, own in zip(self.wrapped.learners, params, strict=True):
            values = learner.maximised(own)
            rows.append(None if values is None else values.reshape(-1, values.shape[-1]))
        return rows

    def best_two(self, x) -> tuple[Any, Any]:
        """Largest and second entry of all rows: their values' difference and their indices."""
        gaps, places = [], []
        for values in self.rows(x):
            if values is None or values.shape[1] < 2:
                continue
            order = jnp.argsort(-values, axis=1, stable=True)[:, :2]
            two = jnp.take_along_axis(values, order, axis=1)
            gaps.append(two[:, 0] - two[:, 1])
            places.append(order)
        if not gaps:
            return jnp.zeros(0, x.dtype), jnp.zeros((0, 2), jnp.int32)
        return jnp.concatenate(gaps), jnp.concatenate(places)

    def table(self, x):
        """All rows that `best_two` lists as one table, filled up with zeros, `[M, A]`."""
        rows = [v for v in self.rows(x) if v is not None and v.shape[1] >= 2]
        width = max(values.shape[1] for values in rows)
        return jnp.concatenate([jnp.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in rows])

    def difference(self, x, row, old, new):
        """l, how much entry `new` of a row exceeds entry `old`."""
        values = self.table(x)[row]
        return values[new] - values[old]

    def crossing(self, x, row, old, new):
        """At the point of a kink next to x: l, its normal n, the drift, and the jump c of DF."""
        gap, normal = jax.value_and_grad(self.difference)(x, row, old, new)
        length = jnp.sum(normal**2)
        foot = x - gap * normal / length
        reach = jnp.sqrt(jnp.finfo(x.dtype).eps) * (1 + jnp.abs(x).max()) * normal

        def slope(x):
            return jax.jvp(self.drift, (x,), (normal,))

        drifts, slopes = jax.vmap(slope)(jnp.stack([foot - reach, foot + reach]))
        return gap, normal, drifts.mean(axis=0), (slopes[1] - slopes[0]) / length


def owners(wrapped: WrappedGame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Agent, row number and number of entries of all maxima that `Dynamics.best_two` lists."""
    agents, numbers, widths = [], [], []
    expected = jax.eval_shape(lambda: wrapped.init(jax.random.key(0)))
    for agent, learner in enumerate(wrapped.learners):
        like = jax.eval_shape(learner.maximised, expected[agent])
        if like is not None and like.shape[-1] >= 2:
            count = int(np.prod(like.shape[:-1]))
            agents.append(np.full(count, agent))
            numbers.append(np.arange(count))
            widths.append(np.full(count, like.shape[-1]))
    if not agents:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)
    return np.concatenate(agents), np.concatenate(numbers), np.concatenate(widths)


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
        ValueError: as `solve`; if `initial_state` is not a state.
        RuntimeError: where `throw` is true, if the solve fails, or more kinks are crossed than
            tracked: then x slides along a kink, or nearly so, and the theory does not hold.

    Warns:
        UserWarning: if a scale is given at which the theory does not hold at some of the times.
    """
    check_times(ts)
    check_ergodic(wrapped, params0)
    if scale is not None and is_concrete(scale):
        check_scale(scale)
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
        _report(solution, max_kinks, throw)
    return solution


def _report(solution: Fluctuations, max_kinks: int, throw: bool) -> None:
    """Raises and warns on the host."""
    if throw and solution.result != RESULTS.successful:
        raise RuntimeError(f"the fluctuations could not be solved: {RESULTS[solution.result]}")
    if solution.scale is None:
        return
    near = np.asarray(solution.margin) * np.sqrt(float(solution.scale)) < _NEAR
    if near.any():
        agents, rows, _ = owners(solution.wrapped)
        times = np.asarray(solution.ts)[near.any(axis=1)]
        which = ", ".join(
            f"agent {agents[k]} state {rows[k]}" for k in np.flatnonzero(near.any(axis=0))[:4]
        )
        warnings.warn(
            f"at {near.any(axis=1).sum()} of {len(near)} times, from t = {times[0]:g} to "
            f"{times[-1]:g}, the flow is within {_NEAR:g} standard deviations of a kink "
            f"({which}) at scale {float(solution.scale):g}: the fluctuations are not Gaussian "
            "there.",
            stacklevel=3,
        )


class _State(NamedTuple):
    x: Any
    covariance: Any
    bias: Any


@eqx.filter_jit
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
    with_bias = bias
    if not owners(wrapped)[0].size:
        max_kinks = 0
    original, wrapped = wrapped, preserve_rows(wrapped)
    start, unravel = ravel_pytree(params0)
    dynamics = Dynamics(wrapped, unravel)
    end = ts[-1]
    agents, numbers, _ = owners(wrapped)

    def integrate(field, y0, begin, until, saveat):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=begin,
            t1=until,
            dt0=(until - begin) * 1e-3,  # choosing it would compile the field twice more
            y0=y0,
            saveat=saveat,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
            max_steps=max_steps,
            throw=False,
        )

    def field(t, state, args):
        x, drift = state.x, dynamics.drift(state.x)
        if with_bias:
            slope, averaging = dynamics.linearise(x)
        else:
            slope, averaging = jax.jacfwd(dynamics.drift)(x), None
        spread = slope @ state.covariance
        spread = spread + spread.T + dynamics.noise(x)
        if not with_bias:
            return _State(drift, spread, None)
        curvature = _curvature(dynamics.drift, x, state.covariance)
        # The last term is the error of Euler's method with step 1 / N.
        source = averaging + curvature / 2 - slope @ drift / 2
        if max_kinks and scale is not None:
            source = source + smoothed(x, state.covariance)
        return _State(drift, spread, slope @ state.bias + source)

    def smoothed(x, spread):
        """Source of bias near kinks at finite scale, every row's two largest entries."""
        _, places = dynamics.best_two(x)

        def of_row(row, place):
            gap, normal, _, change = dynamics.crossing(x, row, place[0], place[1])
            deviation = _sqrt(normal @ spread @ normal)
            distance = jnp.abs(gap) * jnp.sqrt(scale) / jnp.where(deviation > 0, deviation, 1)
            tail = jax.scipy.stats.norm.pdf(distance) - distance * jax.scipy.stats.norm.sf(distance)
            return change * jnp.sqrt(scale) * deviation * tail

        return jax.vmap(of_row)(jnp.arange(len(places)), places).sum(axis=0)

    kinks, lost = _find_kinks(dynamics, start, end, max_kinks, integrate)

    def jump(kink, state):
        """The jump of b at a kink."""
        row, old, new, valid = kink
        _, normal, drift, change = dynamics.crossing(state.x, row, old, new)
        speed = jnp.abs(normal @ drift)
        size = normal @ state.covariance @ normal / (2 * jnp.where(speed > 0, speed, 1))
        return jnp.where(valid & (speed > 0), size * change, 0)

    first, initial = dynamics.solved(start), None
    if with_bias:
        initial = _core_law(wrapped, law, first) @ first.values
    state = _State(start, jnp.zeros((start.size, start.size), start.dtype), initial)

    # Integration starts just ahead, so that a tie takes the side that the flow enters.
    ahead = jnp.sqrt(jnp.finfo(start.dtype).eps) * 1e-2 * end
    entering = state._replace(x=start + ahead * first.drift)

    saved: Any = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (ts.size, *leaf.shape)), state)
    result: Any = RESULTS.successful
    # Only jumps interrupt the integration.
    stops = max_kinks if with_bias and scale is None else 0
    begin = jnp.zeros_like(end)
    segments = jnp.concatenate([begin[None], kinks.time[:stops], end[None]])

    def segment(carry, inputs):
        state, saved, result = carry
        begin, until, kink = inputs
        inside = jnp.clip(ts, begin, until)
        saves = diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=inside), diffrax.SubSaveAt(t1=True)])
        solved = integrate(field, state, begin, until, saves)
        own, last = cast(Any, solved.ys)
        belongs = (ts > begin) & (ts <= until)
        saved = jax.tree.map(
            lambda old, new: jnp.where(belongs.reshape(-1, *(1,) * (old.ndim - 1)), new, old),
            saved,
            own,
        )
        # A segment of no length ends where it began.
        state = jax.tree.map(lambda old, new: jnp.where(until > begin, new[0], old), state, last)
        step = None
        if stops:
            step = jump(kink, state)
            state = state._replace(bias=state.bias + step)
        codes = RESULTS.promote(solved.result)
        return (state, saved, RESULTS.where(result == RESULTS.successful, codes, result)), step

    # The last segment ends without a kink: any pair of entries will do.
    indices = [
        jnp.append(part[:stops], filler)
        for part, filler in ((jnp.maximum(kinks.row, 0), 0), (kinks.old, 0), (kinks.new, 1))
    ]
    valid = jnp.append(kinks.row[:stops] >= 0, False)
    inputs = (segments[:-1], segments[1:], (*indices, valid))
    (_, saved, result), steps_taken = jax.lax.scan(segment, (entering, saved, result), inputs)
    result = RESULTS.where(lost, RESULTS.kinks, result)

    def margins(x, spread):
        _, places = dynamics.best_two(x)

        def of_row(row, place):
            gap, normal = jax.value_and_grad(dynamics.difference)(x, row, place[0], place[1])
            variance = normal @ spread @ normal
            distance = jnp.abs(gap) / _sqrt(jnp.where(variance > 0, variance, 1))
            return jnp.where(variance > 0, distance, jnp.inf)

        if not len(places):
            return jnp.zeros(0, x.dtype)
        return jax.vmap(of_row)(jnp.arange(len(places)), places)

    table = jnp.asarray(np.append(agents, -1)), jnp.asarray(np.append(numbers, -1))
    return Fluctuations(
        ts=ts,
        params=jax.vmap(unravel)(saved.x),
        covariance=saved.covariance,
        bias=saved.bias,
        initial=law,
        kinks=Kinks(
            kinks.time,
            table[0][kinks.row],
            table[1][kinks.row],
            kinks.old,
            kinks.new,
            jnp.zeros((max_kinks, start.size), start.dtype)
            if steps_taken is None
            else steps_taken[:-1],
        ),
        margin=jax.lax.map(lambda a: margins(*a), (saved.x, saved.covariance)),
        wrapped=original,
        scale=scale,
        result=result,
    )


@eqx.filter_jit
def _layers(wrapped, params, initial, steps):
    return jax.lax.map(lambda a: _layer(wrapped, a[0], initial, a[1]), (params, steps))


def _layer(wrapped, params, law, steps):
    """`-E v(x, c_k)` after k steps of the chain frozen at x, by repeated squaring."""
    solved = poisson(wrapped, params)

    def square(_, carry):
        law, power, left = carry
        return jnp.where(left % 2 == 1, law @ power, law), power @ power, left // 2

    law, _, _ = jax.lax.fori_loop(0, 54, square, (law, solved.chain, steps))
    return -_core_law(wrapped, law, solved) @ solved.values


def _core_law(wrapped, law, solved):
    """Law of the core state, given that of the state."""
    if not wrapped.needs_next_action:
        return law
    policy = solved.joint_policy
    return (law.reshape(-1, *(1,) * (policy.ndim - 1)) * policy).ravel()


def _find_kinks(dynamics, start, end, max_kinks: int, integrate) -> tuple[Kinks, Any]:
    """Where the flow changes a maximising entry, and whether more often than tracked."""
    empty = jnp.zeros(max_kinks, jnp.int32)
    if not max_kinks:
        times = jnp.zeros(0, start.dtype)
        return Kinks(times, empty, empty, empty, empty, None), jnp.asarray(False)
    flow = integrate(
        lambda t, x, args: dynamics.drift(x),
        start,
        jnp.zeros_like(end),
        end,
        diffrax.SaveAt(dense=True),
    )

    def best(t):
        return dynamics.best_two(flow.evaluate(t))[1][:, 0]

    # Just after the start: a tie there belongs to the side that the flow enters.
    grid = jnp.linspace(0, 1, _GRID + 1).at[0].set(1e-6) * end
    winners = jax.lax.stop_gradient(jax.lax.map(best, grid))
    changed = winners[1:] != winners[:-1]
    cell, row = jnp.nonzero(changed, size=max_kinks, fill_value=-1)
    used = cell >= 0
    old = jnp.where(used, winners[cell, row], 0)
    new = jnp.where(used, winners[cell + 1, row], 1)

    def gap(t, row, old, new):
        return dynamics.difference(flow.evaluate(t), row, old, new)

    def locate(cell, row, old, new):
        def halve(_, bounds):
            middle = bounds.mean()
            after = gap(middle, row, old, new) > 0
            return jnp.where(after, bounds.at[1].set(middle), bounds.at[0].set(middle))

        bounds = jax.lax.fori_loop(0, 45, halve, jnp.stack([grid[cell], grid[cell + 1]]))
        time = jax.lax.stop_gradient(bounds.mean())
        # One step of Newton's method, whose derivative is that of the crossing time.
        away, speed = jax.jvp(lambda t: gap(t, row, old, new), (time,), (jnp.ones_like(time),))
        away = away - jax.lax.stop_gradient(away)
        return time - away / jax.lax.stop_gradient(jnp.where(speed == 0, 1, speed))

    times = jnp.where(used, jax.vmap(locate)(cell, row, old, new), end)
    order = jnp.argsort(jnp.where(used, times, jnp.inf))
    row = jnp.where(used, row, -1)
    kinks = Kinks(times, empty, row, old, new, None)
    kinks = Kinks(*(None if part is None else part[order] for part in kinks))
    return kinks, changed.sum() > max_kinks


def stationary_covariance(wrapped: WrappedGame, rest_point: Any) -> Float[Array, "d d"]:
    """Covariance of `sqrt(N) (X^N - x)` around a stable rest point x, after long times.

    Solves `DF C + C DF^T = -Sigma`. Differentiable with the rest point held fixed or made a
    function of what is varied, and works under `jax.vmap`; the equation is solved by SciPy
    (Bartels and Stewart 1972).

    Args:
        wrapped: a game and its learners.
        rest_point: the parameters of all agents there, or an object that has them as `params`.

    Returns:
        C, `[d, d]`, in the order of `jax.flatten_util.ravel_pytree(params)`.

    Raises:
        ValueError: as `stationary_distribution`; where values are concrete also if the drift
            does not vanish, the rest point is not stable (it names the eigenvalues), or a maximum
            is tied there.
    """
    params = getattr(rest_point, "params", rest_point)
    check_ergodic(wrapped, params)
    drift, slope, noise, gaps = _linearised(wrapped, params)
    if is_concrete(slope):
        _check_stable(*(np.asarray(part) for part in (drift, slope, gaps)))
    return lyapunov(slope, noise)


@eqx.filter_jit
def _linearised(wrapped, params):
    x, unravel = ravel_pytree(params)
    dynamics = Dynamics(preserve_rows(wrapped), unravel)
    slope = jax.jacfwd(dynamics.drift)(x)
    return dynamics.drift(x), slope, dynamics.noise(x), dynamics.best_two(x)[0]


def linearised(
    solution: Fluctuations,
) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "K d d"], Float[np.ndarray, "K d d"]]:
    """F, DF and Sigma along a solution, in NumPy."""
    drift, slope, noise, _ = jax.device_get(_along(solution.wrapped, solution.params))
    return drift, slope, noise


@eqx.filter_jit
def _along(wrapped, params):
    return jax.lax.map(lambda p: _linearised(wrapped, p), params)


def _check_stable(drift, slope, gaps) -> None:
    size = np.linalg.norm(slope, 2)
    eigenvalues = np.linalg.eigvals(slope)
    eigenvalues = eigenvalues[np.argsort(-eigenvalues.real)]
    if not eigenvalues[0].real < -1e-10 * size:
        listed = ", ".join(f"{value:.4g}" for value in eigenvalues[:4])
        kind = "unstable" if eigenvalues[0].real > 1e-10 * size else "singular"
        raise ValueError(
            f"the rest point is {kind}: the eigenvalues of DF with the largest real parts are "
            f"{listed}; fluctuations around it do not become stationary."
        )
    distance = np.abs(np.linalg.solve(slope, drift)).max()
    if distance > 1e-4:
        raise ValueError(
            f"the drift does not vanish: it is up to {np.abs(drift).max():.3g}, and the rest point "
            f"is about {distance:.3g} away."
        )
    if gaps.size and gaps.min() <= 10 * max(distance, 1e-10):
        raise ValueError(
            f"a maximum is tied at the rest point (margin {gaps.min():.3g}): on a kink the "
            "fluctuations are not Gaussian."
        )


def lyapunov(slope: Float[Array, "d d"], noise: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Solves `A C + C A^T = -Sigma` for C."""

    def solver(slope):
        def host(slope, right):
            import scipy.linalg

            solved = scipy.linalg.solve_continuous_lyapunov(np.asarray(slope), np.asarray(right))
            return solved.astype(right.dtype)

        def solve(_, right):
            like = jax.ShapeDtypeStruct(right.shape, right.dtype)
            return jax.pure_callback(host, like, slope, right, vmap_method="sequential")

        return solve

    return jax.lax.custom_linear_solve(
        lambda C: slope @ C + C @ slope.T, -noise, solver(slope), solver(slope.T)
    )
