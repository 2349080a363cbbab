"""The parameter sets of a sweep: their design, what is built for them, and whether it is valid."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..averaged.drift import flat_drift
from ..base.checks import check_array, check_choice, check_mapping, is_within
from ..base.compiling import compiled
from ..model.build import Build, check_build
from ..model.wrapped import WrappedGame

# Names of the dimensions and variables of a sweep's data set.
_TAKEN = re.compile(
    r"time|agent|state|action|set|rewards|state_distribution|state_frequency|end_time|steps|result|"
    r"message|action_agent\d+|(parameters|policy)(_variance)?(_agent\d+\w*)?"
)


def make_sets(thetas, design: str) -> tuple[list[str], np.ndarray, tuple[int, ...]]:
    """Names, the values of all sets `[B, names]`, and the shape of the sets."""
    if not check_mapping("thetas", thetas, "{'temperature': [0.1, 0.2]}"):
        raise ValueError("thetas must name at least one quantity.")
    check_choice("design", design, ("grid", "paired"))
    names, values = list(thetas), []
    for name in names:
        if _TAKEN.fullmatch(name):
            raise ValueError(
                f"thetas: the name {name!r} is taken by the data set that is returned."
            )
        if "/" in name:
            raise ValueError(f"thetas: the name {name!r} holds '/', which files do not allow.")
        axis = np.asarray(check_array(f"thetas[{name!r}]", thetas[name]), dtype=float)
        if axis.ndim != 1 or axis.size == 0:
            raise ValueError(f"thetas[{name!r}] must be a list of values; found {thetas[name]!r}.")
        if not np.all(np.isfinite(axis)):
            raise ValueError(
                f"thetas[{name!r}] must be finite; found {axis[~np.isfinite(axis)][0]}."
            )
        if design == "grid" and len(np.unique(axis)) < len(axis):
            raise ValueError(f"thetas[{name!r}] must be distinct on a grid; found {axis}.")
        values.append(axis)
    if design == "grid":
        grid = np.stack(np.meshgrid(*values, indexing="ij"), axis=-1)
        return names, grid.reshape(-1, len(names)), grid.shape[:-1]
    lengths = [len(axis) for axis in values]
    if len(set(lengths)) > 1:
        raise ValueError(
            "paired thetas must all have the same length; found "
            + ", ".join(f"{name}: {length}" for name, length in zip(names, lengths, strict=True))
        )
    return names, np.stack(values, axis=-1), (lengths[0],)


def named(names, values) -> dict[str, Any]:
    """One set, or several, as `build` takes it."""
    return {name: values[..., k] for k, name in enumerate(names)}


def _describe(names, values) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in zip(names, values, strict=True))


def check_sets(build: Build, names, sets) -> tuple[WrappedGame, Any]:
    """The first set's game and parameters, built outside any trace, so that they can be checked.

    Raises:
        ValueError: as `check_build`.
    """

    def placed(values):
        return f"at {_describe(names, values)}", named(names, jnp.asarray(values, dtype=float))

    here, theta = placed(sets[0])
    return check_build(build, theta, map(placed, sets[1:]), here)


def _hypers(module: Any, label: str) -> Iterator[tuple[str, str, Any]]:
    """Name, interval and value of every hyper-parameter in a learner."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if isinstance(value, eqx.Module):
            yield from _hypers(value, type(value).__name__)
        elif "within" in field.metadata:
            yield f"{label}.{field.name}", field.metadata["within"], value


def _agent_hypers(wrapped: WrappedGame) -> list[tuple[str, str, Any]]:
    return [
        (f"agent {agent}: {name}", interval, value)
        for agent, learner in enumerate(wrapped.learners)
        for name, interval, value in _hypers(learner, type(learner).__name__)
    ]


@compiled
def _inspect(build, names, values, averaged: bool):
    def inspect(values):
        wrapped, params0 = build(named(names, values))
        game = wrapped.game
        tolerance = 1e-5 if game.probabilities.dtype == jnp.float32 else 1e-8
        rows = jnp.abs(game.probabilities.sum(-1) - 1) <= tolerance
        valid = {
            "transition probabilities": jnp.all(rows) & jnp.all(game.probabilities >= 0),
            "rewards": jnp.all(jnp.isfinite(game.rewards)),
            "initial parameters": jnp.all(
                jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params0)])
            ),
        }
        pace = jnp.zeros(())
        if averaged:
            x, _, field = flat_drift(params0)
            velocity, change = jax.jvp(lambda x: field(x, wrapped), (x,), (field(x, wrapped),))
            pace = jnp.linalg.norm(change) / jnp.linalg.norm(velocity)
        return [value for *_, value in _agent_hypers(wrapped)], valid, pace

    return jax.vmap(inspect)(values)


def survey(build: Build, wrapped, names, sets, size: int, averaged: bool) -> np.ndarray:
    """Checks the values of all sets; returns a rough rate of change of each.

    Raises:
        ValueError: naming the first set that is not valid.
    """
    labels = [(label, interval) for label, interval, _ in _agent_hypers(wrapped)]
    paces = []
    for chosen, filled, values in batches_of(sets, np.arange(len(sets)), size):
        inspected = _inspect(build, tuple(names), values, averaged)
        hypers, valid, pace = jax.device_get(inspected)
        for (label, interval), found in zip(labels, hypers, strict=True):
            if not is_within(found, interval):
                k = next(k for k in range(len(found)) if not is_within(found[[k]], interval))
                raise ValueError(
                    f"{label} must be finite and in {interval}; found {found[k]} at "
                    f"{_describe(names, sets[filled[k]])}."
                )
        for what, good in valid.items():
            if not good.all():
                where = _describe(names, sets[filled[np.argmin(good)]])
                raise ValueError(f"{what} are not valid at {where}.")
        paces.append(pace[: len(chosen)])
    return np.concatenate(paces)


@compiled
def build_sets(build, names, values):
    """What is built for several sets, with a leading axis on every array."""
    others: Any = None

    def arrays_of(values):
        nonlocal others
        arrays, others = eqx.partition(build(named(names, values)), eqx.is_array)
        return arrays

    # One after the other, so that rounding does not depend on how many there are.
    return eqx.combine(jax.lax.map(arrays_of, values), others)


def batches_of(sets, numbers: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Any, Any]]:
    """The numbers of a batch's sets; the same filled up with the last, and their values.

    The last batch may be smaller; filled up, one compiled program serves all.
    """
    for first in range(0, len(numbers), size):
        chosen = numbers[first : first + size]
        filled = np.pad(chosen, (0, size - len(chosen)), mode="edge")
        yield chosen, filled, jnp.asarray(sets[filled])
