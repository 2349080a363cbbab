"""Matrix games with memory whose payoffs are random."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Real

from ..base.checks import check_array, is_concrete
from ..model.game import MarkovGame
from .matrix import repeated


def repeated_lottery(
    payoffs: Real[ArrayLike, "L *A n"] | Sequence,
    probabilities: Real[ArrayLike, "L *A"] | Sequence,
    *,
    memory: int = 1,
    action_names: Sequence[Sequence[str]] | None = None,
) -> MarkovGame:
    """A repeated game with random payoffs: one of L payoff tables is drawn at every step.

    Demand shocks and ties broken at random are written so. Agents remember actions, not draws.

    Args:
        payoffs: the tables, `[L, A_1, .., A_n, n]`.
        probabilities: of the tables, `[L]`, or by joint action, `[L, A_1, .., A_n]`.
        memory: number of past rounds remembered.
        action_names: names of each agent's actions.

    Raises:
        ValueError: as `repeated`; also if probabilities do not fit the tables or do not sum to one.
    """
    shape = np.shape(check_array("payoffs", payoffs))
    if len(shape) < 3 or len(shape) != shape[-1] + 2 or 0 in shape:
        raise ValueError(f"payoffs must have shape [L, A_1, .., A_n, n]; found {shape}.")
    check_array("probabilities", probabilities)
    backend: Any = np if is_concrete(payoffs) and is_concrete(probabilities) else jnp
    tables, weights = backend.asarray(payoffs), backend.asarray(probabilities)
    if weights.shape not in ((len(tables),), tables.shape[:-1]):
        raise ValueError(
            f"probabilities must have shape {(len(tables),)} or {tables.shape[:-1]}, one per table "
            f"of payoffs; found {weights.shape}."
        )
    first = tuple(backend.moveaxis(tables[0], -1, 0))
    game = repeated(first, memory=memory, action_names=action_names)
    outcomes = (*game.successors.shape[:-1], len(tables))
    if weights.ndim == 1:
        weights = weights.reshape(-1, *(1,) * (tables.ndim - 2))
    by_outcome = backend.moveaxis(backend.broadcast_to(weights, tables.shape[:-1]), 0, -1)
    return MarkovGame(
        jnp.broadcast_to(game.successors, outcomes),
        backend.broadcast_to(by_outcome, outcomes),
        backend.broadcast_to(backend.moveaxis(tables, 0, -2), (*outcomes, tables.shape[-1])),
        state_names=game.state_names,
        action_names=game.action_names,
    )
