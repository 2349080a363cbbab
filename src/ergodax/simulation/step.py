"""One step of one run of the rescaled process: what `simulate` batches and loops.

Draw every agent's action from one uniform number by the inverse of its policy's distribution
function, draw the outcome the same way, add every agent's increment, 1/N of what it learnt.

In float32 an increment f/N far below the spacing of numbers around X would be lost, so parameters
carry a compensation (Kahan 1965). Float64 needs none.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..model.learner import At, Transition
from .lanes import is_large, reused
from .streams import uniforms

_UNROLLED = 32


class Ensemble(NamedTuple):
    """Where all runs stand: with the random key and the steps taken, enough to continue them.

    Attributes:
        params: parameters of all agents, each leaf `[R, ...]`.
        compensation: what float32 additions have lost so far, like `params`; None in float64.
        state: current states, `[R]`.
        joint_action: actions already drawn for the current state, `[R, n]`; None unless a learner
            needs its next action.
    """

    params: Any
    compensation: Any
    state: Int[Array, " R"]
    joint_action: Any

    def __repr__(self) -> str:
        return f"Ensemble({self.state.shape[0]} runs)"


class Run(NamedTuple):
    """One run under way: where it stands, and the state of every recorder."""

    standing: Ensemble
    recorded: tuple


class Event(NamedTuple):
    """What happened in one step of one run.

    Attributes:
        time: the time at the end of the step, in unscaled steps: k/N for step k = 1, 2, ..
        state: the state s the step started from.
        joint_action: the actions of all agents, `[n]`.
        outcome: which stored outcome of (s, a) was drawn.
        next_state: the state s' that followed.
        rewards: rewards of all agents, `[n]`.
        next_action: the joint action drawn for s', `[n]`; None unless a learner needs it.
    """

    time: Float[Array, ""]
    state: Int[Array, ""]
    joint_action: Int[Array, " n"]
    outcome: Int[Array, ""]
    next_state: Int[Array, ""]
    rewards: Float[Array, " n"]
    next_action: Any


def cumulative_law(probabilities: Float[Array, "*S K"]) -> Float[Array, "*S _"]:
    """Distribution functions for `draw_event`: inner cell boundaries, `[..., K - 1]`.

    No uniform number goes beyond the last possible outcome, however the sums are rounded.
    """
    beyond = jnp.cumsum(probabilities[..., ::-1], axis=-1)[..., -2::-1]
    return jnp.where(beyond > 0, jnp.cumsum(probabilities, axis=-1)[..., :-1], 2)


def step(wrapped, cumulative, recorders, inverse_scale, key, counter, time, run: Run) -> Run:
    """One step of one run: an event is drawn, all agents learn from it, and it is recorded."""
    before = run.standing
    event = draw_event(wrapped, cumulative, key, counter, time, before)
    learnt = increments_of(wrapped, before.params, event)
    learnt = reused(_scaled(learnt, before.params, inverse_scale))
    params, compensation = _add_increments(before.params, before.compensation, learnt)
    recorded = tuple(
        recorder.update(state, event, before.params, params)
        for recorder, state in zip(recorders, run.recorded, strict=True)
    )
    return Run(Ensemble(params, compensation, event.next_state, event.next_action), recorded)


def draw_event(wrapped, cumulative, key, counter, time, standing: Ensemble) -> Event:
    """What happens until `time` to one run, by the random numbers of (key, counter)."""
    game, learners = wrapped.game, wrapped.learners
    params, _, state, joint_action = standing
    draws = uniforms(key, counter, game.num_agents + 1, cumulative.dtype)
    if joint_action is None:
        joint_action = draw_actions(learners, params, state, draws)
    here = (state, *joint_action)
    outcome = jnp.sum(draws[-1] >= cumulative[here], dtype=jnp.int32)
    after = (*here, outcome)
    next_state, rewards = reused((game.successors[after], game.rewards[after]))
    next_action: Any = None
    if wrapped.needs_next_action:
        next_action = draw_actions(learners, params, next_state, draws)
    return Event(time, state, joint_action, outcome, next_state, rewards, next_action)


def increments_of(wrapped, params, event: Event) -> tuple:
    """What every agent learns from an event: one increment per agent, unscaled."""
    return tuple(
        learner.update(
            params[agent],
            Transition(
                state=event.state,
                action=event.joint_action[agent],
                joint_action=event.joint_action,
                reward=event.rewards[agent],
                next_state=event.next_state,
                next_action=event.next_action[agent] if learner.needs_next_action else None,
            ),
            wrapped.game,
            agent,
        )
        for agent, learner in enumerate(wrapped.learners)
    )


def draw_actions(learners, params, state, draws) -> Int[Array, " n"]:
    """Actions of all agents in `state`, each from its own uniform number."""
    return jnp.stack(
        [
            draw(learner.policy(own, state), uniform)
            for learner, own, uniform in zip(learners, params, draws, strict=False)
        ]
    )


def draw(probabilities, uniform):
    """Index whose cell of the distribution function holds the uniform number."""
    if probabilities.shape[0] > _UNROLLED:
        return jnp.sum(uniform >= jnp.cumsum(probabilities)[:-1], dtype=jnp.int32)
    index, cumulative = jnp.zeros((), jnp.int32), jnp.zeros((), probabilities.dtype)
    for k in range(probabilities.shape[0] - 1):
        cumulative = cumulative + probabilities[k]
        index = index + (uniform >= cumulative).astype(index.dtype)
    return reused(index)


def add(value, compensation, increment):
    """Adds with Kahan's compensation where there is one."""
    if compensation is None:
        return value + increment, None
    increment = increment - compensation
    total = value + increment
    return total, (total - value) - increment


