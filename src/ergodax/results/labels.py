"""Labels: results as xarray data sets, with the game's own names of states and actions.

Every result's `to_xarray` is put together from what stands here. Where agents have unequal numbers
of actions, or parameters that are not one table, each array is a variable of its own: nothing is
padded. The attribute `settings` of a data set says in JSON how it was made.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..base.codes import RESULTS
from ..base.version import __version__
from ..model.game import MarkovGame
from ..model.wrapped import WrappedGame

if TYPE_CHECKING:
    import xarray

TIME_UNITS = "unscaled steps"
PER_STEP = "reward per step"


def dataset(
    wrapped: WrappedGame,
    kind: str,
    variables: dict[str, Any],
    coordinates: dict[str, Any],
    **settings: Any,
) -> "xarray.Dataset":
    """A labelled data set about a wrapped game.

    Args:
        wrapped: names agents, states and actions.
        kind: the name of the result.
        variables: what `xarray.Dataset` takes as variables.
        coordinates: coordinates besides those of the game.
        settings: what else there is to say about how it was made.
    """
    import xarray

    made = {"result": kind} | versions() | settings | describe_game(wrapped)
    return xarray.Dataset(
        variables,
        coordinates | game_coordinates(wrapped.game),
        attrs={"settings": json.dumps(made)},
    )


def versions() -> dict[str, str]:
    """Versions of this package and of JAX."""
    return {"ergodax": __version__, "jax": jax.__version__}


def describe_game(wrapped: WrappedGame) -> dict[str, Any]:
    """Sizes of the game and all that its learners hold, in plain Python values."""
    game = wrapped.game
    sizes = {
        "agents": game.num_agents,
        "states": game.num_states,
        "actions": list(game.num_actions),
        "successors": game.num_successors,
        "state_names": list(game.state_names),
        "action_names": [list(names) for names in game.action_names],
    }
    return {"game": sizes, "learners": [describe(learner) for learner in wrapped.learners]}


def describe(value: Any) -> Any:
    """A learner and all it holds, in plain Python values."""
    if isinstance(value, eqx.Module) and dataclasses.is_dataclass(value):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def precision(tree: Any) -> str:
    """The name of the common type of all arrays."""
    return str(np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(tree))))


def attributes(long_name: str, units: str | None = None) -> dict[str, Any]:
    """Attributes of a variable or coordinate."""
    return {"long_name": long_name} | ({} if units is None else {"units": units})


# Coordinates


def game_coordinates(game: MarkovGame) -> dict[str, Any]:
    """Coordinates of agents, states and actions."""
    return {
        "agent": ("agent", np.arange(game.num_agents), attributes("agent")),
        "state": ("state", list(game.state_names), attributes("state of the game")),
    } | action_coordinates(game)


def action_coordinates(game: MarkovGame) -> dict[str, Any]:
    """Coordinates of the actions: one for all agents where their actions have the same names."""
    coordinates = {}
    for agent, names in enumerate(game.action_names):
        dimension = _action_dimension(game, agent)
        owner = "" if dimension == "action" else f" of agent {agent}"
        coordinates[dimension] = (dimension, list(names), attributes(f"action{owner}"))
    return coordinates


def _action_dimension(game: MarkovGame, agent: int) -> str:
    return "action" if len(set(game.action_names)) == 1 else f"action_agent{agent}"


def time_coordinate(ts: Any) -> dict[str, Any]:
    """Times `[..., K]` as a coordinate; of a batch that does not share them, along its axes too."""
    ts = np.asarray(ts)
    described = attributes("time", TIME_UNITS)
    rows = ts.reshape(-1, ts.shape[-1])
    if np.all(rows == rows[0]):
        return {"time": ("time", rows[0], described)}
    return {"times": ((*batch_dimensions(ts.ndim - 1), "time"), ts, described)}


def batch_dimensions(count: int) -> tuple[str, ...]:
    """Names of the leading axes of a batched result."""
    return ("batch",) if count == 1 else tuple(f"batch_axis{k}" for k in range(count))


def parameter_coordinates(game: MarkovGame, params: tuple, leading: int) -> dict[str, Any]:
    """Coordinates of a flat vector of all parameters, and of the other side of a matrix of them.

    Args:
        game: names states and actions.
        params: parameters of all agents.
        leading: axes of each array before its own.
    """
    names = []
    for part in parts(game, params, leading):
        owner = f"agent {part.agent} {part.name}".rstrip()
        for index in np.ndindex(part.values.shape[leading:]):
            place: tuple = index
            if part.is_table:
                action_names = game.action_names[part.agent]
                place = game.state_names[index[0]], action_names[index[1]]
            names.append(", ".join([owner, *map(str, place)]))
    return {
        "parameter": ("parameter", names, attributes("parameter")),
        "other_parameter": ("other_parameter", names, attributes("parameter")),
    }


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


def parts(game: MarkovGame, params: tuple, leading: int) -> list[Part]:
    """The arrays of all agents, with `leading` axes before their own."""
    found = []
    for agent, own in enumerate(params):
        table = (game.num_states, game.num_actions[agent])
        for path, leaf in jax.tree_util.tree_leaves_with_path(own):
            values = np.asarray(leaf)
            found.append(Part(agent, _place(path), values.shape[leading:] == table, values))
    return found


def tables(
    game: MarkovGame,
    variable: str,
    long_name: str,
    parts: Sequence[Part],
    leading: tuple[str, ...],
    quantity: str,
) -> dict[str, Any]:
    """Variables of parameters or policies: in one block where they fit, else one by one.

    Args:
        game: names states and actions.
        variable: the variable's name, to which a suffix is added for single arrays.
        long_name: its description.
        parts: the arrays of all agents.
        leading: the dimensions before an array's own.
        quantity: names the axes that are neither states nor actions.

    Returns:
        What `xarray.Dataset` takes as variables. A single array of one agent has the attributes
        `agent` and `column`: what it is named beside those of the others in a table.
    """
    one_block = (
        all(part.is_table for part in parts)
        and [part.agent for part in parts] == list(range(game.num_agents))
        and _action_dimension(game, 0) == "action"
    )
    if one_block:
        values = np.stack([part.values for part in parts], axis=len(leading))
        return {variable: ((*leading, "agent", "state", "action"), values, attributes(long_name))}
    variables = {}
    suffixes = plain_names([f"_agent{p.agent}" + (f"_{p.name}" if p.name else "") for p in parts])
    for part, suffix in zip(parts, suffixes, strict=True):
        count = part.values.ndim - len(leading)
        axes = [f"{quantity}{suffix}_axis{k}" for k in range(count)]
        if part.is_table:
            axes = ["state", _action_dimension(game, part.agent)]
        owner = f"agent {part.agent} {part.name}".rstrip()
        described = attributes(f"{long_name}, {owner}") | {
            "agent": part.agent,
            "column": variable + suffix.removeprefix(f"_agent{part.agent}"),
        }
        variables[variable + suffix] = ((*leading, *axes), part.values, described)
    return variables


def arrays(variable: str, long_name: str, tree: Any, leading: tuple[str, ...]) -> dict[str, Any]:
    """Variables of all arrays of any pytree, named after their places."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    places = [_place(path) for path, _ in leaves]
    variables = {}
    for place, name, (_, leaf) in zip(
        places, plain_names([variable + f"_{p}" * bool(p) for p in places]), leaves, strict=True
    ):
        axes = [f"{name}_axis{k}" for k in range(np.ndim(leaf) - len(leading))]
        described = attributes(f"{long_name} {place}".rstrip())
        variables[name] = ((*leading, *axes), np.asarray(leaf), described)
    return variables


