"""Where derivatives of the flow lose digits: ties of a maximum, and how long the flow is near them.

A learner that takes a maximum gives the drift F a kink wherever the best two entries of a row
change order. Derivatives of the solution x(t) solve a linear ODE whose coefficients jump there, by
`J = |DF_new - DF_old|`. If for a time w it is in doubt on which side x is, derivatives are off by
about `J w`, relative to their size. In doubt is

- the time that x spends nearer to the tie than it is known: short where x crosses fast, longer
  where it crosses slowly or only touches, long where it rests on the tie and derivatives by what
  breaks the tie do not exist;
- all of a visit to the other side that is over within a step, since steps may pass over it; but
  not if a step ends at each crossing.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, Real

from ..base.checks import is_concrete
from ..base.codes import RESULTS
from ..base.compiling import quickly_compiled
from ..base.times import check_times
from ..model.wrapped import WrappedGame
from ..ode.path_derivatives import MAX_STEPS, PATH_TOLERANCE
from ..second_order.fluctuations import Dynamics, owners
from .drift import flat_drift
from .stationary import check_ergodic

# An estimated relative error of derivatives above this is warned of.
TOLERANCE = 1e-4
_STEPS = 256  # steps of the path that are looked at together
_PARTS = np.linspace(0, 1, 5)  # where in a step the order of entries is looked at
_SAME = 1e-12  # times this near to each other, relatively, are one
_NEAR = 1e-3  # by what share of its values a row may miss a tie and still be listed
# Derivatives take their own steps, up to about so many times as long as the longest of so many
# steps of the path before and after.
_LONGER, _AROUND = 2.0, 10


class Tie(NamedTuple):
    """A time, or a stretch of time, at which the best two entries of a row are tied, or nearly so.

    Attributes:
        kind: `"crossing"`, `"touch"` (comes near and returns), `"start"` (begins there and leaves)
            or `"rest"` (stays for more than a step of the solver).
        agent: whose maximum it is.
        row: the row of `learner.maximised`, flattened: for Q-learning the state.
        old: the entry that is best before.
        new: the other one.
        time: when the two are nearest; for a rest, since when.
        speed: of their difference then, per unscaled step.
        margin: their difference then; zero where they cross.
        doubt: for how long it is in doubt which is best, in unscaled steps.
        visit: of a crossing, how long the visit to the other side before or after it is, if it is
            so short that steps may pass over it; else zero.
        jump: by how much DF jumps there, in the spectral norm.
    """

    kind: str
    agent: int
    row: int
    old: int
    new: int
    time: float
    speed: float
    margin: float
    doubt: float
    visit: float
    jump: float

    @property
    def error(self) -> float:
        """The estimated relative error of derivatives."""
        return self.jump * max(self.doubt, self.visit)


class KinkReport(NamedTuple):
    """The ties along a solution.

    Attributes:
        ties: all of them, in order of time.
        wrapped: the game and its learners.
    """

    ties: tuple[Tie, ...]
    wrapped: WrappedGame

    @property
    def error(self) -> float:
        """The largest estimated relative error of derivatives."""
        return max((tie.error for tie in self.ties), default=0.0)

    @property
    def stops(self) -> tuple[float, ...]:
        """Times at which steps have to end, lest they pass over a short visit beyond a tie."""
        times: list[float] = []
        for tie in self.ties:
            # Agents alike cross at one time, up to rounding.
            if tie.visit > 0 and not (times and tie.time - times[-1] <= _SAME * tie.time):
                times.append(float(tie.time))
        return tuple(times)

    def stopped_at(self, stops: Sequence[float]) -> "KinkReport":
        """What is left in doubt if steps end at some of the times in `stops`."""

        def stopped(tie):
            return any(abs(tie.time - time) <= _SAME * time for time in stops)

        ties = (tie._replace(visit=0.0) if stopped(tie) else tie for tie in self.ties)
        return self._replace(ties=tuple(ties))

    def __repr__(self) -> str:
        if not self.ties:
            return "KinkReport(no ties)"
        found = sorted(self.ties, key=lambda tie: -tie.error)
        lines = [self.describe(tie) for tie in found[:8]]
        more = [f"and {len(found) - 8} more"] if len(found) > 8 else []
        return "\n  ".join(["KinkReport(", *lines, *more]) + ")"

    def describe(self, tie: Tie) -> str:
        """One line about one of the ties."""
        game, learner = self.wrapped.game, type(self.wrapped.learners[tie.agent]).__name__
        rows = owners(self.wrapped)[0] == tie.agent
        of_states = np.sum(rows) == game.num_states
        where = f"state {game.state_names[tie.row]}" if of_states else f"row {tie.row}"
        names = game.action_names[tie.agent]
        actions = [names[k] if of_states else str(k) for k in (tie.old, tie.new)]
        return (
            f"{tie.kind} at t = {tie.time:.6g}: agent {tie.agent} ({learner}) {where}, "
            f"{actions[0]} and {actions[1]}: margin {tie.margin:.1e}, speed {tie.speed:.1e}, "
            f"in doubt for {max(tie.doubt, tie.visit):.1e}, error {tie.error:.0e}"
        )


def kinks(
    wrapped: WrappedGame,
    params0,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = MAX_STEPS,
) -> KinkReport:
    """Where the averaged flow crosses, touches or rests on kinks, and what derivatives lose there.

    Takes the arguments of `solve` (the last of `ts` matters) and tells how far `jax.grad` through
    it can be trusted. If the report names times in `stops`, put them into the `ts` of `solve`: the
    steps of its derivatives end there, and lose nothing. `sensitivities` does so by itself, and
    warns of what remains. Crossings that are fast cost nothing, and are listed too. It solves the
    flow once, outside any JAX transformation.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        ts: report times, as for `solve`.
        solver: as for `solve`.
        rtol: the tolerance of the solution that is differentiated.
        atol: the same, absolute.
        max_steps: largest number of solver steps.

    Returns:
        All ties, each with an estimate of the error.

    Raises:
        ValueError: as `solve`; if values are traced by JAX.
        RuntimeError: if the solve fails.
    """
    check_times(ts)
    check_ergodic(wrapped, params0)
    arrays = eqx.filter((wrapped, params0, ts), eqx.is_array)
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves(arrays)):
        raise ValueError("kinks looks at values: call it outside jit, grad and vmap.")
    agents, numbers, widths = owners(wrapped)
    if not len(agents):
        return KinkReport((), wrapped)
    method = diffrax.Tsit5() if solver is None else solver
    end = float(np.asarray(ts)[-1])
    precision = 16 * float(jnp.finfo(jnp.result_type(float)).eps)
    rtol, atol = max(rtol, precision), max(atol, precision)
    tolerances = [jnp.asarray(PATH_TOLERANCE * tol, dtype=float) for tol in (rtol, atol)]
    flow = _Flow(wrapped, params0)
    found, t, steps = _Found(rtol, atol, widths), 0.0, 0
    x, result = np.asarray(ravel_pytree(params0)[0]), RESULTS.max_steps_reached
    while result == RESULTS.max_steps_reached and steps < max_steps:
        span = jnp.asarray(end - t, dtype=float)
        times, points, result = flow.follow(jnp.asarray(x), span, method, *tolerances)
        taken = np.isfinite(times)
        found.look(t + times[taken], points[taken], *flow.rows(times[taken], points[taken]))
        t, x, steps = t + float(times[taken][-1]), points[taken][-1], steps + int(taken.sum()) - 1
    if result != RESULTS.successful:
        raise RuntimeError(
            f"the averaged ODE was solved only up to t = {t:.6g} of {end:.6g}: {RESULTS[result]}"
        )
    ties = [
        tie._replace(
            agent=int(agents[row]),
            row=int(numbers[row]),
            jump=flow.jump(point, row, tie.old, tie.new),
        )
        for row, tie, point in found.ties()
    ]
    return KinkReport(tuple(sorted(ties, key=lambda tie: tie.time)), wrapped)


class _Flow:
    """The flow and its drift on flat vectors, for NumPy; few and small programs are compiled."""

    def __init__(self, wrapped: WrappedGame, params0):
        self.game, self.params0 = wrapped, params0

    def follow(self, x, span, *options):
        """The solution from x at its solver's steps (infinite where there is none): t, x."""
        times, points, result = _follow(self.game, self.params0, x, span, *options)
        return np.asarray(times), np.asarray(points), result

    def drifts(self, points):
        """F, the rows, and their rate of change, at any number of points `[m, d]`."""
        padded = np.zeros((_STEPS + 1, points.shape[1]), points.dtype)
        padded[: len(points)] = points
        found = _drifts(self.game, self.params0, jnp.asarray(padded), jnp.asarray(len(points)))
        return [np.asarray(one)[: len(points)] for one in found]

    def rows(self, times, points):
        """All rows and their first and second derivatives by time, at the steps of a path."""
        drifts, rows, speeds = self.drifts(points)
        # Ahead, so that what begins on a tie is on the side that the flow enters.
        ahead = 1e-3 * np.diff(times, append=2 * times[-1] - times[-2])[:, None]
        first, second = (self.drifts(points + k * ahead * drifts)[2] for k in (1, 2))
        accelerations = (4 * first - 3 * speeds - second) / (2 * ahead[..., None])
        return rows, speeds, accelerations

    def jump(self, point, row: int, old: int, new: int) -> float:
        """By how much DF jumps at a tie next to a point, in the spectral norm."""
        gap, normal = (
            np.asarray(one) for one in _normal(self.game, self.params0, point, row, old, new)
        )
        length = np.linalg.norm(normal)
        foot, normal = point - gap * normal / length**2, normal / length
        reach = 1e-4 * (1 + np.abs(point).max())
        ahead, back = (
            self.drifts(foot + np.outer(s * reach * np.arange(4), normal))[0] for s in (1, -1)
        )
        # One-sided derivatives of third order.
        weights = np.array([-11, 18, -9, 2]) / (6 * reach)
        return float(np.linalg.norm(weights @ ahead + weights @ back))


