"""Ties of the best two entries of a row along a path: crossed, touched or rested on."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from ..base.compiling import quickly_compiled
from ..ode.path import evaluate, level_times

_PARTS = np.linspace(0, 1, 5)  # where in a step the order of entries is looked at
_NEAR = 1e-3  # by what share of its values a row may miss a tie and still be listed
_TOGETHER = 16  # so many differences are divided together, compiled once
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


class TieSearch:
    """Looks for ties along a path, some steps at a time.

    Args:
        rtol: relative tolerance of the path.
        atol: the same, absolute, for every maximum, `[M]`.
        reach: values larger than this do not raise the tolerance, `[M]`.
        present: which entries of the table of all maxima are values, `[M, A]`.
    """

    def __init__(self, rtol: float, atol, reach, present):
        self.rtol, self.atol, self.reach, self.present = rtol, atol, reach, present
        self.stretches: dict[tuple[int, int, int], list[_Stretch]] = {}

    def look(self, times, points, rows) -> None:
        """Adds what happens within some steps of the path.

        Args:
            times: ends of the steps, `[m + 1]`.
            points: the path there, `[m + 1, d]`.
            rows: Bezier points of all values within the steps, `[6, m, M, A]`.
        """
        steps = np.diff(times)
        # Near a kink the path's steps shrink; those of derivatives may still be as before.
        padded = np.pad(steps, _AROUND)
        free = np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1).max(axis=1)
        scale = np.maximum(*(np.abs(rows[end]).max(-1) for end in (0, -1)))
        known = self.rtol * np.minimum(scale, self.reach) + self.atol
        near = list(self._near(rows, known))
        gaps = [
            rows[:, step, row, old] - rows[:, step, row, new] for step, row, _, old, new in near
        ]
        divided = _divided(gaps, [known[step, row] for step, row, *_ in near])
        for (step, row, inside, old, new), gap, at in zip(near, gaps, divided, strict=True):
            options = known[step, row], _NEAR * scale[step, row], inside, times[step], steps[step]
            stretches = self.stretches.setdefault((row, old, new), [])
            for one in _stretches(gap.tolist(), *at, *options):
                s = (one.nearest - times[step]) / steps[step]
                values = evaluate(rows[:, step, row], s)
                others = np.delete(values, [old, new])[np.delete(self.present[row], [old, new])]
                if np.all(others <= max(values[old], values[new]) + known[step, row]):
                    point = (1 - s) * points[step] + s * points[step + 1]
                    stretches.append(one._replace(point=point, step=float(free[step])))

    def _near(self, rows, known):
        """Step, row, whether in doubt all along, and both entries, of what may be tied."""
        values = np.stack([evaluate(rows, s) for s in _PARTS], axis=2)  # [m, M, parts, A]
        values = np.where(self.present[None, :, None], values, -np.inf)
        order = np.argsort(-values, axis=-1, kind="stable")[..., :2]
        two = np.take_along_axis(values, order, axis=-1)
        nearest = np.argmin(two[..., 0] - two[..., 1], axis=-1)
        pair = np.take_along_axis(order, nearest[..., None, None], axis=2)
        two = np.take_along_axis(values, pair, axis=-1)
        gap = two[..., 0] - two[..., 1]  # of the pair that comes nearest, [m, M, parts]
        rest = np.abs(gap).max(-1) <= known
        moves = np.abs(np.diff(gap, axis=-1)).max(-1)
        near = np.abs(gap).min(-1) <= moves + known
        near |= np.any(order[..., 0] != order[..., :1, 0], axis=-1)
        for step, row in np.argwhere(near).tolist():
            inside = bool(rest[step, row])
            pairs = pair[step, row].tolist() if inside else order[step, row].tolist()
            pairs += [] if inside else [[a, b] for (a, _), (b, _) in itertools.pairwise(pairs)]
            for old, new in sorted({tuple(sorted(p)) for p in pairs if p[0] != p[1]}):
                top = np.maximum(*(values[step, row, :, k] for k in (old, new)))
                if np.any(values[step, row].max(-1) <= top + known[step, row]):
                    yield step, row, inside, old, new

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


@quickly_compiled
def _divide(gaps, known):
    """Ends of the monotone pieces of differences, and when in each they are -known, 0, known."""

    def divide(gap, known):
        levels = known * np.array([-1.0, 0.0, 1.0])
        ends, times = jax.vmap(level_times, (None, 0))(gap, levels)
        return ends[0], times

    return jax.vmap(divide)(gaps, known)


def _divided(gaps, known):
    """The same for a list of differences, one by one as plain numbers."""
    for first in range(0, len(gaps), _TOGETHER):
        chosen = slice(first, first + _TOGETHER)
        count = len(gaps[chosen])
        padded = np.ones((_TOGETHER, len(gaps[0]))), np.ones(_TOGETHER)
        padded[0][:count], padded[1][:count] = gaps[chosen], known[chosen]
        ends, levels = (np.asarray(part)[:count].tolist() for part in _divide(*padded))
        yield from zip(ends, levels, strict=True)


def _stretches(gap, ends, levels, known, limit, inside: bool, start, step):
    """Where in one step a difference is smaller than known, crosses zero, or is least.

    Args:
        gap: Bezier points of the difference, `[6]`.
        ends: of its monotone pieces, `[6]`.
        levels: when in each it is -known, 0 and known, `[3, 5]`.
        known: below this its sign is in doubt.
        limit: below this its least size is listed.
        inside: whether it is in doubt all along.
        start: when the step begins.
        step: its length.
    """

    def value(s):
        return evaluate(gap, s)

    def stretch(a, b, nearest):
        slope = evaluate((5 * np.diff(gap)).tolist(), nearest)
        return _Stretch(
            begin=start + step * a,
            end=start + step * b,
            before=np.sign(value(a)),
            after=np.sign(value(b)),
            nearest=start + step * nearest,
            margin=abs(value(nearest)),
            speed=abs(slope) / step,
            step=step,
            point=None,
        )

    def least(s):
        """Whether its size is least at s, and listed though known."""
        nearby = (value(s) * (value(s + away) - value(s)) > 0 for away in (-1e-3, 1e-3))
        return 0 < s < 1 and known < abs(value(s)) <= limit and all(nearby)

    if inside:
        yield stretch(0.0, 1.0, min((0.0, 1.0), key=lambda s: abs(value(s))))
        return
    for (a, b), low, nearest, high in zip(itertools.pairwise(ends), *levels, strict=True):
        crosses = value(a) * value(b) <= 0
        if a < b and (crosses or min(abs(value(a)), abs(value(b))) <= known):
            yield stretch(min(low, high), max(low, high), nearest)
        if not crosses:
            yield from (stretch(s, s, s) for s in (a, b) if least(s))


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
