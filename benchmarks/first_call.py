"""First calls: what a user waits for before numbers come, and what a cache on disk saves.

Every call runs in a process of its own, which compiles all that it needs: cold; then in one that
also keeps its programs (`ex.keep_programs`); again in a third process, with those on disk; and
there once more, with all in memory. Seconds of processor time stand beside those of the clock,
which other work on the machine lengthens. Operations are those of StableHLO in all programs of a
call.

Usage: python benchmarks/first_call.py [--quick] [--states S ...]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex
from _common import machine, table

KEY = jax.random.key(0)
TS = np.linspace(0.0, 20.0, 21)


def game(states: int, rate=0.1):
    """Two Q-learners with two actions and random transitions to three successors."""
    rng = np.random.default_rng(states)
    shape = (states, 2, 2)
    successors = rng.integers(states, size=(*shape, 3))
    successors[..., 0] = (np.arange(states)[:, None, None] + 1) % states
    probabilities = np.broadcast_to([0.5, 0.3, 0.2], (*shape, 3))
    rewards = rng.normal(size=(*shape, 3, 2))
    learners = [ex.QLearning(rate, 0.6, ex.EpsilonSoftmax(1.0, 0.1)) for _ in range(2)]
    wrapped = ex.WrappedGame(ex.MarkovGame(successors, probabilities, rewards), learners)
    values = np.random.default_rng(1).normal(size=(2, states, 2))
    return wrapped, tuple(map(jnp.asarray, values))


def calls(states: int):
    """Every public function by name, with the largest number of states it is asked for."""
    wrapped, params = game(states)

    def build(theta):
        return game(states, theta["rate"])

    def reward(rate):
        return ex.solve(*game(states, rate), TS).rewards[-1, 0]

    guesses = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), params)
    study = dict(scales=(8, 16, 32), runs=64, key=KEY, initial_state=0)
    return {
        "drift": (lambda: ex.drift(wrapped, params), 225),
        "solve": (lambda: ex.solve(wrapped, params, TS).params, 225),
        "jax.grad of solve": (lambda: jax.grad(reward)(0.1), 225),
        "sensitivities": (lambda: ex.sensitivities(build, {"rate": 0.1}, TS).params, 225),
        "kinks": (lambda: ex.kinks(wrapped, params, TS) and None, 225),
        "rest_point": (lambda: ex.rest_point(wrapped, params).params, 64),
        "rest_points": (lambda: ex.rest_points(wrapped, guesses)[0].params, 64),
        "basins": (lambda: ex.basins(wrapped, guesses, 2000.0).ends, 64),
        "noise_covariance": (lambda: ex.noise_covariance(wrapped, params), 64),
        "fluctuations": (lambda: ex.fluctuations(wrapped, params, TS).covariance, 16),
        "fluctuations, bias": (lambda: ex.fluctuations(wrapped, params, TS, bias=True).bias, 16),
        "simulate": (lambda: ex.simulate(wrapped, params, TS, runs=64, key=KEY).mean, 225),
        "compare": (
            lambda: ex.compare(wrapped, params, TS, runs=64, key=KEY).parameter_gap.largest,
            16,
        ),
        "convergence_study": (
            lambda: ex.convergence_study(wrapped, params, 2.0, **study).weak,
            16,
        ),
        "sweep": (lambda: ex.sweep(build, {"rate": [0.1, 0.2]}, TS).parameters_0.values, 64),
    }


def measure(name: str, states: int) -> None:
    """Prints seconds and operations of a first and a second call in this process."""
    jax.config.update("jax_enable_x64", True)
    if "ERGODAX_CACHE" in os.environ:
        ex.keep_programs()
    jax.block_until_ready(jnp.zeros(3) + 1)
    call, _ = calls(states)[name]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_dump_ir_to", folder)
        for _ in range(2):
            clock, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            found += [time.perf_counter() - clock, time.process_time() - processor]
        texts = [path.read_text() for path in Path(folder).glob("*.mlir")]
    operations = sum(len(re.findall(r' = "?(?:stablehlo|chlo)\.', text)) for text in texts)
    print(json.dumps([*found, operations]))


def in_a_process(name: str, states: int, cache: str | None = None) -> list[float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", name, "--states", str(states)]
    kept = ("ERGODAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    if cache is not None:
        environment |= {"ERGODAX_CACHE": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, five functions")
    parser.add_argument("--states", type=int, nargs="+", default=[4, 16, 64, 225])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.states[0])
    quick = ("drift", "solve", "jax.grad of solve", "fluctuations, bias", "rest_point")
    header = [
        "states",
        "call",
        "cold s",
        "(processor)",
        "kept s",
        "(processor)",
        "cached s",
        "(processor)",
        "second call ms",
    ]
    rows = []
    for states in options.states[:1] if options.quick else options.states:
        for name, (_, most) in calls(states).items():
            if states > most or (options.quick and name not in quick):
                continue
            cold = in_a_process(name, states)
            with tempfile.TemporaryDirectory() as cache:
                kept, cached = (in_a_process(name, states, cache) for _ in range(2))
            seconds = [f"{x:.2f}" for x in (*cold[:2], *kept[:2], *cached[:2])]
            cells = [str(states), name, *seconds, f"{1e3 * cached[2]:.1f}", f"{cold[4]}"]
            rows.append(cells)
            print("|", " | ".join(cells), "|", file=sys.stderr, flush=True)
    print(f"First calls in a process of their own.\n{machine()}\n")
    print(table([*header, "operations"], rows))


if __name__ == "__main__":
    main()
