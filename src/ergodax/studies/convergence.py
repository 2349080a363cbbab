"""How fast the rescaled process approaches its averaged ODE: measured, against the theory.

Two errors at scale N, over [0, T]:

- strong: `E sup_k max_i |X^N_k - x(k / N)|_i = c0 / sqrt(N) + c1 / N + ..`, where c0 is the same
  mean for the limiting Gaussian process;
- weak: `E l . (X^N_T - x(T)) = |b| / N + c / N^2 + ..` along `l = b / |b|`, b the bias.

Constants are intercepts: of `sqrt(N) error` against `1 / sqrt(N)`, and of `N error` against
`1 / N`. A fitted slope is no test, since the next orders shift it by more than its error.

The weak error drowns in noise of order `1 / sqrt(N)`. A martingale takes almost all of it away:
`M = 1/N sum over k of psi(t_k, e_k) - E[psi(t_k, e) | X_k, c_k]`, with
`psi(t, e) = l . Y(T, t) (f(x_t, e) + v(x_t, c'))`, Y the fundamental matrix of the linearised
ODE and v the Poisson solution. Its mean is zero for any psi, and `l . (X - x) - M` has a standard
deviation of order 1 / N. Source: derived for this package (compare Henderson and Glynn 2002,
"Approximating martingales for variance reduction in Markov process simulation").
"""

import hashlib
import math
import os
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Real, UInt32
from tqdm import tqdm

from ..base.times import check_scale, check_times, steps_at
from ..model.learner import At
from ..model.wrapped import WrappedGame
from ..results.labels import SETTING, Entries, Label, labelled, parameter_names
from ..results.result import Result
from ..second_order.fluctuations import Fluctuations, fluctuations, linearised
from ..second_order.noise import event_scores, poisson
from ..simulation.step import (
    Ensemble,
    cumulative_law,
    draw,
    draw_actions,
    draw_event,
    increments_of,
)
from ..simulation.streams import run_keys, uniforms

if TYPE_CHECKING:
    import xarray

_CELLS = 1024  # of the path, the fundamental matrix and the limiting process
_BINS = 256  # of the table of psi
_BLOCK = 8192  # steps between two looks at the clock
_CHECKPOINT_SECONDS = 10.0


class Constant(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.error:.4f})"


# What the errors are called in data sets.
_STRONG = "mean of the largest distance"
_PLAIN = "mean error along the bias"
_WEAK = f"{_PLAIN}, with control variate"
_ERROR = "standard error of the "


