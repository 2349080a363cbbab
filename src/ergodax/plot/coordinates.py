"""Agents, states, actions and parameters, found by number or name; two of them span a plane."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from ..base.checks import describe
from ..learners.observing import rows_read
from ..model.game import MarkovGame, check_agent
from ..model.wrapped import WrappedGame
from ..results.labels import parts
from .style import plain
from .trajectories import Quantity, policies_along

# A parameter by its number in `jax.flatten_util.ravel_pytree(params)`, or by agent, state, action.
Coordinate = int | tuple[int | str, ...]


class Table(NamedTuple):
    """An array of states and actions among an agent's parameters.

    Attributes:
        name: where it stands; empty if the parameters are one array.
        of: picks it from the parameters of all agents, of any batch, with a row for every state.
        first: number of its first entry among all parameters.
        rows: which of its rows the agent reads in each state: not all, if it sees less.
    """

    name: str
    of: Callable[[Any], Any]
    first: int
    rows: tuple[int, ...]


class Plane(NamedTuple):
    """Two coordinates on which points are shown.

    Attributes:
        labels: names of the two.
        quantity: what they are coordinates of.
        read: from parameters or policies of all agents, leaves `[..., *shape]`, to `[..., 2]`.
    """

    labels: Sequence[str]
    quantity: Quantity
    read: Callable[[Any], np.ndarray]

    def project(self, wrapped: WrappedGame, params: Any) -> Float[np.ndarray, "M 2"]:
        """Where points of parameter space, leaves `[M, ...]`, are shown."""
        policy = self.quantity == "policy"
        return self.read(policies_along(wrapped, params) if policy else params)


def find_state(game: MarkovGame, state: int | str) -> int:
    """The number of a state."""
    return _find("state", game.state_names, state)


def find_action(game: MarkovGame, agent: int, action: int | str) -> int:
    """The number of an agent's action."""
    return _find(f"action of agent {agent}", game.action_names[agent], action)


def row_name(game: MarkovGame, agent: int, state: int) -> str:
    """What an agent's row of a table is called; the only state needs no name."""
    where = f", state {plain(game.state_names[state])}" if game.num_states > 1 else ""
    return f"agent {agent}{where}"


def _find(what: str, names: Sequence[str], found: Any) -> int:
    if isinstance(found, str) and found in names:
        return list(names).index(found)
    whole = isinstance(found, int | np.integer) and not isinstance(found, bool)
    place = int(found) if whole else -1
    if not 0 <= place < len(names):
        kind, _, owner = what.partition(" ")
        article = "an" if kind == "action" else "a"
        listed = " ".join(filter(None, [f"{kind}s", owner]))
        raise ValueError(
            f"{kind} {describe(found)} is not {article} {what}; the {listed} are "
            f"{', '.join(names)}."
        )
    return place


def find_table(wrapped: WrappedGame, agent: int, params: Any) -> Table | None:
    """An agent's table of states and actions: the first one, if there are several.

    Args:
        wrapped: the game and its learners.
        agent: the agent.
        params: parameters of all agents with a leading axis, leaves `[K, ...]`.
    """
    first, rows = 0, rows_read(wrapped.learners[agent], wrapped.game)
    shape = (max(rows) + 1, wrapped.game.num_actions[agent])
    for k, part in enumerate(parts(wrapped.game, params, 1)):
        if part.agent == agent and part.values.shape[1:] == shape:

            def of(params, k=k):
                table = jax.tree.leaves(params)[k]
                every = rows == tuple(range(wrapped.game.num_states))
                return table if every else np.asarray(table)[..., list(rows), :]

            return Table(part.name, of, first, rows)
        first += part.values[0].size
    return None


