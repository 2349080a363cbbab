"""Sweeps of the averaged ODE and of simulations: ms per parameter set, against one set at a time.

The paper's example at random learning rates, discounts and temperatures, to t = 1000 with two save
times. The baselines solve the same sets one by one: a Python loop over `ergodax.solve`, and SciPy's
`solve_ivp` calling the same compiled drift at the same tolerance. Then the growth with the number
of states: the dilemma with one to four remembered rounds. Last, simulations of 2000 steps, against
a Python loop over `ergodax.simulate`.

Usage: python benchmarks/sweep.py [--quick]
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import ergodax as ex
from _common import golden, machine, q_learners, q_learners_at, table
from ergodax.model.observable import parameters_and_policies

TOLERANCE = 1e-6
TIMES = np.array([500.0, 1000.0])
# Before the first array.
jax.config.update("jax_enable_x64", True)
ex.use_all_cores()
PAPER = q_learners(golden("pd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sweeps")
    quick = parser.parse_args().quick
    print(f"Sweeps, the averaged ODE at rtol = atol = {TOLERANCE:g}, float64.\n{machine()}\n")
    print(number_of_sets((10, 100, 1000) if quick else (10, 100, 1000, 10000)))
    print()
    print(number_of_states((1, 2, 3) if quick else (1, 2, 3, 4), 32 if quick else 128))
    print()
    print(number_of_runs((16, 64) if quick else (1, 16, 64, 256, 1024, 4096), 64))


def build(theta):
    """The paper's example at other hyper-parameters."""
    return q_learners_at(PAPER, theta)


def random_design(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "alpha": rng.uniform(0.005, 0.02, count),
        "gamma": rng.uniform(0.8, 0.95, count),
        "tau": rng.uniform(0.3, 1.0, count),
    }


def number_of_sets(counts: tuple[int, ...]) -> str:
    rows = []
    for count in counts:
        first, warm, data = timed_sweep(build, random_design(count))
        slow = one_by_one(min(count, 50), data)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append(
            [
                str(count),
                f"{warm * 1e3 / count:.3f}",
                *(f"{taken * 1e3:.2f} ({taken * count / warm:.1f})" for taken in slow),
                f"{first - warm:.1f}",
                f"{data.nbytes / 2**20:.1f}",
                f"{peak:.0f}",
            ]
        )
    header = ["sets", "sweep, ms per set", "loop over solve (ratio)", "SciPy RK45 (ratio)"]
    return table([*header, "compile s", "result MiB", "peak memory of the process MiB"], rows)


def timed_sweep(build, thetas):
    """Seconds of the first and of the best later call, checks and labels included."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        data = ex.sweep(build, thetas, TIMES, design="paired", rtol=TOLERANCE, atol=TOLERANCE)
        taken.append(time.perf_counter() - start)
    return taken[0], min(taken[1:]), data


def one_by_one(count: int, data) -> tuple[float, float]:
    """Seconds per set of a Python loop over `solve`, and of SciPy on the same drift."""
    sets = [
        {name: jnp.asarray(float(data[name][k])) for name in ("alpha", "gamma", "tau")}
        for k in range(count)
    ]

    def loop():
        for theta in sets:
            jax.block_until_ready(
                ex.solve(*build(theta), TIMES, rtol=TOLERANCE, atol=TOLERANCE).params
            )

    unravel = ravel_pytree(PAPER.init())[1]

    @jax.jit
    def drift(x, theta):
        return ravel_pytree(ex.drift(build(theta)[0], unravel(x)))[0]

    x0 = np.asarray(ravel_pytree(PAPER.init())[0])

    def scipy_loop():
        for k, theta in enumerate(sets):
            ends = solve_ivp(
                lambda t, x, theta=theta: np.asarray(drift(x, theta)),
                (0, TIMES[-1]),
                x0,
                t_eval=TIMES,
                rtol=TOLERANCE,
                atol=TOLERANCE,
            ).y.T
            found = data.parameters[k].values.reshape(len(TIMES), -1)
            assert np.abs(ends - found).max() <= 1e-4 * np.abs(found).max()

    return best(loop) / count, best(scipy_loop) / count


def best(call) -> float:
    """Seconds of the better of two calls after one that compiles."""
    call()
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def number_of_states(memories: tuple[int, ...], count: int) -> str:
    payoffs = [[(3.0, 3.0), (1.5, 3.5)], [(3.5, 1.5), (2.0, 2.0)]]
    rows = []
    for memory in memories:
        game = ex.games.repeated(payoffs, memory=memory)

        def build(theta, game=game):
            learner = ex.QLearning(0.01, 0.9, ex.EpsilonSoftmax(theta["tau"], 0.1), 20.0)
            wrapped = ex.WrappedGame(game, [learner, learner])
            return wrapped, wrapped.init()

        first, warm, _ = timed_sweep(build, {"tau": np.linspace(0.3, 1.0, count)})
        parameters = 4 * game.num_states
        row = [
            game.num_states,
            parameters,
            count,
            f"{warm * 1e3 / count:.3f}",
            f"{first - warm:.1f}",
        ]
        rows.append([str(cell) for cell in row])
    return table(["states", "parameters", "sets", "sweep, ms per set", "compile s"], rows)


def number_of_runs(numbers: tuple[int, ...], count: int) -> str:
    rows = []
    thetas = random_design(count)
    key, times = jax.random.key(0), [1000.0, 2000.0]
    for runs in numbers:

        def sets(runs=runs):
            options = {"key": key, "runs": runs}
            return ex.sweep(build, thetas, times, design="paired", simulation=options)

        def loop(runs=runs):
            for k in range(count):
                wrapped, params0 = build({name: values[k] for name, values in thetas.items()})
                observe = parameters_and_policies(wrapped)
                own = jax.random.fold_in(key, k)
                ex.simulate(wrapped, params0, times, runs=runs, key=own, observe=observe)

        start = time.perf_counter()
        sets()
        first = time.perf_counter() - start
        swept, alone = best(sets), best(loop)
        rows.append(
            [
                str(runs),
                str(count),
                f"{swept * 1e3 / count:.2f}",
                f"{alone * 1e3 / count:.2f} ({alone / swept:.1f})",
                f"{runs * times[-1] * count / swept / 1e6:.1f}",
                f"{first - swept:.1f}",
            ]
        )
    header = ["runs", "sets", "sweep, ms per set", "loop over simulate (ratio)"]
    return table([*header, "million steps/s", "compile s"], rows)


if __name__ == "__main__":
    main()