def outcome(result: Any, leading: tuple[str, ...] = ()) -> dict[str, Any]:
    """How a computation, or each of a batch, ended: as a number and in words."""
    codes, messages = decode(result)
    return {
        "result": (leading, codes, attributes("result code, 0 for success")),
        "message": (leading, messages, attributes("how the computation ended")),
    }


def decode(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """Result codes as numbers, 0 for success, and as text."""
    codes = np.asarray(jax.tree.leaves(result)[0])
    distinct, place = np.unique(codes, return_inverse=True)
    texts = [RESULTS[jax.tree.map(lambda _, c=c: jnp.asarray(c), result)] for c in distinct]
    messages = np.array([text or "successful" for text in texts])
    return codes, np.asarray(messages[place]).reshape(codes.shape)


@eqx.filter_jit
def policies(wrapped: WrappedGame, params: Any, batch: int, times: bool) -> tuple:
    """Policies of all agents at parameters with leading axes.

    Args:
        wrapped: the wrapped game, with the axes of the batch.
        params: parameters of all agents.
        batch: axes of the batch.
        times: whether an axis of times follows them.
    """

    def along(wrapped, params):
        return jax.vmap(wrapped.policies)(params) if times else wrapped.policies(params)

    for _ in range(batch):
        along = eqx.filter_vmap(along)
    return along(wrapped, params)


def _place(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def plain_names(names: Sequence[str]) -> list[str]:
    """The names in plain characters, told apart by a number where they became the same."""
    plain = [re.sub(r"\W+", "_", name) for name in names]
    return [name if plain.count(name) == 1 else f"{name}_array{k}" for k, name in enumerate(plain)]
