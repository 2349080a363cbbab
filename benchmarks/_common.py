"""What the benchmarks share: the paper's example, golden values, timing, tables."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import ergodax as ex

GOLDEN = Path(__file__).parent.parent / "tests" / "data" / "golden.npz"


def golden(case: str) -> dict[str, np.ndarray]:
    """Returns the reference values of one case."""
    with np.load(GOLDEN) as archive:
        return {key.split("/")[1]: archive[key] for key in archive if key.startswith(f"{case}/")}


def q_learners(values: dict[str, np.ndarray]) -> ex.WrappedGame:
    """Returns a reference case as a wrapped game of Q-learners."""
    game = ex.MarkovGame.from_dense(values["T"], values["R"])
    starts = np.split(
        values["x0"], np.cumsum([game.num_states * count for count in game.num_actions])[:-1]
    )
    learners = [
        ex.QLearning(alpha, gamma, ex.EpsilonSoftmax(tau, eps), start.reshape(game.num_states, -1))
        for alpha, gamma, tau, eps, start in zip(
            values["alpha"], values["gamma"], values["tau"], values["eps"], starts, strict=True
        )
    ]
    return ex.WrappedGame(game, learners)


def q_learners_at(like: ex.WrappedGame, theta: dict) -> tuple[ex.WrappedGame, tuple]:
    """Returns Q-learners with other hyper-parameters, all agents the same, and where they start."""
    learners = [
        ex.QLearning(
            theta["alpha"],
            theta["gamma"],
            ex.EpsilonSoftmax(theta["tau"], learner.exploration.epsilon),
            learner.initial,
        )
        for learner in like.learners
    ]
    wrapped = ex.WrappedGame(like.game, learners)
    return wrapped, wrapped.init()


def best_of(count: int, call: Callable[[], object]) -> float:
    """Returns the shortest wall time of several calls, in seconds, results waited for."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> str:
    """Returns one line that describes the machine and the software."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0].split(":")[1].strip() if lines else model
    device = jax.devices()[0].device_kind
    return (
        f"{model or 'unknown processor'}, {os.cpu_count()} cores; JAX on {device}; "
        f"jax {jax.__version__}, Python {platform.python_version()}"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