@quickly_compiled
def _follow(wrapped, params0, x, span, solver, rtol, atol):
    _, _, field = flat_drift(params0)
    solved: Any = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, wrapped: field(x, wrapped)),
        solver,
        t0=0.0,
        t1=span,
        dt0=1e-3 * span,  # choosing it would compile the field twice more
        y0=x,
        args=wrapped,
        saveat=diffrax.SaveAt(t0=True, steps=True),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        adjoint=diffrax.ForwardMode(),
        max_steps=_STEPS,
        throw=False,
    )
    return solved.ts, solved.ys, RESULTS.promote(solved.result)


@quickly_compiled
def _drifts(wrapped, params0, points, count):
    _, unravel, field = flat_drift(params0)
    dynamics = Dynamics(wrapped, unravel)

    def at(x):
        drift = field(x, wrapped)
        return drift, *jax.jvp(dynamics.table, (x,), (drift,))

    def add(k, found):
        return jax.tree.map(lambda all, one: all.at[k].set(one), found, at(points[k]))

    shapes = jax.eval_shape(at, points[0])
    empty = jax.tree.map(lambda one: jnp.zeros((len(points), *one.shape), one.dtype), shapes)
    return jax.lax.fori_loop(0, count, add, empty)


@quickly_compiled
def _normal(wrapped, params0, x, row, old, new):
    dynamics = Dynamics(wrapped, ravel_pytree(params0)[1])
    return jax.value_and_grad(dynamics.difference)(x, row, old, new)


