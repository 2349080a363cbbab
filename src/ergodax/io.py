"""Results as labelled data sets (xarray), and their safe writing to netCDF files."""

import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .compare import Comparison, Series
from .files import prepare_folder as prepare_folder
from .files import replacing as replacing
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
        "time": ("time", simulation.ts, _attributes("time", _TIME_UNITS)),
        "step": ("time", simulation.steps, _attributes("step of the simulation")),
        "agent": ("agent", np.arange(game.num_agents), _attributes("agent")),
        "state": ("state", list(game.state_names), _attributes("state of the game")),
    }
    for agent, names in enumerate(game.action_names):
        dimension = _action_dimension(comparison, agent)
        owner = "" if dimension == "action" else f" of agent {agent}"
        coordinates[dimension] = (dimension, list(names), _attributes(f"action{owner}"))

    per_step = "reward per step"
    variables: dict[str, Any] = {
        "ode_state_distribution": (
            ("time", "state"),
            np.asarray(comparison.solution.state_distribution),
            _attributes("stationary distribution of the states along the ODE", "1"),
        ),
        "ensemble_state_frequency": (
            ("time", "state"),
            simulation.state_frequency,
            _attributes("share of steps since the previous time, mean over runs", "1"),
        ),
        "ode_rewards": (
            ("time", "agent"),
            np.asarray(comparison.solution.rewards),
            _attributes("expected reward per step along the ODE", per_step),
        ),
        "ensemble_rewards": (
            ("time", "agent"),
            simulation.rewards,
            _attributes("mean reward per step since the previous time, mean over runs", per_step),
        ),
    }
    variables |= _tables(comparison, "parameters", comparison.parameter_series)
    variables |= _tables(comparison, "policy", comparison.policy_series)
    return xarray.Dataset(
        variables, coordinates, attrs={"settings": json.dumps(settings(comparison))}
    )


def settings(comparison: Comparison) -> dict[str, Any]:
    """How a comparison was made, in plain Python values: versions, sizes, learners, random key."""
    game, simulation = comparison.wrapped.game, comparison.simulation
    return {
        "ergodax": __version__,
        "jax": jax.__version__,
        "scale": simulation.scale,
        "runs": simulation.runs,
        "key_data": comparison.key_data.tolist(),
        "initial_state": comparison.initial_state,
        "dtype": str(np.result_type(*jax.tree.leaves(simulation.final.params))),
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


def _attributes(long_name: str, units: str | None = None) -> dict[str, str]:
    return {"long_name": long_name} | ({} if units is None else {"units": units})


def _action_dimension(comparison: Comparison, agent: int) -> str:
    shared = len(set(comparison.wrapped.game.action_names)) == 1
    return "action" if shared else f"action_agent{agent}"


def _tables(comparison: Comparison, quantity: str, series: list[Series]) -> dict[str, Any]:
    """Variables of the parameters or policies: in one block where they fit, else one by one."""
    kinds = (
        ("ode", f"ode_{quantity}", f"{quantity} along the ODE"),
        ("mean", f"ensemble_{quantity}", f"{quantity}, mean over runs"),
        ("variance", f"ensemble_{quantity}_variance", f"{quantity}, variance over runs"),
    )
    owners = [s.agent for s in series]
    one_block = (
        all(s.is_table for s in series)
        and owners == list(range(comparison.wrapped.game.num_agents))
        and _action_dimension(comparison, 0) == "action"
    )
    variables = {}
    for kind, name, long_name in kinds:
        values = [getattr(s, kind) for s in series]
        if one_block:
            dimensions = ("time", "agent", "state", "action")
            variables[name] = (dimensions, np.stack(values, axis=1), _attributes(long_name))
            continue
        for s, own, suffix in zip(series, values, _suffixes(series), strict=True):
            axes = [f"{quantity}{suffix}_axis{k}" for k in range(own.ndim - 1)]
            if s.is_table:
                axes = ["state", _action_dimension(comparison, s.agent)]
            owner = f"agent {s.agent} {s.name}".rstrip()
            variables[name + suffix] = (("time", *axes), own, _attributes(f"{long_name}, {owner}"))
    return variables


def _suffixes(series: list[Series]) -> list[str]:
    """One distinct, plain suffix per array: its agent and its place in the agent's parameters."""
    suffixes = [
        re.sub(r"\W+", "_", f"_agent{s.agent}" + (f"_{s.name}" if s.name else "")) for s in series
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
