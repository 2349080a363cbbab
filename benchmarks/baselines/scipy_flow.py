"""Averaged flow dx/dt = F(x) of tabular epsilon-softmax Q-learners, with NumPy and SciPy.

F averages the Q-learning increment over the stationary law nu_x of the |S| x |S| state chain under
the frozen policies. One linear solve gives nu_x, einsum does the rest, and
``scipy.integrate.solve_ivp`` integrates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp
from scipy.special import softmax


class Flow(NamedTuple):
    """Solution of the averaged equation.

    Attributes:
        times: save times, [K].
        tables: table of each agent, each [K, S, A_i].
        evaluations: number of evaluations of F.
        seconds: wall time.
    """

    times: NDArray[np.float64]
    tables: tuple[NDArray[np.float64], ...]
    evaluations: int
    seconds: float


def make_drift(
    kernel: ArrayLike,
    rewards: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike,
    tau: ArrayLike,
    eps: ArrayLike,
) -> Callable[[float, NDArray[np.float64]], NDArray[np.float64]]:
    """Builds F(t, x), x the tables flattened agent by agent.

    Args:
        kernel: T[S, A_1, ..., A_n, S].
        rewards: R[S, A_1, ..., A_n, n].
        alpha: learning rates, one per agent or one for all; likewise gamma, tau and eps.
        gamma: discount factors.
        tau: softmax temperatures, positive.
        eps: probabilities of a uniform action.

    Returns:
        The right-hand side for ``solve_ivp``.
    """
    transition = np.asarray(kernel, dtype=np.float64)
    reward = np.moveaxis(np.asarray(rewards, dtype=np.float64), -1, 0).copy()
    states, *actions = transition.shape[:-1]
    agents = len(actions)
    rates, discounts, taus, epsilons = (
        np.broadcast_to(np.asarray(value, dtype=np.float64), (agents,))
        for value in (alpha, gamma, tau, eps)
    )
    cuts = np.cumsum([states * a for a in actions])[:-1]

    own = "abcdefghijklmnopqr"[:agents]
    join = ",".join(f"s{letter}" for letter in own) + f"->s{own}"
    chain = f"s{own},s{own}t->st"
    marginals = [f"s{own},s{own}->s{letter}" for letter in own]
    uniform = np.full(states, 1.0 / states)
    identity = np.eye(states)

    def drift(_: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
        tables = [part.reshape(states, -1) for part in np.split(x, cuts)]
        policies = [
            (1.0 - e) * softmax(q / temperature, axis=1) + e / q.shape[1]
            for q, temperature, e in zip(tables, taus, epsilons, strict=True)
        ]
        joint = np.einsum(join, *policies)
        p = np.einsum(chain, joint, transition)
        nu = np.linalg.solve((identity - p + uniform).T, uniform)  # nu (I - P + 1 u) = u
        weight = nu.reshape(-1, *[1] * agents) * joint
        parts = []
        for i, q in enumerate(tables):
            target = reward[i] + discounts[i] * (transition @ q.max(axis=1))
            expected = np.einsum(marginals[i], weight, target)
            parts.append(rates[i] * (expected - nu[:, None] * policies[i] * q))
        return np.concatenate([part.ravel() for part in parts])

    return drift


def solve(
    kernel: ArrayLike,
    rewards: ArrayLike,
    alpha: ArrayLike,
    gamma: ArrayLike,
    tau: ArrayLike,
    eps: ArrayLike,
    q0: Sequence[ArrayLike],
    times: ArrayLike,
    *,
    method: str = "RK45",
    rtol: float = 1e-8,
    atol: float = 1e-8,
) -> Flow:
    """Integrates the averaged equation.

    Args:
        kernel: T[S, A_1, ..., A_n, S].
        rewards: R[S, A_1, ..., A_n, n].
        alpha: learning rates, one per agent or one for all; likewise gamma, tau and eps.
        gamma: discount factors.
        tau: softmax temperatures, positive.
        eps: probabilities of a uniform action.
        q0: initial tables, one [S, A_i] per agent.
        times: increasing save times, the first being the initial time.
        method: solver of ``solve_ivp``: "RK45", "DOP853", "LSODA", ...
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        Tables at the save times, number of evaluations and wall time.

    Raises:
        RuntimeError: if the solver fails.
    """
    tables = [np.asarray(table, dtype=np.float64) for table in q0]
    drift = make_drift(kernel, rewards, alpha, gamma, tau, eps)
    x0 = np.concatenate([table.ravel() for table in tables])
    grid = np.asarray(times, dtype=np.float64)
    start = time.perf_counter()
    result = solve_ivp(
        drift, (grid[0], grid[-1]), x0, method=method, t_eval=grid, rtol=rtol, atol=atol
    )
    seconds = time.perf_counter() - start
    if not result.success:
        raise RuntimeError(result.message)
    parts = np.split(result.y.T, np.cumsum([table.size for table in tables])[:-1], axis=1)
    return Flow(
        times=grid,
        tables=tuple(
            part.reshape(-1, *table.shape) for part, table in zip(parts, tables, strict=True)
        ),
        evaluations=int(result.nfev),
        seconds=seconds,
    )
