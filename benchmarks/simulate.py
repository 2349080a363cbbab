"""Simulating the rescaled process: ergodax against numba and against a plain NumPy loop.

All simulate the same game and learners over the same steps, in turn in one process: a process that
uses one core, and one that uses all. Compilation is reported apart. Numba's "generic" kernel
handles any game, as ergodax does; its "lanes" kernel is written by hand for games of 2 x 2 actions
and 4 states, with one vector register per table entry. Numba does not compensate for rounding;
ergodax does in float32.

Usage: python benchmarks/simulate.py [--quick] [--only greedy]
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import ergodax as ex
from _common import golden, machine, q_learners, table
from baselines import numba_loop, numpy_loop

SCALE = 10.0


class Case(NamedTuple):
    """A game of Q-learners in the form that every implementation takes."""

    name: str
    wrapped: ex.WrappedGame
    rewards: np.ndarray
    hyper: list[Any]
    tables: list[np.ndarray]
    transitions: dict[str, np.ndarray]


def papers_example() -> Case:
    values = golden("pd")
    wrapped = q_learners(values)
    tables = [np.asarray(leaf) for leaf in wrapped.init()]
    hyper = [values[name] for name in ("alpha", "gamma", "tau", "eps")]
    following = {"next_state": values["T"].argmax(axis=-1)}
    return Case("paper's example", wrapped, values["R"], hyper, tables, following)


def random_game(states: int, actions: int, agents: int, kernel: str, greedy: bool = False) -> Case:
    rng = np.random.default_rng(0)
    shape = (states, *(actions,) * agents)
    rewards = rng.normal(size=(*shape, agents))
    if kernel == "dense":
        law = rng.dirichlet(np.ones(states), size=shape)
        game, following = ex.MarkovGame.from_dense(law, rewards), {"kernel": law}
    else:
        successors = rng.integers(states, size=shape)
        game = ex.MarkovGame.deterministic(successors, rewards)
        following = {"next_state": successors}
    rule = ex.EpsilonGreedy(0.1) if greedy else ex.EpsilonSoftmax(0.5, 0.1)
    wrapped = ex.WrappedGame(game, [ex.QLearning(0.1, 0.9, rule)] * agents)
    tables = [np.zeros((states, actions))] * agents
    hyper = [0.1, 0.9, 0.0 if greedy else 0.5, 0.1]
    name = f"{states} states x {actions} actions, {agents} agents, {kernel}"
    return Case(name + (", greedy" if greedy else ""), wrapped, rewards, hyper, tables, following)


def with_schedules(case: Case) -> dict[str, Any]:
    """The case's game with learners whose hyper-parameters change with time, and with its own."""
    schedules, softmax = ex.schedules, ex.EpsilonSoftmax(0.5, 0.1)
    if case.wrapped.learners[0].exploration.continuous:
        falling, cooling = schedules.power(0.01, 0.6), schedules.exponential(0.5, 1e-4)
        piecewise = schedules.piecewise([0, 50, 200], [0.01, 0.02, 0.005])
        cosine = schedules.from_optax(optax.cosine_decay_schedule(0.01, 1000))
        learners = {
            "power and exponential": ex.QLearning(falling, 0.9, ex.EpsilonSoftmax(cooling, 0.1)),
            "piecewise": ex.QLearning(piecewise, 0.9, softmax),
            "from optax": ex.QLearning(cosine, 0.9, softmax),
        }
    else:  # so slow that it explores as much as the number
        fading = ex.EpsilonGreedy(schedules.exponential(0.1, 1e-9))
        learners = {"exponential epsilon": ex.QLearning(0.1, 0.9, fading)}
    games = {name: ex.WrappedGame(case.wrapped.game, [own] * 2) for name, own in learners.items()}
    return {"numbers": case.wrapped} | games


class RothErev(ex.AbstractLearner):
    """A user's own learner: propensities decay at rate phi and grow by the reward received."""

    phi: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):
        return jnp.ones((game.num_states, game.num_actions[agent]))

    def policy(self, params, state):
        return params[state] / params[state].sum()

    def update(self, params, transition, game, agent):
        t = transition
        gain = t.reward * jax.nn.one_hot(t.action, params.shape[1])
        return ex.At((t.state,), self.phi * (gain - params[t.state]))


