"""Sweeps: many parameter sets, solved or simulated in batches, as one labelled data set.

The sets of a batch are solved together under `jax.vmap`, each with its own step sizes, until the
slowest is done. So batches are made of sets alike: in the order of a rough rate of change,
`|DF F| / |F|` at the start, which costs two evaluations of the drift.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import ArrayLike, Real
from tqdm import tqdm

from ..averaged.flow import solve
from ..averaged.stationary import check_ergodic
from ..base.checks import (
    check_concrete,
    check_count,
    check_flag,
    check_function,
    check_key,
    check_known,
    check_mapping,
    check_path,
)
from ..base.codes import RESULTS
from ..base.compiling import compiled
from ..base.devices import default_devices
from ..base.processes import Team, agree, find_team, gather, in_step
from ..base.times import check_times
from ..io.store import Arrays, Folder
from ..model.build import Build
from ..model.game import MarkovGame
from ..ode.integrate import check_solver
from ..results.labels import TIMES, Label, decode, game_coordinates, make_variables, of_agents
from ..results.result import versions
from ..simulation.side_by_side import Plan, plan_ensembles, simulate_ensembles
from ..simulation.simulate import describe_lost
from .parts import check_part, check_whole, part_lock, with_missing
from .sets import batches_of, build_sets, check_sets, make_sets, named, survey

if TYPE_CHECKING:
    import xarray

_MOST_SETS = 128
# Bytes of a batch on one device: all of it, and of what a processor had better keep near it.
_BATCH_BYTES = 2**28
_CACHE_BYTES = 2**23


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
    batch_size: int | np.integer | None = None,
    folder: str | os.PathLike[str] | None = None,
    part: tuple[int, int] | Literal["join"] | None = None,
    progress: bool = False,
) -> "xarray.Dataset":
    """Solves the averaged ODE, or simulates the learners, for many parameter sets.

    `build` is traced once; all sets of one sweep run through one compiled program, spread over the
    devices as in `simulate`. A set that fails holds NaN from there on, and its `message` says why;
    it delays only the sets of its own batch.

    With `folder`, every finished batch is written there (whole or not at all), and a sweep that was
    interrupted goes on from what is there. The batches may then be of another size.

    In a job of several processes that `jax.distributed` connects, all of them call it and share the
    sets, unless `jax.default_device` names a device; each gets the whole data set.

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
        part: `(k, n)`: only the k-th of n shares of the sets is done here, and written to `folder`;
            the jobs of an array do one each, in any order, knowing nothing of each other. What the
            folder then lacks holds NaN, the result -1 and the message "not done". `"join"`: nothing
            is done, and the folder must hold every set once.
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
            values, naming the leaf; if a name is one of the data set's own; if `folder` holds
            anything else, or a piece that is damaged, which is left untouched; if a part is being
            done by another process, or of another number of parts; if a set is missing or stands
            twice in what is to be joined.
        OSError: if `folder` cannot be made or written.

    Warns:
        UserWarning: if sets failed; if a batch could no longer be written.
    """
    check_function("build", build, "a dictionary of scalars")
    check_concrete("sweep", (thetas, ts))
    times = check_times(ts)
    rtol, atol = check_solver(rtol, atol, max_steps)
    check_flag("progress", progress)
    if folder is not None:
        check_path("folder", folder)
    names, sets, shape = make_sets(thetas, design)
    count = math.prod(shape)
    if part is not None:
        check_part(part, folder, count)
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    if simulation is not None:
        _check_options(simulation)
    first = check_sets(build, names, sets)
    theta = jax.ShapeDtypeStruct((len(names),), jnp.result_type(float))
    wrapped, params0 = eqx.filter_eval_shape(lambda values: build(named(names, values)), theta)
    mesh = Mesh(np.array(default_devices()), ("sets",))
    team = find_team()
    own = -(-count // team.count)
    size = _batch_size(batch_size, wrapped, params0, len(times), mesh, own)
    if simulation is None:
        check_ergodic(*first)
        planned, options = None, {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    else:
        planned = plan_ensembles(*first, times, own, batch_size, **simulation)
        options = _options(planned)
    pace = survey(build, wrapped, names, sets, size, simulation is None)

    inputs = {"names": names, "design": design, "sets": sets, "times": times, **options}
    if folder is not None or team.count > 1:
        inputs["games, learners and initial parameters"] = _built(build, names, sets, size, first)
    store = Folder(folder, "sweep", inputs)
    if team.count > 1:
        agree(team, store.identity)
    # One process looks what is there, before any of them adds to it.
    pieces = gather(team, store.load() if team.index == 0 else [])[0]
    found = _joined(pieces, "sets") if pieces else np.zeros(0, int)
    if part == "join":
        check_whole(found, count)
    rest = np.setdiff1d(np.arange(count), found)
    if isinstance(part, tuple):
        rest = rest[rest % part[1] == part[0] - 1]
    rest = rest[np.argsort(pace[rest], kind="stable")]
    if len(rest):
        store.prepare()
    if planned is None:
        own = _share(rest, size, team)
        batches = _solve_batches(build, names, sets, own, size, (times, options, mesh))
    else:
        own = _share(np.sort(rest), planned.together, team)
        batches = _simulate_batches(build, names, sets, own, planned)
    structure = _outcome_structure(params0, wrapped, simulation is None)
    made: list[Arrays] = []

    def work():
        for chosen, outcome in batches:
            leaves = enumerate(structure.flatten_up_to(outcome))
            made.append({"sets": chosen} | {str(k): leaf for k, leaf in leaves})
            store.add(int(chosen[0]), made[-1])
            yield len(chosen)

    shown = progress and team.index == 0
    total = len(rest) if part else count
    lock = part_lock(store.path, part)
    with lock, tqdm(total=total, initial=total - len(rest), unit="set", disable=not shown) as bar:
        for number in in_step(team, work()):
            bar.update(number * team.count)
    pieces += [piece for own in gather(team, made) for piece in own]

    # Processes that shared the folder may have done a set twice: its first piece counts.
    done, order = np.unique(_joined(pieces, "sets"), return_index=True)
    leaves = [_joined(pieces, str(k))[order] for k in range(structure.num_leaves)]
    outcome = jax.tree.unflatten(structure, leaves)
    if len(done) < count:
        outcome = with_missing(outcome, done, count)
    outcome = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), outcome)
    failed = int(np.sum(outcome["result"] > 0))
    if failed:
        warnings.warn(
            f"{failed} of {count} sets failed; `message` says why, for instance: "
            f"{outcome['message'][outcome['result'] > 0][0]}",
            stacklevel=2,
        )
    return _label(wrapped.game, outcome, thetas, design, times, simulation, rtol, atol)


def _check_options(simulation: Mapping[str, Any]) -> None:
    """Raises ValueError if simulations are asked for what a sweep of them has not."""
    known = ("key", "runs", "scale", "initial_state", "dtype")
    check_mapping("simulation", simulation, "{'key': jax.random.key(0), 'runs': 100}")
    if "key" not in simulation:
        raise ValueError("simulation must hold at least a random key, `key`.")
    check_known("simulation", simulation, known)
    check_key(simulation["key"], "key of simulation")


# Batches


def _batch_size(batch_size, wrapped, params0, num_times: int, mesh: Mesh, count: int) -> int:
    """Sets per batch, a multiple of the number of devices."""
    num_devices = mesh.size
    if batch_size is None:
        game = wrapped.game
        events = math.prod(game.rewards.shape)
        table = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params0))
        # About as many arrays of each kind are alive at once.
        work = 8 * (16 * events + 16 * table + 4 * game.num_states**2)
        most = min(_BATCH_BYTES // (work + 16 * num_times * table), count)
        if mesh.devices.flat[0].platform == "cpu":
            # Wider batches wait longer for their slowest set, and only accelerators gain by them.
            most = min(most, _MOST_SETS, _CACHE_BYTES // work)
        batch_size = max(most, 1) * num_devices
    return num_devices * -(-min(batch_size, count) // num_devices)


def _share(rest: np.ndarray, size: int, team: Team) -> np.ndarray:
    """The sets of this process: every so many batches one, so that all have slow and quick ones."""
    return rest[np.arange(len(rest)) // size % team.count == team.index]


def _solve_batches(build: Build, names, sets, rest, size: int, how):
    for chosen, _, values in batches_of(sets, rest, size):
        outcome, results = _solve_batch(build, tuple(names), values, *how)
        outcome, count = jax.device_get(outcome) | _ended(results), len(chosen)
        yield chosen, jax.tree.map(lambda leaf, count=count: leaf[:count], outcome)


@compiled
def _solve_batch(build, names, values, ts, options, mesh):
    def solve_one(values):
        wrapped, params0 = build(named(names, values))
        adjoint = diffrax.ForwardMode()
        solution = solve(wrapped, params0, ts, adjoint=adjoint, throw=False, **options)
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


def _simulate_batches(build: Build, names, sets, rest, planned: Plan):
    for chosen, numbers, values in batches_of(sets, rest, planned.together):
        wrapped, params0 = build_sets(build, tuple(names), values)
        found = simulate_ensembles(planned, wrapped, params0, numbers)
        (parameters, policy), (state_frequency, rewards) = found.mean
        (parameters_variance, policy_variance), _ = found.variance
        outcome = {
            "parameters": parameters,
            "policy": policy,
            "parameters_variance": parameters_variance,
            "policy_variance": policy_variance,
            "state_frequency": state_frequency,
            "rewards": rewards,
        }
        outcome |= _lost(wrapped, found.lost[:, -1], planned.inputs.runs)
        count = len(chosen)
        yield chosen, jax.tree.map(lambda leaf, count=count: leaf[:count], outcome)


def _lost(wrapped, lost, runs: int) -> dict[str, np.ndarray]:
    """How ensembles ended, by their numbers of lost runs `[E, 1 + n]`."""
    good = _ended(RESULTS.successful)
    results, messages = [], []
    for one in lost:
        code, text = describe_lost(wrapped, one, runs)
        results.append(_ended(code)["result"] if one[0] else good["result"])
        messages.append(text if one[0] else good["message"])
    return {"result": np.array(results), "message": np.array(messages)}


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


def _built(build: Build, names, sets, size: int, first) -> tuple[Any, list[str]]:
    """What `build` returns: all of it for the first set, of the others a digest of each array."""
    hashed: list[Any] = []
    for chosen, _, values in batches_of(sets, np.arange(len(sets)), size):
        built = build_sets(build, tuple(names), values)
        leaves = jax.device_get(jax.tree.leaves(eqx.filter(built, eqx.is_array)))
        hashed = hashed or [hashlib.sha256() for _ in leaves]
        for one, leaf in zip(hashed, leaves, strict=True):
            one.update(np.ascontiguousarray(leaf[: len(chosen)]))
    return first, [one.hexdigest() for one in hashed]


def _options(planned: Plan) -> dict[str, Any]:
    """What the numbers of a simulation depend on besides its game, learners and times."""
    return {
        "key": planned.key,
        "runs": planned.inputs.runs,
        "scale": planned.scale,
        "initial_state": planned.initial_state,
        "dtype": planned.inputs.dtype.name,
    }


def _joined(pieces: list[Arrays], name: str) -> np.ndarray:
    return np.concatenate([piece[name] for piece in pieces])


# The data set


def _label(
    game: MarkovGame, outcome, thetas, design: str, times, simulation, rtol, atol
) -> "xarray.Dataset":
    import xarray

    axes = tuple(thetas) if design == "grid" else ("set",)
    over = "along the ODE" if simulation is None else "over runs"
    labels = {
        "state_distribution": Label("stationary distribution of the states", ("time", "state")),
        "state_frequency": Label("share of steps since the previous time", ("time", "state")),
        "rewards": Label("reward per step", ("time", "agent")),
        "end_time": Label("time reached"),
        "steps": Label("steps of the solver"),
        "result": Label("result code, 0 for success"),
        "message": Label("how the computation ended"),
    }
    for name in outcome.keys() - labels.keys():
        quantity, _, moment = name.partition("_")
        long_name = f"{quantity} {over}"
        if simulation is not None:
            long_name = f"{quantity}, {moment or 'mean'} {over}"
        labels[name] = Label(long_name, ("time",), make=of_agents)
    entries = {name: (values, labels[name]) for name, values in outcome.items()}
    variables, coordinates = make_variables(game, entries | {"time": (times, TIMES)}, axes)
    coordinates |= {
        name: (name if design == "grid" else "set", np.asarray(values, dtype=float))
        for name, values in thetas.items()
    } | game_coordinates(game)
    settings: dict[str, Any] = versions()
    if simulation is None:
        settings |= {"rtol": rtol, "atol": atol}
    else:
        settings |= {k: repr(v) for k, v in simulation.items() if k != "key"}
        settings["key_data"] = np.asarray(jax.random.key_data(simulation["key"])).tolist()
    return xarray.Dataset(variables, coordinates, attrs={"settings": json.dumps(settings)})
