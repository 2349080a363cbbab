"""Rest points of the averaged flow, F(x) = 0, and their stability.

Near a rest point the flow is that of its linearisation, `d(x - x*)/dt = DF(x*) (x - x*)`: the
eigenvalues of the Jacobian, per unscaled step, say whether it attracts. By the implicit function
theorem a rest point moves with a hyper-parameter theta as `dx*/dtheta = -DF(x*)^-1 dF/dtheta`,
which is what `jax.grad` through `rest_point` computes.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
from jaxtyping import Array, Complex, Float

from ..base.checks import check_concrete, check_flag, is_concrete
from ..base.codes import RESULTS
from ..base.text import describe_result
from ..model.wrapped import WrappedGame, admit
from ..ode.integrate import check_solver, integrate
from ..results.labels import OUTCOME, Entries, Label, labelled, of_agents
from ..results.result import Result, policies
from .drift import flat_drift
from .stationary import check_ergodic, is_reducible, mixing_time, preserve_rows

Stability = Literal["stable", "unstable", "centre", "singular"]

# What counts as zero, relative to the norm of the Jacobian.
_ZERO = 1e-9
# Largest distance at which two rest points are one, relative to 1 + the largest entry.
_SAME = 1e-6
_FLOW_TOLERANCE = 1e-6
_AT_REST = 1e-7
_MOST_FLOW_STEPS = 4096
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
        jacobian: DF, `[d, d]`, in the order of `jax.flatten_util.ravel_pytree(params)`.
        result: `RESULTS.successful`, or why it was not found.
    """

    wrapped: WrappedGame
    params: tuple = eqx.field(
        metadata=labelled("parameters at rest", name="parameters", make=of_agents)
    )
    residual: Float[Array, ""] = eqx.field(metadata=labelled("largest entry of |F|", (), _PER_STEP))
    step: Float[Array, ""] = eqx.field(metadata=labelled("largest entry of the next Newton step"))
    jacobian: Float[Array, "d d"] = eqx.field(
        metadata=labelled("Jacobian of the drift", ("parameter", "other_parameter"), _PER_STEP)
    )
    result: RESULTS = eqx.field(metadata=labelled(OUTCOME))

    @property
    def eigenvalues(self) -> Complex[np.ndarray, " d"]:
        """Eigenvalues of the Jacobian per unscaled step, largest real part first; concrete only."""
        values: Any = np.linalg.eigvals(np.asarray(self.jacobian)).astype(complex)
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
        """
        jacobian = np.asarray(self.jacobian)
        tolerance, rate = _ZERO * np.linalg.norm(jacobian, 2), self.eigenvalues[0].real
        if rate > tolerance:
            return "unstable"
        rows = np.linalg.norm(jacobian, axis=1, keepdims=True)
        sizes = np.linalg.svd(jacobian / np.where(rows > 0, rows, 1), compute_uv=False)
        if sizes[-1] <= _ZERO * sizes[0]:
            return "singular"
        return "stable" if rate < -tolerance else "centre"

    def _derived(self) -> Entries:
        """Policies, eigenvalues and stability."""
        shape = self.residual.shape
        policy = policies(self.wrapped, self.params, len(shape), False)
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
        return {
            "policy": (policy, Label("policy at rest", make=of_agents)),
            "eigenvalues_real": (eigenvalues.real, real),
            "eigenvalues_imag": (eigenvalues.imag, imaginary),
            "stability": (stabilities, Label("what the linearisation says")),
        }

    def __repr__(self) -> str:
        size = self.jacobian.shape[-1]
        if self.jacobian.ndim > 2 or not is_concrete(self.jacobian):
            return f"RestPoint({size} parameters: {describe_result(self.result)})"
        stability = f"{self.stability}, " if self.result == RESULTS.successful else ""
        return (
            f"RestPoint({size} parameters, {stability}residual {float(self.residual):.2g}: "
            f"{describe_result(self.result)})"
        )


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

    Newton's method from the guess; where it fails, the flow is followed from the guess until it is
    nearly at rest, and Newton's method goes on from there. So an unstable rest point needs a guess
    near it, a stable one only a guess in its basin. Where the Jacobian is singular the steps are of
    minimal norm: entries of transient states keep the guess's values.

    Differentiable by every floating-point array in `wrapped`, in forward and reverse mode, by the
    implicit function theorem; the guess does not matter. Works under `jax.jit` and `jax.vmap`
    (where the flow is always followed).

    Args:
        wrapped: a game and its learners.
        guess: parameters of all agents.
        rtol: largest last Newton step, relative to the parameters.
        atol: the same, absolute.
        max_steps: largest number of Newton steps.
        throw: raise if no rest point is found. Under `vmap`, `jit` or `grad` nothing is raised:
            look at `result`.

    Returns:
        The rest point. At an exact tie of a maximum its Jacobian is the mean of the branches.

    Raises:
        ValueError: as `solve`, for its `params0`.
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
    found = RestPoint(wrapped, *_rest_point(wrapped, guess, rtol, atol, max_steps))
    if throw and is_concrete(found.residual) and found.result != RESULTS.successful:
        raise RuntimeError(
            f"no rest point was found: residual {float(found.residual):.3g}, last Newton step "
            f"{float(found.step):.3g}. {RESULTS[found.result]}"
        )
    return found


def rest_points(
    wrapped: WrappedGame,
    guesses: Any,
    *,
    rtol: float = 1e-8,
    atol: float = 1e-8,
    max_steps: int = 64,
) -> tuple[RestPoint, ...]:
    """The distinct rest points found from many guesses, in one compiled program.

    The guesses are taken one after the other, so that one from which the flow has to be followed
    does not hold up the others.

    Args:
        wrapped: a game and its learners.
        guesses: parameters of all agents, each leaf with a leading axis of R guesses.
        rtol: as for `rest_point`.
        atol: as for `rest_point`.
        max_steps: as for `rest_point`.

    Returns:
        The rest points found, in the order of their first guesses; two are one where they differ by
        at most 1e-6 of one plus the largest entry. Guesses that lead to none (to a limit cycle,
        for instance) are left out.

    Raises:
        ValueError: as `rest_point`, or if `guesses` have no common leading axis.
    """
    rtol, atol = check_solver(rtol, atol, max_steps)
    check_concrete("rest_points", (wrapped, guesses))
    wrapped, guesses = admit(wrapped, guesses, "guesses", "guesses")
    check_ergodic(wrapped, jax.tree.map(lambda leaf: leaf[0], guesses), "guesses")
    found = _rest_points(wrapped, guesses, rtol, atol, max_steps)
    distinct: list[RestPoint] = []
    *_, results = found
    for k in np.flatnonzero(np.asarray(results == RESULTS.successful)):
        one = RestPoint(wrapped, *jax.tree.map(lambda leaf, k=k: leaf[k], found))
        if not any(distance(one.params, other.params) <= _SAME for other in distinct):
            distinct.append(one)
    return tuple(distinct)


def distance(params: Any, other: Any) -> float:
    """Largest difference of two parameter sets, relative to one plus the largest entry."""
    leaves = jax.tree.leaves(params), jax.tree.leaves(other)
    pairs = zip(*jax.device_get(leaves), strict=True)
    gaps = [(np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)) for a, b in pairs]
    return float(max(gap for gap, _ in gaps) / (1 + max(size for _, size in gaps)))


@eqx.filter_jit
def _rest_points(wrapped, guesses, rtol, atol, max_steps):
    # Not vmapped: a batched LAPACK call is to be avoided, and `cond` takes one branch only.
    return jax.lax.map(lambda guess: _rest_point(wrapped, guess, rtol, atol, max_steps), guesses)


@eqx.filter_jit
def _rest_point(wrapped, guess, rtol, atol, max_steps) -> tuple:
    """All fields of a `RestPoint` but the first."""
    wrapped = preserve_rows(wrapped)
    start, unravel, field = flat_drift(guess)
    accuracy = 4 * jnp.finfo(start.dtype).eps
    tolerances: Any = jnp.maximum(rtol, accuracy), jnp.maximum(atol, accuracy)
    # Minimal-norm steps where the Jacobian is singular.
    linear_solver = lineax.SVD()
    newton = optimistix.Newton(*tolerances, linear_solver=linear_solver)

    def balanced(x, wrapped):
        """The drift in units of distance: each entry over the size of its row of the Jacobian.

        The roots stay; entries that change slowly because they are rarely visited are not
        mistaken for entries at rest, and transient ones keep their exact zero.
        """
        rows = _row_sizes(jax.jacfwd(field)(*_frozen((x, wrapped))))
        return field(x, wrapped) / rows

    def attempt(carry, _):
        x, follow = carry
        x = jax.lax.cond(follow, lambda: _follow(field, *_frozen((x, wrapped))), lambda: x)
        solved = optimistix.root_find(
            balanced,
            newton,
            jax.lax.stop_gradient(x),
            wrapped,
            max_steps=max_steps,
            adjoint=optimistix.ImplicitAdjoint(linear_solver),
            throw=False,
        )
        finite = jnp.all(jnp.isfinite(solved.value))
        codes: Any = RESULTS
        result = codes.where(finite, codes.promote(solved.result), codes.nonlinear_divergence)
        found = result == RESULTS.successful
        return (jnp.where(found, solved.value, start), ~found), (solved.value, result)

    # A root found by the first attempt is only confirmed by the second.
    ends: Any = jax.lax.scan(attempt, (start, jnp.asarray(False)), None, length=2)[1]
    x, result = jax.tree.map(lambda leaf: leaf[-1], ends)
    residual, jacobian = field(x, wrapped), jax.jacfwd(field)(x, wrapped)
    rows = _row_sizes(jacobian)
    remaining = lineax.linear_solve(
        lineax.MatrixLinearOperator(_frozen(jacobian / rows[:, None])),
        _frozen(residual / rows),
        linear_solver,
        throw=False,
    ).value
    params = unravel(x)
    reducible = is_reducible(mixing_time(wrapped.frozen_chain(params)))
    found = result == RESULTS.successful
    result = RESULTS.where(found & reducible, RESULTS.reducible, result)
    return (
        params,
        jnp.max(jnp.abs(residual)),
        jnp.max(jnp.abs(remaining)),
        jacobian,
        result,
    )


def _row_sizes(jacobian):
    """Norms of the rows `[d]`, one for rows of zeros."""
    rows = jnp.linalg.norm(jacobian, axis=1)
    return jnp.where(rows > 0, rows, 1)


def _frozen(tree):
    """The same values, as constants of differentiation."""
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def _follow(field, start, wrapped):
    """Where the flow from a start comes to rest, or is after many steps."""
    rate = jnp.linalg.norm(jax.jacfwd(field)(start, wrapped))

    def at_rest(x, velocity):
        return jnp.linalg.norm(velocity) <= _AT_REST * rate * jnp.linalg.norm(x)

    solved: Any = integrate(
        field,
        start,
        jnp.inf,
        wrapped,
        rtol=_FLOW_TOLERANCE,
        atol=_FLOW_TOLERANCE,
        stop=at_rest,
        max_steps=_MOST_FLOW_STEPS,
    )
    return solved.end[1]