def ergodax(case: Case, dtype: str, runs: int, wrapped: Any = None):
    """A call for a number of steps; `wrapped` takes the place of the case's own."""
    wrapped = case.wrapped if wrapped is None else wrapped

    def call(steps: int):
        params0 = case.wrapped.init() if wrapped.game.initial.ndim == 2 else wrapped.init()
        times = np.linspace(0, steps / SCALE, 6)
        options = dict(runs=runs, dtype=dtype, initial_state=0, key=jax.random.key(0))
        return ex.simulate(wrapped, params0, times, scale=SCALE, **options)

    return call


def numba(case: Case, dtype: str, runs: int, variant: str = "generic"):
    def call(steps: int):
        return numba_loop.simulate(
            case.rewards,
            *case.hyper,
            case.tables,
            np.linspace(0, steps / SCALE, 6),
            **case.transitions,
            scale=SCALE,
            runs=runs,
            dtype=np.dtype(dtype),
            variant=variant,
            num_threads=jax.device_count(),
        )

    return call


def numpy(case: Case):
    def call(steps: int):
        times = [0.0, min(steps, 2000) / SCALE]
        return numpy_loop.simulate(
            case.rewards, *case.hyper, case.tables, times, **case.transitions, scale=SCALE, runs=4
        )

    return call


def uncompensated(case: Case, runs: int):
    """Float32 without compensation: runs that go on from where no remainders are kept."""
    start = ergodax(case, "float32", runs)(64)
    start = eqx.tree_at(lambda s: s.final, start, start.final._replace(compensation=None))

    def call(steps: int):
        times = start.ts[-1] + np.linspace(0, steps / SCALE, 6)[1:]
        options = dict(scale=SCALE, key=jax.random.key(0), start=start)
        sim = ex.simulate(case.wrapped, None, times, **options)
        assert not sim.compensated
        return sim

    return call


def best(calls: dict[str, Any], runs: int, seconds: float) -> dict[str, float]:
    """Best of three rates, in million steps per second, of simulations `call(steps)` in turn.

    Every call is first run briefly, for compilation and to find how many steps fill the time.
    """
    steps = {}
    for name, call in calls.items():
        call(64)
        count = 640
        while (taken := call(count)).steps_per_second * seconds > 2 * count * runs:
            count *= 2
        steps[name] = int(np.clip(taken.steps_per_second / runs * seconds, 640, 10**6))
    found = dict.fromkeys(calls, 0.0)
    for _ in range(3):
        for name, call in calls.items():
            found[name] = max(found[name], call(steps[name]).steps_per_second / 1e6)
    return found


def measure(quick: bool, only: str) -> dict[str, Any]:
    """All rates of one process, by table and row; or those of the games so named."""
    seconds = 0.3 if quick else 1.0
    cores = jax.device_count()
    example = papers_example()
    cases = [
        example,
        random_game(16, 4, 2, "dense"),
        random_game(225, 15, 2, "deterministic", greedy=True),
    ]
    if not quick:
        cases[2:2] = [random_game(64, 8, 2, "deterministic"), random_game(4, 2, 3, "dense")]
    games: dict[str, Any] = {}
    for case in (case for case in cases if only in case.name):
        runs = (1024 if case.wrapped.game.num_states < 100 else 128) * cores
        for dtype in ("float32", "float64"):
            calls: dict[str, Any] = {
                "ergodax": ergodax(case, dtype, runs),
                "numba": numba(case, dtype, runs),
            }
            if case is example:
                calls["lanes"] = numba(case, dtype, runs, "lanes")
                if cores == 1:
                    calls["NumPy"] = numpy(case)
            compiling = calls["ergodax"](64).compile_seconds
            # Longer where whole tables are prepared before the first step.
            rates = best(calls, runs, 10 * seconds if "greedy" in case.name else seconds)
            games[f"{case.name}|{dtype}"] = rates | {"compile": compiling}
    if cores > 1 or only:
        return {"games": games}

    runs = 1024
    many = jax.vmap(lambda tau: _with_temperature(example.wrapped, tau))(
        jnp.linspace(0.2, 0.8, runs)
    )
    own = ex.WrappedGame(example.wrapped.game, [RothErev(), RothErev()])
    calls = {
        "as it is": ergodax(example, "float32", runs),
        "additions not compensated": uncompensated(example, runs),
        "a user's own learner (Roth-Erev)": ergodax(example, "float32", runs, own),
        "a game and learners of its own for every run": ergodax(example, "float32", runs, many),
        "numba": numba(example, "float32", runs),
    }
    ways = best(calls, runs, seconds)
    over_time = {}
    for case, count in ((example, runs), (cases[-1], 128)):
        for dtype in ("float32", "float64"):
            calls = {
                name: ergodax(case, dtype, count, own) for name, own in with_schedules(case).items()
            }
            over_time[f"{case.name}|{dtype}"] = best(calls, count, seconds)

    def growth(sizes: dict[int, tuple[Case, int]]) -> dict[int, float]:
        return {
            size: best({"": ergodax(case, "float32", count)}, count, seconds)[""]
            for size, (case, count) in sizes.items()
        }

    counts = (16, 512, 8192) if quick else (16, 64, 256, 512, 4096, 65536)
    grown = {"runs": growth({n: (example, n) for n in counts})}
    if not quick:
        grown["states (3 actions, 2 agents)"] = growth(
            {n: (random_game(n, 3, 2, "deterministic"), 512) for n in (4, 16, 64, 225)}
        )
        grown["agents (4 states, 2 actions)"] = growth(
            {n: (random_game(4, 2, n, "deterministic"), 512) for n in (1, 2, 3, 4)}
        )
    return {"games": games, "ways": ways, "schedules": over_time, "growth": grown}


