"""Initial action values by name."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_choice, check_number
from ..model.game import MarkovGame, check_agent

_RULES = ("optimistic", "pessimistic", "uniform play")


def initial_values(
    game: MarkovGame, agent: int, rule: str, *, discount: Real[ArrayLike, ""]
) -> Float[Array, "S A"]:
    """Action values to start a learner from, for its `initial`.

    Args:
        game: the game.
        agent: whose values.
        rule: "optimistic": the highest reward for ever, so that every action is tried;
            "pessimistic": the lowest reward for ever; "uniform play": each action's mean reward
            for ever, the others drawing uniformly (Calvano, Calzolari, Denicolo and Pastorello
            2020, section II).
        discount: gamma, in [0, 1); the learner's own.

    Returns:
        Values `[S, A]`.

    Raises:
        ValueError: for another agent, rule or discount.

    Example:
        >>> game = ex.games.prisoners_dilemma()
        >>> high = ex.initial_values(game, 0, "optimistic", discount=0.9)
        >>> learner = ex.QLearning(0.1, 0.9, initial=high)
    """
    agent = check_agent(game, agent)
    check_choice("rule", rule, _RULES)
    discount = check_number("discount", discount, "[0, 1)")
    rewards, possible = game.rewards[..., agent], game.probabilities > 0
    shape = (game.num_states, game.num_actions[agent])
    if rule == "optimistic":
        per_step = jnp.max(rewards, initial=-jnp.inf, where=possible)
    elif rule == "pessimistic":
        per_step = jnp.min(rewards, initial=jnp.inf, where=possible)
    else:
        expected = jnp.moveaxis((game.probabilities * rewards).sum(axis=-1), 1 + agent, 1)
        per_step = expected.reshape(*shape, -1).mean(axis=-1)
    return jnp.broadcast_to(per_step / (1 - discount), shape)
