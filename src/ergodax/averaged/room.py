"""How much memory derivatives of the drift take, estimated before they are compiled."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..base.compiling import shapes_of
from ..base.memory import check_room
from ..model.wrapped import WrappedGame

# Numbers per event that one column of the Jacobian takes beside the increments' own (measured).
_PER_EVENT = 28


def size_of(params: Any) -> int:
    """d, the number of all parameters."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def _increments(wrapped, params):
    return [wrapped.increments(agent, own) for agent, own in enumerate(params)]


def check_slopes(
    what: str,
    wrapped: WrappedGame,
    params: Any,
    instead: str,
    *,
    columns: int | None = None,
    kept: int = 2,
    beside: int = 0,
) -> None:
    """Raises ValueError if memory does not suffice for many derivatives of the drift at once.

    Args:
        what: takes them.
        wrapped: a game and its learners.
        params: parameters of all agents, d numbers in all.
        instead: what to do about it.
        columns: how many derivatives are computed at once; d, the Jacobian, by default.
        kept: how many matrices `[d, d]` are kept.
        beside: further numbers.
    """
    like = shapes_of(_increments, wrapped, params)
    learnt = [leaf for leaf in jax.tree.leaves(like) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    size, events = size_of(params), math.prod(wrapped.game.probabilities.shape)
    column = sum(math.prod(leaf.shape) for leaf in learnt) + _PER_EVENT * events
    numbers = (size if columns is None else columns) * column + kept * size**2 + beside
    check_room(
        numbers * jnp.dtype(jnp.result_type(float)).itemsize,
        f"{what} of {size} parameters",
        instead,
    )
