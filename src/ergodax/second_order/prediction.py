"""What theory predicts of the process at a scale: the result of `fluctuations`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from ..base.checks import check_function, describe, is_concrete
from ..base.codes import RESULTS
from ..base.compiling import lightly_compiled
from ..base.text import describe_result, describe_times
from ..base.times import check_scale
from ..model.game import check_agent
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
from .limit_process import NEAR, root, slope_and_curvature
from .poisson import core_law, poisson


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
        return _near(self.margin, jnp.asarray(check_scale(scale), self.margin.dtype))

    def layer(self, scale: Real[ArrayLike, ""]) -> Float[Array, "K d"]:
        """`-E v(x_t, c_k)`, `[K, d]`: what step k = t N still knows of the first state.

        It is added to b. It fades after some mixing times, except in a periodic chain.
        """
        scale = jnp.asarray(check_scale(scale), self.ts.dtype)
        return _layers(self.wrapped, self.params, self.initial, self.ts, scale)

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
        scale = jnp.asarray(scale, self.ts.dtype)
        return _shifts(self.wrapped, self.params, self.initial, self.ts, scale, self.bias)

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


@lightly_compiled
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
            curved = slope_and_curvature(flat, x, covariance)[1]
            value = value + slope @ shift + curved / (2 * scale)
        variance = jnp.sum((slope @ covariance) * slope, axis=1) / scale
        return Band(unravel_value(value), unravel_value(root(variance)))

    return jax.lax.map(at, (params, covariance, shift))


@lightly_compiled
def _shifted(params, shift):
    def move(params, shift):
        flat, unravel = ravel_pytree(params)
        return unravel(flat + shift)

    return jax.vmap(move)(params, shift)


@lightly_compiled
def _near(margin, scale):
    return jnp.any(margin * jnp.sqrt(scale) < NEAR, axis=1)


@lightly_compiled
def _layers(wrapped, params, initial, ts, scale):
    steps = jnp.rint(ts * scale).astype(int)
    return jax.lax.map(lambda a: _layer(wrapped, a[0], initial, a[1]), (params, steps))


@lightly_compiled
def _shifts(wrapped, params, initial, ts, scale, bias):
    return (bias + _layers(wrapped, params, initial, ts, scale)) / scale


def _layer(wrapped, params, law, steps):
    """`-E v(x, c_k)` after k steps of the chain frozen at x, by repeated squaring."""
    solved = poisson(wrapped, params)

    def square(_, carry):
        law, power, left = carry
        return jnp.where(left % 2 == 1, law @ power, law), power @ power, left // 2

    law, _, _ = jax.lax.fori_loop(0, 54, square, (law, solved.chain, steps))
    return -core_law(wrapped, law, solved) @ solved.values
