"""The scale at which the ODE is close enough to a run, and the suprema that decide it.

Distances are those of the linearised limit process, simulated on a grid: at scale N a run is
`x + U / sqrt(N) + b / N`, with `dU = DF(x) U dt + dW`, Cov dW = Sigma(x) dt.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Real

from ..base.checks import check_concrete, check_count, check_number
from ..model.wrapped import WrappedGame
from .fluctuations import Fluctuations, fluctuations, linearised

CELLS = 1024  # of the grid in time


class Linearised(NamedTuple):
    """The linearised ODE on a grid: one propagator and one noise root per cell, in NumPy."""

    propagators: np.ndarray
    roots: np.ndarray


def linearise(predicted: Fluctuations) -> tuple[np.ndarray, Linearised]:
    """F on the grid; in every cell the propagator `exp(h DF)` and a root of its noise, by means."""
    import scipy.linalg

    velocity, slopes, noises = linearised(predicted)
    widths = np.diff(np.asarray(predicted.ts))[:, None, None]
    slopes = widths * (slopes[1:] + slopes[:-1]) / 2
    half = scipy.linalg.expm(slopes / 2)
    noises = half @ (widths * (noises[1:] + noises[:-1]) / 2) @ half.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(noises)
    return velocity, Linearised(half @ half, vectors * np.sqrt(np.maximum(values, 0))[:, None, :])


def suprema(
    linear: Linearised, seed: np.ndarray, shift: np.ndarray | None = None, *, paths: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Largest `|U_t + shift_t|` over times and entries of paths of the limiting process.

    Args:
        linear: the linearised ODE.
        seed: words that seed the paths.
        shift: added to every path, `[M + 1, d]`; none by default.
        paths: how many.

    Returns:
        The suprema over the whole grid, and over every fourth point: both are too small by
        amounts in the ratio 1 : 2, to leading order.
    """
    generator = np.random.default_rng(np.asarray(seed, dtype=np.uint32).ravel().tolist())
    size = linear.roots.shape[-1]
    fluctuation = np.zeros((paths, size))
    fine = np.zeros(paths) if shift is None else np.full(paths, np.abs(shift[0]).max())
    coarse = fine.copy()
    for cell, (propagator, root) in enumerate(zip(*linear, strict=True)):
        noise = generator.standard_normal((paths, size))
        fluctuation = fluctuation @ propagator.T + noise @ root.T
        moved = fluctuation if shift is None else fluctuation + shift[cell + 1]
        largest = np.abs(moved).max(axis=1)
        fine = np.maximum(fine, largest)
        if (cell + 1) % 4 == 0:
            coarse = np.maximum(coarse, largest)
    return fine, coarse


def required_scale(
    wrapped: WrappedGame,
    params0: Any,
    t1: float | Real[np.ndarray, ""] | Real[Array, ""] | int,
    tolerance: int | float,
    *,
    probability: float = 0.95,
    initial_state: int | np.integer | str | None = None,
    paths: int = 8192,
    seed: int = 0,
) -> float:
    """Smallest N at which the ODE is within a tolerance of a run, over all of [0, t1].

    By the Gaussian limit and the bias: N such that `sup_t max_i |U_t / sqrt(N) + b_t / N|_i` is at
    most the tolerance with the given probability. Where updates have a learning rate alpha as a
    factor, it is also how many times smaller than alpha the learning rate must be.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        t1: the horizon, in unscaled steps.
        tolerance: largest distance of any parameter, positive.
        probability: that a run stays within the tolerance, in (0, 1).
        initial_state: the first state, by number or name; drawn by default.
        paths: paths of the limiting process, at least 100.
        seed: seeds the paths.

    Returns:
        N, a float; below about 10 it is an extrapolation of a large-N theory.

    Raises:
        ValueError: as `fluctuations`, or if an argument does not fit.
    """
    check_concrete("required_scale", (wrapped, params0, t1, tolerance))
    end = check_number("t1", t1, "(0, inf)")
    tolerance = check_number("tolerance", tolerance, "(0, inf)")
    probability = check_number("probability", probability, "(0, 1)")
    paths = check_count("paths", paths, least=100)
    seed = check_count("seed", seed, least=0)
    predicted = fluctuations(
        wrapped,
        params0,
        np.linspace(0, end, CELLS + 1),
        initial_state=initial_state,
        bias=True,
    )
    _, linear = linearise(predicted)
    bias = np.asarray(predicted.bias)
    words = np.array([seed], dtype=np.uint32)
    root, shift = math.inf, np.zeros_like(bias)
    for _ in range(20):
        fine, coarse = suprema(linear, words, shift, paths=paths)
        reach = float(2 * np.quantile(fine, probability) - np.quantile(coarse, probability))
        root, before = reach / tolerance, root
        if abs(root - before) < 1e-3 * root:
            break
        shift = bias / root
    return root**2
