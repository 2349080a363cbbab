"""Repeated matrix games whose state is the memory of past play."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Real

from ..model.game import MarkovGame
from ..model.validity import name_actions


def repeated(
    payoffs: Real[ArrayLike, "*A n"] | Sequence,
    *,
    memory: int = 1,
    action_names: Sequence[Sequence[str]] | None = None,
    initial: Real[ArrayLike, " S"] | Sequence | None = None,
) -> MarkovGame:
    """A matrix game played for ever by agents that remember the last `memory` joint actions.

    States are the remembered joint actions, oldest first, in C order: with memory 1 the state is
    the last joint action; with memory 0 there is one state. There are `(A_1 .. A_n)^memory` states.

    Args:
        payoffs: payoffs of all agents, `[A_1, .., A_n, n]`.
        memory: number of past rounds remembered.
        action_names: names of each agent's actions; states are named after them.
        initial: law of the first state, `[S]`; uniform by default.

    Returns:
        The Markov game, with deterministic transitions.

    Raises:
        ValueError: if the payoffs do not have one entry per agent on their last axis or are not
            finite, or `memory` is negative.

    Example:
        >>> stag_hunt = [[[4, 4], [0, 3]], [[3, 0], [2, 2]]]
        >>> ex.games.repeated(stag_hunt, action_names=[["stag", "hare"]] * 2).state_names
        ('stag-stag', 'stag-hare', 'hare-stag', 'hare-hare')
    """
    shape = np.shape(payoffs)
    num_actions, num_agents = shape[:-1], len(shape) - 1
    if num_agents < 1 or shape[-1] != num_agents:
        raise ValueError(f"payoffs must have shape [A_1, .., A_n, n]; found {shape}.")
    if not isinstance(memory, int | np.integer) or memory < 0:
        raise ValueError(f"memory must be 0 or more rounds; found {memory}.")
    names = name_actions(action_names, num_actions)
    profiles = list(itertools.product(*names))
    short = all(len(name) == 1 for own in names for name in own)
    labels = [("" if short else "-").join(profile) for profile in profiles]
    histories = list(itertools.product(labels, repeat=memory))

    joint = math.prod(num_actions)
    states = np.arange(joint**memory)
    # Forget the oldest joint action, append the one just played.
    kept = states[:, None] * joint + np.arange(joint)
    next_state = (kept % joint**memory).reshape(len(states), *num_actions)
    rewards = jnp.broadcast_to(jnp.asarray(payoffs), (len(states), *shape))
    return MarkovGame.deterministic(
        next_state,
        rewards,
        initial=initial,
        state_names=[" ".join(history) or "-" for history in histories],
        action_names=names,
    )


def prisoners_dilemma(g: Real[ArrayLike, ""] = 1.5) -> MarkovGame:
    """The memory-one prisoner's dilemma of Kerzreho (2025).

    Each agent has 2 to put in or keep, and receives g/2 times what both put in. Payoffs are CC
    `(2g, 2g)`, CD `(g, 2 + g)`, DC `(2 + g, g)`, DD `(2, 2)`: a dilemma for 1 < g < 2. The states
    CC, CD, DC, DD are the last joint action.

    Args:
        g: the gain from cooperation.
    """
    g = jnp.asarray(g, dtype=float)
    payoffs = jnp.stack(
        [
            jnp.stack([jnp.stack([2 * g, 2 * g]), jnp.stack([g, 2 + g])]),
            jnp.stack([jnp.stack([2 + g, g]), jnp.stack([2 + 0 * g, 2 + 0 * g])]),
        ]
    )
    return repeated(payoffs, memory=1, action_names=[["C", "D"], ["C", "D"]])
