"""The covariance of the noise that the averages leave out.

An event e that leads from core state c to c' adds to the parameters, beyond the drift F, the
martingale difference `m(e) = f(x, e) - F + v(c') - v(c)`, v the solution of Poisson's equation,
whose covariance under the stationary law mu is the noise of the limiting diffusion,

    Sigma(x) = sum over e of mu(e) m(e) m(e)^T
             = E[f f^T] - F F^T + G^T v + v^T G,    G(c') = sum over e into c' of mu(e) f(e).

The first line is positive semi-definite by construction; the second never needs an event times
all parameters (for tabular learners it costs O(S^3 + events + S d^2)). Finite random rewards are
further events. Theory: Benveniste, Metivier and Priouret (1990), part II, chapter 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Real

from ..averaged.stationary import check_ergodic, preserve_rows
from ..base.compiling import lightly_compiled
from ..model.validity import check_table
from ..model.wrapped import WrappedGame
from .poisson import Poisson, check_covariance, inflow, poisson

# Up to so many numbers (events times parameters) are the martingale differences written out.
_DENSE_LIMIT = 2**22


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
    target = (successors[:, None] * joint + jnp.arange(joint, dtype=successors.dtype)[None]).ravel()
    return _Events(_joint_weights(wrapped, solved, agents), source, target, agents)


def covariance(wrapped: WrappedGame, solved: Poisson) -> Float[Array, "d d"]:
    """Sigma; pure. Martingale differences written out if there is room, else block by block."""
    size = solved.drift.size
    joint = int(np.prod(wrapped.game.num_actions)) if wrapped.needs_next_action else 1
    if wrapped.game.successors.size * joint * size > _DENSE_LIMIT:
        return _covariance_by_parts(wrapped, solved)
    events = _events(wrapped, solved)
    differences = solved.values[events.target] - solved.values[events.source] - solved.drift[None]
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
    wrapped, params = check_ergodic(wrapped, params)
    if vector is None:
        check_covariance("the covariance", wrapped, params, slopes=False)
        return _noise_covariance(wrapped, params)
    size = ravel_pytree(params)[0].size
    direction = check_table("vector", vector, (size,))
    return _noise_product(wrapped, params, jnp.asarray(direction, dtype=float))


@lightly_compiled
def _noise_covariance(wrapped, params):
    wrapped = preserve_rows(wrapped)
    return covariance(wrapped, poisson(wrapped, params))


@lightly_compiled
def _noise_product(wrapped, params, vector):
    wrapped = preserve_rows(wrapped)
    return covariance_product(wrapped, poisson(wrapped, params), vector)
