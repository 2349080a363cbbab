"""Responses to a deviation: does the other punish, and does cooperation return?"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int

from ..base.checks import check_array, check_count
from ..model.game import MarkovGame, check_agent
from .play import check_deterministic, outcome
from .tables import check_strategies, over_runs


class DeviationResponse(NamedTuple):
    """Play before, during and after a deviation, one row per step.

    Attributes:
        time: the steps, 0 the first of the deviation, `[T]`.
        states: the states, `[T]`.
        actions: the actions of all agents, `[T, n]`.
        rewards: their mean rewards, `[T, n]`.
    """

    time: Int[Array, "*R T"]
    states: Int[Array, "*R T"]
    actions: Int[Array, "*R T n"]
    rewards: Float[Array, "*R T n"]


def deviation_response(
    game: MarkovGame,
    strategies: tuple,
    agent: int,
    action: Int[ArrayLike, "..."] | str,
    state: Int[ArrayLike, "..."],
    *,
    periods: int = 1,
    before: int = 2,
    after: int = 15,
) -> DeviationResponse:
    """What strategies do when one agent is forced to deviate from its own for some steps.

    The impulse response of Calvano, Calzolari, Denicolo and Pastorello 2020 (section IV). A price
    below the cycle's undercuts; one above tests whether the rival follows. To re-optimise during
    the deviation, give the deviating agent's best response as `action`, `[S]` or `[R, S]`.

    Args:
        game: a game with deterministic transitions.
        strategies: one table of actions `[S]` per agent, or `[R, S]`.
        agent: who deviates.
        action: what it plays instead: an action, by number or name, one per run `[R]`, or by state,
            `[S]` or `[R, S]`.
        state: the state in which the first step shown is taken, one number or one per run; one on
            the cycle, as `play` finds it.
        periods: number of steps of the deviation.
        before: number of steps shown before it.
        after: number of steps shown from its first on.

    Raises:
        ValueError: if transitions are random, an action or state does not exist, or a count is not
            positive.
    """
    tables = check_strategies(game, strategies)
    agent = check_agent(game, agent)
    check_deterministic(game)
    before = check_count("before", before, least=0)
    after, periods = check_count("after", after), check_count("periods", periods)
    runs = tables[0].shape[:-1]
    if isinstance(action, str):
        action = _named(action, game.action_names[agent])
    played = _broadcast(action, runs, game.num_states, game.action_names[agent])
    start = np.asarray(check_array("state", state, "a state, or one per run"))
    if not np.issubdtype(start.dtype, np.integer) or start.shape not in ((), runs):
        raise ValueError(f"state must be a state, or one per run; found {state}.")
    if start.min() < 0 or start.max() >= game.num_states:
        raise ValueError(f"state must be 0 to {game.num_states - 1}; found {state}.")
    start = jnp.broadcast_to(jnp.asarray(start), runs)
    time = jnp.arange(-before, after)

    response = Partial(_response, game, agent, jnp.asarray(periods), time)
    return over_runs(response, tables, 1, played, start)


def _response(game, agent, periods, time, strategies, played, start) -> DeviationResponse:
    def step(state, now):
        actions = jnp.stack([own[state] for own in strategies])
        forced = (now >= 0) & (now < periods)
        actions = actions.at[agent].set(jnp.where(forced, played[state], actions[agent]))
        following, rewards = outcome(game, state, actions)
        return following, (state, actions, rewards)

    _, (states, actions, rewards) = jax.lax.scan(step, start.astype(jnp.int32), time)
    return DeviationResponse(time, states, actions, rewards)


def _named(action: str, names: Sequence[str]) -> int:
    """The number of an action by its name."""
    if action not in names:
        near = difflib.get_close_matches(action, names, 1, cutoff=0.0)
        raise ValueError(
            f"action must be one of {', '.join(names)}; found {action!r}; did you mean {near[0]}?"
        )
    return list(names).index(action)


def _broadcast(action, runs, num_states: int, names: Sequence[str]):
    """The action played in every state, `[*R, S]`."""
    count = len(names)
    found = np.asarray(check_array("action", action, "an action, or one per run or state"))
    if not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= count:
        raise ValueError(
            f"action must be an action, 0 to {count - 1}; found {action}. "
            f"Their names serve as well: {', '.join(names)}."
        )
    if found.shape == runs and runs != ():
        if runs == (num_states,):
            raise ValueError(
                f"action of shape {runs} could be one per run or one per state: give "
                f"action[:, None] or action[None, :]."
            )
        found = found[:, None]
    if found.shape not in ((), (num_states,), (1, num_states), (*runs, 1), (*runs, num_states)):
        raise ValueError(
            f"action must be one action, one per run, or one per state, {(*runs, num_states)}; "
            f"found shape {found.shape}."
        )
    return jnp.broadcast_to(jnp.asarray(found), (*runs, num_states))
