"""Sweeps: many parameter sets, solved or simulated in batches, as one labelled data set.

The sets of a batch are solved together under `jax.vmap`, each with its own step sizes, until the
slowest is done. So batches are made of sets alike: in the order of a rough rate of change,
`|DF F| / |F|` at the start, which costs two evaluations of the drift.
"""

import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import ArrayLike, Real
from tqdm import tqdm

from .clock import check_times
from .devices import default_devices
from .drift import flat_drift
from .ensembles import Plan, plan, simulate_ensembles
from .files import prepare_folder, replacing
from .flow import solve
from .game import MarkovGame
from .labels import TIME_UNITS, attributes, decode, game_coordinates, parts, tables, versions
from .learner import is_within
from .results import RESULTS
from .stationary import check_ergodic
from .wrapped import WrappedGame

if TYPE_CHECKING:
    import xarray

Build = Callable[[dict[str, Any]], tuple[WrappedGame, Any]]

_DESCRIPTION = "sweep.json"
_MOST_SETS = 128
_BATCH_BYTES = 2**28
_DIMENSIONS = ("time", "agent", "state", "action", "set")


def sweep(
    build: Build,
    thetas: Mapping[str, Real[ArrayLike, " _"] | Sequence],
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    design: Literal["grid", "paired"] = "grid",
    simulation: Mapping[str, Any] | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 4096,
    batch_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> "xarray.Dataset":
    """Solves the averaged ODE, or simulates the learners, for many parameter sets.

    `build` is traced once; all sets of one sweep run through one compiled program, spread over the
    devices as in `simulate`. A set that fails holds NaN from there on, and its `message` says why;
    it delays only the sets of its own batch.

    With `folder`, every finished batch is written there (whole or not at all), and a sweep that was
    interrupted goes on from what is there. The batches may then be of another size.

    Args:
        build: turns one set, a dictionary of scalars named as in `thetas`, into a wrapped game and
            the parameters at time 0. It must be traceable by JAX: what depends on a value is
            written with `jnp.where`, not `if`. Define it once, outside loops.
        thetas: the values of each quantity, by name.
        ts: times at which to report, as for `solve` and `simulate`.
        design: `"grid"`: every combination of the values, one dimension per name; `"paired"`: the
            k-th set takes the k-th value of every name (a random design, say), along the dimension
            `set`.
        simulation: arguments of `simulate`: `key` and, if wanted, `runs`, `scale`, `initial_state`
            and `dtype`; by default the ODE is solved. Set k uses the key `fold_in(key, k)`.
        rtol: relative tolerance per step of the ODE solver.
        atol: absolute tolerance per step.
        max_steps: largest number of solver steps.
        batch_size: sets solved or simulated together, rounded up to fill the devices; by default as
            many as suit them. Sets of so many runs that one fills the devices go one by one.
        folder: where to write batches, and to look for those of an earlier call.
        progress: show a progress bar.

    Returns:
        A data set. Its dimensions are those of the sets, then `time`, `agent`, `state`, `action`
        with the game's own names. For the ODE: `parameters`, `policy`, `state_distribution`,
        `rewards`, `end_time`, `steps`. For simulations: means over runs `parameters` and `policy`,
        variances `parameters_variance` and `policy_variance`, `state_frequency`, `rewards`. Always
        `result` (0 is success) and `message`. Parameters or policies that are no common table
        become one variable per array, as in the data sets of all results.

    Raises:
        ValueError: if an argument does not fit; if a set's hyper-parameter, probability or reward
            is not valid, naming the set; if the structure of what `build` returns depends on the
            values, naming the leaf; if `folder` holds anything else, which is left untouched.
        OSError: if `folder` cannot be written.

    Warns:
        UserWarning: if sets failed.
    """
    check_times(ts)
    times = np.asarray(ts, dtype=float)
    names, sets, shape = _design(thetas, design)
    count = math.prod(shape)
    if simulation is not None:
        _check_options(simulation)
    wrapped, params0 = _trace(build, names, sets)
    mesh = Mesh(np.array(default_devices()), ("sets",))
    size = _batch_size(batch_size, wrapped, params0, len(times), mesh, count)
    first = _first_set(build, names, sets)
    planned = None
    if simulation is None:
        check_ergodic(*first)
    else:
        planned = plan(*first, times, count, batch_size, **simulation)
    pace = _survey(build, wrapped, names, sets, size, simulation is None)

    store = None if folder is None else Path(folder)
    pieces: dict[int, list[np.ndarray]] = {}
    if store is not None:
        built = _digest_built(build, names, sets, size)
        described = _describe(built, names, sets, times, design, simulation, rtol, atol, max_steps)
        _claim(store, described)
        for path in sorted(store.glob("piece-*.npz")):
            with np.load(path) as archive:
                pieces[int(path.stem[6:])] = [archive[f"arr_{k}"] for k in range(len(archive))]
    done = [piece[0] for piece in pieces.values()]
    rest = np.setdiff1d(np.arange(count), np.concatenate(done) if done else [])
    rest = rest[np.argsort(pace[rest], kind="stable")]

    if planned is None:
        options = (times, rtol, atol, max_steps, mesh)
        batches = _solve_batches(build, names, sets, rest, size, options)
    else:
        batches = _simulate_batches(build, names, sets, np.sort(rest), planned)
    structure = _outcome_structure(params0, wrapped, simulation is None)
    with tqdm(
        total=count, initial=count - len(rest), unit="set", disable=not progress
    ) as progress_bar:
        for chosen, outcome in batches:
            piece = [chosen, *structure.flatten_up_to(outcome)]
            if store is not None:
                with (
                    replacing(store / f"piece-{chosen[0]:08d}.npz") as temporary,
                    open(temporary, "wb") as file,
                ):
                    np.savez(file, *piece)
            pieces[int(chosen[0])] = piece
            progress_bar.update(len(chosen))

    order = np.argsort(np.concatenate([piece[0] for piece in pieces.values()]))
    leaves = [
        np.concatenate(leaf)[order].reshape(*shape, *leaf[0].shape[1:])
        for leaf in list(zip(*pieces.values(), strict=True))[1:]
    ]
    outcome = jax.tree.unflatten(structure, leaves)
    failed = int(np.sum(outcome["result"] != 0))
    if failed:
        warnings.warn(
            f"{failed} of {count} sets failed; `message` says why, for instance: "
            f"{outcome['message'][outcome['result'] != 0][0]}",
            stacklevel=2,
        )
    return _label(wrapped.game, outcome, thetas, design, times, simulation, rtol, atol)


def _check_options(simulation: Mapping[str, Any]) -> None:
    """Raises ValueError if simulations are asked for what a sweep of them has not."""
    known = ("key", "runs", "scale", "initial_state", "dtype")
    if "key" not in simulation:
        raise ValueError("simulation must hold at least a random key, `key`.")
    unknown = [name for name in simulation if name not in known]
    if unknown:
        raise ValueError(f"simulation takes {', '.join(known)}; found {unknown[0]!r}.")


# The sets


def _design(thetas, design: str) -> tuple[list[str], np.ndarray, tuple[int, ...]]:
    """Names, the values of all sets `[B, names]`, and the shape of the sets."""
    if not thetas:
        raise ValueError("thetas must name at least one quantity.")
    if design not in ("grid", "paired"):
        raise ValueError(f'design must be "grid" or "paired"; found {design!r}.')
    names, values = list(thetas), []
    for name in names:
        if name in _DIMENSIONS:
            raise ValueError(f"thetas: the name {name!r} is that of another dimension.")
        axis = np.asarray(thetas[name], dtype=float)
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


def _theta(names, values) -> dict[str, Any]:
    return {name: values[..., k] for k, name in enumerate(names)}


def _name_set(names, values) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in zip(names, values, strict=True))