def _scaled(increments, params, inverse_scale):
    """Increments 1/N as large, in the precision of the parameters."""

    def scale(leaf, increment):
        if isinstance(increment, At):
            return At(increment.index, scale(leaf, increment.value))
        return (increment * inverse_scale).astype(leaf.dtype)

    return jax.tree.map(scale, params, increments)


def _add_increments(params, compensation, increments):
    leaves, structure = jax.tree.flatten(params)
    lost: list[Any] = (
        [None] * len(leaves) if compensation is None else jax.tree.leaves(compensation)
    )
    for k, increment in enumerate(structure.flatten_up_to(increments)):
        if not isinstance(increment, At):
            leaves[k], lost[k] = add(leaves[k], lost[k], increment)
        elif lost[k] is None:
            leaves[k] = _add_at(leaves[k], increment.index, increment.value)
        else:
            # Both are read before either is written, so that they can be written in place.
            at = increment.index
            entry, value = reused((leaves[k][at], increment.value - lost[k][at]))
            total = entry + value
            leaves[k] = _set_at(leaves[k], at, total)
            lost[k] = _set_at(lost[k], at, (total - entry) - value)
    params = jax.tree.unflatten(structure, leaves)
    return params, None if compensation is None else jax.tree.unflatten(structure, lost)


def _add_at(table, index, value):
    if is_large(table.shape):
        return table.at[index].add(value)
    return jnp.where(_is_at(table, index), table + jnp.broadcast_to(value, table.shape), table)


def _set_at(table, index, value):
    if is_large(table.shape):
        return table.at[index].set(value)
    return jnp.where(_is_at(table, index), jnp.broadcast_to(value, table.shape), table)


def _is_at(table, index):
    """Which entries of a table stand at an index of leading axes, `[...]`."""
    axes = [jax.lax.broadcasted_iota(jnp.int32, table.shape, k) for k in range(len(index))]
    return functools.reduce(
        jnp.logical_and, [axis == k for axis, k in zip(axes, index, strict=True)], True
    )


def words_of(step: int):
    """Low and high word of a step number."""
    return jnp.asarray(np.uint32(step % 2**32)), jnp.asarray(np.uint32(step // 2**32))


def time_of(counter, scale):
    """The time after so many steps, in the precision of the scale."""
    low, high = (word.astype(scale.dtype) for word in counter)
    return (high * 2.0**32 + low) / scale
