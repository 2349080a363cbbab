"""Simulating the rescaled process: ergodax against numba and against plain NumPy loops.

All simulate the same game and learners over the same steps in the same process. Compilation is
reported apart. The numba baselines run on one thread and on all cores; ergodax runs as JAX is
configured.

Usage: python benchmarks/simulate.py [--quick]
"""

import argparse
import os

import jax
import numpy as np

import ergodax as ex
from _common import golden, machine, q_learners, table
from baselines import numba_loop, numpy_loop

SCALE = 10.0
REPEAT = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    runs = 1024 if quick else 4096

    rows = []
    for case in ("pd", "random"):
        values = golden(case)
        ts = np.linspace(0, 1000, 11)
        rates: dict[tuple[str, str], tuple[float, float]] = {}
        wrapped = q_learners(values)
        params0 = wrapped.init()
        for dtype in ("float32", "float64"):

            def ergodax(dtype=dtype, wrapped=wrapped, params0=params0, ts=ts):
                return ex.simulate(
                    wrapped,
                    params0,
                    ts,
                    scale=SCALE,
                    runs=runs,
                    key=jax.random.key(0),
                    dtype=dtype,
                    initial_state=0,
                )

            rates["ergodax", dtype] = _best(ergodax)
            for variant in ("generic", "lanes") if case == "pd" else ("generic",):
                for threads in sorted({1, os.cpu_count() or 1}):

                    def numba(dtype=dtype, variant=variant, threads=threads, values=values, ts=ts):
                        return numba_loop.simulate(
                            *_inputs(values),
                            ts,
                            **_transitions(values),
                            scale=SCALE,
                            runs=runs,
                            dtype=np.dtype(dtype),
                            variant=variant,
                            num_threads=threads,
                        )

                    rates[f"numba, {variant}, {threads} threads", dtype] = _best(numba)
        loop = numpy_loop.simulate(
            *_inputs(values), ts[:2], **_transitions(values), scale=SCALE, runs=20 if quick else 60
        )
        rates["NumPy loop", "float64"] = loop.steps_per_second, 0.0
        for (design, dtype), (rate, compile_seconds) in rates.items():
            rows.append(
                [
                    case,
                    design,
                    dtype,
                    f"{rate / 1e6:.3g}",
                    f"{rates['ergodax', dtype][0] / rate:.3g}",
                    f"{compile_seconds:.2f}",
                ]
            )
    print(f"{runs} runs of {1000 * SCALE:.0f} steps; best of {REPEAT} calls.\n{machine()}\n")
    header = ["case", "design", "dtype", "million steps/s", "ergodax is faster by", "compile s"]
    print(table(header, rows))


def _best(call) -> tuple[float, float]:
    """Largest steps per second of several calls, and the first one's compilation in seconds."""
    results = [call() for _ in range(REPEAT)]
    return max(r.steps_per_second for r in results), results[0].compile_seconds


def _inputs(values):
    """Rewards, hyper-parameters and initial tables as the baselines take them."""
    states, *actions, _ = values["R"].shape
    starts = np.split(values["x0"], np.cumsum([states * count for count in actions])[:-1])
    tables = [start.reshape(states, -1) for start in starts]
    return [*(values[name] for name in ("R", "alpha", "gamma", "tau", "eps")), tables]


def _transitions(values):
    """The transition kernel as the baselines take it."""
    kernel = values["T"]
    if set(np.unique(kernel)) <= {0.0, 1.0}:
        return {"next_state": kernel.argmax(axis=-1)}
    return {"kernel": kernel}


if __name__ == "__main__":
    main()