def _with_temperature(wrapped: ex.WrappedGame, tau: jax.Array) -> ex.WrappedGame:
    return eqx.tree_at(
        lambda w: [learner.exploration.temperature for learner in w.learners], wrapped, [tau, tau]
    )


def report(one: dict[str, Any], several: dict[str, Any], cores: int) -> None:
    """Prints the tables: rates on one core, and on several."""
    rows = []
    for key, rate in one["games"].items():
        shared, mine = several["games"][key], rate["ergodax"]
        row = [*key.split("|"), f"{mine:.3g}", f"{rate['numba']:.3g}"]
        row += [f"{mine / rate['numba']:.2f}", f"{shared['ergodax']:.3g}"]
        row += [f"{shared['ergodax'] / shared['numba']:.2f}"]
        row += [f"{shared['ergodax'] / mine / cores:.0%}"]
        row += [f"{mine / rate[name]:.2f}" if name in rate else "" for name in ("lanes", "NumPy")]
        rows.append([*row, f"{rate['compile']:.1f}"])
    head = ["game", "precision", "ergodax", "numba", "ratio", f"ergodax, {cores} cores"]
    head += ["ratio to numba", "share of perfect scaling", "ratio to numba by hand"]
    print(table([*head, "ratio to NumPy loop", "compile s"], rows), "\n")
    if "ways" not in one:
        return
    ways = one["ways"]
    rows = [[name, f"{r:.3g}", f"{r / ways['numba']:.2f}"] for name, r in ways.items()]
    head = ["paper's example, float32, one core", "million steps/s", "ratio to numba"]
    print(table(head, rows), "\n")
    rows = [
        [*key.split("|"), name, f"{rate:.3g}", f"{rate / rates['numbers']:.2f}"]
        for key, rates in one["schedules"].items()
        for name, rate in rates.items()
    ]
    head = ["game", "precision", "hyper-parameters", "million steps/s", "ratio to numbers"]
    print(table(head, rows), "\n")
    for name, rates in one["growth"].items():
        rows = [[str(size), f"{r:.3g}", f"{1e3 / r:.3g}"] for size, r in rates.items()]
        print(table([name, "million steps/s", "ns per step of one run"], rows), "\n")


def main() -> None:
    """Runs this script once per number of cores, and prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer games, shorter runs")
    parser.add_argument("--only", default="", help="games whose names contain this, and no more")
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cores:
        ex.use_all_cores(options.cores)
        jax.config.update("jax_enable_x64", True)
        print(json.dumps(measure(options.quick, options.only)))
        return
    cores = os.cpu_count() or 1
    found = []
    for count in (1, cores):
        command = [sys.executable, __file__, "--cores", str(count)]
        command += ["--quick"] * options.quick + ["--only", options.only]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"Million steps per second, best of 3 calls.\n{machine()}\n")
    report(*found, cores)


if __name__ == "__main__":
    main()
