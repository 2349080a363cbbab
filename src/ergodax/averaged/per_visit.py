"""What is learnt per visit: the drift of every entry, over how often it is updated.

Its roots are those of the drift, but it does not vanish where an action is rarely taken: there the
drift is small, in the end zero by rounding, though the entry is far from rest.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..model.learner import At
from ..model.wrapped import WrappedGame
from .drift import event_weights, expectation


class PerVisit(NamedTuple):
    """Means over the visits of every entry.

    Attributes:
        change: the increment, `[d]`; zero where an entry is never updated.
        size: its absolute value, `[d]`.
        drift: F, the mean increment per step, `[d]`.
    """

    change: Float[Array, " d"]
    size: Float[Array, " d"]
    drift: Float[Array, " d"]


def flat_per_visit(params) -> Callable[..., PerVisit]:
    """What is learnt per visit, on flat vectors; pure, unchecked, for use inside compiled code.

    Args:
        params: parameters of all agents, d numbers in all.

    Returns:
        A function of `(x, wrapped)`.
    """
    unravel = ravel_pytree(params)[1]

    def per_visit(x: Float[Array, " d"], wrapped: WrappedGame) -> PerVisit:
        params = unravel(x)
        policies = wrapped.policies(params)
        # No action is impossible: a chance of eps^2 leaves all other sums what they are.
        policies = tuple(jnp.maximum(p, jnp.finfo(p.dtype).eps ** 2) for p in policies)
        parts: tuple[list, ...] = ([], [], [])
        for agent, weights in enumerate(event_weights(wrapped, policies).of_agents):
            increments = wrapped.increments(agent, params[agent])
            mean = functools.partial(expectation, weights)
            for part, function in zip(parts, (lambda v: v, jnp.abs, None), strict=True):
                values = jax.tree.map(
                    functools.partial(_applied, function), increments, is_leaf=_is_at
                )
                part.append(jax.tree.map(mean, params[agent], values))
        drift, size, visits = (ravel_pytree(tuple(part))[0] for part in parts)
        visits = jnp.where(visits > 0, visits, 1)
        return PerVisit(drift / visits, size / visits, drift)

    return per_visit


def _is_at(increment: Any) -> bool:
    return isinstance(increment, At)


def _applied(function, increment):
    """A function of an increment; None for whether it touches an entry at all."""
    if isinstance(increment, At):
        value = jnp.ones_like(increment.value) if function is None else function(increment.value)
        return At(increment.index, value)
    return (increment != 0).astype(increment.dtype) if function is None else function(increment)
