"""Newton steps and leading eigenvalues by products with a Jacobian, where it is too large a matrix.

What is learnt per visit of an entry changes with it by about minus the learning rate, and with the
other entries by less: GMRES solves such systems in some ten products, without a preconditioner.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import gmres
from jaxtyping import Array, Complex, Float

from ..base.compiling import lightly_compiled
from ..model.wrapped import WrappedGame
from .drift import flat_drift
from .stationary import preserve_rows

MOST_BY_MATRIX = 1024  # parameters up to which a Jacobian is made
_BASIS, _RESTARTS = 64, 16
_SOLVED = 0.1  # the largest residual of a solution, relative to the right-hand side
# Eigenvalues wanted, of a basis of so many vectors, in so many rounds, and how exact they are.
_LEADING, _VECTORS, _ROUNDS, _ACCURACY = 2, 40, 10, 1e-4


def solve_by_products(
    product: Callable[[Float[Array, " d"]], Float[Array, " d"]],
    right: Float[Array, " d"],
    unit: Float[Array, " d"],
    tolerance: float,
) -> Float[Array, " d"]:
    """Solves `J y = right` by GMRES; infinite where that does not converge.

    Args:
        product: `v -> J v`.
        right: the right-hand side.
        unit: of every entry, in which the residual is measured.
        tolerance: for the residual, relative to the right-hand side.
    """

    def scaled(y):
        return product(unit * y) / unit

    goal = right / unit
    y, _ = gmres(
        *(scaled, goal),
        tol=tolerance,
        restart=min(_BASIS, goal.size),
        maxiter=_RESTARTS,
        solve_method="incremental",
    )
    solved = jnp.linalg.norm(goal - scaled(y)) <= _SOLVED * jnp.linalg.norm(goal)
    return jnp.where(solved, unit * y, jnp.inf)


def leading_eigenvalues(wrapped: WrappedGame, params: Any) -> Complex[np.ndarray, " k"]:
    """The eigenvalues of DF with the largest real parts, by Arnoldi's method; those it finds."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    size = flat_drift(params)[0].size

    def product(v):
        return np.asarray(_product(wrapped, params, jnp.asarray(v.ravel())))

    kind: Any = LinearOperator  # a class that makes one of its subclasses
    once = product(np.ones(size))
    if not np.isfinite(once).all():
        return np.zeros(0, complex)
    operator = kind((size, size), matvec=product, dtype=once.dtype)
    options: dict[str, Any] = dict(
        which="LR", tol=_ACCURACY, maxiter=_ROUNDS, ncv=min(_VECTORS, size)
    )
    start = np.random.default_rng(0).normal(size=size).astype(once.dtype)
    try:
        found: Any = eigs(operator, _LEADING, v0=start, return_eigenvectors=False, **options)
    except ArpackNoConvergence as error:
        found = error.eigenvalues
    return found


def frobenius_norm(wrapped: WrappedGame, params: Any) -> float:
    """An estimate of the Frobenius norm of DF, by one product."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], flat_drift(params)[0].size)
    return float(np.linalg.norm(_product(wrapped, params, jnp.asarray(signs))))


@lightly_compiled
def _product(wrapped, params, v):
    x, _, field = flat_drift(params)
    wrapped = preserve_rows(wrapped)
    return jax.jvp(lambda x: field(x, wrapped), (x,), (v.astype(x.dtype),))[1]
