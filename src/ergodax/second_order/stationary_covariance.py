"""The stationary covariance of fluctuations around a rest point: `DF C + C DF^T = -Sigma`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..averaged.stationary import check_ergodic, preserve_rows
from ..averaged.units import units
from ..base.checks import is_concrete
from ..base.compiling import lightly_compiled
from ..model.check import check_kinks
from ..model.clock import check_autonomous
from ..model.wrapped import WrappedGame
from .limit_process import LimitProcess
from .poisson import check_covariance

_MOST_DOUBLINGS = 60


def stationary_covariance(wrapped: WrappedGame, rest_point: Any) -> Float[Array, "d d"]:
    """Covariance of `sqrt(N) (X^N - x)` around a stable rest point x, after long times.

    Solves `DF C + C DF^T = -Sigma`. Differentiable with the rest point held fixed or made a
    function of what is varied, and works under `jax.vmap`.

    Args:
        wrapped: a game and its learners.
        rest_point: the parameters of all agents there, or an object that has them as `params`.

    Returns:
        C, `[d, d]`, in the order of `jax.flatten_util.ravel_pytree(params)`.

    Raises:
        ValueError: as `stationary_distribution`, or if a learner has a kink that it does not
            declare by `maximised`; where values are concrete also if the drift
            does not vanish, the rest point is not stable (it names the eigenvalues), or a maximum
            is tied there.
    """
    params = getattr(rest_point, "params", rest_point)
    wrapped, params = check_ergodic(wrapped, params, "rest_point")
    check_kinks(wrapped)
    check_autonomous(wrapped.learners, "stationary covariances")
    check_covariance("the covariance", wrapped, params)
    drift, slope, noise, gaps = _at_rest(wrapped, params)
    if is_concrete(slope):
        _check_stable(*(np.asarray(part) for part in (drift, slope, gaps, units(wrapped, params))))
    return lyapunov(slope, noise)


@lightly_compiled
def _at_rest(wrapped, params):
    """F, DF, Sigma and the margins of all maxima."""
    process = LimitProcess(preserve_rows(wrapped), params)
    return *process.linearised(process.start), process.maxima.best_two(process.start)[0]


def _check_stable(drift, slope, gaps, unit) -> None:
    size = np.linalg.norm(slope, 2)
    eigenvalues = np.linalg.eigvals(slope)
    eigenvalues = eigenvalues[np.argsort(-eigenvalues.real)]
    if not eigenvalues[0].real < -1e-10 * size:
        listed = ", ".join(f"{value:.4g}" for value in eigenvalues[:4])
        kind = "unstable" if eigenvalues[0].real > 1e-10 * size else "singular"
        raise ValueError(
            f"the rest point is {kind}: the eigenvalues of DF with the largest real parts are "
            f"{listed}; fluctuations around it do not become stationary."
        )
    away = np.abs(np.linalg.solve(slope, drift))
    distance = away.max()
    if (away / unit).max() > 1e-4:
        raise ValueError(
            f"the drift does not vanish: it is up to {np.abs(drift).max():.3g}, and the rest point "
            f"is about {distance:.3g} away."
        )
    if gaps.size and gaps.min() <= 10 * max(distance, 1e-10 * unit.min()):
        raise ValueError(
            f"a maximum is tied at the rest point (margin {gaps.min():.3g}): on a kink the "
            "fluctuations are not Gaussian."
        )


@lightly_compiled
def lyapunov(slope: Float[Array, "d d"], noise: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Solves `A C + C A^T = -Sigma` for C; NaN where A is not stable.

    With `P = (p - A)^-1 (p + A)`, C is a sum over all powers of P, twice as many with every step
    (Smith 1968).
    """

    def solver(slope):
        def solve(_, right):
            shift = jnp.linalg.norm(slope)
            inverse = jnp.linalg.inv(shift * jnp.eye(len(slope), dtype=slope.dtype) - slope)
            power = 2 * shift * inverse - jnp.eye(len(slope), dtype=slope.dtype)

            def double(carry):
                total, power, count = carry
                return total + power @ total @ power.T, power @ power, count + 1

            def unfinished(carry):
                _, power, count = carry
                rest = jnp.linalg.norm(power) > jnp.finfo(slope.dtype).eps
                return rest & (count < _MOST_DOUBLINGS)

            start = -2 * shift * inverse @ right @ inverse.T
            total, power, _ = jax.lax.while_loop(unfinished, double, (start, power, 0))
            return jnp.where(jnp.linalg.norm(power) < 1, total, jnp.nan)

        return solve

    return jax.lax.custom_linear_solve(
        lambda C: slope @ C + C @ slope.T, -noise, solver(slope), solver(slope.T)
    )
