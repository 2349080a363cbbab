"""Labels: what the fields of results are called in xarray data sets, with the game's own names.

A field says what it holds where it is declared: `labelled(long name, dims, units)`. Where agents
have unequal numbers of actions, or parameters that are not one table, each array is a variable of
its own: nothing is padded.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base.codes import RESULTS
from ..model.game import MarkovGame

TIME_UNITS = "unscaled steps"
PER_STEP = "reward per step"

# What `xarray.Dataset` takes as variables.
Variables = dict[str, Any]


def as_array(
    game: MarkovGame | None, name: str, value: Any, label: "Label", batch: tuple[str, ...]
) -> Variables:
    """One variable."""
    described = attributes(label.long_name, label.units)
    return {name: ((*batch, *label.dims), np.asarray(value), described)}


class Label(NamedTuple):
    """What a number of a result is, in its data set.

    Attributes:
        long_name: its description.
        dims: its dimensions, after those of a batch.
        units: its unit, if it has one.
        name: its variable, if not called like the field.
        make: turns `(game, name, value, label, dimensions of the batch)` into variables; None for a
            setting, which is told in the attributes.
        coordinate: whether it is a coordinate.
        observed: whether it is an observable, or a moment of one: it is called by the observable's
            names, then its own.
        axes: names the axes of parameters that are neither states nor actions.
    """

    long_name: str
    dims: tuple[str, ...] = ()
    units: str | None = None
    name: str | None = None
    make: Callable[..., Variables] | None = as_array
    coordinate: bool = False
    observed: bool = False
    axes: str = "parameters"


# Numbers with their labels, by the names of their variables.
Entries = dict[str, tuple[Any, Label]]


def labelled(*what: Any, **options: Any) -> dict[str, Label]:
    """What `equinox.field(metadata=..)` takes, from a `Label` or the arguments of one."""
    return {"label": what[0] if isinstance(what[0], Label) else Label(*what, **options)}


def make_variables(
    game: MarkovGame | None, entries: Mapping[str, tuple[Any, Label]], batch: tuple[str, ...]
) -> tuple[Variables, Variables]:
    """Variables and coordinates of all numbers that are not None."""
    variables: Variables = {}
    coordinates: Variables = {}
    for name, (value, label) in entries.items():
        if label.make is not None and value is not None:
            kind = coordinates if label.coordinate else variables
            kind |= label.make(game, name, value, label, batch)
    return variables, coordinates


def attributes(long_name: str, units: str | None = None) -> dict[str, Any]:
    """Attributes of a variable or coordinate."""
    return {"long_name": long_name} | ({} if units is None else {"units": units})


# Coordinates


def game_coordinates(game: MarkovGame) -> Variables:
    """Coordinates of agents, states and actions: one of actions if all have the same names."""
    coordinates = {
        "agent": ("agent", np.arange(game.num_agents), attributes("agent")),
        "state": ("state", list(game.state_names), attributes("state of the game")),
    }
    for agent, names in enumerate(game.action_names):
        dimension = _action_dimension(game, agent)
        owner = "" if dimension == "action" else f" of agent {agent}"
        coordinates[dimension] = (dimension, list(names), attributes(f"action{owner}"))
    return coordinates


def _action_dimension(game: MarkovGame, agent: int) -> str:
    return "action" if len(set(game.action_names)) == 1 else f"action_agent{agent}"


def batch_dimensions(count: int) -> tuple[str, ...]:
    """Names of the leading axes of a batched result."""
    return ("batch",) if count == 1 else tuple(f"batch_axis{k}" for k in range(count))


def parameter_names(game: MarkovGame, params: tuple, leading: int) -> list[str]:
    """Names of all entries of the flat vector of parameters.

    Args:
        game: names states and actions.
        params: parameters of all agents.
        leading: axes of each array before its own.
    """
    names = []
    for part in parts(game, params, leading):
        for index in np.ndindex(part.values.shape[leading:]):
            place: tuple = index
            if part.is_table:
                action_names = game.action_names[part.agent]
                place = game.state_names[index[0]], action_names[index[1]]
            names.append(", ".join([part.owner, *map(str, place)]))
    return names


# Variables


class Part(NamedTuple):
    """One array of one agent's parameters or policy, on leading axes of its own.

    Attributes:
        agent: the agent.
        name: the array's place in the agent's parameters; empty for a single array.
        is_table: whether its last axes are the game's states and the agent's actions.
        values: the array.
    """

    agent: int
    name: str
    is_table: bool
    values: Any

    @property
    def owner(self) -> str:
        """Agent and name."""
        return f"agent {self.agent} {self.name}".rstrip()


def parts(game: MarkovGame, params: tuple, leading: int) -> list[Part]:
    """The arrays of all agents, with `leading` axes before their own."""
    found = []
    for agent, own in enumerate(params):
        table = (game.num_states, game.num_actions[agent])
        for path, leaf in jax.tree_util.tree_leaves_with_path(own):
            values = np.asarray(leaf)
            found.append(Part(agent, _place(path), values.shape[leading:] == table, values))
    return found


def of_agents(
    game: MarkovGame, name: str, value: tuple, label: Label, batch: tuple[str, ...]
) -> Variables:
    """Variables of parameters or policies: in one block where they fit, else one by one.

    A single array of one agent has the attributes `agent` and `column`: what it is named beside
    those of the others in a table.
    """
    leading = (*batch, *label.dims)
    found = parts(game, value, len(leading))
    one_block = (
        all(part.is_table for part in found)
        and [part.agent for part in found] == list(range(game.num_agents))
        and _action_dimension(game, 0) == "action"
    )
    if one_block:
        values = np.stack([part.values for part in found], axis=len(leading))
        return {name: ((*leading, "agent", "state", "action"), values, attributes(label.long_name))}
    variables = {}
    suffixes = plain_names([f"_agent{p.agent}" + (f"_{p.name}" if p.name else "") for p in found])
    for part, suffix in zip(found, suffixes, strict=True):
        count = part.values.ndim - len(leading)
        axes = [f"{label.axes}{suffix}_axis{k}" for k in range(count)]
        if part.is_table:
            axes = ["state", _action_dimension(game, part.agent)]
        described = attributes(f"{label.long_name}, {part.owner}") | {
            "agent": part.agent,
            "column": name + suffix.removeprefix(f"_agent{part.agent}"),
        }
        variables[name + suffix] = ((*leading, *axes), part.values, described)
    return variables


def of_places(
    game: MarkovGame | None, name: str, value: Any, label: Label, batch: tuple[str, ...]
) -> Variables:
    """Variables of all arrays of any pytree, named after their places."""
    leading = (*batch, *label.dims)
    leaves = jax.tree_util.tree_leaves_with_path(value)
    places = [_place(path) for path, _ in leaves]
    variables = {}
    for place, own, (_, leaf) in zip(
        places, plain_names([name + f"_{p}" * bool(p) for p in places]), leaves, strict=True
    ):
        axes = [f"{own}_axis{k}" for k in range(np.ndim(leaf) - len(leading))]
        described = attributes(f"{label.long_name} {place}".rstrip())
        variables[own] = ((*leading, *axes), np.asarray(leaf), described)
    return variables


def _as_times(
    game: MarkovGame | None, name: str, value: Any, label: Label, batch: tuple[str, ...]
) -> Variables:
    """Times `[..., K]`; of a batch that does not share them, along its axes too."""
    ts = np.asarray(value)
    rows = ts.reshape(-1, ts.shape[-1])
    if np.all(rows == rows[0]):
        return as_array(game, "time", rows[0], label, ())
    return as_array(game, "times", ts, label, batch)


def _as_outcome(
    game: MarkovGame | None, name: str, value: Any, label: Label, batch: tuple[str, ...]
) -> Variables:
    """How a computation, or each of a batch, ended: as a number and in words."""
    codes, messages = decode(value)
    return {
        "result": (batch, codes, attributes("result code, 0 for success")),
        "message": (batch, messages, attributes("how the computation ended")),
    }


TIMES = Label("time", ("time",), TIME_UNITS, make=_as_times, coordinate=True)
OUTCOME = Label("how the computation ended", make=_as_outcome)
SETTING = Label("", make=None)


def decode(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """Result codes as numbers, 0 for success, and as text."""
    codes = np.asarray(jax.tree.leaves(result)[0])
    distinct, place = np.unique(codes, return_inverse=True)
    texts = [RESULTS[jax.tree.map(lambda _, c=c: jnp.asarray(c), result)] for c in distinct]
    messages = np.array([text or "successful" for text in texts])
    return codes, np.asarray(messages[place]).reshape(codes.shape)


def _place(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def plain_names(names: Sequence[str]) -> list[str]:
    """The names in plain characters, told apart by a number where they became the same."""
    plain = [re.sub(r"\W+", "_", name) for name in names]
    return [name if plain.count(name) == 1 else f"{name}_array{k}" for k, name in enumerate(plain)]
