"""A linear ODE solved along a given path, across jumps of its coefficients.

A rejected step is searched for a jump; if there is one, the step ends before it and the next begins
behind it, so that every step sees one smooth piece. Nothing needs to be known about where they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .batching import anywhere, select
from .integrate import MAX_STEPS, report, weighted

# A jump is located by dividing a step into _PARTS parts _ROUNDS times.
_PARTS, _ROUNDS = 8, 8
# A step is searched for a jump if its error exceeds what is allowed by this factor.
_SUSPECT = 4.0
# The two parts that each part is compared with: those beside it, or the nearest two at an end.
_BESIDE = np.stack([np.arange(_PARTS) - 1, np.arange(_PARTS) + 1])
_BESIDE[0, 0], _BESIDE[1, -1] = 2, _PARTS - 3
_STAGE_TIMES = np.append(0.0, diffrax.Tsit5.tableau.c)
_POINTS = _PARTS + 1
_STAGE_WEIGHTS = np.array(
    [np.pad(row, (0, _POINTS - len(row))) for row in [np.zeros(0), *diffrax.Tsit5.tableau.a_lower]]
    + [np.zeros(_POINTS)] * (_POINTS - len(_STAGE_TIMES))
)


class _State(NamedTuple):
    """Where a walk stands.

    Attributes:
        t: time.
        y: solution.
        slope: dy/dt, unless `fresh`.
        fresh: whether the slope has still to be found.
        h: length of the next step.
        stop: index of the next stop.
        low: a jump lies between `low` and `high`: found ahead, or sought if `round` is positive.
        high: see `low`.
        found: whether a jump was found ahead.
        round: how often the search for a jump has divided the step; 0 while none goes on.
        searched: whether the step from t has been searched in vain.
        count: number of steps tried and of divisions.
    """

    t: Any
    y: Any
    slope: Any
    fresh: Any
    h: Any
    stop: Any
    low: Any
    high: Any
    found: Any
    round: Any
    searched: Any
    count: Any


class _Step(NamedTuple):
    """A step to be tried.

    Attributes:
        h: its length.
        limit: the next stop, or where a jump begins.
        full: whether it ends there.
        inside: whether there is a stop ahead.
        times: those of its stages, the last of them repeated, as many as a division has points.
    """

    h: Any
    limit: Any
    full: Any
    inside: Any
    times: Any


class Walk(NamedTuple):
    """Solves a linear ODE forwards or backwards, from stop to stop and from jump to jump.

    Forwards it begins at time 0, ends at the last stop, and stores y at report times, within steps
    too. Backwards it begins at the last stop, ends at time 0, and adds given values to y at the
    stops.

    Attributes:
        along: the path, x at time t, `[d]`. It is evaluated outside the loops that use it: were it
            compiled into several places, each with its own rounding, the maximum of a row could
            equal none of its entries, and its derivative would be 0 / 0.
        field: dy/dt, a function of x and y, `[n]`, or of several rows of y at once, `[p, n]`.
        size: d; the error of these first entries of y is controlled, the rest is quadrature.
        tol: error allowed per step, relative to the size of each y, or `floor` if that is larger.
        floor: see `tol`.
        stops: times to stop at, increasing, `[S]`.
        count: how many of `stops` there are; the rest is padding.
        direction: 1 or -1.
    """

    along: Callable
    field: Callable
    size: int
    tol: Any
    floor: Any
    stops: Any
    count: Any
    direction: int

    def __call__(self, y, ts, values, step):
        """Returns y at the end, and at `ts`; NaN if there were too many steps.

        Args:
            y: where it begins.
            ts: forwards, the report times, `[K]`; backwards, the stops.
            values: forwards, y at the beginning for each of `ts`; backwards, what is added there.
            step: length of the first step.
        """
        zero, last = jnp.zeros_like(self.stops[0]), self.stops[self.count - 1]
        begin, end = (zero, last) if self.direction > 0 else (last, zero)
        no = jnp.asarray(False)
        start = _State(
            t=begin,
            y=y,
            slope=jnp.zeros_like(y),
            fresh=~no,
            h=step,
            stop=jnp.asarray(0) if self.direction > 0 else self.count - 2,
            low=begin,
            high=begin,
            found=no,
            round=jnp.asarray(0),
            searched=no,
            count=jnp.asarray(0),
        )

        def advance(standing):
            s, stored = standing
            divides, going = s.round > 0, unfinished(s)
            step = self._ahead(s, end)
            times = jnp.where(
                divides, s.low + (s.high - s.low) * jnp.linspace(0, 1, _POINTS), step.times
            )
            k = self._slopes(s, step.h, times, going & divides)
            stepped = self._step(s, step, k[: len(_STAGE_TIMES)], values)
            divided = jax.lax.cond(
                anywhere(going & divides), lambda: self._divide(s, times, k), lambda: s
            )
            new = select(going, select(divides, divided, stepped), s)
            if self.direction > 0:
                stored = self._report(s, step.h, k[: len(_STAGE_TIMES)], new, ts, *stored)
            return new, stored

        def unfinished(s):
            return (s.t != end) & (s.count < MAX_STEPS)

        state, (_, stored) = jax.lax.while_loop(
            lambda standing: anywhere(unfinished(standing[0])),
            advance,
            (start, (jnp.asarray(0), values)),
        )
        reached = jnp.where(state.t == end, 1.0, jnp.nan)
        return reached * state.y, reached * stored

    def _report(self, s: _State, h, k, new: _State, ts, index, stored):
        """Evaluates a step that was taken at the report times within it."""
        step = diffrax.Tsit5.interpolation_cls(t0=s.t, t1=s.t + h, y0=s.y, y1=new.y, k=h * k)
        return report(step, new.t != s.t, new.t, ts, index, stored)

    def _ahead(self, s: _State, end) -> _Step:
        """The next step, at most to the next stop or jump."""
        inside = (s.stop >= 0) & (s.stop < self.count)
        target = jnp.where(inside, self.stops[jnp.clip(s.stop, 0, len(self.stops) - 1)], end)
        limit = jnp.where(s.found, s.low, target)
        full = s.h >= jnp.abs(limit - s.t) * (1 - 1e-9)
        h = jnp.where(full, limit - s.t, self.direction * s.h)
        times = jnp.where(full & (_STAGE_TIMES == 1), limit, s.t + _STAGE_TIMES * h)
        return _Step(h, limit, full, inside, jnp.append(times, times[-(_POINTS - len(times)) :]))

    def _slopes(self, s: _State, h, times, divides):
        """dy/dt in all stages of a step of length h; where a step is divided, of y at all times.

        One loop for both: the field is in the program once.
        """
        path, weights = jax.vmap(self.along)(times), jnp.asarray(_STAGE_WEIGHTS)
        begins = s.fresh | divides

        def stage(j, k):
            y = jnp.where(divides, s.y, s.y + h * weighted(weights[j], k))
            slope = self.field(path[j], y)
            return k.at[j].set(jnp.where((j > 0) | begins, slope, s.slope))

        k = jnp.zeros((_POINTS, *s.y.shape), s.y.dtype).at[0].set(s.slope)
        first = jnp.where(anywhere(begins), 0, 1)
        count = jnp.where(anywhere(divides), _POINTS, len(_STAGE_TIMES))
        return jax.lax.fori_loop(first, count, stage, k)

    def _step(self, s: _State, step: _Step, k, values) -> _State:
        """Where the walk stands after a step of Tsitouras' method, taken or refused."""
        h, full = step.h, step.full
        y = s.y + h * weighted(jnp.asarray(diffrax.Tsit5.tableau.b_sol), k)
        error = rms((h * weighted(jnp.asarray(diffrax.Tsit5.tableau.b_error), k))[..., : self.size])
        before = rms(s.y[..., : self.size])
        largest = jnp.maximum(before, rms(y[..., : self.size]))
        allowed = self.tol * jnp.maximum(self.floor, largest)
        excess = error / jnp.where(allowed > 0, allowed, 1)
        excess = jnp.where(jnp.isfinite(excess), excess, jnp.inf)
        # Shorter steps cannot mend what is not finite to begin with, and it must not stop the rest.
        sound = jnp.isfinite(before + rms(k[0][..., : self.size]))
        excess = jnp.max(jnp.where(sound, excess, 0))

        accepted = excess <= 1
        at_jump, at_stop = accepted & full & s.found, accepted & full & ~s.found
        search = (excess > _SUSPECT) & ~s.searched
        if self.direction < 0:
            added = jnp.where(at_stop & step.inside, values[s.stop], 0)
            y = y.at[: self.size].add(added)
        length = jnp.abs(h) * jnp.clip(0.9 * excess**-0.2, 0.2, 5.0)
        # A step cut short says little about the next.
        length = jnp.where(accepted & full, jnp.maximum(length, s.h), length)
        reached = jnp.where(full, jnp.where(at_jump, s.high, step.limit), s.t + h)
        return s._replace(
            t=jnp.where(accepted, reached, s.t),
            y=jnp.where(accepted, y, s.y),
            slope=jnp.where(accepted, k[-1], k[0]),
            fresh=at_jump | at_stop,
            h=length,
            stop=jnp.where(at_stop, s.stop + self.direction, s.stop),
            low=jnp.where(search, s.t, s.low),
            high=jnp.where(search, s.t + h, s.high),
            found=s.found & ~at_jump & ~search,
            round=jnp.where(search, 1, 0),
            searched=~accepted,
            count=s.count + 1,
        )

    def _divide(self, s: _State, times, k) -> _State:
        """Narrows the search for a jump to the part of the step where the slope jumps most."""
        size = rms(s.y[..., : self.size])[None, ..., None]
        sound = (size > 0) & jnp.isfinite(size)
        probed = jnp.where(sound, k[..., : self.size] / jnp.where(sound, size, 1), 0)
        probed = probed.reshape(_POINTS, -1)
        changes = jnp.diff(probed, axis=0)
        # A jump stands out against both parts beside it; what is smooth does not.
        excess = jnp.min(jnp.linalg.norm(changes[None] - changes[_BESIDE], axis=-1), axis=0)
        part = jnp.argmax(excess)
        done = s.round == _ROUNDS
        largest = jnp.max(jnp.linalg.norm(probed, axis=1))
        found = done & (jnp.linalg.norm(changes[part]) > 1e-5 * largest)
        return s._replace(
            low=times[part],
            high=times[part + 1],
            # The step that led here was cut; the whole of what lies before the jump is free again.
            h=jnp.where(found, jnp.maximum(s.h, jnp.abs(times[part] - s.t)), s.h),
            found=found,
            round=jnp.where(done, 0, s.round + 1),
            searched=~found,
            count=s.count + 1,
        )


def rms(y: Float[Array, "*rows n"]) -> Float[Array, "*rows"]:
    """Root mean square over the last axis."""
    return jnp.sqrt(jnp.mean(y**2, axis=-1))
