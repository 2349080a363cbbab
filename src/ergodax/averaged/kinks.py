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

from collections.abc import Sequence

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, Real

from ..base.checks import check_concrete
from ..base.codes import RESULTS, is_one_of
from ..base.compiling import quickly_compiled
from ..base.times import check_times
from ..model.check import check_kinks
from ..model.clock import check_schedules
from ..model.wrapped import WrappedGame
from ..ode.integrate import MAX_STEPS, check_solver
from ..ode.path import follow
from ..ode.path_derivatives import PATH_TOLERANCE
from ..results.labels import Entries, Label
from ..results.result import Result
from .drift import flat_drift
from .maxima import Maxima, name_row, owners
from .stationary import check_ergodic
from .ties import Tie, TieSearch
from .units import unit_of

# An estimated relative error of derivatives above this is warned of.
TOLERANCE = 1e-4
_STEPS = 256  # steps of the path that are looked at together
_SAME = 1e-12  # times this near to each other, relatively, are one
_TIES = ("tie",)
_LABELS = {
    "kind": "what it is",
    "agent": "whose maximum it is",
    "row": "the row of values",
    "old": "the entry that is best before",
    "new": "the other entry",
    "time": "when the two are nearest, in unscaled steps",
    "speed": "of their difference then, per unscaled step",
    "margin": "their difference then",
    "doubt": "for how long it is in doubt which is best, in unscaled steps",
    "visit": "of a short visit to the other side, in unscaled steps",
    "jump": "of the derivative of the drift, in the spectral norm",
    "error": "estimated relative error of derivatives",
}


class KinkReport(Result):
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
        return KinkReport(tuple(ties), self.wrapped)

    def _derived(self) -> Entries:
        """Every number of a tie along all ties; the agent is `tie_agent`, and so on."""
        return {
            f"tie_{name}": (np.array([getattr(tie, name) for tie in self.ties]), Label(text, _TIES))
            for name, text in _LABELS.items()
        }

    def __repr__(self) -> str:
        if not self.ties:
            return "KinkReport(no ties)"
        found = sorted(self.ties, key=lambda tie: -tie.error)
        lines = [self.describe(tie) for tie in found[:8]]
        more = [f"and {len(found) - 8} more"] if len(found) > 8 else []
        return "\n  ".join(["KinkReport(", *lines, *more]) + ")"

    def describe(self, tie: Tie) -> str:
        """One line about one of the ties."""
        learner = type(self.wrapped.learners[tie.agent]).__name__
        where, names = name_row(self.wrapped, tie.agent, tie.row)
        return (
            f"{tie.kind} at t = {tie.time:.6g}: agent {tie.agent} ({learner}) {where}, "
            f"{names[tie.old]} and {names[tie.new]}: margin {tie.margin:.1e}, "
            f"speed {tie.speed:.1e}, in doubt for {max(tie.doubt, tie.visit):.1e}, "
            f"error {tie.error:.0e}"
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
        ValueError: as `solve`; if values are traced by JAX, or a learner has a kink that it does
            not declare by `maximised`.
        RuntimeError: if the solve fails.
    """
    ts = check_times(ts)
    rtol, atol = check_solver(rtol, atol, max_steps, solver)
    check_concrete("kinks", (wrapped, params0, ts, rtol, atol))
    wrapped, params0 = check_ergodic(wrapped, params0, "params0")
    check_schedules(wrapped.learners, ts)
    check_kinks(wrapped)
    owned = owners(wrapped)
    if not len(owned.agent):
        return KinkReport((), wrapped)
    end = float(np.asarray(ts)[-1])
    precision = 16 * float(jnp.finfo(jnp.result_type(float)).eps)
    rtol, atol = max(rtol, precision), max(atol, precision)
    tolerances = [jnp.asarray(PATH_TOLERANCE * tol, dtype=float) for tol in (rtol, atol)]
    unit = unit_of(wrapped, params0)
    own = [np.asarray(flat_drift((part,))[0]).size for part in params0]
    ends = np.cumsum(own)[owned.agent] - 1  # all parameters of an agent have one unit
    size, reach = (np.asarray(part)[ends] for part in unit)
    search, t, steps = TieSearch(rtol, atol * size, reach, owned.present), 0.0, 0
    x, result = ravel_pytree(params0)[0], RESULTS.max_steps_reached
    while is_one_of(result, RESULTS.max_steps_reached) and steps < max_steps:
        span = jnp.asarray(end - t, dtype=float)
        *found, result = _follow(wrapped, params0, jnp.asarray(x), span, solver, *tolerances)
        times, points, rows = map(np.asarray, found)
        taken = int(np.isfinite(times).sum())
        search.look(t + times[:taken], points[:taken], rows[:, : taken - 1])
        t, x, steps = t + float(times[taken - 1]), points[taken - 1], steps + taken - 1
    if not is_one_of(result, RESULTS.successful):
        raise RuntimeError(
            f"the averaged ODE was solved only up to t = {t:.6g} of {end:.6g}: {RESULTS[result]}"
        )
    ties = [
        tie._replace(
            agent=int(owned.agent[row]),
            row=int(owned.row[row]),
            jump=float(_jump(wrapped, params0, *map(jnp.asarray, (point, row, tie.old, tie.new)))),
        )
        for row, tie, point in search.ties()
    ]
    return KinkReport(tuple(sorted(ties, key=lambda tie: tie.time)), wrapped)


@quickly_compiled
def _follow(wrapped, params0, x, span, solver, rtol, atol):
    """Some steps from x on: their ends, the path there, Bezier points of all values, the result."""
    _, unravel, field = flat_drift(params0)
    path, solved = follow(
        field,
        x,
        span,
        wrapped,
        solver=solver,
        rtol=rtol,
        atol=atol,
        unit=unit_of(wrapped, params0),
        first_step=1e-3 * span,
        max_steps=_STEPS,
    )
    maxima = Maxima(wrapped, unravel)
    rows = jax.vmap(lambda step: jnp.stack(maxima.along(path, step)), out_axes=1)(
        jnp.arange(_STEPS)
    )
    return path.times, path.values, rows, solved.result


@quickly_compiled
def _jump(wrapped, params0, x, maximum, old, new):
    """By how much DF jumps at a tie next to x, in the spectral norm."""
    _, unravel, field = flat_drift(params0)
    return Maxima(wrapped, unravel).kink(lambda x: field(x, wrapped), x, maximum, old, new).jump
