"""Sweeps, sensitivities and rates of convergence."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.flatten_util
import numpy as np
from jaxtyping import ArrayLike, PyTree, Real

from ..averaged.sensitivities import Sensitivities
from ..base.checks import (
    as_real,
    check_array,
    check_flag,
    check_mapping,
    check_number,
    check_type,
    describe,
)
from ..studies.convergence import ConvergenceStudy
from .coordinates import Coordinate, parameter_index, parameter_name
from .style import NEUTRAL, axes_or_new, is_geometric, legend, look, plain, title

if TYPE_CHECKING:
    import matplotlib.axes
    import xarray

# Dimensions of a data set of `ergodax.sweep` that are not swept.
_LABELS = re.compile(r"time|agent|state|action|set|action_agent\d+|parameters\w*_axis\d+")
_ARROWS, _TICKS = 8, 6


def sweep(
    dataset: "xarray.Dataset",
    variable: str,
    at: Mapping[str, Any] | None = None,
    *,
    gradient: bool | Mapping[str, Real[ArrayLike, "..."]] = False,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws one number of every set of a sweep over a grid: curves, or a heat map with contours.

    With one swept quantity left it draws curves, one for each entry of a dimension that `at` leaves
    open; with two a heat map. An axis is logarithmic where the values are more evenly spaced so.
    The gradient is drawn as short tangents of the curves, or as arrows that point to where the
    value rises fastest when each axis is measured by its length.

    Args:
        dataset: what `ergodax.sweep` returned for a grid.
        variable: the name of one of its variables, e.g. `"policy"`.
        at: where to take the other dimensions, e.g. `{"agent": 0, "state": "CC", "action": "C"}`; a
            swept quantity may be fixed too. The time is the last one by default.
        gradient: True for finite differences of the values on the grid; or the derivative by each
            swept quantity that is drawn, by its name, in the variable's shape on the grid.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such variable or dimension, too few or too many are left open, or
            derivatives do not fit.
    """
    import xarray

    check_type("dataset", dataset, xarray.Dataset, "a data set, as ergodax.sweep returns it")
    if not isinstance(variable, str) or variable not in dataset:
        listed = ", ".join(map(str, dataset.data_vars))
        raise ValueError(f"{describe(variable)} is not a variable; those are {listed}.")
    if at is not None:
        check_mapping("at", at, "{'agent': 0}")
    if not isinstance(gradient, Mapping):
        check_flag("gradient", gradient)
    values, at = dataset[variable], dict(at or {})
    if "time" in values.dims:
        at.setdefault("time", values["time"].values[-1])
    unknown = [name for name in at if name not in values.dims]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a dimension of {variable}; those are "
            f"{', '.join(map(str, values.dims))}."
        )
    for name, where in at.items():
        try:
            values = values.sel({name: where})
        except (KeyError, TypeError, ValueError):
            known = ", ".join(map(_short, dataset[name].values.tolist()))
            raise ValueError(
                f"at: {name} must be one of {known}; found {describe(where)}."
            ) from None
    swept = [str(d) for d in values.dims if not _LABELS.fullmatch(str(d))]
    others = [str(d) for d in values.dims if d not in swept]
    if len(swept) not in (1, 2) or len(others) > 2 - len(swept):
        raise ValueError(
            "one swept quantity, with at most one other dimension, or two can be drawn; found "
            f"{', '.join([*swept, *others]) or 'none'}: fix others with at."
        )
    values = values.transpose(*swept, *others)
    slopes = _slopes(values, swept, gradient)
    place = ", ".join(f"{plain(name)} {_short(where)}" for name, where in at.items())
    text = plain(variable.replace("_", " "))
    if len(swept) == 2:
        ax = axes_or_new(ax, 2.8)
        _draw_map(ax, values, swept, slopes, text)
    else:
        ax = axes_or_new(ax)
        _draw_curves(ax, values, swept[0], others, slopes)
        ax.set_ylabel(text)
    title(ax, place)
    return ax


