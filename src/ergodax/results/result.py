"""What all results have in common: the labelled data set that their fields make."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from ..base.compiling import compiled
from ..base.version import __version__
from ..model.observable import named
from ..model.wrapped import WrappedGame
from .labels import (
    Entries,
    as_array,
    attributes,
    batch_dimensions,
    game_coordinates,
    make_variables,
    of_agents,
    of_places,
    parameter_names,
)

if TYPE_CHECKING:
    import xarray

# Dimensions along which the entries of all agents' parameters are named.
_PARAMETERS = {"parameter", "other_parameter"}


class Result(eqx.Module):
    """A result: its fields carry labels, `_derived` adds what is computed from them."""

    def _derived(self) -> Entries:
        """What the data set holds besides the labelled fields."""
        return {}

    def to_xarray(self) -> "xarray.Dataset":
        """The result as a labelled data set, with the game's own names of states and actions.

        Parameters and policies are on `(agent, state, action)` after all other dimensions. Where
        the agents' actions differ there is one variable per agent, `policy_agent0` on `(state,
        action_agent0)`, and where their parameters are not one table of states and actions, one per
        array, named after its place, e.g. `parameters_agent0_theta`. A batch, as `jax.vmap` returns
        it, has the dimension `batch` before all others. The attribute `settings` says in JSON how
        the result was made.
        """
        import xarray

        entries = self._labelled_fields() | self._derived()
        held = [entry for entry in entries.values() if entry[0] is not None]
        arrays = (np.ndim(v) - len(label.dims) for v, label in held if label.make is as_array)
        batch = batch_dimensions(next(arrays, 0))
        wrapped: WrappedGame | None = getattr(self, "wrapped", None)
        game = None if wrapped is None else wrapped.game
        variables, coordinates = make_variables(game, entries, batch)

        settings: dict[str, Any] = {"result": type(self).__name__} | versions()
        settings |= {n: describe(v) for n, (v, label) in entries.items() if label.make is None}
        params, of = next((entry for entry in held if entry[1].make is of_agents), ((), None))
        if game is not None and of is not None:
            settings.setdefault("dtype", precision(params))
            for dim in _PARAMETERS & {dim for _, label in held for dim in label.dims}:
                names = parameter_names(game, params, len(batch) + len(of.dims))
                coordinates[dim] = (dim, names, attributes("parameter"))
        if wrapped is not None:
            coordinates |= game_coordinates(wrapped.game)
            settings |= describe_game(wrapped)
        return xarray.Dataset(variables, coordinates, attrs={"settings": json.dumps(settings)})

    def _labelled_fields(self) -> Entries:
        """All fields that have a label, by the names of their variables."""
        observed: tuple[str, ...] = getattr(self, "observed", ())
        entries: Entries = {}
        for field in dataclasses.fields(self):
            label, value = field.metadata.get("label"), getattr(self, field.name)
            if label is None:
                continue
            if not label.observed:
                entries[label.name or field.name] = value, label
            elif value is not None:
                for name, own in named(observed, value).items():
                    make = of_places if name == "observable" else of_agents
                    long_name = f"{name}, {label.long_name}"
                    entries[name + label.name] = own, label._replace(long_name=long_name, make=make)
        return entries


@compiled
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


# How a result was made


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
