"""The scale at which the ODE is close enough to a run, and the suprema that decide it.

At scale N a run that is in core state c is at

    x + U / sqrt(N) + (b - (v(c) - w(c)) / 2) / N,    dU = DF(x) U dt + dW,  Cov dW = Sigma(x) dt,

with v the solution of Poisson's equation, what c adds from now on, and w the same of the chain that
runs backwards, what having come to c has added. Half their difference is the lag of a run behind
its average that the order of states makes: U then is the noise that knows no direction of time, and
smooth on the scale of single steps. Without noise this is right up to `o(1 / N)`. The distance from
x is found by simulating U on a grid; over a cell of the grid the run visits all states that it
visits at all, and the farthest one counts. Runs are looked at at their steps alone: between them U
goes further by `.58 sqrt(Sigma / N)` on average (Chernoff 1965), which is of order 1 / N too.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from ..averaged.stationary import preserve_rows
from ..base.checks import check_concrete, check_count, check_number
from ..base.compiling import lightly_compiled
from ..model.wrapped import WrappedGame
from .fluctuations import fluctuations
from .limit_process import LimitProcess
from .poisson import core_law, inflow, poisson
from .prediction import Fluctuations

CELLS = 1024  # of the grid in time
_BLOCK = 1024  # paths that are simulated together, within the cache of a core
_MOST_NUMBERS = 2**26  # paths times parameters: about one GiB


class Linearised(NamedTuple):
    """The linearised ODE on a grid: one propagator and one noise root per cell, in NumPy."""

    propagators: np.ndarray
    roots: np.ndarray


def linearise(predicted: Fluctuations) -> tuple[np.ndarray, Linearised]:
    """F on the grid; in every cell the propagator `exp(h DF)` and a root of its noise, by means."""
    import scipy.linalg

    velocity, slopes, noises = jax.device_get(_linearised(predicted.wrapped, predicted.params))
    widths = np.diff(np.asarray(predicted.ts))[:, None, None]
    slopes = widths * (slopes[1:] + slopes[:-1]) / 2
    half = scipy.linalg.expm(slopes / 2)
    noises = half @ (widths * (noises[1:] + noises[:-1]) / 2) @ half.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(noises)
    least = np.finfo(values.dtype).eps * values.shape[1] * values[:, -1:]
    scaled = vectors * np.sqrt(np.where(values > least, values, 0))[:, None, :]
    # Of all roots the symmetric one, as rounding cannot turn it: other roots, other numbers drawn.
    return velocity, Linearised(half @ half, scaled @ vectors.transpose(0, 2, 1))


@lightly_compiled
def _linearised(wrapped, params):
    """F, DF and Sigma along a solution."""

    def at(params):
        process = LimitProcess(preserve_rows(wrapped), params)
        return process.linearised(process.start)

    return jax.lax.map(at, params)


class Lag(NamedTuple):
    """What is of order 1 / N: of a run that may be in any core state, and of every path's start.

    Attributes:
        low: the least of bias minus lag, `[M + 1, d]`.
        high: the largest, `[M + 1, d]`.
        start: `v(c) - b` at time 0, for the first core state c of each path, `[paths, d]`.
    """

    low: np.ndarray
    high: np.ndarray
    start: np.ndarray


def suprema(
    linear: Linearised, seed: np.ndarray, lag: Lag | None = None, *, paths: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """Largest distance from zero over times and entries of paths of the limiting process.

    Args:
        linear: the linearised ODE.
        seed: words that seed the paths.
        lag: what is added to every path; nothing by default.
        paths: how many.

    Returns:
        The suprema over the whole grid, and over every fourth point: both are too small by
        amounts in the ratio 1 : 2, to leading order.
    """
    cells, size = linear.roots.shape[0], linear.roots.shape[-1]
    if lag is None:
        none = np.zeros((cells + 1, size))
        lag = Lag(none, none, np.zeros((1, size)))
    words = np.asarray(seed, dtype=np.uint32).ravel().tolist()
    start = np.broadcast_to(lag.start, (paths, size))
    blocks = [start[k : k + _BLOCK] for k in range(0, paths, _BLOCK)]
    seeds = np.random.SeedSequence(words).spawn(len(blocks))
    work = functools.partial(_suprema, linear, lag.low[1:, :, None], lag.high[1:, :, None])
    with ThreadPoolExecutor() as threads:  # NumPy's loops run side by side
        found = list(threads.map(work, blocks, seeds))
    fine, coarse = map(np.concatenate, zip(*found, strict=True))
    return fine, coarse


def _suprema(linear, low, high, start, seed):
    """The suprema of a block of paths, all of whose arrays are `[d, paths]`."""
    generator = np.random.default_rng(seed)
    fluctuation = start.T
    noise, moved, bound = (np.empty(fluctuation.shape) for _ in range(3))
    fine, coarse = np.zeros((2, len(start)))
    for cell, (propagator, root) in enumerate(zip(*linear, strict=True)):
        generator.standard_normal(out=noise)
        fluctuation = propagator @ fluctuation
        fluctuation += np.matmul(root, noise, out=moved)
        above = np.add(fluctuation, high[cell], out=bound).max(axis=0)
        below = np.add(fluctuation, low[cell], out=bound).min(axis=0)
        fine = np.maximum(fine, np.maximum(above, -below))
        if (cell + 1) % 4 == 0:
            coarse = np.maximum(coarse, np.maximum(above, -below))
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

    By the Gaussian limit and what is of order 1 / N, the bias and how far a run in a state of the
    game is from the mean over states: N such that all this is at most the tolerance, at all times,
    for all parameters and in all states, with the given probability. Where updates have a learning
    rate alpha as a factor, it is also how many times smaller than alpha the learning rate must be.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        t1: the horizon, in unscaled steps.
        tolerance: largest distance of any parameter, positive.
        probability: that a run stays within the tolerance, in (0, 1).
        initial_state: the first state, by number or name; drawn by default.
        paths: paths of the limiting process, at least 100, and so few that paths times parameters
            are at most 2^26.
        seed: seeds the paths.

    Returns:
        N, a float. By simulation it was right to 1.3 % at N = 100 in three examples; at N = 30 it
        lay between 5 % too small (prisoner's dilemma) and 11 % too large (rare, large updates).
        Below about 10 it is an extrapolation. Zero if nothing is learned: any scale will do.

    Raises:
        ValueError: as `fluctuations`, or if an argument does not fit.

    Warns:
        UserWarning: as `fluctuations`, if the flow rests on a kink.
    """
    check_concrete("required_scale", (wrapped, params0, t1, tolerance))
    end = check_number("t1", t1, "(0, inf)")
    tolerance = check_number("tolerance", tolerance, "(0, inf)")
    probability = check_number("probability", probability, "(0, 1)")
    paths = check_count("paths", paths, least=100)
    seed = check_count("seed", seed, least=0)
    most = _MOST_NUMBERS // max(1, sum(np.size(leaf) for leaf in jax.tree.leaves(params0)))
    if paths > most:
        raise ValueError(f"paths must be at most {most} here, for memory; found {paths}.")
    grid = np.linspace(0, end, CELLS + 1)
    predicted = fluctuations(wrapped, params0, grid, initial_state=initial_state, bias=True)
    _, linear = linearise(predicted)
    lag = _lag(predicted, np.random.default_rng([seed, 1]), paths)
    words = np.array([seed], dtype=np.uint32)

    @functools.cache
    def reach(root: float) -> tuple[float, float]:
        """The distance within which runs stay with the given probability, times `1 / root`.

        And how much of it the limit goes beyond its values on the grid.
        """
        scaled = Lag(*(root * part for part in lag))
        fine, coarse = (
            float(np.quantile(part, probability))
            for part in suprema(linear, words, scaled, paths=paths)
        )
        return 2 * fine - coarse, fine - coarse

    def excess(root: float) -> float:
        return root * reach(root)[0] - tolerance

    (noise, beyond), lagged = reach(0.0), max(float(np.abs(part).max()) for part in lag)
    if noise == lagged == 0:
        return 0.0
    from scipy.optimize import root_scalar  # takes a third of a second to import

    # In the inverse root of N it is an increasing function, since U is symmetric and unimodal, and
    # a set that is both shrinks and moves away from its centre (Anderson 1955). The inverse root
    # at which both bounds together reach the tolerance is at most 1 / .62 times too small.
    low = 2 * tolerance / (noise + math.sqrt(noise**2 + 4 * lagged * tolerance))
    # What U goes further between points of time grows with the root of their distance.
    tolerance += low**2 * beyond / math.sqrt(end / CELLS)
    high = low
    while excess(low) > 0:
        low *= 0.99
    while excess(high) < 0:
        high *= 1.2
    found = root_scalar(excess, bracket=(low, high), rtol=5e-4)
    return float(found.root) ** -2


