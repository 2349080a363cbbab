"""From a policy back to parameters that have it, so that policy space can be cut by a plane."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..model.exploration import EpsilonSoftmax
from ..model.learner import AbstractLearner
from ..model.wrapped import WrappedGame
from .coordinates import find_table, one

# embed(params of one agent, state, probabilities [A]) -> params of that agent
Embed = Callable[[Any, int, Float[Array, " A"]], Any]


def softmax_embedding(wrapped: WrappedGame, agent: int, params: Any) -> Embed:
    """The embedding for a learner of one table `[S, A]` with softmax exploration.

    `pi = (1 - epsilon) softmax(x / temperature) + epsilon / A` is solved for the row x; its mean,
    which the policy does not depend on, is kept.

    Raises:
        ValueError: if the agent is no such learner.
    """
    learner: AbstractLearner = wrapped.learners[agent]
    rule, table = getattr(learner, "exploration", None), find_table(wrapped, agent, one(params))
    if not isinstance(rule, EpsilonSoftmax) or table is None:
        raise ValueError(
            f"agent {agent}: {learner!r} is not a softmax of a table of states and actions; give "
            "embed(params of the agent, state, probabilities), which returns its parameters."
        )

    def embed(own, state, probabilities):
        everyone = tuple(own if k == agent else p for k, p in enumerate(params))
        values = table.of(everyone)
        count = probabilities.shape[-1]
        softmax = (probabilities - rule.epsilon / count) / (1 - rule.epsilon)
        row = rule.temperature * jnp.log(softmax)
        row = row - row.mean() + values[state].mean()
        leaves, structure = jax.tree.flatten(own)
        place = next(k for k, leaf in enumerate(leaves) if leaf is values)
        leaves[place] = values.at[state].set(row)
        return structure.unflatten(leaves)

    return embed


def least_probability(wrapped: WrappedGame, agent: int) -> float:
    """What a softmax mixed with uniform play gives every action at least; 0 for other learners."""
    rule = getattr(wrapped.learners[agent], "exploration", None)
    if not isinstance(rule, EpsilonSoftmax):
        return 0.0
    return float(rule.epsilon) / wrapped.game.num_actions[agent]


def with_policy(
    wrapped: WrappedGame,
    params: Any,
    agent: int,
    state: int,
    policies: Float[np.ndarray, "M A"],
    embed: Embed | None,
) -> Any:
    """Parameters of all agents, `[M, ...]`, at which one agent has given policies in a state.

    Args:
        wrapped: the game and its learners.
        params: parameters of all agents, leaves `[M, ...]`, which give everything else.
        agent: the agent.
        state: the state.
        policies: its action probabilities; NaN in parameters where the learner cannot have them.
        embed: for other learners than `softmax_embedding` knows.

    Raises:
        ValueError: if the policies of what `embed` returns are not the given ones.
    """
    if embed is None:
        embed = softmax_embedding(wrapped, agent, jax.tree.map(lambda leaf: leaf[0], params))
    params = jax.tree.map(jnp.asarray, params)
    own = jax.vmap(lambda own, p: embed(own, state, p))(params[agent], jnp.asarray(policies))
    if jax.tree.structure(own) != jax.tree.structure(params[agent]):
        raise ValueError(
            f"embed must return parameters of agent {agent}, of the structure "
            f"{jax.tree.structure(params[agent])}; found {jax.tree.structure(own)}."
        )
    found = jax.vmap(wrapped.learners[agent].policy, in_axes=(0, None))(own, jnp.asarray(state))
    wrong = np.abs(np.asarray(found) - policies).max(axis=1) > 1e-4
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"agent {agent}: at the parameters of embed the policy in state "
            f"{wrapped.game.state_names[state]} is {np.asarray(found)[k]}, not {policies[k]}."
        )
    return tuple(own if k == agent else p for k, p in enumerate(params))
