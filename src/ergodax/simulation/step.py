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

from ..base.devices import as_array
from ..model.learner import At, Transition
from ..model.private import drawn_by
from .lanes import is_large, reused
from .streams import uniforms

_UNROLLED = 32
# A sum of probabilities may be so far from one: more than rounding of thousands of float32 numbers.
_OFF = 1e-4
# Bits of an action's number. Those above tell of faults, and of lost runs are moved down so far.
_ACTIONS, _SETTLED = 2**16 - 1, 14
# How a run was lost: it became infinite or NaN, or before that a policy was no distribution.
DIVERGED, MISPLAYED = 1, 2


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
    """One run under way.

    Attributes:
        standing: where it stands.
        recorded: the state of every recorder.
        faults: faults of policies that were played, as `draw_actions` returns them, and once it is
            lost, how.
    """

    standing: Ensemble
    recorded: tuple
    faults: Int[Array, ""]


class Event(NamedTuple):
    """What happened in one step of one run.

    Attributes:
        time: the time at the end of the step, in unscaled steps: k/N for step k = 1, 2, .., rounded
            to the precision of the simulation: to seven digits in float32, so that beyond 2^24
            steps neighbours have the same time. Count steps in a recorder's integers.
        state: the state s the step started from.
        joint_action: the actions of all agents, `[n]`.
        outcome: which stored outcome of (s, a) in `wrapped.game` was drawn.
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

    No uniform number leads to an impossible outcome, however the sums are rounded: its cell is
    empty, and there is none beyond the last possible one.
    """
    possible = probabilities > 0
    ends = jax.lax.cummax(
        jnp.where(possible, jnp.cumsum(probabilities, axis=-1), 0), axis=probabilities.ndim - 1
    )
    beyond = jnp.flip(jnp.cumsum(jnp.flip(possible, -1), axis=-1), -1)[..., 1:]
    return jnp.where(beyond > 0, ends[..., :-1], 2)


def step(simulated, scale, key, counter, run: Run, live: Any = None) -> Run:
    """One step of one run: an event is drawn, all agents learn from it, and it is recorded.

    Simulated is a wrapped game with its `cumulative_law` and recorders. If `live` is given and
    false, nothing happens.
    """
    wrapped, cumulative, recorders = simulated
    before, inverse_scale = run.standing, (1 / scale).astype(cumulative.dtype)
    time = time_of(counter, scale)
    event, faults = draw_event(wrapped, cumulative, key, counter, time, before)
    learnt = increments_of(wrapped, before.params, event)
    learnt = reused(_scaled(learnt, before.params, inverse_scale))
    params, compensation = _add_increments(before.params, before.compensation, learnt, live)
    recorded = tuple(
        recorder.update(state, event, before.params, params)
        for recorder, state in zip(recorders, run.recorded, strict=True)
    )
    now, then = (event.next_state, event.next_action), (before.state, before.joint_action)
    return Run(
        Ensemble(params, compensation, *_only_if(live, now, then)),
        _only_if(live, recorded, run.recorded),
        _only_if(live, run.faults | faults, run.faults),
    )


def _only_if(live, after, before):
    """What has become of arrays, or the arrays as they were."""
    if live is None:
        return after
    return jax.tree.map(functools.partial(jax.lax.select_n, live), before, after)


def draw_event(wrapped, cumulative, key, counter, time, standing: Ensemble):
    """What happens until `time` to one run, by the random numbers of (key, counter).

    Returns:
        The event, and the faults of the policies that were played.
    """
    game, learners = wrapped.game, wrapped.learners
    params, _, state, joint_action = standing
    draws = uniforms(key, counter, game.num_agents + 1, cumulative.dtype)
    faults: Any = None
    if joint_action is None:
        joint_action, faults = draw_actions(learners, params, state, draws)
    here = (state, *joint_action)
    outcome = jnp.sum(draws[-1] >= cumulative[here], dtype=jnp.int32)
    after = (*here, outcome)
    next_state, rewards = reused((game.successors[after], game.rewards[after]))
    next_action: Any = None
    if wrapped.needs_next_action:
        next_action, faults = draw_actions(learners, params, next_state, draws)
    event = Event(time, state, joint_action, outcome, next_state, rewards, next_action)
    return event, faults


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
                lottery=drawn_by(wrapped.learners, agent, event.outcome),
            ),
            wrapped.game,
            agent,
        )
        for agent, learner in enumerate(wrapped.learners)
    )


