"""Games whose state is an environment that the agents change, and random games."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real

from ..base.checks import check_count, check_key, check_number, check_numbers, is_concrete
from ..base.memory import check_room
from ..model.game import MarkovGame
from ..model.validity import check_table
from .matrix import check_states


def two_state_dilemma(
    rich: Real[ArrayLike, ""] = 2.0,
    poor: Real[ArrayLike, ""] = 1.2,
    cost: Real[ArrayLike, ""] = 1.0,
    *,
    to_rich: Real[ArrayLike, "2 3"] | Sequence | None = None,
) -> MarkovGame:
    """A social dilemma with two states (Hilbe, Simsa, Chatterjee and Nowak 2018).

    A cooperator pays `cost` and gives the other agent the benefit of the state. By default the
    next state is rich exactly where both cooperated, so that cooperation can pay in the long run
    although each state by itself is a prisoner's dilemma.

    Args:
        rich: benefit of the other's cooperation in state "rich".
        poor: the same in state "poor".
        cost: of cooperating.
        to_rich: probability that the next state is rich, `[2, 3]`: by state (rich, poor), and by
            the number of cooperators, 0 to 2.
    """
    check_numbers(rich=rich, poor=poor, cost=cost)
    default = np.array([[0.0, 0.0, 1.0]] * 2)
    chance = jnp.asarray(check_table("to_rich", default if to_rich is None else to_rich, (2, 3)))
    if is_concrete(chance) and not np.all((chance >= 0) & (chance <= 1)):
        raise ValueError(f"to_rich must hold probabilities; found {chance}.")
    chance = chance.astype(float)
    benefit = jnp.stack([jnp.asarray(x, dtype=float) for x in (rich, poor)])[:, None, None]
    cooperates = np.array([1, 0])
    mine, other = cooperates[:, None], cooperates[None, :]
    stays = chance[:, mine + other]
    mine, other = mine[None].astype(float), other[None].astype(float)
    rewards = [benefit * other - cost * mine, benefit * mine - cost * other]
    return MarkovGame.from_dense(
        jnp.stack([stays, 1 - stays], axis=-1),
        jnp.stack(rewards, axis=-1),
        state_names=["rich", "poor"],
        action_names=[["C", "D"]] * 2,
    )


def ecological_public_good(
    num_agents: int = 2,
    factor: float = 1.2,
    cost: float = 5.0,
    impact: float = -5.0,
    *,
    collapse: float = 0.2,
    recovery: float = 0.01,
) -> MarkovGame:
    """A public good under risk of collapse (Barfuss, Donges, Vasconcelos, Kurths and Levin 2020).

    In the prosperous state a public goods game is played: of what cooperators contribute, `cost`
    each, every agent receives `factor / n`. Each defector adds `collapse / n` to the probability
    that the environment degrades. Whenever it degrades or stays degraded, everyone gets `impact`,
    whatever they do; it recovers with probability `recovery`.

    Args:
        num_agents: n.
        factor: f, what contributions are multiplied by.
        cost: c, of cooperating.
        impact: m, the reward in and on the way to the degraded state, negative.
        collapse: q_c, the probability of collapse where all defect.
        recovery: q_r, the probability of recovery.
    """
    num_agents = check_count("num_agents", num_agents)
    check_numbers(factor=factor, cost=cost, impact=impact)
    check_number("collapse", collapse, "[0, 1]")
    check_number("recovery", recovery, "[0, 1]")
    check_states([2] * num_agents, 0)
    shape = (2,) * num_agents
    kernel = np.zeros((2, *shape, 2))
    rewards = np.full((2, *shape, 2, num_agents), float(impact))
    kernel[1] = [recovery, 1 - recovery]
    for profile in itertools.product(range(2), repeat=num_agents):
        defects = np.array(profile)
        risk = collapse * defects.mean()
        kernel[(0, *profile)] = [1 - risk, risk]
        rewards[(0, *profile, 0)] = cost * (factor * (1 - defects).mean() - (1 - defects))
    return MarkovGame.from_dense(
        kernel,
        rewards,
        state_names=["prosperous", "degraded"],
        action_names=[["C", "D"]] * num_agents,
    )


def two_state_matching_pennies(switch: float = 1.0) -> MarkovGame:
    """Matching pennies whose winner changes with the state.

    In state "matcher" agent 0 wins 1 where both show the same side, in state "mismatcher" where
    they differ; agent 1 wins 1 otherwise. After heads of agent 0 the state changes with probability
    `switch`, so that playing well in one state depends on the other. Two-state matching pennies of
    this kind are the example of Barfuss, Donges and Kurths 2019.

    Args:
        switch: probability in [0, 1].
    """
    switch = check_number("switch", switch, "[0, 1]")
    same = np.eye(2)
    wins = np.stack([same, 1 - same])  # [state, own action, other's action]
    moves = np.array([switch, 0.0])[:, None] * np.ones((2, 2))
    kernel = np.stack(
        [np.stack([1 - moves, moves], axis=-1), np.stack([moves, 1 - moves], axis=-1)]
    )
    return MarkovGame.from_dense(
        kernel,
        np.stack([wins, 1 - wins], axis=-1),
        state_names=["matcher", "mismatcher"],
        action_names=[["heads", "tails"]] * 2,
    )


def random_ergodic(
    key: Array, num_states: int = 4, num_actions: tuple[int, ...] = (2, 2)
) -> MarkovGame:
    """A random game in which every state can follow every other, whatever is done.

    Rows of the kernel are uniform on the simplex, rewards standard normal.

    Args:
        key: a random key; the same key gives the same game.
        num_states: S.
        num_actions: (A_1, .., A_n).
    """
    check_key(key)
    if not isinstance(num_actions, tuple | list) or not num_actions:
        raise ValueError(f"num_actions must hold a number per agent; found {num_actions!r}.")
    shape = (check_count("num_states", num_states), *num_actions)
    for agent, count in enumerate(num_actions):
        check_count(f"num_actions of agent {agent}", count)
    check_room(
        64 * math.prod(shape) * num_states,
        f"a game of {num_states} states",
        "take fewer states or actions",
    )
    of_kernel, of_rewards = jax.random.split(key)
    kernel = jax.random.dirichlet(of_kernel, jnp.ones(num_states), shape)
    # Rounding in the draw must not look like a row that does not sum to one.
    kernel = kernel / kernel.sum(axis=-1, keepdims=True)
    return MarkovGame.from_dense(kernel, jax.random.normal(of_rewards, (*shape, len(num_actions))))
