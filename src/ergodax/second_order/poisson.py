"""Poisson's equation: what a start in one core state rather than another adds to the parameters.

The wrapped chain has core states c: the state s of the game, or (s, a) with the joint action a if a
learner needs its next action. With `h(c)` the mean increment of all agents given c and F the drift,
the solution of `v - P v = h - F`, `nu . v = 0` sums what a start in c adds to the parameters for
ever.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..averaged.room import check_slopes, size_of
from ..averaged.stationary import check_ergodic, deviation_matrix, preserve_rows
from ..base.compiling import lightly_compiled
from ..model.learner import At, accumulate
from ..model.wrapped import WrappedGame

# Numbers per core state and parameter that a solution of Poisson's equation takes (measured).
_PER_CORE = 5


class Increments(NamedTuple):
    """What one agent learns from its events, by place in the flat vector of all parameters.

    Attributes:
        positions: places touched, `[E, W]`.
        values: what is added there, `[E, W]`.
    """

    positions: Any
    values: Any


class Poisson(NamedTuple):
    """First-order averages at frozen parameters, all agents in one flat vector of length d.

    Attributes:
        increments: for every agent.
        policies: of all agents, `[S, A_i]` each.
        joint_policy: `[S, A_1, .., A_n]`.
        chain: transition matrix of the states, `[S, S]`.
        events: stationary probability of the stored outcomes, `[S, A_1, .., A_n, K]`.
        drift: F, `[d]`.
        values: v at the core states, `[C, d]`.
    """

    increments: tuple[Increments, ...]
    policies: tuple[Float[Array, "S _"], ...]
    joint_policy: Float[Array, "S *A"]
    chain: Float[Array, "S S"]
    events: Float[Array, "S *A K"]
    drift: Float[Array, " d"]
    values: Float[Array, "C d"]


@eqx.filter_jit  # traced once for all programs that it is a part of
def poisson(wrapped: WrappedGame, params) -> Poisson:
    """Solves Poisson's equation; pure, unchecked, for use inside compiled code."""
    game = wrapped.game
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    increments = _increments(wrapped, params)
    policies = wrapped.policies(params)
    joint = wrapped.joint_policy(policies)
    given_state = wrapped.event_probabilities(joint)
    chain = wrapped.state_chain(given_state)
    law, deviation = deviation_matrix(chain)

    # Core states come first in the order of events, so that their events are consecutive.
    num_cores = joint.size if wrapped.needs_next_action else game.num_states
    given_core = game.probabilities if wrapped.needs_next_action else given_state
    means = jnp.zeros((num_cores, size), law.dtype)
    for agent, own in enumerate(increments):
        weights = _own_weights(wrapped, agent, given_core, policies).reshape(num_cores, -1)
        core = jnp.repeat(jnp.arange(num_cores), weights.shape[1])
        means = _add(means, core, weights.ravel(), own)
    if not wrapped.needs_next_action:
        drift, values = law @ means, deviation @ means
    else:
        given_action = means.reshape(*joint.shape, size)
        by_state = (joint[..., None] * given_action).reshape(game.num_states, -1, size).sum(axis=1)
        drift = law @ by_state
        ahead = (deviation @ by_state)[game.successors.reshape(num_cores, -1)]
        chances = game.probabilities.reshape(num_cores, -1)
        values = means - drift[None] + jnp.einsum("ck,ckd->cd", chances, ahead)
    events = law.reshape(-1, *(1,) * (given_state.ndim - 1)) * given_state
    return Poisson(increments, policies, joint, chain, events, drift, values)


def _increments(wrapped: WrappedGame, params) -> tuple[Increments, ...]:
    found, offset = [], 0
    for agent, own in enumerate(params):
        leaves, structure = jax.tree.flatten(own)
        positions, values = [], []
        increments = structure.flatten_up_to(wrapped.increments(agent, own))
        for leaf, increment in zip(leaves, increments, strict=True):
            index = increment.index if isinstance(increment, At) else ()
            value = increment.value if isinstance(increment, At) else increment
            value = value.reshape(value.shape[0], -1)
            row = jnp.zeros(value.shape[0], jnp.int32)
            for scalar, length in zip(index, leaf.shape, strict=False):
                row = row * length + scalar.astype(row.dtype)
            width = value.shape[1]
            positions.append(
                offset + row[:, None] * width + jnp.arange(width, dtype=row.dtype)[None]
            )
            values.append(value)
            offset += leaf.size
        found.append(Increments(jnp.concatenate(positions, 1), jnp.concatenate(values, 1)))
    return tuple(found)


