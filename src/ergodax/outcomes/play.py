"""Greedy strategies played out: the way to a cycle, and the cycle."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ..base.checks import is_concrete
from ..model.game import MarkovGame, first_state_law
from .tables import check_strategies, check_tables, over_runs


def greedy(game: MarkovGame, policies: tuple) -> tuple[tuple, Bool[Array, "*R S n"]]:
    """The likeliest action of every agent in every state.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`; action values serve as well
            where probabilities increase with them.

    Returns:
        A table of actions `[S]` per agent, the first of those tied, and where there is a tie,
        `[S, n]`: what is played there is a choice of this function and not of the agent. Of a
        cycle that `play` finds, `tied & on_cycle[..., None]` says where it rests on such a choice.
    """
    tables = check_tables(game, policies, "[S, A_i] of probabilities or values")
    best = tuple(jnp.argmax(table, axis=-1) for table in tables)
    tied = [(table == table.max(axis=-1, keepdims=True)).sum(axis=-1) > 1 for table in tables]
    return best, jnp.stack(tied, axis=-1)


class Play(NamedTuple):
    """Strategies played out from a first state until they repeat themselves.

    Attributes:
        transient: number of steps before the cycle is entered.
        length: number of states of the cycle.
        states: the states in the order of play, transient then cycle, `[S]`; -1 after the end.
        on_cycle: which states belong to the cycle, `[S]`.
        rewards: every agent's mean reward on the cycle, `[n]`.
        actions: actions played in `states`, `[S, n]`; -1 after the end.
        symmetric: whether all agents always play the same action on the cycle.
    """

    transient: Int[Array, "*R"]
    length: Int[Array, "*R"]
    states: Int[Array, "*R S"]
    on_cycle: Bool[Array, "*R S"]
    rewards: Float[Array, "*R n"]
    actions: Int[Array, "*R S n"]
    symmetric: Bool[Array, "*R"]


def play(
    game: MarkovGame,
    strategies: tuple,
    initial_state: int | np.integer | str | Int[ArrayLike, " R"] | None = None,
) -> Play:
    """Plays strategies out in a game with deterministic transitions.

    Args:
        game: a game with one successor per state and joint action.
        strategies: one table of actions `[S]` per agent, or `[R, S]`.
        initial_state: where play begins, by number or name, or one per run; state 0 by default.

    Raises:
        ValueError: if transitions are random, or strategies do not fit the game.
    """
    tables = check_strategies(game, strategies)
    first = 0 if initial_state is None else initial_state
    law = np.asarray(first_state_law(game, first, several=tables[0].ndim > 1))
    start = jnp.asarray(law.argmax(axis=-1))
    check_deterministic(game)
    starts = jnp.broadcast_to(start, tables[0].shape[:-1])
    return over_runs(Partial(_play, game), tables, 1, starts)


def check_deterministic(game: MarkovGame) -> None:
    """Raises ValueError unless every state and joint action has one successor."""
    if is_concrete(game.probabilities) and is_concrete(game.successors):
        possible = np.where(np.asarray(game.probabilities) > 0, game.successors, -1)
        lowest = np.where(possible < 0, game.num_states, possible).min(axis=-1)
        if (possible.max(axis=-1) != lowest).any():
            raise ValueError(
                "play needs a game with deterministic transitions; this one's next states are "
                "random. mean_rewards and values take any game."
            )


def outcome(game: MarkovGame, state, actions):
    """The next state and the mean rewards `[n]` of a joint action."""
    index = (state, *actions)
    weights = game.probabilities[index]
    return game.successors[index][weights.argmax()], weights @ game.rewards[index]


def _play(game: MarkovGame, strategies, start) -> Play:
    size = game.num_states

    def step(carry, time):
        state, last_seen = carry
        last_seen = last_seen.at[state].set(time)
        actions = jnp.stack([own[state] for own in strategies])
        following, rewards = outcome(game, state, actions)
        return (following, last_seen), (state, actions, rewards)

    time, never = jnp.arange(size, dtype=jnp.int32), jnp.full(size, -1, jnp.int32)
    (again, last_seen), (states, actions, rewards) = jax.lax.scan(
        step, (start.astype(jnp.int32), never), time
    )
    # After S steps play is on the cycle: it is what was seen since `again` was seen last.
    length = size - last_seen[again]
    on_cycle = last_seen >= last_seen[again]
    transient = jnp.sum(last_seen >= 0, dtype=jnp.int32) - length
    shown = time < transient + length
    counted = (time >= transient) & shown
    mean = jnp.sum(jnp.where(counted[:, None], rewards, 0), axis=0) / length.astype(rewards.dtype)
    return Play(
        transient,
        length,
        jnp.where(shown, states, -1),
        on_cycle,
        mean,
        jnp.where(shown[:, None], actions, -1),
        jnp.all((actions == actions[:, :1]) | ~counted[:, None]),
    )
