"""How fast the rescaled process approaches its averaged ODE: measured, against the theory.

Two errors at scale N, over [0, T]:

- strong: `E sup_k max_i |X^N_k - x(k / N)|_i = c0 / sqrt(N) + c1 / N + ..`, where c0 is the same
  mean for the limiting Gaussian process;
- weak: `E l . (X^N_T - x(T)) = |b| / N + c / N^2 + ..` along `l = b / |b|`, b the bias.

Constants are intercepts: of `sqrt(N) error` against `1 / sqrt(N)`, and of `N error` against
`1 / N`. A fitted slope is no test, since the next orders shift it by more than its error.

The weak error drowns in noise of order `1 / sqrt(N)`; a control variate takes almost all of it.
"""

import dataclasses
import functools
import math
import os
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, UInt32

from ..base.checks import (
    check_array,
    check_concrete,
    check_count,
    check_flag,
    check_key,
    check_number,
    check_path,
    describe,
    is_within,
)
from ..base.text import in_columns
from ..base.times import steps_at
from ..io.store import Store
from ..model.wrapped import WrappedGame
from ..results.labels import SETTING, Entries, Label, labelled, parameter_names
from ..results.result import Result
from ..second_order.fluctuations import fluctuations
from ..second_order.required_scale import CELLS, Linearised, linearise, suprema
from ..simulation.capacity import bytes_of_run
from ..simulation.execution import Execution, carry_out, plan_execution
from ..simulation.inputs import Inputs, check_inputs
from ..simulation.job import Job
from ..simulation.shared import SharedJob, is_shared, save_nothing
from ..simulation.simulate import NO_DERIVATIVES, describe_lost
from ..simulation.streams import run_keys
from .control_variate import ControlVariate, control_variate

