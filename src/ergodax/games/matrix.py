"""Repeated matrix games whose state is the memory of past play."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Real

from ..base.checks import check_array, check_count, check_number, is_concrete
from ..base.memory import check_room
from ..model.game import MarkovGame
from ..model.validity import name_actions


def repeated(
    payoffs: Real[ArrayLike, "*A n"] | Sequence,
    *,
    memory: int = 1,
    action_names: Sequence[Sequence[str]] | None = None,
    initial: Real[ArrayLike, " S"] | Sequence | None = None,
) -> MarkovGame:
    """A matrix game played for ever by agents that remember the last `memory` joint actions.

    States are the remembered joint actions, oldest first, in C order: with memory 1 the state is
    the last joint action; with memory 0 there is one state. There are `(A_1 .. A_n)^memory` states.

    Args:
        payoffs: a tuple with one table `[A_1, .., A_n]` per agent; or all in one array
            `[A_1, .., A_n, n]`. Where an array could be meant with the agents first as well, as one
            of shape `[2, 2, 2]`, it is refused; lists in which each joint action has a tuple of
            payoffs, `[[(4, 4), (0, 3)], [(3, 0), (2, 2)]]`, are not.
        memory: number of past rounds remembered.
        action_names: names of each agent's actions; states are named after them.
        initial: law of the first state, `[S]`; uniform by default.

    Returns:
        The Markov game, with deterministic transitions.

    Raises:
        ValueError: if the payoffs do not have one entry per agent and joint action, may be meant in
            two ways or are not finite, or `memory` is negative.

    Example:
        >>> stag_hunt = [[(4, 4), (0, 3)], [(3, 0), (2, 2)]]
        >>> ex.games.repeated(stag_hunt, action_names=[["stag", "hare"]] * 2).state_names
        ('stag-stag', 'stag-hare', 'hare-stag', 'hare-hare')
    """
    payoffs = _agents_last(payoffs)
    shape = np.shape(payoffs)
    num_actions = shape[:-1]
    memory = check_states(num_actions, memory)
    names = name_actions(action_names, num_actions)
    profiles = list(itertools.product(*names))
    short = all(len(name) == 1 for own in names for name in own)
    labels = [("" if short else "-").join(profile) for profile in profiles]
    joint = math.prod(num_actions)
    histories = list(itertools.product(labels, repeat=memory))
    states = np.arange(joint**memory)
    # Forget the oldest joint action, append the one just played.
    kept = states[:, None] * joint + np.arange(joint)
    next_state = (kept % joint**memory).reshape(len(states), *num_actions)
    backend = np if is_concrete(payoffs) else jnp
    return MarkovGame.deterministic(
        next_state,
        backend.broadcast_to(backend.asarray(payoffs), (len(states), *shape)),
        initial=initial,
        state_names=[" ".join(history) or "-" for history in histories],
        action_names=names,
    )


def check_states(num_actions: Sequence[int], memory: Any) -> int:
    """Returns how many rounds are remembered; raises ValueError if memory cannot hold the game."""
    memory, joint = check_count("memory", memory, least=0), math.prod(num_actions)
    check_room(
        64 * joint ** (1 + min(memory, 100)),
        f"a game of {joint}^{memory} states" if memory else f"a game of {joint} joint actions",
        "remember fewer rounds, or take fewer agents or actions",
    )
    return memory


def _agents_last(payoffs: Any) -> Any:
    """Payoffs `[A_1, .., A_n, n]`, after a check that they cannot be meant otherwise."""
    form = "a tuple with one table [A_1, .., A_n] per agent, or an array [A_1, .., A_n, n]"
    if isinstance(payoffs, tuple) or (
        isinstance(payoffs, list) and any(hasattr(table, "shape") for table in payoffs)
    ):
        tables = [check_array("payoffs", table, form) for table in payoffs]
        shapes = [np.shape(table) for table in tables]
        if len(set(shapes)) != 1 or len(shapes[0]) != len(tables) or 0 in shapes[0]:
            raise ValueError(
                f"payoffs must be one table [A_1, .., A_{len(tables)}] for each of {len(tables)} "
                f"agents; found shapes {', '.join(map(str, shapes)) or 'of none'}."
            )
        backend = np if all(map(is_concrete, tables)) else jnp
        return backend.stack(tables, axis=-1)
    cells = payoffs
    while isinstance(cells, list) and cells:
        cells = cells[0]
    found = check_array("payoffs", payoffs, form)
    shape, agents = np.shape(found), np.ndim(found) - 1
    first = agents > 1 and shape[0] == agents
    if agents < 1 or shape[-1] != agents or 0 in shape:
        hint = "; np.moveaxis(payoffs, 0, -1) moves the axis of agents to the end" if first else ""
        raise ValueError(f"payoffs must be {form}; found shape {shape}{hint}.")
    if first and not isinstance(cells, tuple):
        raise ValueError(
            f"payoffs of shape {shape} may have the axis of agents first or last: give a tuple "
            "with the table of each agent, e.g. (A, B), or tuple(np.moveaxis(payoffs, -1, 0)) if "
            "it is the last."
        )
    return found


def bimatrix(
    first: Real[ArrayLike, "A B"] | Sequence,
    second: Real[ArrayLike, "A B"] | Sequence,
    *,
    memory: int = 1,
    action_names: Sequence[Sequence[str]] | None = None,
    initial: Real[ArrayLike, " S"] | Sequence | None = None,
) -> MarkovGame:
    """A game of two agents, given by their payoff matrices, played for ever as `repeated` has it.

    Args:
        first: payoffs of agent 0, `[A_1, A_2]`: rows are its own actions, columns the other's.
        second: payoffs of agent 1, with the same rows and columns: in a symmetric game the
            transpose of `first`.
        memory: as for `repeated`.
        action_names: as for `repeated`.
        initial: as for `repeated`.

    Raises:
        ValueError: as `repeated`.

    Example:
        >>> temptation = [[3, 0], [5, 1]]
        >>> ex.games.bimatrix(temptation, np.transpose(temptation), memory=0).rewards[0, 1, 0, 0]
        Array([5., 0.], dtype=float64)
    """
    tables = check_array("first", first), check_array("second", second)
    for name, table in zip(("first", "second"), tables, strict=True):
        if np.ndim(table) != 2 or np.shape(table) != np.shape(tables[0]) or not np.size(table):
            raise ValueError(
                f"{name} must be a matrix of payoffs [A_1, A_2], as large as the other; found "
                f"shape {np.shape(table)}."
            )
    return repeated(tables, memory=memory, action_names=action_names, initial=initial)


def table_of(rows: Sequence[Sequence[Any]]) -> Any:
    """A table of numbers in rows: of NumPy, or of JAX where one is traced."""
    concrete = all(map(is_concrete, jax.tree.leaves(rows)))
    return (np if concrete else jnp).array(rows, dtype=float)


def prisoners_dilemma(g: Real[ArrayLike, ""] = 1.5, *, memory: int = 1) -> MarkovGame:
    """The prisoner's dilemma of Kerzreho (2025), there with a memory of one round.

    Each agent has 2 to put in or keep, and receives g/2 times what both put in. Payoffs are CC
    `(2g, 2g)`, CD `(g, 2 + g)`, DC `(2 + g, g)`, DD `(2, 2)`: a dilemma for 1 < g < 2. The states
    CC, CD, DC, DD are the last joint action.

    Args:
        g: the gain from cooperation.
        memory: number of past rounds remembered.
    """
    g = check_number("g", g)
    own = table_of([[2 * g, g], [2 + g, 2]])
    return bimatrix(own, own.T, memory=memory, action_names=[["C", "D"], ["C", "D"]])
