"""Solving the averaged ODE: ergodax against SciPy's solvers on a vectorised NumPy drift.

Both solve the same reference cases at the same tolerance in the same process; errors are against
the reference solution (largest error / largest entry). Compilation is reported apart.

Usage: python benchmarks/solve.py [--repeat N]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex
from _common import best_of, golden, machine, q_learners, table
from baselines import scipy_flow

TOLERANCE = 1e-8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20, help="calls of which the best counts")
    repeat = parser.parse_args().repeat
    jax.config.update("jax_enable_x64", True)

    rows = []
    for case in ("pd", "random"):
        values = golden(case)
        wrapped, ts = q_learners(values), values["times"]
        params0 = wrapped.init()

        def solve(wrapped=wrapped, params0=params0, ts=ts):
            return ex.solve(wrapped, params0, ts, rtol=TOLERANCE, atol=TOLERANCE)

        start = time.perf_counter()
        solution = jax.block_until_ready(solve())
        first = time.perf_counter() - start
        ours = best_of(repeat, solve)
        flat = np.concatenate(
            [np.asarray(leaf).reshape(len(ts), -1) for leaf in solution.params], 1
        )
        rows.append(
            [case, "ergodax solve", *_cells(flat, values, ours, ours), f"{first - ours:.2f}"]
        )

        @jax.jit
        def gradient(learning_rate, wrapped=wrapped, params0=params0, ts=ts):
            def final_share(rate):
                learners = [
                    ex.QLearning(rate, lr.discount, lr.exploration, lr.initial)
                    for lr in wrapped.learners
                ]
                changed = ex.WrappedGame(wrapped.game, learners)
                end = ex.solve(changed, params0, ts, rtol=TOLERANCE, atol=TOLERANCE).params
                return changed.policies(jax.tree.map(lambda leaf: leaf[-1], end))[0][0, 0]

            return jax.grad(final_share)(learning_rate)

        rate = jnp.asarray(values["alpha"][0])
        start = time.perf_counter()
        jax.block_until_ready(gradient(rate))
        first = time.perf_counter() - start
        taken = best_of(repeat, lambda rate=rate, gradient=gradient: gradient(rate))
        cells = [f"{taken * 1e3:.2f}", f"{taken / ours:.2f}", "", f"{first - taken:.2f}"]
        rows.append([case, "ergodax reverse-mode gradient (compiled by jax.jit)", *cells])

        tables = [np.asarray(leaf) for leaf in params0]
        for method in ("RK45", "DOP853", "LSODA"):

            def baseline(values=values, method=method, tables=tables):
                names = ("T", "R", "alpha", "gamma", "tau", "eps")
                inputs = [values[name] for name in names]
                return scipy_flow.solve(
                    *inputs, tables, values["times"], method=method, rtol=TOLERANCE, atol=TOLERANCE
                )

            taken = best_of(repeat, lambda baseline=baseline: baseline().seconds)
            flat = np.concatenate([leaf.reshape(len(ts), -1) for leaf in baseline().tables], axis=1)
            rows.append([case, f"SciPy {method}", *_cells(flat, values, taken, ours), ""])
    print(f"Averaged ODE at rtol = atol = {TOLERANCE:g}; best of {repeat} calls.\n{machine()}\n")
    print(table(["case", "solver", "ms", "ratio to ergodax", "error", "compile s"], rows))


def _cells(flat: np.ndarray, values: dict[str, np.ndarray], taken: float, ours: float) -> list[str]:
    """Milliseconds, ratio and error of one solution."""
    error = np.abs(flat - values["x_t"]).max() / np.abs(values["x_t"]).max()
    return [f"{taken * 1e3:.2f}", f"{taken / ours:.2f}", f"{error:.1e}"]


if __name__ == "__main__":
    main()
