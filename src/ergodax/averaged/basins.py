"""Basins of attraction: where the averaged flow ends up from many starts.

All starts are followed for a given time, in batches. An end near a root of F is at rest. For any
other end x0 the flow is followed further until it comes back through the plane at x0 across F(x0)
(a Poincare section): if it closes there, that is a limit cycle, and the time it took its period.
"""

import functools
import warnings
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int, Real
from tqdm import tqdm

from ..base.checks import check_concrete, check_flag, check_number
from ..base.codes import RESULTS, is_one_of
from ..base.compiling import compiled
from ..base.devices import as_array
from ..model.clock import check_autonomous
from ..model.wrapped import WrappedGame, admit
from ..ode.integrate import check_solver, integrate
from ..results.labels import SETTING, TIME_UNITS, Entries, Label, labelled, of_agents
from ..results.result import Result
from .drift import flat_drift
from .flow import flow_of, warn_single_precision
from .rest_points import RestPoint, rest_point
from .stationary import check_ergodic, preserve_rows
from .units import extents, unit_of, units

_BATCH = 128
_SAMPLES = 512
_TRACED_STEPS = 4096
# A return this near, relative to the orbit's extent, is worth a closer look.
_NEAR = 0.05
_MOST_RETURNS = 20
_NEWTON_STEPS = 3
_MOST_STRAYS = 32
_flow = functools.partial(flow_of, adjoint=diffrax.ForwardMode())


class Attractor(eqx.Module):
    """What some starts lead to.

    Attributes:
        orbit: parameters of all agents along it, each leaf `[M, ...]`: one point for a rest point,
            512 points at equal intervals of time over one period for a limit cycle.
        period: the period in unscaled steps; 0 for a rest point.
        rest: the rest point with its eigenvalues and stability; None for a limit cycle.
    """

    orbit: tuple
    period: float
    rest: RestPoint | None

    @property
    def kind(self) -> Literal["rest point", "limit cycle"]:
        """What it is."""
        return "limit cycle" if self.rest is None else "rest point"

    def __repr__(self) -> str:
        if self.rest is None:
            return f"Attractor(limit cycle of period {self.period:.6g})"
        return f"Attractor({self.rest.stability} rest point)"


class Basins(Result):
    """The attractors reached from a sample of B starts, most frequent first.

    In the data set the orbit of attractor k is `orbit{k}` along `point{k}`.

    Attributes:
        wrapped: the game and its learners.
        attractors: A attractors.
        labels: which attractor each start leads to, `[B]`; -1 where none was identified.
        shares: share of the starts that each attractor draws, `[A]`.
        intervals: Wilson confidence intervals of the shares, `[A, 2]`: with the starts drawn at
            random, they cover the basin's probability at the chosen confidence.
        ends: parameters at the end, each leaf `[B, ...]`.
    """

    wrapped: WrappedGame
    attractors: tuple[Attractor, ...]
    labels: Int[np.ndarray, " B"] = eqx.field(
        metadata=labelled(
            "number of the attractor; -1 if unidentified", ("start",), name="attractor_of"
        )
    )
    shares: Float[np.ndarray, " A"] = eqx.field(
        metadata=labelled("share of the starts", ("attractor",), name="share")
    )
    intervals: Float[np.ndarray, "A 2"] = eqx.field(
        metadata=labelled("interval of it", ("attractor", "bound"), name="share_interval")
    )
    ends: tuple = eqx.field(metadata=labelled("where a start ended", ("start",), make=of_agents))

    @property
    def unidentified(self) -> float:
        """Share of the starts whose attractor was not identified."""
        return float(np.mean(self.labels < 0))

    def _derived(self) -> Entries:
        """What is known of each attractor."""
        along, found = ("attractor",), self.attractors
        stabilities = [one.rest.stability if one.rest else "" for one in found]
        periods = [float(one.period) for one in found]
        return {
            f"orbit{k}": (
                one.orbit,
                Label(f"orbit of attractor {k}", (f"point{k}",), make=of_agents),
            )
            for k, one in enumerate(found)
        } | {
            "kind": (np.array([one.kind for one in found], str), Label("kind of attractor", along)),
            "stability": (np.array(stabilities, str), Label("stability of a rest point", along)),
            "period": (np.array(periods), Label("period; 0 at rest", along, TIME_UNITS)),
            "bound": (["low", "high"], Label("end of an interval", ("bound",), coordinate=True)),
            "starts": (len(self.labels), SETTING),
        }

    def __repr__(self) -> str:
        shares = [
            f"{share:.1%} to a {attractor.kind}"
            for share, attractor in zip(self.shares, self.attractors, strict=True)
        ]
        if self.unidentified:
            shares.append(f"{self.unidentified:.1%} unidentified")
        return f"Basins({len(self.labels)} starts: {', '.join(shares)})"


