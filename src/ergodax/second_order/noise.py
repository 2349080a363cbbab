"""What the averages leave out: Poisson's equation and the covariance of the noise.

The wrapped chain has core states c: the state s of the game, or (s, a) with the joint action a if a
learner needs its next action. With `h(c)` the mean increment of all agents given c and F the drift,
the Poisson solution `v - P v = h - F`, `nu . v = 0` sums what a start in c adds to the parameters
for ever. An event e that leads from core state c to c' adds to the parameters, beyond the drift,
the martingale difference `m(e) = f(x, e) - F + v(c') - v(c)`, whose covariance under the stationary
law mu is the noise of the limiting diffusion,

    Sigma(x) = sum over e of mu(e) m(e) m(e)^T
             = E[f f^T] - F F^T + G^T v + v^T G,    G(c') = sum over e into c' of mu(e) f(e).

The first line is positive semi-definite by construction; the second never needs an event times
all parameters (for tabular learners it costs O(S^3 + events + S d^2)). Finite random rewards are
further events. Theory: Benveniste, Metivier and Priouret (1990), part II, chapter 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Real

from ..averaged.stationary import check_ergodic, deviation_matrix, preserve_rows
from ..model.learner import At
from ..model.wrapped import WrappedGame

# Up to so many numbers (events times parameters) are the martingale differences written out.
_DENSE_LIMIT = 2**22


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
        values = means - drift + jnp.einsum("ck,ckd->cd", chances, ahead)
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
                row = row * length + scalar
            width = value.shape[1]
            positions.append(offset + row[:, None] * width + jnp.arange(width))
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
    return table.at[rows[:, None], own.positions].add(weights[:, None] * own.values)


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
        rows = (successors[..., None] * count + jnp.arange(count)).ravel()
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


def _with_next_actions(wrapped, array, agent: int | None, over: Sequence[int]):
    """Broadcasts an array over events `[E, ...]` of one agent along other agents' next actions."""
    game = wrapped.game
    own = agent is not None and wrapped.learners[agent].needs_next_action
    rest = array.shape[1:]
    axes = [game.num_actions[j] if own and j == agent else 1 for j in over]
    array = array.reshape(game.successors.size, *axes, *rest)
    full = (game.successors.size, *(game.num_actions[j] for j in over), *rest)
    return jnp.broadcast_to(array, full).reshape(-1, *rest)


def _joint_weights(wrapped, solved: Poisson, over: Sequence[int]):
    """Stationary probabilities of events together with the next actions of some agents, flat."""
    weights = solved.events.ravel()
    successors = wrapped.game.successors.ravel()
    for j in over:
        chances = solved.policies[j][successors]
        chances = chances.reshape(len(successors), *(1,) * (weights.ndim - 1), -1)
        weights = weights[..., None] * chances
    return weights.ravel()


class _Events(NamedTuple):
    """Joint events: their stationary probabilities, where they lead from and to."""

    weights: Float[Array, " E"]
    source: Int[Array, " E"]
    target: Int[Array, " E"]
    agents: tuple[int, ...]