def _first_set(build: Build, names, sets):
    """The first set, built outside any trace, so that its values can be checked."""
    return build(_theta(names, jnp.asarray(sets[0], dtype=float)))


def _trace(build: Build, names, sets):
    """What `build` returns for any set, without values.

    Raises:
        ValueError: if it returns something else, or a structure that depends on the values.
    """

    def checked(values):
        built = build(_theta(names, values))
        if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], WrappedGame)):
            raise ValueError(
                "build must return a wrapped game and the parameters at time 0; found "
                f"{type(built).__name__}."
            )
        built[0].check_structure(built[1])
        return built

    theta = jax.ShapeDtypeStruct((len(names),), jnp.result_type(float))
    try:
        return eqx.filter_eval_shape(checked, theta)
    except jax.errors.ConcretizationTypeError as error:
        _compare_structures(build, names, sets)
        raise ValueError(
            "build looks at the value of a parameter, so that it cannot be compiled once for all "
            f"sets; use jnp.where in place of `if`: {str(error).splitlines()[0]}"
        ) from None


def _compare_structures(build: Build, names, sets) -> None:
    """Raises ValueError if sets are built to different structures, naming the first leaf."""

    def leaves_of(values):
        built = build(_theta(names, jnp.asarray(values, dtype=float)))
        return {
            jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(built)
            if eqx.is_array(leaf)
        }, jax.tree.structure(built)

    (expected, structure), first = leaves_of(sets[0]), _name_set(names, sets[0])
    for values in sets[1:]:
        found, other = leaves_of(values)
        if found == expected and other == structure:
            continue
        paths = [*expected, *(path for path in found if path not in expected)]
        path = next((p for p in paths if expected.get(p) != found.get(p)), "a static field")
        raise ValueError(
            f"the structure of what build returns changes with the parameters: {path} is "
            f"{expected.get(path, 'absent')} at {first}, but {found.get(path, 'absent')} at "
            f"{_name_set(names, values)}."
        )


