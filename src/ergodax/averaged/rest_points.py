"""Rest points of the averaged flow, F(x) = 0, and their stability.

Near a rest point the flow is that of its linearisation, `d(x - x*)/dt = DF(x*) (x - x*)`: the
eigenvalues of the Jacobian, per unscaled step, say whether it attracts. By the implicit function
theorem a rest point moves with a hyper-parameter theta as `dx*/dtheta = -DF(x*)^-1 dF/dtheta`,
which is what `jax.grad` through `rest_point` computes.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from ..base.checks import check_concrete, check_flag, is_concrete
from ..base.codes import RESULTS, is_one_of
from ..base.devices import as_array
from ..base.text import describe_result
from ..model.clock import check_autonomous
from ..model.wrapped import WrappedGame, admit
from ..ode.integrate import check_solver
from ..results.labels import OUTCOME, Entries, Label, decode, labelled, of_agents, parameter_names
from ..results.result import Result, policies
from .drift import flat_drift
from .krylov import MOST_BY_MATRIX, frobenius_norm, leading_eigenvalues
from .room import check_slopes, size_of
from .roots import described_root, root_near, search_roots
from .stationary import check_ergodic
from .units import extents

Stability = Literal["stable", "unstable", "centre", "singular", "not computed"]

# What counts as zero, relative to the norm of the Jacobian.
_ZERO = 1e-9
# Largest distance at which two rest points are one, relative to how far they spread.
_SAME = 1e-6
_PER_STEP = "per unscaled step"


class RestPoint(Result):
    """A rest point of the averaged flow.

    The data sets of many go side by side: `xarray.concat([p.to_xarray() for p in points],
    "rest_point")`.

    Attributes:
        wrapped: the game and its learners.
        params: parameters of all agents there.
        residual: the largest entry of `|F|`, per unscaled step.
        step: the largest entry of the Newton step that would come next.
        jacobian: DF, `[d, d]`, in the order of `jax.flatten_util.ravel_pytree(params)`; None beyond
            1024 parameters.
        result: `RESULTS.successful`, or why it was not found.
    """

    wrapped: WrappedGame
    params: tuple = eqx.field(
        metadata=labelled("parameters at rest", name="parameters", make=of_agents)
    )
    residual: Float[Array, ""] = eqx.field(metadata=labelled("largest entry of |F|", (), _PER_STEP))
    step: Float[Array, ""] = eqx.field(metadata=labelled("largest entry of the next Newton step"))
    jacobian: Float[Array, "d d"] | None = eqx.field(
        metadata=labelled("Jacobian of the drift", ("parameter", "other_parameter"), _PER_STEP)
    )
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))

    @property
    def eigenvalues(self) -> Complex[np.ndarray, " k"]:
        """Eigenvalues of the Jacobian per unscaled step, largest real part first; concrete only.

        All d of them; beyond 1024 parameters the two with the largest real parts, or those that
        Arnoldi's method finds, to four digits, by a few hundred products with the Jacobian.
        """
        if self.jacobian is None:
            values: Any = leading_eigenvalues(self.wrapped, self.params)
        else:
            values = np.linalg.eigvals(np.asarray(self.jacobian)).astype(complex)
        return values[np.lexsort((values.imag, -values.real))]

    @property
    def stability(self) -> Stability:
        """What the linearisation says; concrete only.

        With r the largest real part and a tolerance of 1e-9 of the Jacobian's norm:

        - `"unstable"`: r is above the tolerance: some direction leads away.
        - `"singular"`: not unstable, and the Jacobian with its rows scaled to one has a singular
          value below 1e-9 of the largest: the rest point need not be isolated (transient states,
          conserved quantities, a bifurcation), and its derivatives are those of minimal norm.
        - `"centre"`: r is within the tolerance of zero: a pair on the imaginary axis, undecided to
          first order.
        - `"stable"`: r is below minus the tolerance: everything near comes back.

        Beyond 1024 parameters r is that of the `eigenvalues` found, a real r within the tolerance
        is called singular, and `"not computed"` says that none was found.
        """
        values = self.eigenvalues
        if self.jacobian is None:
            if not len(values):
                return "not computed"
            tolerance = _ZERO * frobenius_norm(self.wrapped, self.params)
            singular = abs(values[0]) <= tolerance
        else:
            jacobian = np.asarray(self.jacobian)
            tolerance = _ZERO * np.linalg.norm(jacobian, 2)
            rows = np.linalg.norm(jacobian, axis=1, keepdims=True)
            sizes = np.linalg.svd(jacobian / np.where(rows > 0, rows, 1), compute_uv=False)
            singular = sizes[-1] <= _ZERO * sizes[0]
        if values[0].real > tolerance:
            return "unstable"
        if singular:
            return "singular"
        return "stable" if values[0].real < -tolerance else "centre"

    def _derived(self) -> Entries:
        """Policies, eigenvalues and stability."""
        shape = self.residual.shape
        policy = policies(self.wrapped, self.params, len(shape), False)
        entries: Entries = {"policy": (policy, Label("policy at rest", make=of_agents))}
        if self.jacobian is None:
            return entries
        eigenvalues: Any = np.full(self.jacobian.shape[:-1], np.nan, complex)
        stabilities = np.full(shape, "", dtype="<U8")
        for k in np.ndindex(shape):
            if np.all(np.isfinite(self.jacobian[k])):
                one = eqx.tree_at(lambda rest: rest.jacobian, self, self.jacobian[k])
                eigenvalues[k], stabilities[k] = one.eigenvalues, one.stability
        real, imaginary = (
            Label(f"{part} parts of the eigenvalues", ("eigenvalue",), _PER_STEP)
            for part in ("real", "imaginary")
        )
        return entries | {
            "eigenvalues_real": (eigenvalues.real, real),
            "eigenvalues_imag": (eigenvalues.imag, imaginary),
            "stability": (stabilities, Label("what the linearisation says")),
        }

    def __repr__(self) -> str:
        batch = self.residual.ndim
        size = sum(math.prod(leaf.shape[batch:]) for leaf in jax.tree.leaves(self.params))
        if batch or not is_concrete(self.residual):
            return f"RestPoint({size} parameters: {describe_result(self.result)})"
        known = self.jacobian is not None and is_one_of(self.result, RESULTS.successful)
        stability = f"{self.stability}, " if known else ""
        return (
            f"RestPoint({size} parameters, {stability}residual {float(self.residual):.2g}: "
            f"{describe_result(self.result)})"
        )


class RestPoints(Result):
    """The distinct rest points found from R guesses, and what became of every guess.

    A sequence of `RestPoint`, in the order of the guesses that first led to them. In the data set
    they are along `rest_point`, the guesses along `guess`.

    Attributes:
        wrapped: the game and its learners.
        points: the rest points.
        leads_to: the number of the rest point that a guess led to first, `[R]`; -1 for none.
        results: `RESULTS.successful`, or why a guess led to none, `[R]`.
    """

    wrapped: WrappedGame
    points: tuple[RestPoint, ...]
    leads_to: Int[np.ndarray, " R"] = eqx.field(
        metadata=labelled("number of the rest point; -1 for none", ("guess",))
    )
    results: RESULTS

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[RestPoint]:
        return iter(self.points)

    def __getitem__(self, index: int) -> RestPoint:
        return self.points[index]

    @property
    def failures(self) -> dict[str, int]:
        """How many guesses led to no rest point, by the reason."""
        _, messages = decode(self.results)
        reasons, counts = np.unique(messages[self.leads_to < 0], return_counts=True)
        return dict(zip(reasons.tolist(), counts.tolist(), strict=True))

    def _derived(self) -> Entries:
        """The rest points side by side, and what became of the guesses."""
        codes, messages = decode(self.results)
        entries: Entries = {
            "result": (codes, Label("result code, 0 for success", ("guess",))),
            "message": (messages, Label("what became of a guess", ("guess",))),
        }
        if self.points:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.points)
            for name, (value, label) in (stacked._labelled_fields() | stacked._derived()).items():
                if label is not OUTCOME:
                    entries[name] = value, label._replace(dims=("rest_point", *label.dims))
        return entries

    def __repr__(self) -> str:
        kinds = Counter(
            "rest point" if point.jacobian is None else point.stability for point in self.points
        )
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none"
        lost = int(np.sum(self.leads_to < 0))
        failed = f"; {lost} led to none" if lost else ""
        return f"RestPoints({found}, from {len(self.leads_to)} guesses{failed})"


def rest_point(
    wrapped: WrappedGame,
    guess: Any,
    *,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 64,
    throw: bool = True,
) -> RestPoint:
    """A rest point of the averaged flow near a guess.

    Newton's method from the guess, for what is learnt per visit of an entry; where it fails, the
    flow is followed from the guess until it is nearly at rest, and Newton's method goes on from
    there. So an unstable rest point needs a guess near it, a stable one only a guess in its basin.
    Where the Jacobian is singular the steps are of minimal norm: entries of transient states keep
    the guess's values. Where the drift vanishes only because visits become rare is no rest point.
    Beyond 1024 parameters no Jacobian is made: steps and derivatives are found by GMRES, from
    products with it.

    Differentiable by every floating-point array in `wrapped`, in forward and reverse mode, by the
    implicit function theorem; the guess does not matter. Works under `jax.jit` and `jax.vmap`
    (where the flow is always followed).

    Args:
        wrapped: a game and its learners.
        guess: parameters of all agents.
        rtol: largest last Newton step, relative to the parameters; and what may remain of an
            increment per visit, relative to its mean absolute value.
        atol: largest last Newton step in the unit of the parameters: for action values about the
            spread of the rewards.
        max_steps: largest number of Newton steps.
        throw: raise if no rest point is found. Under `vmap`, `jit` or `grad` nothing is raised:
            look at `result`.

    Returns:
        The rest point. At an exact tie of a maximum its Jacobian is the mean of the branches.

    Raises:
        ValueError: as `solve`, for its `params0`; if memory does not suffice.
        RuntimeError: if no rest point is found and `throw` is true, with residual and last step.

    Example:
        >>> game = ex.games.prisoners_dilemma()
        >>> wrapped = ex.WrappedGame(game, [ex.Sarsa(0.01, 0.9, initial=20.0)] * 2)
        >>> ex.rest_point(wrapped, wrapped.init()).stability
        'stable'
    """
    rtol, atol = check_solver(rtol, atol, max_steps)
    check_flag("throw", throw)
    wrapped, guess = check_ergodic(wrapped, guess, "guess")
    check_autonomous(wrapped.learners, "rest points")
    _check_room(wrapped, guess)
    tolerances = as_array(rtol), as_array(atol)
    by_matrix = size_of(guess) <= MOST_BY_MATRIX
    found, drifting = root_near(wrapped, guess, *tolerances, max_steps, by_matrix)
    found = RestPoint(wrapped, *found)
    if throw and is_concrete(found.residual) and not is_one_of(found.result, RESULTS.successful):
        names = parameter_names(wrapped.game, found.params, 0)
        raise RuntimeError(
            f"no rest point was found: residual {float(found.residual):.3g}, last Newton step "
            f"{float(found.step):.3g}. {RESULTS[found.result]} Where the flow was followed to, "
            f"{names[int(np.argmax(np.abs(drifting)))]} drifts most, by "
            f"{float(np.abs(drifting).max()):.3g} per visit: `solve` further and begin at its end."
        )
    return found


def rest_points(
    wrapped: WrappedGame,
    guesses: Any,
    *,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 64,
) -> RestPoints:
    """The distinct rest points found from many guesses.

    Newton's method begins at every guess, and at the guess with its differences drawn together to a
    quarter and a sixteenth, where no action is unlikely; if none leads to a rest point, where the
    flow leads. The guesses are taken one after the other, so that one from which the flow has to be
    followed does not hold up the others.

    Args:
        wrapped: a game and its learners.
        guesses: parameters of all agents, each leaf with a leading axis of R guesses.
        rtol: as for `rest_point`.
        atol: as for `rest_point`.
        max_steps: as for `rest_point`.

    Returns:
        The rest points found, and what became of every guess. Two rest points are one where they
        differ by at most 1e-6 of how far the parameters spread.

    Raises:
        ValueError: as `rest_point`, or if `guesses` have no common leading axis.
    """
    rtol, atol = check_solver(rtol, atol, max_steps)
    check_concrete("rest_points", (wrapped, guesses))
    wrapped, guesses = admit(wrapped, guesses, "guesses", "guesses")
    check_autonomous(wrapped.learners, "rest points")
    first = jax.tree.map(lambda leaf: leaf[0], guesses)
    check_ergodic(wrapped, first, "guesses")
    _check_room(wrapped, first)
    tolerances, by_matrix = (as_array(rtol), as_array(atol)), size_of(first) <= MOST_BY_MATRIX
    found, last = search_roots(wrapped, guesses, *tolerances, max_steps, by_matrix)
    unravel = flat_drift(first)[1]
    points: list[RestPoint] = []
    count = len(jax.tree.leaves(guesses)[0])
    leads_to, reducible = np.full(count, -1), np.zeros(count, bool)
    for guess, attempt in np.argwhere(np.asarray(found.result == RESULTS.successful)):
        x, step = found.x[guess, attempt], found.near[guess, attempt]
        same = (k for k, p in enumerate(points) if _same(wrapped, unravel(x), p.params))
        number = next(same, len(points))
        if number == len(points):
            points.append(RestPoint(wrapped, *described_root(wrapped, unravel(x), step, by_matrix)))
        if not is_one_of(points[number].result, RESULTS.successful):
            reducible[guess] = True
        elif leads_to[guess] < 0:
            leads_to[guess] = number
    numbers = {old: new for new, old in enumerate(dict.fromkeys(leads_to[leads_to >= 0].tolist()))}
    successful: Any = RESULTS.successful
    results = jax.tree.map(
        lambda last, lost, good: jnp.where(leads_to >= 0, good, jnp.where(reducible, lost, last)),
        *(last, RESULTS.reducible, successful),
    )
    return RestPoints(
        wrapped,
        tuple(points[old] for old in numbers),
        np.array([numbers.get(old, -1) for old in leads_to.tolist()]),
        results,
    )


def _check_room(wrapped, guess) -> None:
    """Raises ValueError if memory does not suffice for Newton's method."""
    size = size_of(guess)
    columns, kept = (4 * size, 10) if size <= MOST_BY_MATRIX else (8, 0)
    instead = "follow the flow to a late time by `solve` instead"
    check_slopes("a rest point", wrapped, guess, instead, columns=columns, kept=kept)


def _same(wrapped, params, other) -> bool:
    """Whether two rest points are one."""
    flat = [np.asarray(flat_drift(one)[0]) for one in (params, other)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), params, other)
    return bool(np.all(np.abs(flat[0] - flat[1]) <= _SAME * extents(wrapped, both)))
