"""Results as labelled data sets (xarray), and their safe writing to netCDF files."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from .compare import Comparison, Series
from .files import prepare_folder as prepare_folder
from .files import replacing as replacing
from .game import MarkovGame
from .version import __version__

if TYPE_CHECKING:
    import xarray

_TIME_UNITS = "unscaled steps"


def to_dataset(comparison: Comparison) -> "xarray.Dataset":
    """A comparison as a labelled data set.

    Dimensions are `time`, `agent`, `state` and `action`, with the game's own names as coordinates.
    Variables:

    - `ode_parameters`, `ensemble_parameters`, `ensemble_parameters_variance` and likewise
      `.._policy`, `.._policy_variance`: `(time, agent, state, action)`. Where the agents' actions
      differ there is one variable per agent, `ode_policy_agent0` on `(time, state,
      action_agent0)`, and where their parameters are not one table of states and actions, one per
      array, named after its place, e.g. `ode_parameters_agent0_theta`.
    - `ode_state_distribution`, `ensemble_state_frequency`: `(time, state)`.
    - `ode_rewards`, `ensemble_rewards`: `(time, agent)`.

    The attribute `settings` says in JSON how the comparison was made.

    Args:
        comparison: what `ergodax.compare` returned.

    Returns:
        The data set. Arrays are those of the comparison, unchanged.
    """
    import xarray

    game, simulation = comparison.wrapped.game, comparison.simulation
    coordinates: dict[str, Any] = {
        "time": ("time", simulation.ts, attributes("time", _TIME_UNITS)),
        "step": ("time", simulation.steps, attributes("step of the simulation")),
        "agent": ("agent", np.arange(game.num_agents), attributes("agent")),
        "state": ("state", list(game.state_names), attributes("state of the game")),
    } | action_coordinates(game)
    per_step = "reward per step"
    variables: dict[str, Any] = {
        "ode_state_distribution": (
            ("time", "state"),
            np.asarray(comparison.solution.state_distribution),
            attributes("stationary distribution of the states along the ODE", "1"),
        ),
        "ensemble_state_frequency": (
            ("time", "state"),
            simulation.state_frequency,
            attributes("share of steps since the previous time, mean over runs", "1"),
        ),
        "ode_rewards": (
            ("time", "agent"),
            np.asarray(comparison.solution.rewards),
            attributes("expected reward per step along the ODE", per_step),
        ),
        "ensemble_rewards": (
            ("time", "agent"),
            simulation.rewards,
            attributes("mean reward per step since the previous time, mean over runs", per_step),
        ),
    }
    variables |= _comparison_tables(comparison, "parameters", comparison.parameter_series)
    variables |= _comparison_tables(comparison, "policy", comparison.policy_series)
    return xarray.Dataset(
        variables, coordinates, attrs={"settings": json.dumps(settings(comparison))}
    )


def settings(comparison: Comparison) -> dict[str, Any]:
    """How a comparison was made, in plain Python values: versions, sizes, learners, random key."""
    game, simulation = comparison.wrapped.game, comparison.simulation
    final: Any = simulation.final
    return {
        "ergodax": __version__,
        "jax": jax.__version__,
        "scale": simulation.scale,
        "runs": simulation.runs,
        "key_data": comparison.key_data.tolist(),
        "initial_state": comparison.initial_state,
        "dtype": str(np.result_type(*jax.tree.leaves(final.params))),
        "game": {
            "agents": game.num_agents,
            "states": game.num_states,
            "actions": list(game.num_actions),
            "successors": game.num_successors,
        },
        "learners": [_describe(learner) for learner in comparison.wrapped.learners],
    }


def save(result: "Comparison | xarray.Dataset", path: str | os.PathLike[str]) -> None:
    """Writes a comparison or a data set to a netCDF file, completely or not at all.

    Args:
        result: what `ergodax.compare` or `to_dataset` returned.
        path: the file; an existing one is replaced once the new one is complete.

    Raises:
        OSError: if the file's folder cannot be made or written.
    """
    dataset = to_dataset(result) if isinstance(result, Comparison) else result
    with replacing(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def attributes(long_name: str, units: str | None = None) -> dict[str, str]:
    """Attributes of a variable or coordinate."""
    return {"long_name": long_name} | ({} if units is None else {"units": units})


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
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            values = np.asarray(leaf)
            found.append(Part(agent, name, values.shape[leading:] == table, values))
    return found


def action_coordinates(game: MarkovGame) -> dict[str, Any]:
    """Coordinates of the actions: one for all agents where their actions have the same names."""
    coordinates = {}
    for agent, names in enumerate(game.action_names):
        dimension = _action_dimension(game, agent)
        owner = "" if dimension == "action" else f" of agent {agent}"
        coordinates[dimension] = (dimension, list(names), attributes(f"action{owner}"))
    return coordinates


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
        What `xarray.Dataset` takes as variables.
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
    for part, suffix in zip(parts, _suffixes(parts), strict=True):
        count = part.values.ndim - len(leading)
        axes = [f"{quantity}{suffix}_axis{k}" for k in range(count)]
        if part.is_table:
            axes = ["state", _action_dimension(game, part.agent)]
        owner = f"agent {part.agent} {part.name}".rstrip()
        described = attributes(f"{long_name}, {owner}")
        variables[variable + suffix] = ((*leading, *axes), part.values, described)
    return variables


def _action_dimension(game: MarkovGame, agent: int) -> str:
    return "action" if len(set(game.action_names)) == 1 else f"action_agent{agent}"


def _comparison_tables(comparison: Comparison, quantity: str, series: list[Series]):
    kinds = (
        ("ode", f"ode_{quantity}", f"{quantity} along the ODE"),
        ("mean", f"ensemble_{quantity}", f"{quantity}, mean over runs"),
        ("variance", f"ensemble_{quantity}_variance", f"{quantity}, variance over runs"),
    )
    variables = {}
    for kind, name, long_name in kinds:
        arrays = [Part(s.agent, s.name, s.is_table, getattr(s, kind)) for s in series]
        game = comparison.wrapped.game
        variables |= tables(game, name, long_name, arrays, ("time",), quantity)
    return variables


def _suffixes(parts: Sequence[Part]) -> list[str]:
    """One distinct, plain suffix per array: its agent and its place in the agent's parameters."""
    suffixes = [
        re.sub(r"\W+", "_", f"_agent{part.agent}" + (f"_{part.name}" if part.name else ""))
        for part in parts
    ]
    return [
        suffix if suffixes.count(suffix) == 1 else f"{suffix}_array{k}"
        for k, suffix in enumerate(suffixes)
    ]


def _describe(value: Any) -> Any:
    """A learner and all it holds, in plain Python values."""
    if isinstance(value, eqx.Module) and dataclasses.is_dataclass(value):
        fields = {f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if isinstance(value, tuple | list):
        return [_describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _describe(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
