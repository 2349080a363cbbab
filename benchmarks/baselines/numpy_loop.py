"""Simulation of tabular epsilon-softmax Q-learners as a plain loop in Python and NumPy.

What a researcher writes first: a loop over runs, a loop over steps, one NumPy table per agent,
actions drawn by cumulative sum and binary search (about five times faster than
``Generator.choice(p=...)``). The process is X_{k+1} = X_k + f(X_k, g_k) / N, and the policy that
draws a_{k+1} reads X_{k+1}.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Simulation(NamedTuple):
    """Ensemble averages of a simulation.

    Attributes:
        times: k / scale of the steps really taken, [K].
        mean: mean table of each agent over the runs, each [K, S, A_i].
        variance: variance over the runs (ddof 0), each [K, S, A_i].
        visits: visits to each state, over all runs, in the interval ending at each time, [K, S].
        seconds: wall time.
        steps_per_second: joint steps (all agents act once) of all runs per second.
    """

    times: NDArray[np.float64]
    mean: tuple[NDArray[np.float64], ...]
    variance: tuple[NDArray[np.float64], ...]
    visits: NDArray[np.int64]
    seconds: float
    steps_per_second: float


def policy(row: NDArray[np.float64], tau: float, eps: float) -> NDArray[np.float64]:
    """Epsilon-softmax policy of one row of a table."""
    weights = np.exp((row - row.max()) / tau)
    return (1.0 - eps) * weights / weights.sum() + eps / row.size


def draw(probabilities: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Index drawn from a probability vector."""
    cdf = probabilities.cumsum()
    return int(cdf.searchsorted(rng.random() * cdf[-1], side="right"))


def simulate(
    rewards: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike,
    tau: ArrayLike,
    eps: ArrayLike,
    q0: Sequence[ArrayLike],
    times: ArrayLike,
    *,
    kernel: ArrayLike | None = None,
    next_state: ArrayLike | None = None,
    scale: float = 1.0,
    runs: int = 1,
    seed: int = 0,
    initial_state: int = 0,
) -> Simulation:
    """Simulates an ensemble of runs and averages it.

    Args:
        rewards: R[S, A_1, ..., A_n, n].
        alpha: learning rates, one per agent or one for all; likewise gamma, tau and eps.
        gamma: discount factors.
        tau: softmax temperatures, positive.
        eps: probabilities of a uniform action.
        q0: initial tables, one [S, A_i] per agent.
        times: increasing save times in unscaled updates; step k = floor(scale * time).
        kernel: T[S, A_1, ..., A_n, S]; give this or ``next_state``.
        next_state: integers [S, A_1, ..., A_n], for deterministic transitions.
        scale: N of the rescaled process; 1 is the original algorithm.
        runs: number of independent runs.
        seed: seed of the generator.
        initial_state: state in which every run starts.

    Returns:
        Averages, visit counts and timings.
    """
    if (kernel is None) == (next_state is None):
        raise ValueError("give exactly one of kernel and next_state")
    initial = [np.array(table, dtype=np.float64) for table in q0]
    agents = range(len(initial))
    states = len(initial[0])
    r = np.asarray(rewards, dtype=np.float64)
    random = kernel is not None
    law = np.asarray(kernel if random else next_state)  # [S, A.., S] or [S, A..]
    rates, discounts, taus, epsilons = (
        np.broadcast_to(np.asarray(value, dtype=np.float64), (len(initial),)).tolist()
        for value in (alpha, gamma, tau, eps)
    )
    targets = np.asarray(times, dtype=np.float64) * scale
    nearest = np.rint(targets)
    saves = np.where(np.abs(targets - nearest) < 1e-9, nearest, np.floor(targets)).astype(int)

    kept = [np.empty((runs, saves.size, *table.shape)) for table in initial]
    visits = np.zeros((saves.size, states), dtype=np.int64)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    for run in range(runs):
        q = [table.copy() for table in initial]
        s = initial_state
        k = 0
        for j, end in enumerate(saves):
            while k < end:
                visits[j, s] += 1
                a = tuple(draw(policy(q[i][s], taus[i], epsilons[i]), rng) for i in agents)
                t = draw(law[s][a], rng) if random else int(law[s][a])
                for i in agents:
                    target = r[s][a][i] + discounts[i] * q[i][t].max()
                    q[i][s, a[i]] += rates[i] * (target - q[i][s, a[i]]) / scale
                s = t
                k += 1
            for i in agents:
                kept[i][run, j] = q[i]
    seconds = time.perf_counter() - start
    return Simulation(
        times=saves / scale,
        mean=tuple(values.mean(axis=0) for values in kept),
        variance=tuple(values.var(axis=0) for values in kept),
        visits=visits,
        seconds=seconds,
        steps_per_second=runs * int(saves[-1]) / seconds,
    )