def one(params: Any) -> Any:
    """The same point with a leading axis."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)


def parameter_index(wrapped: WrappedGame, params: Any, name: str, coordinate: Any) -> int:
    """The number of a parameter, by what `name` gives; `params` are those of all agents."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if isinstance(coordinate, tuple):
        agent, state, action = _resolve(wrapped.game, name, coordinate)
        table = find_table(wrapped, agent, one(params))
        if table is None:
            raise ValueError(
                f"the parameters of agent {agent} hold no table of states and actions: give the "
                f"number of a parameter, 0 to {size - 1}."
            )
        return table.first + table.rows[state] * wrapped.game.num_actions[agent] + action
    whole = isinstance(coordinate, int | np.integer) and not isinstance(coordinate, bool)
    if not whole or not 0 <= coordinate < size:
        raise ValueError(
            f"{name}: a coordinate must be 0 to {size - 1}, or (agent, state, action); found "
            f"{describe(coordinate)}."
        )
    return int(coordinate)


def parameter_name(wrapped: WrappedGame, params: Any, index: int) -> str:
    """What a parameter is called, by its number."""
    k, place = _locate(params, index)
    game, part = wrapped.game, parts(wrapped.game, params, 0)[k]
    symbol = wrapped.learners[part.agent].symbol
    if part.is_table:
        names = [game.state_names[place[0]], game.action_names[part.agent][place[1]]]
        entry = f"({', '.join(map(plain, names[game.num_states == 1 :]))})"
    else:
        entry = f"[{', '.join(map(str, place))}]" if place else ""
    return f"agent {part.agent}, {f'${symbol}$' if symbol else plain(part.name)}{entry}"


def parameter_plane(
    wrapped: WrappedGame, params: Any, coordinates: Sequence[Coordinate]
) -> tuple[Plane, list[int]]:
    """The plane of two parameters, and their numbers."""
    _check_two(coordinates)
    numbers = [parameter_index(wrapped, params, "coordinates", c) for c in coordinates]
    entries = [_locate(params, number) for number in numbers]

    def read(params):
        leaves = jax.tree.leaves(params)
        return np.stack([np.asarray(leaves[k])[(..., *place)] for k, place in entries], axis=-1)

    labels = [parameter_name(wrapped, params, number) for number in numbers]
    return Plane(labels, "parameters", read), numbers


def policy_plane(
    wrapped: WrappedGame, coordinates: Sequence[Coordinate]
) -> tuple[Plane, list[tuple[int, int, int]]]:
    """The plane of two action probabilities, and their agents, states and actions."""
    _check_two(coordinates)
    found, game = [_resolve(wrapped.game, "coordinates", c) for c in coordinates], wrapped.game

    def read(policies):
        return np.stack([np.asarray(policies[i])[..., s, a] for i, s, a in found], axis=-1)

    labels = []
    for i, s, a in found:
        given = "" if game.num_states == 1 else f" | {plain(game.state_names[s])}"
        labels.append(f"agent {i}, $\\pi$({plain(game.action_names[i][a])}{given})")
    return Plane(labels, "policy", read), found


def _locate(params: Any, index: int) -> tuple[int, tuple[int, ...]]:
    """In which leaf a parameter stands, and where."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(params)]
    ends = np.cumsum(sizes)
    k = int(np.searchsorted(ends, index, side="right"))
    place = np.unravel_index(index - (ends[k] - sizes[k]), np.shape(jax.tree.leaves(params)[k]))
    return k, tuple(int(i) for i in place)


def _resolve(game: MarkovGame, name: str, coordinate: Any) -> tuple[int, int, int]:
    if not isinstance(coordinate, tuple) or len(coordinate) != 3:
        raise ValueError(
            f"{name}: a coordinate must be (agent, state, action); found {describe(coordinate)}."
        )
    agent, state, action = coordinate
    check_agent(game, agent)
    return agent, find_state(game, state), find_action(game, agent, action)


def _check_two(coordinates: Any) -> None:
    several = isinstance(coordinates, Sequence) and not isinstance(coordinates, str)
    if not several or len(coordinates) != 2:
        found = len(coordinates) if several else describe(coordinates)
        raise ValueError(f"coordinates: a plane has two coordinates; found {found}.")
    if coordinates[0] == coordinates[1]:
        raise ValueError(f"the two coordinates must differ; found {coordinates[0]!r} twice.")
