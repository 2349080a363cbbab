"""The averaged drift F(x): what all agents learn per step, averaged over the stationary law.

`F(x) = sum over events e of mu_x(e) f(x, e)`, with `mu_x(s, a, s') = nu_x(s) pi_x(a|s) T(s'|s, a)`
(Kerzreho 2025, theorem 1). The visit weights nu and pi are part of it, so it is the drift of the
real, asynchronous algorithm.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..base.compiling import lightly_compiled, precise
from ..model.game import scatter_successors
from ..model.learner import At, accumulate
from ..model.wrapped import WrappedGame
from .room import check_slopes
from .stationary import check_ergodic, preserve_rows, stationary_law


class Averages(NamedTuple):
    """Stationary averages at frozen parameters.

    Attributes:
        drift: F(x), structured like the parameters.
        state_distribution: nu_x, `[S]`.
        events: the occupation measure on the stored outcomes, `[S, A_1, .., A_n, K]`.
        chain: transition matrix of the states, `[S, S]`.
    """

    drift: tuple
    state_distribution: Float[Array, " S"]
    events: Float[Array, "S *A K"]
    chain: Float[Array, "S S"]


class EventWeights(NamedTuple):
    """Probabilities of all events at frozen policies.

    Attributes:
        of_agents: for every agent those of the events of `wrapped.transitions`, `[E]`.
        state_distribution: the stationary law of the states, `[S]`.
        events: those of the stored outcomes, `[S, A_1, .., A_n, K]`.
        chain: transition matrix of the states, `[S, S]`.
    """

    of_agents: list[Float[Array, " E"]]
    state_distribution: Float[Array, " S"]
    events: Float[Array, "S *A K"]
    chain: Float[Array, "S S"]


@eqx.filter_jit  # traced once for all programs that it is a part of
def average(wrapped: WrappedGame, params) -> Averages:
    """Averages over the stationary law; pure, unchecked, for use inside compiled code."""
    weights = event_weights(wrapped, wrapped.policies(params))
    drifts = []
    for agent in range(wrapped.game.num_agents):
        mean = functools.partial(expectation, weights.of_agents[agent])
        increments = wrapped.increments(agent, params[agent])
        drifts.append(jax.tree.map(mean, params[agent], increments))
    return Averages(tuple(drifts), *weights[1:])


def event_weights(wrapped: WrappedGame, policies) -> EventWeights:
    """Probabilities of all events for given policies."""
    given_state = wrapped.event_probabilities(wrapped.joint_policy(policies))
    chain = wrapped.state_chain(given_state)
    law = stationary_law(chain)
    events = law.reshape(-1, *(1,) * (given_state.ndim - 1)) * given_state
    weights = []
    for agent, learner in enumerate(wrapped.learners):
        own = events
        if learner.needs_next_action:
            own = own[..., None] * policies[agent][wrapped.game.successors]
        weights.append(own.ravel())
    return EventWeights(weights, law, events, chain)


def expectation(weights, like, increments):
    """Sum of increments, sparse or dense, weighted by the probabilities of their events `[E]`."""
    if not isinstance(increments, At):
        return jnp.tensordot(weights, increments, axes=1)
    values = increments.value
    weighted = weights.reshape(-1, *(1,) * (values.ndim - 1)) * values
    return accumulate(jnp.zeros_like(like), At(increments.index, weighted))


def flat_drift(params) -> tuple[Array, Callable, Callable]:
    """The drift on flat vectors; pure, unchecked, for use inside compiled code.

    Args:
        params: parameters of all agents, d numbers in all.

    Returns:
        `x`, the parameters as one vector `[d]`; `unravel`, which restores their structure; and
        `field(x, wrapped)`, the drift as a vector `[d]`.
    """
    flat, unravel = ravel_pytree(params)

    @precise
    def field(x: Float[Array, " d"], wrapped: WrappedGame) -> Float[Array, " d"]:
        return ravel_pytree(average(wrapped, unravel(x)).drift)[0]

    return flat, unravel, field


def drift(wrapped: WrappedGame, params):
    """Averaged drift F(x) of all agents' parameters, per unscaled step.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, as `wrapped.init()` returns them.

    Returns:
        F(x), structured like `params`.

    Raises:
        ValueError: as `stationary_distribution`.
    """
    wrapped, params = check_ergodic(wrapped, params)
    return _drift(wrapped, params)


@lightly_compiled
def _drift(wrapped, params):
    return average(preserve_rows(wrapped), params).drift


def jacobian(wrapped: WrappedGame, params) -> Float[Array, "d d"]:
    """Jacobian DF(x) of the averaged drift.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, d numbers in all.

    Returns:
        `[d, d]`, entry (i, j) the derivative of F_i by x_j, in the order of
        `jax.flatten_util.ravel_pytree(params)`. At an exact tie of a maximum: the mean of the
        branches.

    Raises:
        ValueError: as `stationary_distribution`; if memory does not suffice.
    """
    wrapped, params = check_ergodic(wrapped, params)
    check_slopes("the Jacobian", wrapped, params, "take products with it, by `jax.jvp` of `drift`")
    return _jacobian(wrapped, params)


@lightly_compiled
def _jacobian(wrapped, params):
    x, _, field = flat_drift(params)
    return jax.jacfwd(field)(x, preserve_rows(wrapped))


def occupation_measure(wrapped: WrappedGame, params) -> Float[Array, "S *A S"]:
    """Long-run share of steps spent in each transition (s, a, s') at frozen parameters.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents.

    Returns:
        mu, dense: `[S, A_1, .., A_n, S]`, summing to one.

    Raises:
        ValueError: as `stationary_distribution`.
    """
    wrapped, params = check_ergodic(wrapped, params)
    return _occupation_measure(wrapped, params)


@lightly_compiled
def _occupation_measure(wrapped, params):
    wrapped = preserve_rows(wrapped)
    return scatter_successors(wrapped.game, average(wrapped, params).events)


def expected_rewards(wrapped: WrappedGame, events: Float[Array, "S *A K"]) -> Float[Array, " n"]:
    """Expected reward per step of every agent, `[n]`, by probabilities of the stored outcomes."""
    rewards = wrapped.game.rewards.reshape(-1, wrapped.game.num_agents)
    return events.ravel() @ rewards