def _hypers(module: Any, label: str) -> Iterator[tuple[str, str, Any]]:
    """Name, interval and value of every hyper-parameter in a learner."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if "within" in field.metadata:
            yield f"{label}.{field.name}", field.metadata["within"], value
        elif isinstance(value, eqx.Module):
            yield from _hypers(value, type(value).__name__)


def _agent_hypers(wrapped: WrappedGame) -> list[tuple[str, str, Any]]:
    return [
        (f"agent {agent}: {name}", interval, value)
        for agent, learner in enumerate(wrapped.learners)
        for name, interval, value in _hypers(learner, type(learner).__name__)
    ]


@eqx.filter_jit
def _inspect(build, names, values, averaged: bool):
    def inspect(values):
        wrapped, params0 = build(_theta(names, values))
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


def _survey(build: Build, wrapped, names, sets, size: int, averaged: bool) -> np.ndarray:
    """Checks the values of all sets; returns a rough rate of change of each.

    Raises:
        ValueError: naming the first set that is not valid.
    """
    labels = [(label, interval) for label, interval, _ in _agent_hypers(wrapped)]
    paces = []
    for chosen in _batches(np.arange(len(sets)), size):
        hypers, valid, pace = jax.device_get(
            _inspect(build, tuple(names), jnp.asarray(sets[_padded(chosen, size)]), averaged)
        )
        for (label, interval), values in zip(labels, hypers, strict=True):
            if not is_within(values, interval):
                k = next(k for k in range(len(values)) if not is_within(values[[k]], interval))
                raise ValueError(
                    f"{label} must be finite and in {interval}; found {values[k]} at "
                    f"{_name_set(names, sets[_padded(chosen, size)[k]])}."
                )
        for what, good in valid.items():
            if not good.all():
                where = _name_set(names, sets[_padded(chosen, size)[np.argmin(good)]])
                raise ValueError(f"{what} are not valid at {where}.")
        paces.append(pace[: len(chosen)])
    return np.concatenate(paces)


# Batches


def _batches(sets: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(sets), size):
        yield sets[first : first + size]


def _padded(chosen: np.ndarray, size: int) -> np.ndarray:
    """A batch filled up with its last set, so that one compiled program serves all."""
    return np.pad(chosen, (0, size - len(chosen)), mode="edge")


def _batch_size(batch_size, wrapped, params0, num_times: int, mesh: Mesh, count: int) -> int:
    """Sets per batch, a multiple of the number of devices."""
    num_devices = mesh.size
    if batch_size is None:
        # Wider batches wait longer for their slowest set, and only accelerators gain by them.
        most = _MOST_SETS if mesh.devices.flat[0].platform == "cpu" else count
        events = math.prod(wrapped.game.rewards.shape)
        table = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params0))
        # About as many arrays of each kind are alive at once.
        needed = 8 * (16 * events + (16 + 2 * num_times) * table)
        batch_size = min(max(_BATCH_BYTES // needed, 1), most) * num_devices
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer; found {batch_size!r}.")
    return num_devices * -(-min(batch_size, count) // num_devices)


def _solve_batches(build: Build, names, sets, rest, size: int, options):
    for chosen in _batches(rest, size):
        values = jnp.asarray(sets[_padded(chosen, size)])
        outcome, results = _solve_batch(build, tuple(names), values, *options)
        outcome, count = jax.device_get(outcome) | _ended(results), len(chosen)
        yield chosen, jax.tree.map(lambda leaf, count=count: leaf[:count], outcome)


@eqx.filter_jit
def _solve_batch(build, names, values, ts, rtol, atol, max_steps, mesh):
    def solve_one(values):
        wrapped, params0 = build(_theta(names, values))
        solution = solve(
            wrapped,
            params0,
            ts,
            rtol=rtol,
            atol=atol,
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )
        reached = (solution.result == RESULTS.successful) | (ts <= solution.end_time)

        def known(leaf):
            return jnp.where(reached.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.nan)

        outcome = {
            "parameters": jax.tree.map(known, solution.params),
            "policy": jax.tree.map(known, jax.vmap(wrapped.policies)(solution.params)),
            "state_distribution": known(solution.state_distribution),
            "rewards": known(solution.rewards),
            "end_time": solution.end_time,
            "steps": solution.stats["num_steps"],
        }
        return outcome, solution.result

    # Every device loops over its own sets until they are done: no waiting for each other.
    one_device = PartitionSpec("sets")
    return jax.shard_map(
        jax.vmap(solve_one), mesh=mesh, in_specs=one_device, out_specs=one_device, check_vma=False
    )(values)


@eqx.filter_jit
def _build_sets(build, names, values):
    """What is built for several sets, with a leading axis on every array."""
    others: Any = None

    def arrays_of(values):
        nonlocal others
        arrays, others = eqx.partition(build(_theta(names, values)), eqx.is_array)
        return arrays

    # One after the other, so that rounding does not depend on how many there are.
    return eqx.combine(jax.lax.map(arrays_of, values), others)


def _simulate_batches(build: Build, names, sets, rest, planned: Plan):
    for chosen in _batches(rest, planned.together):
        numbers = _padded(chosen, planned.together)
        wrapped, params0 = _build_sets(build, tuple(names), jnp.asarray(sets[numbers]))
        found = simulate_ensembles(planned, wrapped, params0, numbers)
        outcome = {
            "parameters": found.mean[0],
            "policy": found.mean[1],
            "parameters_variance": found.variance[0],
            "policy_variance": found.variance[1],
            "state_frequency": found.state_frequency,
            "rewards": found.rewards,
        }
        good, bad = _ended(RESULTS.successful), _ended(RESULTS.nonfinite)
        lost, runs = found.lost[:, -1], planned.inputs.runs
        outcome["result"] = np.where(lost > 0, bad["result"], good["result"])
        texts = [f"{n:.0f} of {runs} runs became infinite or NaN" for n in lost]
        outcome["message"] = np.where(lost > 0, texts, good["message"])
        count = len(chosen)
        yield chosen, jax.tree.map(lambda leaf, count=count: leaf[:count], outcome)


def _ended(results: Any) -> dict[str, np.ndarray]:
    return dict(zip(("result", "message"), decode(results), strict=True))


def _outcome_structure(params0, wrapped, averaged: bool):
    """The structure of a batch's outcome."""
    policies = (0,) * wrapped.game.num_agents
    outcome = {"parameters": params0, "policy": policies, "rewards": 0, "result": 0, "message": 0}
    if averaged:
        outcome |= {"state_distribution": 0, "end_time": 0, "steps": 0}
    else:
        variances = {"parameters_variance": params0, "policy_variance": policies}
        outcome |= variances | {"state_frequency": 0}
    return jax.tree.structure(outcome)