def _own_weights(wrapped, agent, events, policies):
    """Probabilities of one agent's events, its own next action included if it needs it."""
    if not wrapped.learners[agent].needs_next_action:
        return events
    return events[..., None] * policies[agent][wrapped.game.successors]


def _add(table, rows, weights, own: Increments):
    """Adds weighted increments of events to rows of a table `[R, d]`."""
    rows = jnp.broadcast_to(rows[:, None], own.positions.shape)
    added = (weights[:, None] * own.values).ravel()
    return accumulate(table, At((rows.ravel(), own.positions.ravel()), added))


def inflow(wrapped: WrappedGame, solved: Poisson) -> Float[Array, "C d"]:
    """G(c'), the mean of the increment over events into each core state, times its probability."""
    game, size = wrapped.game, solved.drift.size
    num_states, successors = game.num_states, game.successors
    if not wrapped.needs_next_action:
        table = jnp.zeros((num_states, size), solved.drift.dtype)
        for own in solved.increments:
            table = _add(table, successors.ravel(), solved.events.ravel(), own)
        return table
    total = jnp.zeros((*solved.joint_policy.shape, size), solved.drift.dtype)
    for agent, own in enumerate(solved.increments):
        needs = wrapped.learners[agent].needs_next_action
        weights = _own_weights(wrapped, agent, solved.events, solved.policies)
        count = game.num_actions[agent] if needs else 1
        own_actions = jnp.arange(count, dtype=successors.dtype)
        rows = (successors.ravel()[:, None] * count + own_actions[None]).ravel()
        table = jnp.zeros((num_states * count, size), solved.drift.dtype)
        table = _add(table, rows, weights.ravel(), own)
        # The other agents draw their next actions independently.
        others = list(solved.policies)
        if needs:
            others[agent] = jnp.ones_like(others[agent])
        axes = [1] * game.num_agents
        axes[agent] = count
        table = table.reshape(num_states, *axes, size)
        total = total + wrapped.joint_policy(tuple(others))[..., None] * table
    return total.reshape(-1, size)


def check_covariance(
    what: str,
    wrapped: WrappedGame,
    params: Any,
    *,
    slopes: bool = True,
    times: int = 0,
    bias: bool = False,
) -> None:
    """Raises ValueError if memory does not suffice for covariances.

    Args:
        what: holds them.
        wrapped: a game and its learners.
        params: parameters of all agents.
        slopes: whether the Jacobian is taken too.
        times: at how many times they are kept.
        bias: whether bias is computed.
    """
    size, cores = size_of(params), wrapped.game.num_states
    if wrapped.needs_next_action:
        cores *= math.prod(wrapped.game.num_actions)
    # Solutions of Poisson's equation, and with bias their derivatives.
    beside = _PER_CORE * cores * size * (size if bias else 1)
    instead = (
        "covariances hold a number for every pair of parameters; simulate many runs instead, or "
        "take fewer states, actions or times"
    )
    columns, kept = (None, 8 + times) if slopes else (0, 2)
    check_slopes(what, wrapped, params, instead, columns=columns, kept=kept, beside=beside)


def core_law(wrapped: WrappedGame, law: Float[Array, " S"], solved: Poisson) -> Float[Array, " C"]:
    """Law of the core state, given that of the state."""
    if not wrapped.needs_next_action:
        return law
    policy = solved.joint_policy
    return (law.reshape(-1, *(1,) * (policy.ndim - 1)) * policy).ravel()


def poisson_values(wrapped: WrappedGame, params: Any) -> Float[Array, "*C d"]:
    """Solution v of Poisson's equation for the increments of all agents.

    `v(c)` is what starting in the core state c rather than in the stationary law adds, in the
    long run, to the (unscaled) parameters: `v - P v = h - F`, `nu . v = 0`.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, d numbers in all.

    Returns:
        `[S, d]`; `[S, A_1, .., A_n, d]` if a learner needs its next action, as SARSA does. The last
        axis has the order of `jax.flatten_util.ravel_pytree(params)`.

    Raises:
        ValueError: as `stationary_distribution`.
    """
    wrapped, params = check_ergodic(wrapped, params)
    check_covariance("a solution of Poisson's equation", wrapped, params, slopes=False)
    return _poisson_values(wrapped, params)


@lightly_compiled
def _poisson_values(wrapped, params):
    solved = poisson(preserve_rows(wrapped), params)
    if not wrapped.needs_next_action:
        return solved.values
    return solved.values.reshape(*solved.joint_policy.shape, -1)