def basins(
    wrapped: WrappedGame,
    params0: Any,
    time: Real[ArrayLike, ""],
    *,
    tolerance: float = 1e-4,
    confidence: float = 0.95,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 16**4,
    progress: bool = False,
) -> Basins:
    """Follows many starts and identifies the rest points and limit cycles they lead to.

    An end belongs to an attractor from which it is at most `tolerance` away, relative to how far
    the parameters spread (in the Euclidean norm). Ends that are on their way still, or on
    an attractor of another kind (quasi-periodic, chaotic), are left unidentified: give more time.
    After 32 ends that lie on no attractor the rest is left unidentified too.
    An end near an unstable rest point counts as that: see the stability of `Attractor.rest`.

    Args:
        wrapped: a game and its learners.
        params0: starts, parameters of all agents, each leaf with a leading axis of B starts.
        time: how long to follow each start, in unscaled steps.
        tolerance: how near counts as there.
        confidence: of the intervals of the shares.
        rtol: relative tolerance per step of the solver.
        atol: absolute tolerance per step.
        max_steps: largest number of solver steps.
        progress: show a progress bar.

    Returns:
        The attractors, their shares and what each start leads to.

    Raises:
        ValueError: if an argument does not fit, or as `solve`.

    Warns:
        UserWarning: if ends were not identified.
    """
    check_concrete("basins", (wrapped, params0, time))
    time = check_number("time", time, "(0, inf)")
    tolerance = check_number("tolerance", tolerance, "(0, inf)")
    confidence = check_number("confidence", confidence, "(0, 1)")
    tolerances = [as_array(tol, float) for tol in check_solver(rtol, atol, max_steps)]
    check_flag("progress", progress)
    wrapped, params0 = admit(wrapped, params0, "params0", "starts")
    check_autonomous(wrapped.learners, "basins")
    check_ergodic(wrapped, jax.tree.map(lambda leaf: leaf[0], params0), "params0")
    warn_single_precision()
    count = len(jax.tree.leaves(params0)[0])
    options = as_array(time, float), *tolerances, max_steps
    ends, reached = _settle_all(wrapped, params0, count, options, progress)

    flat = np.asarray(jax.vmap(lambda params: flat_drift(params)[0])(ends))
    labels = np.full(count, -1)
    pending = reached & np.isfinite(flat).all(axis=1)
    found: list[Attractor] = []
    strays = 0
    while pending.any() and strays < _MOST_STRAYS:
        first = int(np.argmax(pending))
        pending[first] = False
        start = jax.tree.map(lambda leaf, k=first: leaf[k], ends)
        attractor = _attractor(wrapped, start, tolerance, *tolerances)
        if attractor is None:
            strays += 1
            continue
        orbit = np.asarray(jax.vmap(lambda params: flat_drift(params)[0])(attractor.orbit))
        sizes = extents(wrapped, attractor.orbit)
        near = pending & (_distances(flat / sizes, orbit / sizes) <= tolerance)
        near[first] = True
        labels[near], pending[near] = len(found), False
        found.append(attractor)

    lost = int(np.sum(labels < 0))
    if lost:
        warnings.warn(
            f"the attractors of {lost} of {count} starts were not identified ({np.sum(~reached)} "
            "could not be followed to the end); the others may need more time.",
            stacklevel=2,
        )
    counts = np.bincount(labels[labels >= 0], minlength=len(found))
    order = np.argsort(-counts, kind="stable")
    ranks = np.append(np.argsort(order), -1)
    return Basins(
        wrapped=wrapped,
        attractors=tuple(found[k] for k in order),
        labels=ranks[labels],
        shares=counts[order] / count,
        intervals=wilson_interval(counts[order], count, confidence),
        ends=ends,
    )


def wilson_interval(
    counts: Int[np.ndarray, " A"], total: int, confidence: float
) -> Float[np.ndarray, "A 2"]:
    """Confidence intervals of proportions (Wilson 1927), `[A, 2]`.

    Args:
        counts: how often each outcome was seen.
        total: number of trials.
        confidence: chance that an interval covers its proportion, about.
    """
    from scipy.stats import binomtest  # takes half a second to import

    tests = [binomtest(int(count), total) for count in counts]
    intervals = [tuple(test.proportion_ci(confidence, method="wilson")) for test in tests]
    return np.reshape(intervals, (len(counts), 2))


def _settle_all(wrapped, params0, count: int, options, progress: bool):
    """Ends of all starts, and whether the solver got there."""
    size, pieces = min(count, _BATCH), []
    with tqdm(total=count, unit="start", disable=not progress) as bar:
        for first in range(0, count, size):
            # One width for all batches: the last is filled up with its last start.
            chosen = np.minimum(np.arange(first, first + size), count - 1)
            batch = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], params0)
            kept = min(size, count - first)
            piece = _settle(wrapped, batch, *options)
            pieces.append(jax.tree.map(lambda leaf, kept=kept: leaf[:kept], piece))
            bar.update(kept)
    ends, reached = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *pieces)
    return ends, np.asarray(reached)