# The folder


def _digest_built(build: Build, names, sets, size: int) -> str:
    """A digest of all that `build` returns for all sets, whatever the size of the batches."""
    hashed: list[Any] = []
    for chosen in _batches(np.arange(len(sets)), size):
        built = _build_sets(build, tuple(names), jnp.asarray(sets[_padded(chosen, size)]))
        leaves, structure = jax.tree.flatten(eqx.filter(built, eqx.is_array))
        hashed = hashed or [hashlib.sha256(str(structure).encode()) for _ in leaves]
        for one, leaf in zip(hashed, jax.device_get(leaves), strict=True):
            one.update(np.ascontiguousarray(leaf[: len(chosen)]))
    return hashlib.sha256(b"".join(one.digest() for one in hashed)).hexdigest()


def _describe(
    built: str, names, sets, times, design, simulation, rtol, atol, max_steps
) -> dict[str, Any]:
    """What tells one sweep from another, in short plain values."""

    def digest(*arrays) -> str:
        hashed = hashlib.sha256()
        for array in arrays:
            array = np.ascontiguousarray(array)
            hashed.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        return hashed.hexdigest()

    described: dict[str, Any] = {
        "names": names,
        "design": design,
        "sets": digest(sets),
        "times": digest(times),
        "games, learners and initial parameters": built,
    }
    if simulation is None:
        return described | {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    options = {k: repr(v) for k, v in simulation.items() if k != "key"}
    return described | {"key": digest(jax.random.key_data(simulation["key"]))} | options


def _claim(folder: Path, described: dict[str, Any]) -> None:
    """Makes a folder this sweep's own, or checks that it is.

    Raises:
        ValueError: if it holds something else.
    """
    path = folder / _DESCRIPTION
    if path.exists():
        found = json.loads(path.read_text())
        differing = [k for k in {**described, **found} if described.get(k) != found.get(k)]
        if differing:
            raise ValueError(
                f"the folder {str(folder)!r} holds another sweep, which differs in "
                f"{', '.join(differing)}; it was left untouched."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"the folder {str(folder)!r} is not empty and holds no sweep; it was left untouched."
        )
    prepare_folder(folder)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(described, indent=1))


