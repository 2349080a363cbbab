"""Searches for roots of the averaged drift by Newton's method.

What is learnt per visit (`per_visit`) has the roots of the drift and no others nearby, and is what
Newton's method is for. It starts from the guess; from the guess drawn together, where no action is
unlikely and policies respond; and from where the flow leads. Of large games its steps are found by
products with the Jacobian (`krylov`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ..base.codes import RESULTS
from ..model.wrapped import WrappedGame
from ..ode.batching import select
from ..ode.integrate import integrate
from .drift import flat_drift
from .krylov import solve_by_products
from .per_visit import flat_per_visit
from .units import unit_of

FLOW_TOLERANCE = 1e-6
_AT_REST = 1e-6
_MOST_FLOW_STEPS = 4096
# What rounding leaves of a Newton step, in units of the working precision.
_ROUNDING = 256
# Of the residual of a Newton step that is found by products with the Jacobian.
_STEP_TOLERANCE = 1e-4


# Differences of the guess are drawn together to these shares.
DRAWN = (1.0, 1 / 4, 1 / 16)


class Near(NamedTuple):
    """What Newton's method finds at a point.

    Attributes:
        step: the largest entry of the step that would come next.
        change: what is learnt per visit, `[d]`.
        drift: F, `[d]`.
        jacobian: DF, `[d, d]`; None where it is not made.
        turned: DF times a direction, `[d]`.
    """

    step: Any
    change: Any
    drift: Any
    jacobian: Any
    turned: Any


class Search(NamedTuple):
    """Where the search came in each of its attempts, the last of them from the flow's end.

    Attributes:
        x: the last points, `[m, d]`; of the last attempt, if it failed, the flow's end.
        near: what Newton's method found where it began or, at a root, ended.
        result: whether they are roots, `[m]`.
    """

    x: Float[Array, "m d"]
    near: Near
    result: RESULTS


class _Newton(NamedTuple):
    x: Any
    near: Any
    count: Any
    settled: Any
    done: Any
    stop: Any


class RootSearch:
    """Newton's method for one wrapped game.

    Args:
        wrapped: a game and its learners; constants of differentiation.
        params: parameters of all agents, for their structure.
        rtol: the largest last step, relative to the parameters.
        atol: the same, in their unit.
        max_steps: the largest number of Newton steps.
        by_matrix: whether to make the Jacobian.
    """

    def __init__(self, wrapped: WrappedGame, params, rtol, atol, max_steps, by_matrix: bool):
        self.wrapped, self.max_steps, self.by_matrix = wrapped, max_steps, by_matrix
        self.start, self.unravel, self.field = flat_drift(params)
        self.per_visit = flat_per_visit(params)
        self.unit = unit_of(wrapped, params)
        self.rounding = _ROUNDING * jnp.finfo(self.start.dtype).eps
        self.rtol, self.atol = (jnp.maximum(tol, self.rounding) for tol in (rtol, atol))

    def __call__(self, drawn: tuple[float, ...], every: bool) -> Search:
        """Makes attempts from shares of the guess's differences, and if all fail from the flow.

        Args:
            drawn: the shares, the first of them one.
            every: make all these attempts, whether or not one was successful.
        """

        def draw(leaf, share):
            mean = leaf.mean(axis=-1, keepdims=True) if leaf.ndim else leaf
            return mean + share * (leaf - mean)

        def attempt(carry, which):
            found, rate = carry
            share, last = which
            params = self.unravel(self.start)
            x = ravel_pytree(jax.tree.map(lambda leaf: draw(leaf, share), params))[0]
            x = jnp.where(share == 1, self.start, x)
            x = jnp.where(last, self.follow(last & ~found, rate), x)
            root, near, result = self.newton(x, (every & ~last) | ~found)
            success = result == RESULTS.successful
            # The first attempt begins at the guess, and if it failed it tells of that.
            rate = jnp.where(share == 1, self.rate(near), rate)
            x = jnp.where(success | ~last, root, x)
            return (found | success, rate), Search(x, near, result)

        # The flow comes last; one loop, so that Newton's method stands once in the program.
        last = np.arange(len(drawn) + 1) == len(drawn)
        shares = jnp.asarray((*drawn, 1.0), self.start.dtype), last
        none = jnp.asarray(False), jnp.zeros((), self.start.dtype)
        return jax.lax.scan(attempt, none, shares)[1]

    def newton(self, x, wanted) -> tuple[Any, Near, Any]:
        """Newton's method; the steps are of minimal norm where the Jacobian is singular.

        Args:
            x: where it begins, `[d]`.
            wanted: whether to do anything.

        Returns:
            The last point; what was found there, or, if it failed, where it began; and the result.
        """

        def advance(s: _Newton) -> _Newton:
            step, found, reach, slopes = self._linearised(s.x)
            moved = s.x - step
            settled = jnp.all(
                jnp.abs(step) <= self.rtol * jnp.abs(moved) + self.atol * self.unit.size
            )
            # Increments balance, or each is nothing but rounding; else it is only ever rarer
            # visits that make them small.
            balanced = jnp.abs(found.change) <= self.rtol * found.size + self.rounding * reach
            sound = jnp.all(jnp.isfinite(moved))
            here = Near(jnp.max(jnp.abs(step)), found.change, found.drift, *slopes)
            return _Newton(
                x=jnp.where(s.done, s.x, moved),
                near=select((s.count == 0) | s.done, here, s.near),
                count=s.count + 1,
                settled=settled,
                done=s.done | (settled & jnp.all(balanced)),
                stop=s.done | ~sound,
            )

        no, zero = jnp.asarray(False), jnp.asarray(0)
        square = jnp.zeros((x.size, x.size), x.dtype) if self.by_matrix else None
        none = Near(jnp.asarray(jnp.inf, x.dtype), x, x, square, x)
        s = jax.lax.while_loop(
            lambda s: ~s.stop & (s.done | (s.count < self.max_steps)),
            advance,
            _Newton(x, none, zero, no, no, ~wanted),
        )
        codes: Any = RESULTS
        short = codes.where(s.settled, codes.vanishing, codes.nonlinear_max_steps_reached)
        finite = jnp.all(jnp.isfinite(s.x))
        missed = codes.where(finite, short, codes.nonlinear_divergence)
        return s.x, s.near, codes.where(s.done & finite, codes.successful, missed)

    def _linearised(self, x):
        """A Newton step; what is learnt at x; the size of what it is the difference of; and DF.

        DF as a matrix if that is made, and its product with the direction of signs.
        """

        def learnt(x):
            found = self.per_visit(x, self.wrapped)
            return (found.change, found.drift), found

        # The length of its product with DF is about the norm of DF times the root of d.
        direction = self.unit.size * self._signs(0, 1)[0]
        if self.by_matrix:
            (slope, jacobian), found = jax.jacfwd(learnt, has_aux=True)(x)
            step = lineax.linear_solve(
                lineax.MatrixLinearOperator(slope), found.change, lineax.SVD(), throw=False
            ).value
            reach = jnp.abs(slope) @ (jnp.abs(x) + self.unit.size)
            return step, found, reach, (jacobian, jacobian @ direction)
        _, product, found = jax.linearize(learnt, x, has_aux=True)
        change, scale = found.change, self.unit.size
        step = solve_by_products(lambda v: product(v)[0], change, scale, _STEP_TOLERANCE)
        # The size is estimated, rather too small, by random signs.
        vectors = self._signs(1, 4) * (jnp.abs(x) + scale)[None]
        products, turned = jax.lax.map(product, jnp.concatenate([vectors, direction[None]]))
        return step, found, jnp.abs(products[:-1]).mean(axis=0), (None, turned[-1])

    def _signs(self, seed: int, count: int):
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (count, self.start.size))
        return jnp.asarray(signs, self.start.dtype)

    def rate(self, near: Near):
        """About the norm of DF there, times the root of d."""
        return jnp.linalg.norm(near.turned / self.unit.size)

    def follow(self, wanted, rate):
        """Where the flow from the guess comes to rest, or is after many steps.

        Args:
            wanted: whether to do anything.
            rate: that at the guess.
        """
        solved = integrate(
            self.field,
            self.start,
            jnp.where(wanted, jnp.inf, 0.0),
            self.wrapped,
            rtol=FLOW_TOLERANCE,
            atol=FLOW_TOLERANCE,
            unit=self.unit,
            stop=lambda x, slope, _: jnp.linalg.norm(slope / self.unit.size) <= _AT_REST * rate,
            max_steps=_MOST_FLOW_STEPS,
        )
        return solved.end[1]


def first_found(search: Search) -> Search:
    """The first successful attempt, or the last of all."""
    found = search.result == RESULTS.successful
    best = jnp.where(jnp.any(found), jnp.argmax(found), len(search.x) - 1)
    return jax.tree.map(lambda leaf: leaf[best], search)