if TYPE_CHECKING:
    import xarray


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
        return f"{in_columns(rows, right=True)}\n\n{in_columns(constants, right=True)}"

    def _derived(self) -> Entries:
        """Names of the parameters."""
        params = jax.eval_shape(lambda: self.wrapped.init(jax.random.key(0)))
        params = jax.tree.map(lambda like: np.zeros(like.shape), params)
        names = parameter_names(self.wrapped.game, params, 0)
        return {"parameter": (names, Label("parameter", ("parameter",), coordinate=True))}

    def to_xarray(self) -> "xarray.Dataset":
        """The study as a labelled data set along `scale`; fitted constants are attributes."""
        names = ("strong_constant", "strong_theory", "strong_slope", "weak_constant", "weak_slope")
        constants: dict[str, Any] = {
            name: getattr(self, name) for name in ("t1", "runs", "weak_theory")
        }
        for name in names:
            constants[name], constants[f"{name}_error"] = getattr(self, name)
        return super().to_xarray().assign_attrs(constants)


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

    Runs are those of `simulate` with the same key, in float64, on the same devices. Ctrl-C ends the
    study; what is done by then is in the checkpoint.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        t1: the horizon T, in unscaled steps; away from kinks of the drift.
        scales: N, at least three different ones.
        runs: independent runs at each scale.
        key: a JAX random key.
        initial_state: the first state, by number or name; drawn from the game's initial law by
            default.
        batch_size: runs simulated together on each device, rounded up as by `simulate`.
        checkpoint: a file to which unfinished work is saved between blocks, and from which it goes
            on if the file is there.
        progress: show a progress bar.

    Returns:
        Errors, fitted constants and those of theory.

    Raises:
        ValueError: as `fluctuations`; without float64; if the checkpoint is damaged or of other
            work.
        OSError: if the checkpoint's folder cannot be made or written.

    Warns:
        UserWarning: if T is within three standard deviations of a kink at the largest scale.
    """
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            'a study needs float64: jax.config.update("jax_enable_x64", True) beforehand.'
        )
    check_concrete("convergence_study", (wrapped, params0, t1, scales), NO_DERIVATIVES)
    end = check_number("t1", t1, "(0, inf)")
    scales = np.array(check_array("scales", scales, "a list of scales"), dtype=float)
    if scales.ndim != 1 or not is_within(scales, "(0, inf)"):
        raise ValueError(f"scales must be a list of positive numbers; found {describe(scales)}.")
    if len(np.unique(scales)) < 3:
        raise ValueError(f"scales must hold at least three different values; found {scales}.")
    runs = check_count("runs", runs, least=2)
    seed = np.asarray(jax.random.key_data(check_key(key)))
    batch_size = check_count("batch_size", batch_size)
    check_flag("progress", progress)
    if checkpoint is not None:
        check_path("checkpoint", checkpoint)
    inputs = check_inputs(wrapped, params0, initial_state, None, runs, np.float64)
    steps = [int(steps_at([end], scale)[0][0]) for scale in scales]
    if max(steps) >= 2**31 or min(steps) < 1:
        raise ValueError(f"each scale must take from 1 to 2^31 - 1 steps; found {steps}.")

    others = {"key": key, "t1": end, "scales": scales}
    unfinished = Store(checkpoint, "convergence study", inputs._asdict() | others)

    grid = np.linspace(0, end, CELLS + 1)
    predicted = fluctuations(wrapped, params0, grid, initial_state=initial_state, bias=True)
    if bool(predicted.near_kink(scales.max())[-1]):
        warnings.warn(
            f"t1 = {end:g} is within three standard deviations of a kink even at N = "
            f"{scales.max():g}: the weak error is not b / N there.",
            stacklevel=2,
        )
    velocity, linear = linearise(predicted)
    bias = np.asarray(predicted.bias)[-1]
    size = float(np.linalg.norm(bias))
    if size == 0:
        raise ValueError("the bias is zero: there is no weak error to measure.")
    recorder = control_variate(predicted, velocity, linear, bias / size)
    size_of_run = bytes_of_run(inputs)
    execution = plan_execution(
        size_of_run, runs, batch_size=batch_size, progress=progress, shared=True
    )

    begun = time.perf_counter()
    mean, variance = _simulate(inputs, recorder, scales, steps, key, execution, unfinished)
    seconds = time.perf_counter() - begun
    error = np.sqrt(variance / runs)
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
        strong_constant=_line(1 / root, strong, strong_error)[1],
        strong_theory=_mean_supremum(linear, seed),
        weak_constant=_line(1 / scales, weak, weak_error)[1],
        weak_theory=size,
        strong_slope=_log_slope(scales, strong / root, strong_error / root),
        weak_slope=_log_slope(scales, weak / scales, weak_error / scales),
        bias=bias,
        key_data=seed,
        run_seconds=seconds,
    )


def _line(x, y, error) -> tuple[Constant, Constant]:
    """Weighted least squares of a line: its slope and its intercept; NaN without errors."""
    if not (error > 0).all():
        return Constant(math.nan, math.nan), Constant(math.nan, math.nan)
    fitted, covariance = np.polyfit(x, y, 1, w=1 / error, cov="unscaled")
    slope, intercept = map(Constant, fitted.tolist(), np.sqrt(np.diag(covariance)).tolist())
    return slope, intercept


def _log_slope(x, y, error) -> Constant:
    """Slope of log y against log x, weighted; NaN where a mean is not positive."""
    if not (y > 0).all():
        return Constant(math.nan, math.nan)
    return _line(np.log(x), np.log(y), error / y)[0]


def _mean_supremum(linear: Linearised, seed: np.ndarray) -> Constant:
    fine, coarse = suprema(linear, seed)
    extrapolated = 2 * fine - coarse
    return Constant(
        float(extrapolated.mean()), float(extrapolated.std(ddof=1) / math.sqrt(len(fine)))
    )


def _nothing(params):
    return ()


def _simulate(
    inputs: Inputs,
    recorder: ControlVariate,
    scales,
    steps,
    key,
    execution: Execution,
    unfinished: Store,
) -> tuple[Float[np.ndarray, "L 3"], Float[np.ndarray, "L 3"]]:
    """Mean and variance over runs of what the recorder reports at the end, for every scale."""
    # Several processes save in a folder, in which every scale has one of its own.
    several = is_shared(unfinished, execution)
    saved, moments = None if several else unfinished.load(), []
    if saved is not None:
        done = saved.get("moments", np.zeros(0))
        if done.shape[1:] != (2, 3) or len(done) > len(scales):
            raise ValueError("the checkpoint does not hold what was saved for this study.")
        moments = list(done)

    def save(state, *, now=False):
        done = np.reshape(moments, (-1, 2, 3))
        unfinished.save(lambda: {"moments": done, **state()}, now=now)

    with execution.bar(inputs.runs * sum(steps)) as bar:
        bar.update(inputs.runs * sum(steps[: len(moments)]))
        for k, (scale, last) in list(enumerate(zip(scales, steps, strict=True)))[len(moments) :]:
            work = inputs, functools.partial(run_keys, key), np.array([last]), execution
            recorders = (dataclasses.replace(recorder, scale=jnp.asarray(scale)),)
            options: Any = {"scale": scale, "observe": _nothing, "recorders": recorders}
            if several:
                job = SharedJob(unfinished.part(f"scale-{k}"), *work, **options)
            else:
                job, saved = Job(*work, saved=saved, **options), None
            bar.update(job.steps_done)
            if not carry_out(job, save_nothing if several else save, bar):
                raise KeyboardInterrupt
            summary = job.summary()
            lost = summary.lost[0, -1]
            if lost[0] > 0:
                text = describe_lost(inputs.wrapped, lost, inputs.runs)[1]
                warnings.warn(f"{text} at N = {scale:g}.", stacklevel=3)
            moments.append(np.stack([summary.mean[1][0, -1], summary.variance[1][0, -1]]))
    mean, variance = np.stack(moments, axis=1)
    return mean, variance