class _Stretch(NamedTuple):
    """A pair of entries near a tie, from one time to another, with the signs at both ends."""

    begin: float
    end: float
    before: float
    after: float
    nearest: float
    margin: float
    speed: float
    step: float
    point: Any


class _Found:
    """Ties found along a path, piece by piece."""

    def __init__(self, rtol: float, atol: float, widths):
        self.rtol, self.atol, self.widths = rtol, atol, widths
        self.stretches: dict[tuple[int, int, int], list[_Stretch]] = {}

    def look(self, times, points, rows, speeds, accelerations) -> None:
        """Adds what happens between the given steps of the path."""
        steps = np.diff(times)
        # Near a kink the path's steps shrink; those of derivatives may still be as before.
        padded = np.pad(steps, _AROUND)
        free = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1).max(axis=1)
        absent = np.arange(rows.shape[-1]) >= self.widths[:, None]
        polynomials = _quintics(steps, rows, speeds, accelerations)  # [6, m, R, A]
        powers = _PARTS ** np.arange(6)[:, None]
        values = np.einsum("pmra,ps->mrsa", polynomials, powers)
        values = np.where(absent[None, :, None], -np.inf, values)
        scale = np.maximum(*(np.abs(rows).max(-1)[k] for k in (slice(-1), slice(1, None))))
        known = self.rtol * scale + self.atol
        order = np.argsort(-values, axis=-1, kind="stable")[..., :2]
        two = np.take_along_axis(values, order, axis=-1)
        nearest = np.argmin(two[..., 0] - two[..., 1], axis=-1)
        pair = np.take_along_axis(order, nearest[..., None, None], axis=2)
        two = np.take_along_axis(values, pair, axis=-1)
        gap = two[..., 0] - two[..., 1]  # of the pair that comes nearest, [m, R, parts]
        rest = np.abs(gap).max(-1) <= known
        moves = np.abs(np.diff(gap, axis=-1)).max(-1)
        near = np.abs(gap).min(-1) <= moves + known
        near |= np.any(order[..., 0] != order[..., :1, 0], axis=-1)
        for step, row in zip(*np.nonzero(near), strict=True):
            inside = bool(rest[step, row])
            pairs = [tuple(pair[step, row, 0])] if inside else order[step, row].tolist()
            pairs += [] if inside else [[a, b] for (a, _), (b, _) in itertools.pairwise(pairs)]
            for old, new in sorted({tuple(sorted(p)) for p in pairs if p[0] != p[1]}):
                stretches = self.stretches.setdefault((int(row), int(old), int(new)), [])
                gap = polynomials[:, step, row, old] - polynomials[:, step, row, new]
                top = np.maximum(*(values[step, row, :, k] for k in (old, new)))
                if np.all(values[step, row].max(-1) > top + known[step, row]):
                    continue
                span = (times[step], steps[step])
                limit = _NEAR * scale[step, row]
                for one in _stretches(gap, known[step, row], limit, inside, *span):
                    s = (one.nearest - times[step]) / steps[step]
                    others = np.delete(_evaluate(polynomials[:, step, row], s), [old, new])
                    present = np.delete(~absent[row], [old, new])
                    best = max(_evaluate(polynomials[:, step, row, k], s) for k in (old, new))
                    if np.any(others[present] > best + known[step, row]):
                        continue
                    point = (1 - s) * points[step] + s * points[step + 1]
                    stretches.append(one._replace(point=point, step=float(free[step])))

    def ties(self):
        """Row, tie (without agent and jump) and point of every tie."""
        by_row: dict[int, list] = {}
        for (row, old, new), stretches in self.stretches.items():
            for s in _joined(stretches):
                first, second = (old, new) if s.before >= 0 else (new, old)
                doubt = s.end - s.begin
                if doubt > s.step:
                    kind, time = "rest", s.begin
                elif s.begin == 0 and s.before == 0:
                    kind, time = "start", s.nearest
                    first, second = (new, old) if s.after >= 0 else (old, new)
                else:
                    crosses = s.before * s.after < 0
                    kind, time = "crossing" if crosses else "touch", s.nearest
                tie = Tie(kind, 0, 0, first, second, time, s.speed, s.margin, doubt, 0.0, 0.0)
                by_row.setdefault(row, []).append((tie, s))
        for row, found in by_row.items():
            crossings = sorted((one for one in found if one[0].kind == "crossing"), key=_time)
            visits = {id(tie): 0.0 for tie, _ in found}
            for (tie, s), (after, _) in itertools.pairwise(crossings):
                away = after.time - tie.time
                if away < _LONGER * s.step and tie.old == after.new:
                    for one in (tie, after):
                        visits[id(one)] = max(visits[id(one)], away)
            for tie, s in found:
                yield row, tie._replace(visit=visits[id(tie)]), s.point


