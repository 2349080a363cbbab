"""In what unit parameters are measured, so that results do not depend on that of payoffs.

Tolerances and distances are relative to it. Values of actions are in the unit of payoffs, whose
spread does not change when all payoffs are shifted.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..model.wrapped import WrappedGame
from ..ode.integrate import Unit

# Units are powers of two to this power, exact in floating point: one for spreads from 1 to 1024.
_LOG2 = 10
# Values further from zero than so many units lie there because all payoffs are shifted.
_REACH = 1024.0


def units(wrapped: WrappedGame, params) -> Float[Array, " d"]:
    """The unit of every parameter, constant under differentiation.

    The largest power of 1024 below the spread of the agent's rewards. Where the parameters are not
    known to be values in the unit of payoffs (`learner.in_payoffs`) it is at most one, the safe
    side.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, d numbers in all.
    """
    rewards = jax.lax.stop_gradient(wrapped.game.rewards)
    rewards = rewards.reshape(-1, rewards.shape[-1])
    spread, size = jnp.ptp(rewards, axis=0), jnp.abs(rewards).max(axis=0)
    spread = jnp.where(spread > 0, spread, jnp.where(size > 0, size, 1))
    powers = (_LOG2 * jnp.floor(jnp.log2(spread) / _LOG2)).astype(int)
    parts = []
    for agent, learner in enumerate(wrapped.learners):
        count = sum(leaf.size for leaf in jax.tree.leaves(params[agent]))
        power = powers[agent] if learner.in_payoffs else jnp.minimum(powers[agent], 0)
        parts.append(jnp.full(count, jnp.ldexp(jnp.ones((), spread.dtype), power)))
    return jnp.concatenate(parts)


def unit_of(wrapped: WrappedGame, params) -> Unit:
    """The unit of all parameters for tolerances."""
    size = units(wrapped, params)
    reaches = [
        jnp.full(ravel_pytree(own)[0].size, _REACH if learner.in_payoffs else jnp.inf, size.dtype)
        for learner, own in zip(wrapped.learners, params, strict=True)
    ]
    return Unit(size, size * jnp.concatenate(reaches))


def extents(wrapped: WrappedGame, points: tuple) -> Float[np.ndarray, " d"]:
    """How large each array of parameters is at some points: its unit, and how far it spreads.

    Args:
        wrapped: a game and its learners.
        points: parameters of all agents, each leaf with a leading axis of points.
    """
    points = jax.tree.map(np.asarray, points)
    spreads = [
        np.full(leaf[0].size, np.abs(leaf - leaf.mean()).max()) for leaf in jax.tree.leaves(points)
    ]
    one = jax.tree.map(lambda leaf: leaf[0], points)
    return np.asarray(units(wrapped, one)) + np.concatenate(spreads)
