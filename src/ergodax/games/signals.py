"""Private and noisy monitoring: signals that become part of the state."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Int, Real

from ..base.checks import check_array, check_type
from ..model.game import MarkovGame


def with_signals(
    game: MarkovGame, signals: Real[ArrayLike, "..."]
) -> tuple[MarkovGame, list[Int[np.ndarray, " S2"]]]:
    """Adds signals about what was played to the state, one for each agent.

    After each step every agent draws a signal; the law of the joint signal depends on the joint
    action (and the state). The new state is the pair (state, joint signal); with
    `ex.Observing(learner, maps[i])` agent i sees the state and its own signal alone.

    Args:
        game: the game.
        signals: law of the joint signal, `[A_1, .., A_n, Y_1, .., Y_n]`, or with the state before
            the step as first axis, `[S, A_1, .., A_n, Y_1, .., Y_n]`. Agents without signals have
            `Y_i = 1`; a public signal has all its probability where `y_1 = .. = y_n`.

    Returns:
        The game with `S Y_1 .. Y_n` states, and for each agent the map from them to what it sees,
        `s Y_i + y_i`.

    Raises:
        ValueError: if the shape is wrong or laws are not probability vectors.
    """
    check_type("game", game, MarkovGame, "a MarkovGame")
    law = jnp.asarray(check_array("signals", signals), dtype=float)
    n = game.num_agents
    if law.ndim == 2 * n:
        law = jnp.broadcast_to(law, (game.num_states, *law.shape))
    before = (game.num_states, *game.num_actions)
    if law.ndim != 2 * n + 1 or law.shape[: n + 1] != before:
        raise ValueError(
            f"signals must have shape [*{game.num_actions}, Y_1, .., Y_{n}], with or without the "
            f"{game.num_states} states in front; found {np.shape(signals)}."
        )
    counts = law.shape[n + 1 :]
    joint = math.prod(counts)
    law = law.reshape(*before, 1, joint)
    outcomes = (*before, game.num_successors * joint)
    successors = jnp.add.outer(game.successors * joint, np.arange(joint, dtype=np.int32))
    rewards = jnp.repeat(game.rewards, joint, axis=-2)

    def of_pairs(table):  # the state before counts, not the signal before
        return jnp.repeat(table, joint, axis=0)

    between = "-" if max(counts) > 10 else ""
    texts = [between.join(map(str, signal)) for signal in itertools.product(*map(range, counts))]
    paired = MarkovGame(
        of_pairs(successors.reshape(outcomes)),
        of_pairs((game.probabilities[..., None] * law).reshape(outcomes)),
        of_pairs(rewards),
        initial=jnp.repeat(game.initial, joint) / joint,
        state_names=[f"{state}|{text}" for state in game.state_names for text in texts],
        action_names=game.action_names,
    )
    states, *own = np.indices((game.num_states, *counts)).reshape(n + 1, -1)
    return paired, [states * count + signal for count, signal in zip(counts, own, strict=True)]