class ConvergenceStudy(Result):
    """Errors of the averaged ODE over a range of scales. Printing it gives a table.

    Attributes:
        wrapped: the game and its learners.
        scales: N, `[L]`.
        runs: runs per scale.
        t1: the horizon T.
        strong: mean over runs of the largest distance, `[L]`.
        strong_error: its standard error.
        weak: mean of `l . (X - x)` at T with the control variate, `[L]`.
        weak_error: its standard error.
        plain: the same mean without control variate, `[L]`.
        plain_error: its standard error.
        strong_constant: fitted limit of `sqrt(N) strong`.
        strong_theory: mean supremum of the limiting Gaussian process (simulated).
        weak_constant: fitted limit of `N weak`.
        weak_theory: the norm of b(T).
        strong_slope: slope of log(strong) against log(N); -1/2 in the limit.
        weak_slope: slope of log(weak) against log(N); -1 in the limit.
        bias: b(T), `[d]`, of all agents' parameters.
        key_data: words of the random key.
        run_seconds: time spent simulating.
    """

    wrapped: WrappedGame
    scales: Float[np.ndarray, " L"] = eqx.field(
        metadata=labelled("scale", ("scale",), name="scale", coordinate=True)
    )
    runs: int = eqx.field(metadata=labelled(SETTING))
    t1: float = eqx.field(metadata=labelled(SETTING))
    strong: Float[np.ndarray, " L"] = eqx.field(metadata=labelled(_STRONG, ("scale",)))
    strong_error: Float[np.ndarray, " L"] = eqx.field(
        metadata=labelled(_ERROR + _STRONG, ("scale",))
    )
    weak: Float[np.ndarray, " L"] = eqx.field(metadata=labelled(_WEAK, ("scale",)))
    weak_error: Float[np.ndarray, " L"] = eqx.field(metadata=labelled(_ERROR + _WEAK, ("scale",)))
    plain: Float[np.ndarray, " L"] = eqx.field(metadata=labelled(_PLAIN, ("scale",)))
    plain_error: Float[np.ndarray, " L"] = eqx.field(metadata=labelled(_ERROR + _PLAIN, ("scale",)))
    strong_constant: Constant
    strong_theory: Constant
    weak_constant: Constant
    weak_theory: float
    strong_slope: Constant
    weak_slope: Constant
    bias: Float[np.ndarray, " d"] = eqx.field(
        metadata=labelled("bias at the horizon", ("parameter",))
    )
    key_data: UInt32[np.ndarray, "..."] = eqx.field(metadata=labelled(SETTING))
    run_seconds: float

    def __repr__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        return f"ConvergenceStudy({self.runs} runs at scales {scales}, up to t = {self.t1:g})"

    def __str__(self) -> str:
        head = ["N", "sqrt(N) strong", "std. error", "N weak", "std. error", "without control"]
        rows = [head]
        for k, scale in enumerate(self.scales):
            root = math.sqrt(scale)
            numbers = (root * self.strong[k], root * self.strong_error[k])
            numbers += (scale * self.weak[k], scale * self.weak_error[k])
            numbers += (scale * self.plain_error[k],)
            rows.append([f"{scale:g}", *(f"{number:.4f}" for number in numbers)])
        strong, weak = self.strong_constant, self.weak_constant
        z = (strong.value - self.strong_theory.value) / math.hypot(
            strong.error, self.strong_theory.error
        )
        constants = [
            ["", "measured", "theory", "z", "slope"],
            ["strong", str(strong), str(self.strong_theory), f"{z:.2f}", str(self.strong_slope)],
            [
                "weak",
                str(weak),
                f"{self.weak_theory:.4f}",
                f"{(weak.value - self.weak_theory) / weak.error:.2f}",
                str(self.weak_slope),
            ],
        ]
        return f"{_align(rows)}\n\n{_align(constants)}"

    def _derived(self) -> Entries:
        """Names of the parameters."""
        params = jax.eval_shape(lambda: self.wrapped.init(jax.random.key(0)))
        params = jax.tree.map(lambda like: np.zeros(like.shape), params)
        names = parameter_names(self.wrapped.game, params, 0)
        return {"parameter": (names, Label("parameter", ("parameter",), coordinate=True))}

    def to_xarray(self) -> "xarray.Dataset":
        """The study as a labelled data set along `scale`; fitted constants are attributes."""
        constants: dict[str, Any] = {
            "t1": self.t1,
            "runs": self.runs,
            "weak_theory": self.weak_theory,
        }
        for name in (
            *("strong_constant", "strong_theory", "strong_slope"),
            *("weak_constant", "weak_slope"),
        ):
            constants[name], constants[f"{name}_error"] = getattr(self, name)
        return super().to_xarray().assign_attrs(constants)


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


class _Tables(NamedTuple):
    """What the kernel looks up, by time: the path on cells, psi on bins.

    Attributes:
        end: T.
        path: x, `[M + 1, d]`.
        velocity: F(x), `[M + 1, d]`.
        scores: psi, `[B, S, A_1, .., A_n, K]`, and the next joint action if a learner needs it.
        direction: l, `[d]`.
    """

    end: Any
    path: Any
    velocity: Any
    scores: Any
    direction: Any


class _Linear(NamedTuple):
    """The linearised ODE on a grid: one propagator and one noise root per cell, in NumPy."""

    propagators: np.ndarray
    roots: np.ndarray


