"""The Markov chain that policies make of a game."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from .game import MarkovGame
from .learner import At, accumulate


def joint_policy(policies: tuple[Any, ...]) -> Float[Array, "S *A"]:
    """Probabilities of the joint actions, from one table `[S, A_i]` per agent."""
    joint = jnp.ones((policies[0].shape[0],), dtype=policies[0].dtype)
    for policy in policies:
        joint = joint[..., None] * policy.reshape(
            policy.shape[0], *(1,) * (joint.ndim - 1), policy.shape[1]
        )
    return joint


def state_chain(game: MarkovGame, events: Float[Array, "S *A K"]) -> Float[Array, "S S"]:
    """Transition matrix `P(s, s')`, for the probabilities of outcomes given s."""
    num_states = game.num_states
    states = jnp.broadcast_to(
        jnp.arange(num_states).reshape(-1, *(1,) * (events.ndim - 1)), events.shape
    )
    batch = At((states.ravel(), game.successors.ravel()), events.ravel())
    return accumulate(jnp.zeros((num_states, num_states), events.dtype), batch)