def _time(found):
    return found[0].time


def _quintics(steps, values, speeds, accelerations):
    """Coefficients of the quintics in s = 0..1 that fit both ends of every step, `[6, m, ..]`."""
    h = steps.reshape(-1, *(1,) * (values.ndim - 1))
    x, v, a = values, speeds, accelerations
    c0, c1, c2 = x[:-1], h * v[:-1], h**2 * a[:-1] / 2
    # What the last three coefficients have to add at s = 1: to value, slope and curvature.
    d0 = (x[1:] - x[:-1]) - c1 - c2
    d1, d2 = h * v[1:] - c1 - 2 * c2, h**2 * a[1:] - 2 * c2
    c3 = 10 * d0 - 4 * d1 + d2 / 2
    c4 = -15 * d0 + 7 * d1 - d2
    c5 = 6 * d0 - 3 * d1 + d2 / 2
    return np.stack([c0, c1, c2, c3, c4, c5])


def _evaluate(polynomial, s):
    return np.tensordot(s ** np.arange(len(polynomial)), polynomial, axes=1)


def _stretches(gap, known: float, limit: float, inside: bool, start: float, step: float):
    """Where in one step a difference is smaller than known, crosses zero, or is least.

    Args:
        gap: coefficients of the difference, `[6]`.
        known: below this its sign is in doubt.
        limit: below this its least size is listed.
        inside: whether it is in doubt all along.
        start: when the step begins.
        step: its length.
    """
    c0, c1, c2, c3, c4, c5 = gap.tolist()  # plain numbers: far quicker, one at a time

    def value(s):
        return c0 + s * (c1 + s * (c2 + s * (c3 + s * (c4 + s * c5))))

    def speed(s):
        return abs(c1 + s * (2 * c2 + s * (3 * c3 + s * (4 * c4 + s * 5 * c5)))) / step

    def stretch(a, b, nearest):
        return _Stretch(
            begin=start + step * a,
            end=start + step * b,
            before=np.sign(value(a)),
            after=np.sign(value(b)),
            nearest=start + step * nearest,
            margin=abs(value(nearest)),
            speed=speed(nearest),
            step=step,
            point=None,
        )

    if inside:
        ends = min((0.0, 1.0), key=lambda s: abs(value(s)))
        yield stretch(0.0, 1.0, ends)
        return
    slopes = np.roots([5 * c5, 4 * c4, 3 * c3, 2 * c2, c1])
    turns = [float(z.real) for z in slopes if abs(z.imag) < 1e-9 and 0 < z.real < 1]
    for a, b in itertools.pairwise([0.0, *sorted(turns), 1.0]):
        low, high = (_solve(value, a, b, level) for level in (-known, known))
        crosses = value(a) * value(b) <= 0
        if abs(value(a)) <= known or abs(value(b)) <= known or crosses:
            nearest = _solve(value, a, b, 0.0)
            yield stretch(min(low, high), max(low, high), nearest)
        for s in (a, b):
            least = value(s) * (value(s + 1e-3) - value(s)) > 0 and known < abs(value(s)) <= limit
            if s in turns and least and not crosses:
                yield stretch(s, s, s)


def _solve(function, a: float, b: float, level: float) -> float:
    """Where a monotone function takes a level, or the end of a..b that comes nearer to it."""
    left, right = function(a) - level, function(b) - level
    if left * right >= 0:
        return a if abs(left) <= abs(right) else b
    for _ in range(60):
        middle = (a + b) / 2
        if (function(middle) - level) * left > 0:
            a = middle
        else:
            b = middle
    return (a + b) / 2


def _joined(stretches: list[_Stretch]) -> list[_Stretch]:
    """Stretches that meet become one."""
    joined: list[_Stretch] = []
    for one in sorted(stretches, key=lambda s: (s.begin, s.end)):
        last = joined[-1] if joined else None
        if last is None or one.begin > last.end + 1e-9 * one.step:
            joined.append(one)
            continue
        nearest = min(last, one, key=lambda s: s.margin)
        joined[-1] = nearest._replace(
            begin=last.begin,
            end=max(last.end, one.end),
            before=last.before,
            after=one.after if one.end >= last.end else last.after,
            step=max(last.step, one.step),
        )
    return joined
