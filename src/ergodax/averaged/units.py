"""In what unit parameters are measured, so that results do not depend on that of payoffs.

Tolerances and distances are relative to it. Values of actions are in the unit of payoffs, whose
spread does not change when all payoffs are shifted.
"""

import jax
import jax.numpy as jnp
import numpy as np
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
    unit, owner = _units_of_agents(wrapped), _owners(params)
    return jnp.take(unit, owner, mode="clip")


def _units_of_agents(wrapped: WrappedGame) -> Float[Array, " n"]:
    rewards = jax.lax.stop_gradient(wrapped.game.rewards)
    rewards = rewards.reshape(-1, rewards.shape[-1])
    spread, size = jnp.ptp(rewards, axis=0), jnp.abs(rewards).max(axis=0)
    spread = jnp.where(spread > 0, spread, jnp.where(size > 0, size, 1))
    most = (jnp.finfo(spread.dtype).maxexp - 1) // _LOG2
    powers = np.ldexp(1.0, _LOG2 * np.arange(-most, most + 1)).astype(spread.dtype)
    unit = jnp.where(powers[None] <= spread[:, None], powers[None], powers[0]).max(axis=1)
    known = np.array([learner.in_payoffs for learner in wrapped.learners])
    return jnp.where(known, unit, jnp.minimum(unit, 1))


def _owners(params) -> np.ndarray:
    """The agent of every parameter, `[d]`."""
    counts = [sum(leaf.size for leaf in jax.tree.leaves(own)) for own in params]
    return np.repeat(np.arange(len(counts)), counts)


def unit_of(wrapped: WrappedGame, params) -> Unit:
    """The unit of all parameters for tolerances."""
    size = units(wrapped, params)
    reaches = np.array([_REACH if learner.in_payoffs else np.inf for learner in wrapped.learners])
    return Unit(size, size * reaches[_owners(params)].astype(size.dtype))


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