def _events(wrapped: WrappedGame, solved: Poisson) -> _Events:
    game = wrapped.game
    successors = game.successors.ravel()
    if not wrapped.needs_next_action:
        source = jnp.repeat(jnp.arange(game.num_states), successors.size // game.num_states)
        return _Events(solved.events.ravel(), source, successors, ())
    agents = tuple(range(game.num_agents))
    joint = int(np.prod(game.num_actions))
    cores = game.num_states * joint
    source = jnp.repeat(jnp.arange(cores), game.num_successors * joint)
    target = (successors[:, None] * joint + jnp.arange(joint)).ravel()
    return _Events(_joint_weights(wrapped, solved, agents), source, target, agents)


def covariance(wrapped: WrappedGame, solved: Poisson) -> Float[Array, "d d"]:
    """Sigma; pure. Martingale differences written out if there is room, else block by block."""
    size = solved.drift.size
    joint = int(np.prod(wrapped.game.num_actions)) if wrapped.needs_next_action else 1
    if wrapped.game.successors.size * joint * size > _DENSE_LIMIT:
        return _covariance_by_parts(wrapped, solved)
    events = _events(wrapped, solved)
    differences = solved.values[events.target] - solved.values[events.source] - solved.drift
    for agent, own in enumerate(solved.increments):
        places, values = (_with_next_actions(wrapped, part, agent, events.agents) for part in own)
        differences = differences.at[jnp.arange(len(places))[:, None], places].add(values)
    return (events.weights[:, None] * differences).T @ differences


def _covariance_by_parts(wrapped: WrappedGame, solved: Poisson) -> Float[Array, "d d"]:
    flow = inflow(wrapped, solved).T @ solved.values
    total = flow + flow.T - jnp.outer(solved.drift, solved.drift)
    for i, first in enumerate(solved.increments):
        for j, second in enumerate(solved.increments):
            over = sorted({k for k in (i, j) if wrapped.learners[k].needs_next_action})
            weights = _joint_weights(wrapped, solved, over)
            rows, left = (_with_next_actions(wrapped, part, i, over) for part in first)
            columns, right = (_with_next_actions(wrapped, part, j, over) for part in second)
            products = weights[:, None, None] * left[:, :, None] * right[:, None, :]
            total = total.at[rows[:, :, None], columns[:, None, :]].add(products)
    return total


def event_scores(wrapped: WrappedGame, solved: Poisson, vector) -> Float[Array, " E"]:
    """`w . (f(x, e) + v(c'))` for all joint events, what each is worth in a direction w; pure.

    Events are flat in C order of `[S, A_1, .., A_n, K]`, followed by the next joint action if a
    learner needs it.
    """
    events = _events(wrapped, solved)
    total = (solved.values @ vector)[events.target]
    for agent, own in enumerate(solved.increments):
        learnt = jnp.sum(own.values * vector[own.positions], axis=-1)
        total = total + _with_next_actions(wrapped, learnt, agent, events.agents)
    return total


def covariance_product(wrapped: WrappedGame, solved: Poisson, vector) -> Float[Array, " d"]:
    """Sigma times a vector, event by event and without Sigma; pure."""
    events = _events(wrapped, solved)

    def difference(vector):
        constant = (solved.values @ vector)[events.source] + solved.drift @ vector
        return event_scores(wrapped, solved, vector) - constant

    projected, transpose = jax.vjp(difference, vector)
    return transpose(events.weights * projected)[0]


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
    check_ergodic(wrapped, params)
    return _poisson_values(wrapped, params)


@eqx.filter_jit
def _poisson_values(wrapped, params):
    solved = poisson(preserve_rows(wrapped), params)
    if not wrapped.needs_next_action:
        return solved.values
    return solved.values.reshape(*solved.joint_policy.shape, -1)


def noise_covariance(
    wrapped: WrappedGame, params: Any, *, vector: Real[Array, " d"] | np.ndarray | None = None
) -> Float[Array, "*d d"]:
    """Covariance Sigma(x) of the noise, per unscaled step: `sqrt(N) (X^N - x)` diffuses by it.

    Includes the correlations of successive states and those between agents. It depends on the
    learners' next actions where they need them: SARSA has the drift of expected SARSA, but another
    Sigma. Up to four million events times parameters Sigma is positive semi-definite by
    construction, beyond that up to rounding.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, d numbers in all.
        vector: `[d]`; if given, only the product with it is made, in memory proportional to the
            number of events plus that of states times parameters.

    Returns:
        Sigma, `[d, d]`, in the order of `jax.flatten_util.ravel_pytree(params)`; or Sigma times
        `vector`, `[d]`.

    Raises:
        ValueError: as `stationary_distribution`; if `vector` does not have d entries.
    """
    check_ergodic(wrapped, params)
    if vector is None:
        return _noise_covariance(wrapped, params)
    size = ravel_pytree(params)[0].size
    if np.shape(vector) != (size,):
        raise ValueError(f"vector must have shape ({size},); found {np.shape(vector)}.")
    return _noise_product(wrapped, params, jnp.asarray(vector, dtype=float))


@eqx.filter_jit
def _noise_covariance(wrapped, params):
    wrapped = preserve_rows(wrapped)
    return covariance(wrapped, poisson(wrapped, params))


@eqx.filter_jit
def _noise_product(wrapped, params, vector):
    wrapped = preserve_rows(wrapped)
    return covariance_product(wrapped, poisson(wrapped, params), vector)