def convergence_study(
    wrapped: WrappedGame,
    params0: Any,
    t1: float | Real[np.ndarray, ""] | Real[Array, ""] | int,
    *,
    scales: Sequence[int | float] | Real[np.ndarray, " L"] = (64, 128, 256, 512, 1024),
    runs: int | np.integer = 16_384,
    key: Array,
    initial_state: int | np.integer | str | None = None,
    batch_size: int = 512,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> ConvergenceStudy:
    """Measures strong and weak errors of the averaged ODE over a range of scales.

    Runs are simulated in batches, spread over all local devices, in float64.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        t1: the horizon T, in unscaled steps; away from kinks of the drift.
        scales: N, at least three different ones.
        runs: independent runs at each scale.
        key: a JAX random key.
        initial_state: the first state, by number or name; drawn from the game's initial law by
            default.
        batch_size: runs simulated together on each device.
        checkpoint: a file to which progress is saved from time to time and from which an
            interrupted study of the same arguments is continued.
        progress: show a progress bar.

    Returns:
        Errors, fitted constants and those of theory.

    Raises:
        ValueError: as `fluctuations`; without float64; if the checkpoint is of another study.

    Warns:
        UserWarning: if T is within three standard deviations of a kink at the largest scale.
    """
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            'a study needs float64: jax.config.update("jax_enable_x64", True) beforehand.'
        )
    end = float(t1)
    check_times(np.array([end]))
    scales = np.array([check_scale(scale) for scale in scales])
    if len(np.unique(scales)) < 3:
        raise ValueError(f"scales must hold at least three different values; found {scales}.")
    if runs < 2 or batch_size < 1:
        raise ValueError(f"runs must be at least 2; found {runs}.")
    steps = [int(steps_at([end], scale)[0][0]) for scale in scales]
    if max(steps) >= 2**31 or min(steps) < 1:
        raise ValueError(f"each scale must take from 1 to 2^31 - 1 steps; found {steps}.")

    predicted = fluctuations(
        wrapped,
        params0,
        np.linspace(0, end, _CELLS + 1),
        initial_state=initial_state,
        bias=True,
    )
    if bool(predicted.near_kink(scales.max())[-1]):
        warnings.warn(
            f"t1 = {end:g} is within three standard deviations of a kink even at N = "
            f"{scales.max():g}: the weak error is not b / N there.",
            stacklevel=2,
        )
    velocity, linear = _linear(predicted)
    bias = np.asarray(predicted.bias)[-1]
    size = float(np.linalg.norm(bias))
    if size == 0:
        raise ValueError("the bias is zero: there is no weak error to measure.")
    tables = _tables(predicted, velocity, linear, bias / size)

    seed = np.asarray(jax.random.key_data(key))
    sums, seconds = _simulate(
        wrapped,
        params0,
        predicted.initial,
        tables,
        scales,
        steps,
        runs,
        key,
        batch_size,
        checkpoint,
        progress,
    )
    mean = sums[:, 0] / runs
    variance = (sums[:, 1] / runs - mean**2) * runs / (runs - 1)
    error = np.sqrt(np.maximum(variance, 0) / runs)
    root = np.sqrt(scales)
    strong, plain, weak = mean.T
    strong_error, plain_error, weak_error = error.T
    return ConvergenceStudy(
        wrapped=wrapped,
        scales=scales,
        runs=int(runs),
        t1=end,
        strong=strong / root,
        strong_error=strong_error / root,
        weak=weak / scales,
        weak_error=weak_error / scales,
        plain=plain / scales,
        plain_error=plain_error / scales,
        strong_constant=_intercept(1 / root, strong, strong_error),
        strong_theory=_mean_supremum(linear, seed),
        weak_constant=_intercept(1 / scales, weak, weak_error),
        weak_theory=size,
        strong_slope=_slope(scales, strong / root, strong_error / root),
        weak_slope=_slope(scales, weak / scales, weak_error / scales),
        bias=bias,
        key_data=seed,
        run_seconds=seconds,
    )