def sensitivities(
    result: Sensitivities,
    of: Coordinate | Callable[[Any], Any],
    *,
    time: Real[ArrayLike, ""] | None = None,
    theta: PyTree | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws the derivatives of one number by all entries of theta as bars, the largest on top.

    Args:
        result: what `ergodax.sensitivities` returned.
        of: a parameter, by agent, state and action or by its number in
            `jax.flatten_util.ravel_pytree(params)`; or a function of the parameters that returns
            one number, differentiable by JAX.
        time: one of the report times; the last one by default.
        theta: the value at which derivatives were taken; if given, elasticities
            `d log g / d log theta` are drawn, which have no units.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such parameter or time, the function does not return one number,
            or elasticities are asked for where the number is zero.
    """
    check_type("result", result, Sensitivities, "what ergodax.sensitivities returns")
    if time is not None:
        time = check_number("time", time)
    ts = np.asarray(result.ts)
    k = len(ts) - 1 if time is None else int(np.argmin(np.abs(ts - time)))
    if time is not None and not np.isclose(ts[k], time):
        raise ValueError(f"time must be one of the report times {ts}; found {time}.")
    params = jax.tree.map(lambda leaf: leaf[k], result.params)
    if callable(of):
        value, slope = jax.value_and_grad(_number(of))(params)
        name = plain(getattr(of, "__name__", "observable").replace("<lambda>", "observable"))
    else:
        index = parameter_index(result.wrapped, params, "of", of)
        name = parameter_name(result.wrapped, params, index)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        value, slope = flat[index], unravel(np.eye(1, flat.size, index)[0].astype(flat.dtype))
    names, bars = _chain(result, slope, k)
    if theta is not None:
        leaves = [np.ravel(check_array("theta", leaf)) for leaf in jax.tree.leaves(theta)]
        entries = np.concatenate([np.zeros(0), *leaves])
        if entries.shape != bars.shape:
            raise ValueError(f"theta must have {bars.size} entries; found {entries.size}.")
        if value == 0:
            raise ValueError(f"{name} is zero: it has no elasticities.")
        bars = bars * entries / float(value)
    order = np.argsort(np.abs(bars), kind="stable")
    ax = axes_or_new(ax, max(1.6, 0.8 + 0.24 * len(bars)))
    colours = [look(0).colour if bar >= 0 else look(1).colour for bar in bars[order]]
    ax.barh([plain(names[i]) for i in order], bars[order], color=colours, height=0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel("elasticity" if theta is not None else "derivative")
    title(ax, f"{name}, t = {ts[k]:g}")
    return ax


def convergence(
    study: ConvergenceStudy, *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draws strong and weak errors over the scale, with the lines that theory predicts.

    Args:
        study: what `ergodax.convergence_study` returned.
        ax: where to draw; a new figure by default.

    Returns:
        The axes, both logarithmic.
    """
    check_type("study", study, ConvergenceStudy, "what ergodax.convergence_study returns")
    ax = axes_or_new(ax)
    scales = study.scales
    lines = (
        (study.strong, study.strong_error, study.strong_theory.value / np.sqrt(scales), "strong"),
        (study.weak, study.weak_error, study.weak_theory / scales, "weak"),
    )
    texts = (r"$c_0 / \sqrt{N}$, theory", r"$|b| / N$, theory")
    for k, ((error, deviation, theory, name), text) in enumerate(zip(lines, texts, strict=True)):
        ax.plot(scales, theory, label=text, **look(k).line)
        ax.errorbar(scales, error, 2 * deviation, label=f"{name} error", **look(k).point)
    ax.set(xscale="log", yscale="log", xlabel="scale $N$", ylabel="error")
    some = scales[:: -(-len(scales) // _TICKS)]
    ax.set_xticks(some, [f"{scale:g}" for scale in some])
    ax.set_xticks([], minor=True)
    legend(ax, where="above")
    return ax


def _slopes(values, swept, gradient) -> list[np.ndarray] | None:
    """The derivative by every swept quantity, in the shape of the values."""
    if gradient is False:
        return None
    if gradient is True:
        axes = [values[name].values for name in swept]
        short = [name for name, axis in zip(swept, axes, strict=True) if len(axis) < 2]
        if short:
            raise ValueError(f"finite differences need two values of {short[0]}; found 1.")
        found = np.gradient(values.values, *axes, axis=tuple(range(len(swept))))
        return list(found) if isinstance(found, tuple | list) else [found]
    slopes = []
    for name in swept:
        if name not in gradient:
            raise ValueError(f"gradient must hold the derivative by {name}.")
        slope = np.asarray(gradient[name])
        if slope.shape != values.shape:
            raise ValueError(
                f"the derivative by {name} must have shape {values.shape}; found {slope.shape}."
            )
        slopes.append(slope)
    return slopes


def _draw_curves(ax, values, name: str, others: list[str], slopes) -> None:
    x = values[name].values
    curves = values.values.reshape(len(x), -1).T
    names = values[others[0]].values if others else [None]
    for k, (curve, entry) in enumerate(zip(curves, names, strict=True)):
        own = look(k) if others else NEUTRAL
        ax.plot(
            x, curve, label=_short(entry), **own.line | own.point | {"linestyle": own.linestyle}
        )
        if slopes is not None:
            slope = slopes[0].reshape(len(x), -1)[:, k]
            along, back, rate = _measure(x)
            reach = 0.05 * np.ptp(along)
            ends = np.array([-reach, reach])
            ax.plot(
                back(along + ends[:, None]),
                curve + ends[:, None] * slope * rate,
                color=own.colour,
                linewidth=4,
                alpha=0.3,
                solid_capstyle="butt",
            )
    ax.set(xlabel=plain(name), xscale="log" if is_geometric(x) else "linear")
    if others:
        legend(ax)
        ax.get_legend().set_title(others[0].split("_")[0], {"size": "small"})


def _draw_map(ax, values, swept, slopes, label: str) -> None:
    from matplotlib import patheffects

    x, y = (values[name].values for name in swept)
    z = np.ma.masked_invalid(values.values.T)
    mesh = ax.pcolormesh(_edges(x), _edges(y), z, cmap="cividis")
    ax.set(**{f"{k}scale": "log" for k, axis in (("x", x), ("y", y)) if is_geometric(axis)})
    ax.figure.colorbar(mesh, ax=ax, label=label).ax.tick_params(labelsize="small")
    if min(z.shape) > 1 and np.ptp(z.compressed()) > 0:
        lines = ax.contour(x, y, z, 5, colors="white", linewidths=0.8)
        outline = [patheffects.withStroke(linewidth=1.5, foreground="#404040")]
        for text in ax.clabel(lines, fontsize="x-small"):
            text.set_path_effects(outline)
    if slopes is not None:
        thin = tuple(slice(None, None, max(1, -(-len(axis) // _ARROWS))) for axis in (x, y))
        (along_x, _, rate_x), (along_y, _, rate_y) = _measure(x), _measure(y)
        u = (slopes[0] * rate_x[:, None])[thin].T * np.ptp(along_x)
        v = (slopes[1] * rate_y)[thin].T * np.ptp(along_y)
        # White with a dark outline: seen on the darkest and on the brightest cells.
        seen = {"color": "white", "edgecolor": "black", "linewidth": 0.5, "width": 0.012}
        ax.quiver(x[thin[0]], y[thin[1]], u, v, pivot="mid", zorder=3, **seen)
    ax.set(xlabel=plain(swept[0]), ylabel=plain(swept[1]))


def _measure(x: np.ndarray) -> tuple[np.ndarray, Callable, np.ndarray]:
    """Where values stand along their axis, the way back, and dx by that place."""
    if is_geometric(x):
        return np.log(x), np.exp, x
    return x, lambda along: along, np.ones(len(x))


def _edges(x: np.ndarray) -> np.ndarray:
    """The bounds of the cells around values, halfway on their axis."""
    along, back, _ = _measure(np.asarray(x, dtype=float))
    if len(along) == 1:
        return along[0] + np.array([-0.5, 0.5])
    between = (along[1:] + along[:-1]) / 2
    ends = 2 * along[0] - between[0], 2 * along[-1] - between[-1]
    return back(np.concatenate([ends[:1], between, ends[1:]]))


def _number(function: Callable) -> Callable:
    def checked(params):
        value = function(params)
        if as_real(value) is None or np.ndim(value) > 0:
            raise ValueError(f"of must return one number; found {describe(value)}.")
        return value

    return checked


def _chain(result: Sensitivities, slope: Any, k: int) -> tuple[list[str], np.ndarray]:
    """Names of all entries of theta, and the derivative of a number with this slope by each."""
    outer = jax.tree.structure(result.params)
    by_params = outer.flatten_up_to(result.derivatives)
    totals: dict[str, Any] = {}
    for part, per_theta in zip(jax.tree.leaves(slope), by_params, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(per_theta):
            name = jax.tree_util.keystr(path, simple=True, separator=".") or "theta"
            added = np.tensordot(np.asarray(part), np.asarray(leaf[k]), axes=np.ndim(part))
            totals[name] = totals.get(name, 0) + added
    names, bars = [], []
    for name, total in totals.items():
        for place, entry in np.ndenumerate(total):
            names.append(name + (f"[{', '.join(map(str, place))}]" if place else ""))
            bars.append(entry)
    return names, np.array(bars)


def _short(entry: Any) -> str:
    """A coordinate's value in short; empty for none."""
    if entry is None:
        return ""
    return f"{entry:g}" if isinstance(entry, float | np.floating) else plain(entry)