# The data set


def _label(
    game: MarkovGame, outcome, thetas, design: str, times, simulation, rtol, atol
) -> "xarray.Dataset":
    import xarray

    axes = tuple(thetas) if design == "grid" else ("set",)
    coordinates: dict[str, Any] = {
        name: (name if design == "grid" else "set", np.asarray(values, dtype=float))
        for name, values in thetas.items()
    }
    coordinates |= {"time": ("time", times, attributes("time", TIME_UNITS))} | game_coordinates(
        game
    )
    over = "along the ODE" if simulation is None else "over runs"
    fixed = {
        "state_distribution": (("time", "state"), "stationary distribution of the states"),
        "state_frequency": (("time", "state"), "share of steps since the previous time"),
        "rewards": (("time", "agent"), "reward per step"),
        "end_time": ((), "time reached"),
        "steps": ((), "steps of the solver"),
        "result": ((), "result code, 0 for success"),
        "message": ((), "how the computation ended"),
    }
    variables: dict[str, Any] = {}
    for name, values in outcome.items():
        if name in fixed:
            own, long_name = fixed[name]
            variables[name] = ((*axes, *own), values, attributes(long_name))
            continue
        quantity, _, moment = name.partition("_")
        long_name = f"{quantity}, {moment or 'mean'} {over}"
        if simulation is None:
            long_name = f"{quantity} {over}"
        arrays = parts(game, values, len(axes) + 1)
        variables |= tables(game, name, long_name, arrays, (*axes, "time"), quantity)
    settings: dict[str, Any] = versions()
    if simulation is None:
        settings |= {"rtol": rtol, "atol": atol}
    else:
        settings |= {k: repr(v) for k, v in simulation.items() if k != "key"}
        settings["key_data"] = np.asarray(jax.random.key_data(simulation["key"])).tolist()
    return xarray.Dataset(variables, coordinates, attrs={"settings": json.dumps(settings)})