def _lag(predicted: Fluctuations, generator: np.random.Generator, paths: int) -> Lag:
    low, high, law, values = jax.device_get(
        _values(predicted.wrapped, predicted.params, predicted.initial)
    )
    bias = np.asarray(predicted.bias)
    first = generator.choice(len(law), size=paths, p=law / law.sum())
    return Lag(bias - high, bias - low, values[first] - bias[0])


@lightly_compiled
def _values(wrapped, params, law):
    """Least and largest lag over the states visited, at all times; v at time 0, and its law."""
    wrapped = preserve_rows(wrapped)

    def extremes(params):
        solved = poisson(wrapped, params)
        lags = (solved.values - _past(wrapped, solved)) / 2
        visited = solved.events.reshape(len(lags), -1).sum(axis=1, keepdims=True) > 0
        low, high = (jnp.where(visited, lags, end) for end in (jnp.inf, -jnp.inf))
        return low.min(axis=0), high.max(axis=0)

    first = poisson(wrapped, jax.tree.map(lambda leaf: leaf[0], params))
    return *jax.lax.map(extremes, params), core_law(wrapped, law, first), first.values


def _past(wrapped, solved):
    """What having come to a core state has added, `[C, d]`: v of the chain that runs backwards."""
    count = len(solved.values)
    chain = solved.chain
    if wrapped.needs_next_action:
        game = wrapped.game
        ahead = jnp.zeros((count, game.num_states), chain.dtype)
        ahead = ahead.at[jnp.arange(count)[:, None], game.successors.reshape(count, -1)].add(
            game.probabilities.reshape(count, -1)
        )
        joint = solved.joint_policy.reshape(game.num_states, -1)
        chain = (ahead[:, :, None] * joint).reshape(count, count)
    law = solved.events.reshape(count, -1).sum(axis=1)
    flow = inflow(wrapped, solved) - jnp.outer(law, solved.drift)
    inverse = jnp.eye(count, dtype=chain.dtype) - chain.T + law[:, None]
    past = jnp.linalg.solve(inverse, flow)
    return past / jnp.where(law > 0, law, 1)[:, None]