@compiled
def _settle(wrapped, params0, time, rtol, atol, max_steps):
    def settle(params0):
        given = *check_ergodic(wrapped, params0, "params0"), time[None], rtol, atol
        solution = _flow(*given, max_steps=max_steps)
        ends = jax.tree.map(lambda leaf: leaf[-1], solution.params)
        return ends, solution.result == RESULTS.successful

    return jax.vmap(settle)(params0)


def _attractor(wrapped, start, tolerance, rtol, atol) -> Attractor | None:
    """The rest point or limit cycle that a point is on, if it is on one."""
    rest = rest_point(wrapped, start, throw=False)
    sizes = extents(wrapped, jax.tree.map(lambda leaf: leaf[None], rest.params))
    x, y = (np.asarray(flat_drift(params)[0]) / sizes for params in (start, rest.params))
    if is_one_of(rest.result, RESULTS.successful) and np.linalg.norm(x - y) <= tolerance:
        return Attractor(jax.tree.map(lambda leaf: leaf[None], rest.params), 0.0, rest)
    x, unit = x * sizes, np.asarray(units(wrapped, start))
    for _ in range(_MOST_RETURNS):
        ts, path = _trace(wrapped, start, rtol, atol)
        period = _first_return(np.asarray(ts), np.asarray(path) / unit, x / unit)
        if period is None:
            return None
        velocity = np.asarray(_velocity(wrapped, start)) / unit
        orbit, back, speed = _go_round(wrapped, start, as_array(period, float), rtol, atol)
        # Newton's method for the time of the return through the plane at x.
        for _ in range(_NEWTON_STEPS):
            away = (np.asarray(flat_drift(back)[0]) - x) / unit
            period -= float(velocity @ away / (velocity @ (np.asarray(speed) / unit)))
            orbit, back, speed = _go_round(wrapped, start, as_array(period, float), rtol, atol)
        y = np.asarray(flat_drift(back)[0])
        points = np.asarray(jax.vmap(lambda params: flat_drift(params)[0])(orbit))
        sizes = extents(wrapped, orbit)
        # What does not go further than that has not gone anywhere.
        if np.linalg.norm(np.ptp(points, axis=0) / sizes) <= tolerance:
            return None
        if np.linalg.norm((y - x) / sizes) <= 0.1 * tolerance:
            return Attractor(orbit, period, None)
        start, x = back, y
    return None


def _first_return(ts, path, x) -> float | None:
    """About when a path from x first comes back to x through the plane across its start."""
    known = np.isfinite(ts)
    ts, path = ts[known], path[known] - x
    if len(ts) < 3:
        return None
    extent = np.linalg.norm(path, axis=1).max()
    height = path @ path[1]
    for k in np.flatnonzero((height[1:-1] < 0) & (height[2:] >= 0)) + 1:
        share = height[k] / (height[k] - height[k + 1])
        crossing = path[k] + share * (path[k + 1] - path[k])
        if np.linalg.norm(crossing) <= _NEAR * extent:
            return float(ts[k] + share * (ts[k + 1] - ts[k]))
    return None


@compiled
def _trace(wrapped, params, rtol, atol):
    """Times and places of many steps of the solver from a point, the start first."""
    wrapped = preserve_rows(wrapped)
    start, _, field = flat_drift(params)
    solved: Any = integrate(
        field,
        start,
        jnp.inf,
        wrapped,
        keep=True,
        rtol=rtol,
        atol=atol,
        unit=unit_of(wrapped, params),
        max_steps=_TRACED_STEPS,
    )
    return solved.path[:2]


@compiled
def _velocity(wrapped, params):
    x, _, field = flat_drift(params)
    return field(x, wrapped)


@compiled
def _go_round(wrapped, params, period, rtol, atol):
    """Points over a time at equal intervals, the point at its end, and the velocity there."""
    ts = period * jnp.arange(_SAMPLES + 1, dtype=float) / _SAMPLES
    path = _flow(*check_ergodic(wrapped, params, "params"), ts, rtol, atol).params
    back = jax.tree.map(lambda leaf: leaf[-1], path)
    x, _, field = flat_drift(back)
    return jax.tree.map(lambda leaf: leaf[:-1], path), back, field(x, wrapped)


def _distances(
    points: Float[np.ndarray, "B d"], orbit: Float[np.ndarray, "M d"]
) -> Float[np.ndarray, " B"]:
    """Distance of every point to a closed polygon."""
    least = np.full(len(points), np.inf)
    for corner, edge in zip(orbit, np.roll(orbit, -1, axis=0) - orbit, strict=True):
        length = edge @ edge
        away = points - corner
        share = np.clip(away @ edge / length, 0, 1) if length > 0 else np.zeros(len(points))
        least = np.minimum(least, np.linalg.norm(away - share[:, None] * edge, axis=1))
    return least