def draw_actions(learners, params, state, draws):
    """Actions of all agents in `state`, each from its own uniform number, and faults of policies.

    Returns:
        Actions `[n]`, and an integer whose bits are those of `fault_of` the agents whose
        probabilities are negative, NaN, or do not sum to one.
    """
    actions, faults = [], jnp.zeros((), jnp.int32)
    for agent, (learner, own, uniform) in enumerate(zip(learners, params, draws, strict=False)):
        action, valid = draw(learner.policy(own, state), uniform)
        # In one number, lest the policy be computed once for each.
        both = reused(jnp.where(valid, action, action | fault_of(agent)))
        actions.append(both & _ACTIONS)
        faults = faults | both
    return jnp.stack(actions), faults & ~_ACTIONS


def fault_of(agent: int) -> int:
    """The bit that stands for a fault of an agent's policy."""
    return lost_by(agent) << _SETTLED


def lost_by(agent: int) -> int:
    """The bit of a lost run that stands for the agent; the last one is that of all others."""
    return 4 << min(agent, 13)


def settle(faults, diverged):
    """Says how a run was lost, which then stays: by its faults, if it was finite until now."""
    known, seen = faults & _ACTIONS, faults >> _SETTLED
    lost = jnp.where(diverged, DIVERGED, jnp.where(seen > 0, seen | MISPLAYED, 0))
    return jnp.where(known > 0, known, lost)


def draw(probabilities, uniform):
    """An index of positive probability: the last whose cell begins at or below the number.

    Returns:
        The index by the inverse of the distribution function, and whether there is one: no
        probability is negative or NaN, and they sum to one.
    """
    count = probabilities.shape[0]
    if count > _UNROLLED:
        ends = jnp.cumsum(probabilities)
        cells = (probabilities > 0) & (uniform >= ends - probabilities)
        index = jnp.max(jnp.where(cells, jnp.arange(count, dtype=jnp.int32), 0))
        total, positive = ends[-1], jnp.all(probabilities >= 0)
    else:
        index, total, positive = jnp.zeros((), jnp.int32), probabilities[0], probabilities[0] >= 0
        for k in range(1, count):
            index = jnp.where((uniform >= total) & (probabilities[k] > 0), k, index)
            total, positive = total + probabilities[k], positive & (probabilities[k] >= 0)
    return index, positive & (jnp.abs(total - 1) <= _OFF)


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


def _add_increments(params, compensation, increments, live):
    leaves, structure = jax.tree.flatten(params)
    lost: list[Any] = (
        [None] * len(leaves) if compensation is None else jax.tree.leaves(compensation)
    )
    for k, increment in enumerate(structure.flatten_up_to(increments)):
        before = leaves[k], lost[k]
        if isinstance(increment, At) and not increment.index:
            increment = increment.value
        if not isinstance(increment, At):
            leaves[k], lost[k] = _only_if(live, add(*before, increment), before)
            continue
        at = increment.index
        if lost[k] is None:
            leaves[k] = _add_at(leaves[k], _inside_if(live, at, leaves[k]), increment.value)
        else:
            # Both are read before either is written, so that they can be written in place.
            entry, value = reused((leaves[k][at], increment.value - lost[k][at]))
            total, at = entry + value, _inside_if(live, at, leaves[k])
            leaves[k] = _set_at(leaves[k], at, total)
            lost[k] = _set_at(lost[k], at, (total - entry) - value)
    params = jax.tree.unflatten(structure, leaves)
    return params, None if compensation is None else jax.tree.unflatten(structure, lost)


def _inside_if(live, index, table):
    """An index, or one outside of the table, where nothing is written."""
    if live is None:
        return index
    return (jnp.where(live, index[0], table.shape[0]), *index[1:])


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
        jnp.logical_and,
        [axis == k.astype(axis.dtype) for axis, k in zip(axes, index, strict=True)],
        True,
    )


def words_of(step: Any):
    """Low and high word of a step number, or of several."""
    return as_array(np.uint32(step % 2**32)), as_array(np.uint32(step // 2**32))


def later(counter, steps):
    """The words of the step that is so many steps later, fewer than 2^31."""
    low = counter[0] + steps.astype(counter[0].dtype)
    return low, counter[1] + (low < counter[0]).astype(counter[1].dtype)


def time_of(counter, scale):
    """The time after so many steps, in the precision of the scale."""
    low, high = (word.astype(scale.dtype) for word in counter)
    return (high * 2.0**32 + low) / scale