def _intercept(x, y, error) -> Constant:
    """Weighted least squares of y = c0 + c1 x: c0."""
    design = np.stack([np.ones_like(x), x], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return Constant(
        float((covariance @ design.T @ (y / error))[0]), float(np.sqrt(covariance[0, 0]))
    )


def _slope(x, y, error) -> Constant:
    """Slope of log y against log x, weighted; NaN where a mean is not positive."""
    if not (y > 0).all():
        return Constant(math.nan, math.nan)
    relative = error / y
    design = np.stack([np.ones_like(x), np.log(x)], axis=1) / relative[:, None]
    covariance = np.linalg.inv(design.T @ design)
    fitted = covariance @ design.T @ (np.log(y) / relative)
    return Constant(float(fitted[1]), float(np.sqrt(covariance[1, 1])))


def _linear(predicted: Fluctuations) -> tuple[np.ndarray, _Linear]:
    """F on the grid; in every cell the propagator `exp(h DF)` and a root of its noise, by means."""
    import scipy.linalg

    velocity, slopes, noises = linearised(predicted)
    widths = np.diff(np.asarray(predicted.ts))[:, None, None]
    slopes = widths * (slopes[1:] + slopes[:-1]) / 2
    half = scipy.linalg.expm(slopes / 2)
    noises = half @ (widths * (noises[1:] + noises[:-1]) / 2) @ half.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(noises)
    return velocity, _Linear(half @ half, vectors * np.sqrt(np.maximum(values, 0))[:, None, :])


def _tables(predicted: Fluctuations, velocity, linear: _Linear, direction) -> _Tables:
    adjoint = [direction]
    for propagator in linear.propagators[::-1]:
        adjoint.append(adjoint[-1] @ propagator)
    adjoint = np.array(adjoint[::-1])
    middles = np.arange(_BINS) * (_CELLS // _BINS) + _CELLS // _BINS // 2
    wrapped = predicted.wrapped
    params = jax.tree.map(lambda leaf: leaf[middles], predicted.params)
    scores = _scores(wrapped, params, jnp.asarray(adjoint[middles]))
    shape = wrapped.game.successors.shape
    if wrapped.needs_next_action:
        shape = (*shape, *wrapped.game.num_actions)
    path = jax.vmap(lambda p: ravel_pytree(p)[0])(predicted.params)
    return _Tables(
        jnp.asarray(predicted.ts[-1]),
        path,
        jnp.asarray(velocity),
        scores.reshape(_BINS, *shape),
        jnp.asarray(direction),
    )


@eqx.filter_jit
def _scores(wrapped, params, adjoint):
    return jax.lax.map(
        lambda a: event_scores(wrapped, poisson(wrapped, a[0]), a[1]), (params, adjoint)
    )


def suprema(
    linear: _Linear, seed: np.ndarray, shift: np.ndarray | None = None, *, paths: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Largest `|U_t + shift_t|` over times and entries of paths of the limiting process.

    Args:
        linear: the linearised ODE.
        seed: words that seed the paths.
        shift: added to every path, `[M + 1, d]`; none by default.
        paths: how many.

    Returns:
        The suprema over the whole grid, and over every fourth point: both are too small by
        amounts in the ratio 1 : 2, to leading order.
    """
    generator = np.random.default_rng(np.asarray(seed, dtype=np.uint32).ravel().tolist())
    size = linear.roots.shape[-1]
    fluctuation = np.zeros((paths, size))
    fine = np.zeros(paths) if shift is None else np.full(paths, np.abs(shift[0]).max())
    coarse = fine.copy()
    for cell, (propagator, root) in enumerate(zip(*linear, strict=True)):
        noise = generator.standard_normal((paths, size))
        fluctuation = fluctuation @ propagator.T + noise @ root.T
        moved = fluctuation if shift is None else fluctuation + shift[cell + 1]
        largest = np.abs(moved).max(axis=1)
        fine = np.maximum(fine, largest)
        if (cell + 1) % 4 == 0:
            coarse = np.maximum(coarse, largest)
    return fine, coarse


def _mean_supremum(linear: _Linear, seed: np.ndarray) -> Constant:
    fine, coarse = suprema(linear, seed)
    extrapolated = 2 * fine - coarse
    return Constant(
        float(extrapolated.mean()), float(extrapolated.std(ddof=1) / math.sqrt(len(fine)))
    )


class _Lane(NamedTuple):
    """One run: where it stands, its largest distance so far, its martingale (times N)."""

    standing: Ensemble
    largest: Any
    martingale: Any


@eqx.filter_jit
def _start(wrapped, params0, law, keys):
    def start(key):
        zero = (jnp.uint32(0), jnp.uint32(0))
        draws = uniforms(key, zero, wrapped.game.num_agents + 1, law.dtype)
        state, joint_action = draw(law, draws[-1]), None
        if wrapped.needs_next_action:
            joint_action = draw_actions(wrapped.learners, params0, state, draws)
        nothing = jnp.zeros((), law.dtype)
        return _Lane(Ensemble(params0, None, state, joint_action), nothing, nothing)

    return jax.vmap(start)(keys)


@eqx.filter_jit
def _advance(wrapped, cumulative, tables: _Tables, keys, lanes, first, count, scale):
    """Advances all lanes by `count` steps after step `first`."""
    game = wrapped.game
    means = None
    if not wrapped.needs_next_action:
        # Outcomes are drawn whatever the parameters: their mean can be taken beforehand.
        means = jnp.sum(tables.scores * game.probabilities, axis=-1)

    def joint_policy(params, state):
        joint = jnp.ones(())
        for learner, own in zip(wrapped.learners, params, strict=True):
            joint = joint[..., None] * learner.policy(own, state)
        return joint

    def expected(standing, scores, mean):
        if mean is not None:
            return jnp.sum(joint_policy(standing.params, standing.state) * mean[standing.state])
        here = (standing.state, *standing.joint_action)
        ahead = jax.vmap(lambda s: joint_policy(standing.params, s))(game.successors[here])
        ahead = jnp.sum((ahead * scores[here]).reshape(game.num_successors, -1), axis=1)
        return game.probabilities[here] @ ahead

    def body(k, lanes):
        step = first + k
        bin_ = jnp.minimum((step / scale / tables.end * _BINS).astype(int), _BINS - 1)
        scores = tables.scores[bin_]
        mean = None if means is None else means[bin_]
        target = _path_at(tables, (step + 1) / scale)
        counter = ((step + 1).astype(jnp.uint32), jnp.uint32(0))

        def advance(key, lane):
            standing = lane.standing
            event = draw_event(wrapped, cumulative, key, counter, standing)
            place = (event.state, *event.joint_action, event.outcome)
            if wrapped.needs_next_action:
                place = (*place, *event.next_action)
            surprise = scores[place] - expected(standing, scores, mean)
            learnt = increments_of(wrapped, standing.params, event)
            params = _add_scaled(standing.params, learnt, 1 / scale)
            distance = jnp.abs(ravel_pytree(params)[0] - target).max()
            return _Lane(
                Ensemble(params, None, event.next_state, event.next_action),
                jnp.maximum(lane.largest, distance),
                lane.martingale + surprise,
            )

        return jax.vmap(advance)(keys, lanes)

    return jax.lax.fori_loop(0, count, body, lanes)


def _add_scaled(params, increments, factor):
    leaves, structure = jax.tree.flatten(params)
    for k, increment in enumerate(structure.flatten_up_to(increments)):
        if isinstance(increment, At):
            leaves[k] = leaves[k].at[increment.index].add(increment.value * factor)
        else:
            leaves[k] = leaves[k] + increment * factor
    return jax.tree.unflatten(structure, leaves)


def _path_at(tables: _Tables, t):
    """x(t) by cubic Hermite interpolation."""
    cells = tables.path.shape[0] - 1
    width = tables.end / cells
    cell = jnp.clip((t / width).astype(int), 0, cells - 1)
    u = t / width - cell
    left, right = tables.path[cell], tables.path[cell + 1]
    begin, end = width * tables.velocity[cell], width * tables.velocity[cell + 1]
    change = right - left
    return left + u * (begin + u * (3 * change - 2 * begin - end + u * (begin + end - 2 * change)))


@eqx.filter_jit
def _finish(tables: _Tables, lanes: _Lane, step, scale):
    """`sqrt(N)` times the largest distance; N times the weak error, without and with control."""
    flat = jax.vmap(lambda p: ravel_pytree(p)[0])(lanes.standing.params)
    plain = scale * ((flat - _path_at(tables, step / scale)) @ tables.direction)
    return jnp.stack([jnp.sqrt(scale) * lanes.largest, plain, plain - lanes.martingale])


def _simulate(
    wrapped, params0, law, tables, scales, steps, runs, key, batch_size, checkpoint, progress
) -> tuple[Float[np.ndarray, "L 2 3"], float]:
    """Sums over runs of the three errors and of their squares, for every scale."""
    cumulative = cumulative_law(wrapped.game.probabilities)
    devices = jax.local_devices()
    width = min(batch_size, -(-runs // len(devices))) * len(devices)
    spread = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(devices), ("runs",)), jax.sharding.PartitionSpec("runs")
    )
    identity = _identity(wrapped, params0, law, tables.end, scales, runs, key)
    progress_file = _Progress(checkpoint, identity, len(scales))
    sums, done = progress_file.sums, progress_file.done
    begun = time.perf_counter()
    with tqdm(total=runs * sum(steps), unit="step", unit_scale=True, disable=not progress) as bar:
        for level, (scale, last) in enumerate(zip(scales, steps, strict=True)):
            bar.update(int(done[level]) * last)
            while done[level] < runs:
                live = min(width, runs - int(done[level]))
                numbers = np.arange(done[level], done[level] + width, dtype=np.uint32)
                keys = jax.device_put(run_keys(key, jnp.asarray(numbers)), spread)
                lanes = _start(wrapped, params0, law, keys)
                for first in range(0, last, _BLOCK):
                    count = min(_BLOCK, last - first)
                    lanes = _advance(
                        wrapped,
                        cumulative,
                        tables,
                        keys,
                        lanes,
                        jnp.asarray(first),
                        jnp.asarray(count),
                        jnp.asarray(scale),
                    )
                    bar.update(live * count)
                errors = _finish(tables, lanes, jnp.asarray(float(last)), jnp.asarray(scale))
                errors = np.asarray(errors)[:, :live]
                sums[level] += np.stack([errors.sum(axis=1), (errors**2).sum(axis=1)])
                done[level] += live
                progress_file.save()
    progress_file.save(now=True)
    return sums, time.perf_counter() - begun


def _identity(*arguments) -> str:
    """A digest of everything that a study's numbers depend on."""
    digest = hashlib.sha256()
    *rest, key = arguments
    for leaf in jax.tree.leaves((rest, jax.random.key_data(key))):
        digest.update(str(np.shape(leaf)).encode() + np.asarray(leaf).tobytes())
    digest.update(str(jax.tree.structure(rest)).encode())
    return digest.hexdigest()


class _Progress:
    """What has been done, and the file that says so."""

    def __init__(self, path, identity: str, levels: int):
        self.path = None if path is None else Path(path)
        self.identity = identity
        self.sums = np.zeros((levels, 2, 3))
        self.done: Int[np.ndarray, " L"] = np.zeros(levels, dtype=np.int64)
        self.saved = time.perf_counter()
        if self.path is not None and self.path.exists():
            with np.load(self.path) as archive:
                if str(archive["identity"]) != identity:
                    raise ValueError(f"the checkpoint {self.path} is of another study.")
                self.sums, self.done = archive["sums"], archive["done"]

    def save(self, *, now: bool = False) -> None:
        if self.path is None:
            return
        if not now and time.perf_counter() - self.saved < _CHECKPOINT_SECONDS:
            return
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.npz")
        try:
            np.savez(temporary, identity=self.identity, sums=self.sums, done=self.done)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self.saved = time.perf_counter()


def required_scale(
    wrapped: WrappedGame,
    params0: Any,
    t1: float | Real[np.ndarray, ""] | Real[Array, ""] | int,
    tolerance: int | float,
    *,
    probability: float = 0.95,
    initial_state: int | np.integer | str | None = None,
    paths: int = 8192,
    seed: int = 0,
) -> float:
    """Smallest N at which the ODE is within a tolerance of a run, over all of [0, t1].

    By the Gaussian limit and the bias: N such that `sup_t max_i |U_t / sqrt(N) + b_t / N|_i` is at
    most the tolerance with the given probability. Where updates have a learning rate alpha as a
    factor, it is also how many times smaller than alpha the learning rate must be.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        t1: the horizon, in unscaled steps.
        tolerance: largest distance of any parameter, positive.
        probability: that a run stays within the tolerance, in (0, 1).
        initial_state: the first state, by number or name; drawn by default.
        paths: paths of the limiting process, at least 100.
        seed: seeds the paths.

    Returns:
        N, a float; below about 10 it is an extrapolation of a large-N theory.

    Raises:
        ValueError: as `fluctuations`, or if an argument does not fit.
    """
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be positive; found {tolerance}.")
    if not 0 < probability < 1:
        raise ValueError(f"probability must be in (0, 1); found {probability}.")
    if paths < 100:
        raise ValueError(f"paths must be at least 100; found {paths}.")
    end = float(t1)
    check_times(np.array([end]))
    predicted = fluctuations(
        wrapped,
        params0,
        np.linspace(0, end, _CELLS + 1),
        initial_state=initial_state,
        bias=True,
    )
    _, linear = _linear(predicted)
    bias = np.asarray(predicted.bias)
    words = np.array([seed], dtype=np.uint32)
    root, shift = math.inf, np.zeros_like(bias)
    for _ in range(20):
        fine, coarse = suprema(linear, words, shift, paths=paths)
        reach = float(2 * np.quantile(fine, probability) - np.quantile(coarse, probability))
        root, before = reach / tolerance, root
        if abs(root - before) < 1e-3 * root:
            break
        shift = bias / root
    return root**2
