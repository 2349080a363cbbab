"""Private lotteries of learners, as a part of what happens in a step of the game.

A learner that tosses a coin of its own learns from an event `(s, a, k)` and the coin's outcome. Its
probability is that of the event times that of the coin: so every stored outcome of the game is
split into one for each result of all lotteries. States and rewards know nothing of them. All that
sums over events, or draws one, then has private randomness in it.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..base.checks import as_real, describe
from .game import MarkovGame


def check_lottery(who: str, lottery: Any) -> None:
    """Raises ValueError unless it is None or a tuple of probabilities."""
    if lottery is None:
        return
    found = as_real(lottery) if isinstance(lottery, tuple) else None
    if found is None or not np.all(found > 0) or abs(np.sum(found) - 1) > 1e-8:
        raise ValueError(
            f"{who}.lottery must be a tuple of positive probabilities that sum to 1, e.g. "
            f"(0.5, 0.5), or None; found {describe(lottery) if found is None else lottery}."
        )


def with_lotteries(game: MarkovGame, learners: Sequence[Any]) -> MarkovGame:
    """The game, its outcomes split by the private lotteries of all agents, the last one fastest."""
    law = np.ones(1)
    for learner in learners:
        law = np.outer(law, learner.lottery or (1.0,)).ravel()
    if law.size == 1:
        return game
    probabilities = game.probabilities
    split = jnp.multiply.outer(probabilities, jnp.asarray(law, probabilities.dtype))
    outcomes = (
        jnp.repeat(game.successors, law.size, axis=-1),
        split.reshape(*split.shape[:-2], -1),
        jnp.repeat(game.rewards, law.size, axis=-2),
    )
    return eqx.tree_at(lambda g: (g.successors, g.probabilities, g.rewards), game, outcomes)


def drawn_by(learners: Sequence[Any], agent: int, outcome: Any) -> Any:
    """Which result of an agent's lottery an outcome of the split game has; None without one."""
    sizes = [len(learner.lottery or (1.0,)) for learner in learners]
    if learners[agent].lottery is None:
        return None
    slower = jnp.asarray(math.prod(sizes[agent + 1 :]), outcome.dtype)
    return jax.lax.rem(jax.lax.div(outcome, slower), jnp.asarray(sizes[agent], outcome.dtype))
