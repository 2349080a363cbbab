"""Fitting and design by gradients: parameters in bounds, minimised over free coordinates by optax.

Each parameter theta in (low, high) is written as a function of a free number u: `theta = u` without
bounds, `low + exp(u)` and `high - exp(u)` with one, `low + (high - low) / (1 + exp(-u))` with both.
So steps are relative ones near a bound, and no step leaves it.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Real
from tqdm import tqdm

from ..base.checks import (
    as_real,
    check_array,
    check_count,
    check_flag,
    check_function,
    check_mapping,
    check_number,
    check_type,
    describe,
    is_within,
)
from ..base.codes import RESULTS
from ..base.compiling import compiled
from ..base.text import describe_result, describe_value
from ..results.labels import OUTCOME, labelled, of_places
from ..results.result import Result

Theta = Mapping[str, Any]
Number = float | Real[ArrayLike, ""]


class Fit(Result):
    """The outcome of a fit; in its data set `theta_` and `gradient_` have each parameter's name.

    Attributes:
        theta: the best parameters found, by name.
        loss: the loss there.
        gradient: its derivative by every parameter there.
        losses: the loss before every step and after the last, `[steps + 1]`.
        evaluations: how often the loss was computed, with its gradient or, in some line searches,
            without.
        result: `RESULTS.successful`, or that the steps did not suffice.
    """

    theta: dict[str, Array] = eqx.field(metadata=labelled("best", make=of_places))
    loss: float = eqx.field(metadata=labelled("least loss"))
    gradient: dict[str, Array] = eqx.field(
        metadata=labelled("derivative of the loss by", make=of_places)
    )
    losses: Float[np.ndarray, " _"] = eqx.field(
        metadata=labelled("loss before the step, last after all", ("step",))
    )
    evaluations: int = eqx.field(metadata=labelled("evaluations of the loss"))
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))

    def __repr__(self) -> str:
        theta = ", ".join(f"{name} {describe_value(value)}" for name, value in self.theta.items())
        return (
            f"Fit({theta}; loss {self.loss:.6g} after {len(self.losses) - 1} steps: "
            f"{describe_result(self.result)})"
        )


def fit(
    loss: Callable[..., Any],
    theta0: Theta,
    data: Any = None,
    *,
    bounds: Mapping[str, tuple[Number, Number]] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    max_steps: int = 100,
    rtol: Number = 1e-8,
    atol: Number = 1e-12,
    progress: bool = False,
) -> Fit:
    """Minimises a loss by its gradient, within bounds.

    The loss is any function of the parameters that JAX can differentiate in reverse mode: of
    `solve(..).params` at some times, or of `rest_point(..)`. It is compiled once for all starts and
    all data of the same shapes, if it is the same function: one that is made anew for every call,
    around its data, is compiled anew.

    Args:
        loss: a function of a dictionary of parameters, and of the data if there are any, returning
            a scalar.
        theta0: where to start, scalars or arrays by name.
        data: a pytree of arrays or numbers, the second argument of `loss`; none by default.
        bounds: open intervals of the parameters that have one, by name; infinite ends are allowed,
            `(0, inf)` for a positive parameter.
        optimizer: an optax optimiser, which sees the free coordinates; L-BFGS with line search by
            default.
        max_steps: largest number of steps.
        rtol: stop when a step lowers the loss by at most this, relative to it.
        atol: the same, absolute; without an optimiser of your own, relative to the smallest power
            of 1024 above a loss that begins smaller than one.
        progress: show a progress bar with the loss.

    Returns:
        The best parameters found.

    Raises:
        ValueError: if a bound is not an interval, or the start lies outside, naming the parameter.
        RuntimeError: if the loss or a derivative is not finite, naming the parameter.

    Warns:
        UserWarning: if `max_steps` did not suffice.
    """
    check_function("loss", loss, "a dictionary of parameters")
    given = () if data is None else (jax.tree.map(jnp.asarray, data),)
    theta0 = _check_theta("theta0", theta0)
    if bounds is not None:
        check_mapping("bounds", bounds, "{'x': (0, 1)}")
    if optimizer is not None:
        kind = optax.GradientTransformation
        check_type("optimizer", optimizer, kind, "an optimiser of optax, e.g. optax.adam(0.1)")
    max_steps = check_count("max_steps", max_steps)
    slack = check_number("rtol", rtol, "[0, inf)")
    threshold = check_number("atol", atol, "[0, inf)")
    check_flag("progress", progress)
    intervals = _check_bounds(theta0, bounds or {})
    free = {name: _to_free(value, *intervals[name]) for name, value in theta0.items()}
    objective = _Objective(loss, intervals, given, jnp.asarray(1.0))
    chosen = _default_optimizer() if optimizer is None else optimizer
    state = optax.with_extra_args_support(chosen).init(free)
    value, slope = _evaluate(objective, free)
    _check_finite(value, slope, free, intervals)
    unit = 1.0
    if optimizer is None and 0 < abs(float(value)) < 1:
        # A loss may be small because payoffs are: the line search has tolerances of its own.
        unit = 1024.0 ** math.ceil(math.log(abs(float(value)), 1024))
        objective = objective._replace(unit=jnp.asarray(unit))
        value, slope = jax.tree.map(lambda leaf: leaf / unit, (value, slope))
    losses, evaluations = [float(value)], 1
    best = (float(value), free, slope)
    done = False
    with tqdm(total=max_steps, unit="step", disable=not progress) as bar:
        for _ in range(max_steps):
            free, state = _advance(objective, chosen, free, state, value, slope)
            evaluations += int(optax.tree_utils.tree_get(state, "num_linesearch_steps", 0))
            stored = optax.tree_utils.tree_get(state, "grad")
            if stored is None:
                value, slope = _evaluate(objective, free)
                evaluations += 1
            else:  # the line search has been there already
                value, slope = optax.tree_utils.tree_get(state, "value"), stored
            _check_finite(value, slope, free, intervals)
            losses.append(float(value))
            if losses[-1] < best[0]:
                best = (losses[-1], free, slope)
            bar.set_postfix(loss=f"{unit * losses[-1]:.4g}")
            bar.update()
            gained = losses[-2] - losses[-1]
            if abs(gained) <= threshold + slack * abs(losses[-1]):
                done = True
                break
    if not done:
        warnings.warn(
            f"the fit took all {max_steps} steps; the last lowered the loss by "
            f"{unit * (losses[-2] - losses[-1]):.3g} to {unit * losses[-1]:.6g}.",
            stacklevel=2,
        )
    least, free, slope = best
    result: Any = RESULTS.successful if done else RESULTS.nonlinear_max_steps_reached
    theta = _from_free(free, intervals)
    ones = jax.tree.map(jnp.ones_like, free)
    stretch = jax.jvp(lambda free: _from_free(free, intervals), (free,), (ones,))[1]
    return Fit(
        theta=theta,
        loss=unit * least,
        gradient=jax.tree.map(lambda own, by: unit * own / by, slope, stretch),
        losses=unit * np.array(losses),
        evaluations=evaluations,
        result=result,
    )


class _Objective(NamedTuple):
    """The loss as a function of the free coordinates; only its data are no part of the program."""

    loss: Callable
    intervals: dict[str, tuple[float, float]]
    data: tuple
    unit: Any

    def __call__(self, free):
        value = self.loss(_from_free(free, self.intervals), *self.data)
        if as_real(value) is None or np.ndim(value) > 0:
            raise ValueError(f"loss must return one number; found {describe(value)}.")
        return value / self.unit


@functools.cache
def _default_optimizer():
    return optax.lbfgs()


@compiled
def _evaluate(objective, free):
    return jax.value_and_grad(objective)(free)


@compiled
def _advance(objective, optimizer, free, state, value, slope):
    with jax.numpy_dtype_promotion("standard"):  # optax counts in integers of several sizes
        updates, state = optax.with_extra_args_support(optimizer).update(
            slope, state, free, value=value, grad=slope, value_fn=objective
        )
        return optax.apply_updates(free, updates), state


def standard_errors(
    predict: Callable[[dict[str, Any]], Any],
    theta: Theta,
    covariance: Real[ArrayLike, "m m"],
    *,
    weights: Real[ArrayLike, " m"] | None = None,
    bias: Real[ArrayLike, " m"] | None = None,
) -> tuple[dict[str, Array], Float[Array, "p p"]]:
    """Standard errors of parameters fitted by weighted least squares, from the sensitivities.

    With J the derivative of the m predicted values by the p parameters, W the weights and C the
    covariance of the observations, the estimates have to first order the covariance
    `(J'WJ)^-1 J'W C W J (J'WJ)^-1`. If the predictions are those of the ODE, they are off the mean
    of a process at scale N by `b / N`, and so are the estimates: errors without `bias` leave that
    out, and are too small where the runs are not few against N.

    Args:
        predict: a function of a dictionary of parameters, returning the predicted values `[m]`. It
            is differentiated in forward mode.
        theta: the fitted parameters.
        covariance: of the observed values, `[m, m]`: for the mean of R runs, the covariance over
            runs divided by R.
        weights: those of the squared differences in the loss, `[m]`; all one by default.
        bias: the mean of the observed values less the predicted ones, `[m]`, as far as it is known:
            what `fluctuations(.., bias=True).corrected_mean(N)` adds to the ODE. C then has its
            square added, so that errors are root mean squares about the true parameters.

    Returns:
        The standard errors, like `theta`, and the covariance of the estimates `[p, p]`, in the
        order of `jax.flatten_util.ravel_pytree(theta)`.

    Raises:
        ValueError: if shapes disagree, or the observations do not determine the parameters.
        RuntimeError: if a derivative is not finite, naming the parameter.
    """
    check_function("predict", predict, "a dictionary of parameters")
    theta = _check_theta("theta", theta)
    spread = np.asarray(check_array("covariance", covariance), dtype=float)
    if not np.all(np.isfinite(spread)) or spread.ndim != 2 or not _is_covariance(spread):
        raise ValueError(
            "covariance must be a symmetric matrix without negative eigenvalues; found "
            f"{describe(covariance)}."
        )
    if weights is not None:
        weights = np.asarray(check_array("weights", weights), dtype=float)
        if not is_within(weights, "[0, inf)"):
            raise ValueError(f"weights must not be negative; found {describe(weights)}.")
    shift = None if bias is None else np.asarray(check_array("bias", bias), dtype=float)
    if shift is not None and not np.all(np.isfinite(shift)):
        raise ValueError(f"bias must be finite; found {describe(bias)}.")
    unravel = ravel_pytree(theta)[1]
    sensitivity = np.asarray(_sensitivity(predict, theta))
    if sensitivity.ndim != 2:
        raise ValueError(f"predict must return a vector; found shape {sensitivity.shape[:-1]}.")
    for name, column in _columns(theta, sensitivity):
        if not np.all(np.isfinite(column)):
            raise RuntimeError(f"the derivative of the predictions by {name!r} is not finite.")
    size = len(sensitivity)
    scale = np.ones(size) if weights is None else weights
    if spread.shape != (size, size) or scale.shape != (size,):
        raise ValueError(
            f"predict returns {size} values, so covariance must have shape {(size, size)} and "
            f"weights {(size,)}; found {spread.shape} and {scale.shape}."
        )
    if shift is not None:
        if shift.shape != (size,):
            raise ValueError(f"bias must have shape {(size,)}; found {shift.shape}.")
        spread = spread + np.outer(shift, shift)
    # Columns of one length: parameters may have very different sizes.
    units = np.linalg.norm(np.sqrt(scale)[:, None] * sensitivity, axis=0)
    scaled = sensitivity / np.where(units > 0, units, 1)
    normal = scaled.T @ (scale[:, None] * scaled)
    if np.linalg.cond(normal) > 1e12:
        raise ValueError(
            "the observations do not determine the parameters "
            f"{', '.join(repr(name) for name in theta)}: the sensitivities are linearly dependent."
        )
    influence = np.linalg.solve(normal, scaled.T * scale) / units[:, None]
    estimates = jnp.asarray(influence @ spread @ influence.T)
    return unravel(jnp.sqrt(jnp.diagonal(estimates))), estimates


@compiled
def _sensitivity(predict, theta):
    flat, unravel = ravel_pytree(theta)
    return jax.jacfwd(lambda flat: predict(unravel(flat)))(flat)


def _check_theta(name: str, theta: Any) -> dict[str, Array]:
    """Parameters by name, each an array; raises ValueError if there is none or one is no number."""
    if not check_mapping(name, theta, "{'temperature': 0.5}"):
        raise ValueError(f"{name} must hold at least one parameter; found none.")
    return {
        key: jnp.asarray(check_array(f"{name}[{key!r}]", value), dtype=float)
        for key, value in theta.items()
    }


def _is_covariance(matrix: Float[np.ndarray, "m n"]) -> bool:
    """Whether a matrix is symmetric and has no negative eigenvalue, up to rounding."""
    size = np.abs(matrix).max(initial=0.0)
    if matrix.shape[0] != matrix.shape[1] or np.abs(matrix - matrix.T).max() > 1e-6 * size:
        return False
    return bool(np.linalg.eigvalsh(matrix).min() >= -1e-6 * size)


def _columns(theta, sensitivity):
    """Names, and the columns of each."""
    ends = np.cumsum([np.size(theta[name]) for name in sorted(theta)])[:-1]
    return zip(sorted(theta), np.split(sensitivity, ends, axis=-1), strict=True)


def _check_bounds(theta0, bounds) -> dict[str, tuple[float, float]]:
    for name in bounds:
        if name not in theta0:
            raise ValueError(f"bounds: {name!r} is not a parameter; they are {', '.join(theta0)}.")
    intervals = {}
    for name, value in theta0.items():
        found = as_real(bounds.get(name, (-np.inf, np.inf)))
        if found is None or np.shape(found) != (2,) or not found[0] < found[1]:
            raise ValueError(
                f"bounds of {name!r} must be low < high; found {describe(bounds[name])}."
            )
        low, high = map(float, found)
        if not np.all(np.isfinite(value) & (value > low) & (value < high)):
            raise ValueError(f"theta0[{name!r}] must lie in {(low, high)}; found {value}.")
        intervals[name] = (low, high)
    return intervals


def _to_free(value, low: float, high: float):
    if np.isinf(low) and np.isinf(high):
        return value
    if np.isinf(high):
        return jnp.log(value - low)
    if np.isinf(low):
        return jnp.log(high - value)
    return jnp.log(value - low) - jnp.log(high - value)


def _from_free(free, intervals) -> dict[str, Array]:
    def bounded(u, low, high):
        if np.isinf(low) and np.isinf(high):
            return u
        if np.isinf(high):
            return low + jnp.exp(u)
        if np.isinf(low):
            return high - jnp.exp(u)
        return low + (high - low) * jax.nn.sigmoid(u)

    return {name: bounded(u, *intervals[name]) for name, u in free.items()}


def _check_finite(value, slope, free, intervals) -> None:
    theta = _from_free(free, intervals)
    here = ", ".join(f"{name} = {np.asarray(number)}" for name, number in theta.items())
    if not np.isfinite(value):
        raise RuntimeError(f"the loss is {float(value)} at {here}.")
    for name, derivative in slope.items():
        if not np.all(np.isfinite(derivative)):
            raise RuntimeError(
                f"the derivative of the loss by {name!r} is {np.asarray(derivative)} at {here}."
            )
