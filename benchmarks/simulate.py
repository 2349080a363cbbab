"""Simulating the rescaled process: ergodax against numba and against a plain NumPy loop.

All simulate the same game and learners over the same steps in the same process, in turn, on one
core and on all. Compilation is reported apart. Numba's "generic" kernel handles any game, as
ergodax does; its "lanes" kernel is written by hand for games of 2 x 2 actions and 4 states, with
one vector register per table entry. The numba baselines do not compensate for rounding; ergodax in
float32 does, at any scale.

Usage: python benchmarks/simulate.py [--quick]
"""

import argparse
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

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


class RothErev(ex.AbstractLearner):
    """A user's own learner: propensities decay at rate phi and grow by the reward received."""

    phi: jax.Array = ex.hyper(0.01)

    def init(self, game, agent, *, key):  # noqa: D102
        return jnp.ones((game.num_states, game.num_actions[agent]))

    def policy(self, params, state):  # noqa: D102
        return params[state] / params[state].sum()

    def update(self, params, transition, game, agent):  # noqa: D102
        t = transition
        gain = t.reward * jax.nn.one_hot(t.action, params.shape[1])
        return ex.At((t.state,), self.phi * (gain - params[t.state]))


def ergodax(case: Case, dtype: str, runs: int, cores: int = 1, wrapped: Any = None):
    """A call for a number of steps; `wrapped` takes the place of the case's own."""
    wrapped = case.wrapped if wrapped is None else wrapped

    def call(steps: int):
        params0 = case.wrapped.init() if wrapped.game.initial.ndim == 2 else wrapped.init()
        return ex.simulate(
            wrapped,
            params0,
            np.linspace(0, steps / SCALE, 6),
            scale=SCALE,
            runs=runs,
            key=jax.random.key(0),
            dtype=dtype,
            initial_state=0,
            devices=jax.devices()[:cores],
        )

    return call


def numba(case: Case, dtype: str, runs: int, cores: int = 1, variant: str = "generic"):
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
            num_threads=cores,
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
        ts = start.ts[-1] + np.linspace(0, steps / SCALE, 6)[1:]
        sim = ex.simulate(
            case.wrapped,
            None,
            ts,
            scale=SCALE,
            key=jax.random.key(0),
            start=start,
            devices=jax.devices()[:1],
        )
        assert not sim.compensated
        return sim

    return call


def best(calls: dict[Any, Any], runs: int, seconds: float) -> dict[Any, float]:
    """Best of three rates, in million steps per second, of simulations `call(steps)` in turn.

    Every call is first run briefly, for compilation and to find how many steps fill the time.
    """
    steps = {}
    for name, call in calls.items():
        call(64)
        rate = call(640).steps_per_second / runs
        steps[name] = int(np.clip(rate * seconds, 640, 10**6))
    found = dict.fromkeys(calls, 0.0)
    for _ in range(3):
        for name, call in calls.items():
            found[name] = max(found[name], call(steps[name]).steps_per_second / 1e6)
    return found


def against_others(cases: list[Case], cores: int, seconds: float) -> str:
    """One row per game and precision."""
    rows = []
    for case in cases:
        runs = 1024 * cores if case.wrapped.game.num_states < 100 else 128 * cores
        for dtype in ("float32", "float64"):
            calls: dict[Any, Any] = {}
            for count in sorted({1, cores}):
                calls["ergodax", count] = ergodax(case, dtype, runs, count)
                calls["numba", count] = numba(case, dtype, runs, count)
            if case is cases[0]:
                calls["lanes"] = numba(case, dtype, runs, 1, "lanes")
                calls["NumPy"] = numpy(case)
            jax.clear_caches()
            compiling = calls["ergodax", 1](64).compile_seconds
            rate = best(calls, runs, seconds)
            one, all_cores = rate["ergodax", 1], rate["ergodax", cores]
            rows.append(
                [
                    case.name,
                    dtype,
                    f"{one:.3g}",
                    f"{rate['numba', 1]:.3g}",
                    f"{one / rate['numba', 1]:.2f}",
                    f"{all_cores:.3g}",
                    f"{all_cores / rate['numba', cores]:.2f}",
                    f"{all_cores / one / cores:.0%}",
                    f"{one / rate['lanes']:.2f}" if "lanes" in rate else "",
                    f"{one / rate['NumPy']:.0f}" if "NumPy" in rate else "",
                    f"{compiling:.1f}",
                ]
            )
    head = ["game", "precision", "ergodax", "numba", "ratio to numba", f"on {cores} cores"]
    head += ["ratio to numba", "share of perfect scaling", "ratio to numba by hand"]
    return table([*head, "ratio to NumPy loop", "compile s"], rows)


def other_ways(case: Case, seconds: float) -> str:
    """The paper's example with one thing changed at a time, in float32 on one core."""
    runs = 1024
    thetas = jnp.linspace(0.2, 0.8, runs)
    many = jax.vmap(lambda tau: _with_temperature(case.wrapped, tau))(thetas)
    own = ex.WrappedGame(case.wrapped.game, [RothErev(), RothErev()])
    calls = {
        "as it is": ergodax(case, "float32", runs),
        "additions not compensated": uncompensated(case, runs),
        "a user's own learner (Roth-Erev)": ergodax(case, "float32", runs, wrapped=own),
        "a game and learners of its own for every run": ergodax(
            case, "float32", runs, wrapped=many
        ),
        "numba": numba(case, "float32", runs),
    }
    rate = best(calls, runs, seconds)
    rows = [[name, f"{r:.3g}", f"{r / rate['numba']:.2f}"] for name, r in rate.items()]
    return table(["way", "million steps/s", "ratio to numba"], rows)


def _with_temperature(wrapped: ex.WrappedGame, tau: jax.Array) -> ex.WrappedGame:
    return eqx.tree_at(
        lambda w: [learner.exploration.temperature for learner in w.learners], wrapped, [tau, tau]
    )


def growth(cases: dict[Any, tuple[Case, int]], what: str, seconds: float) -> str:
    """Rate and cost of a step for games or numbers of runs that grow, float32 on one core."""
    rows = []
    for size, (case, runs) in cases.items():
        rate = best({"": ergodax(case, "float32", runs)}, runs, seconds)[""]
        rows.append([str(size), f"{rate:.3g}", f"{1e3 / rate:.3g}"])
    return table([what, "million steps/s", "ns per step of one run"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer games, shorter runs")
    quick = parser.parse_args().quick
    ex.use_all_cores()
    jax.config.update("jax_enable_x64", True)
    cores, seconds = len(jax.devices()), 0.3 if quick else 1.0
    print(f"Million steps per second, best of 3 calls of about {seconds} s.\n{machine()}\n")

    example = papers_example()
    cases = [example, random_game(16, 4, 2, "dense"), random_game(225, 15, 2, "sure", greedy=True)]
    if not quick:
        cases[2:2] = [random_game(64, 8, 2, "sure"), random_game(4, 2, 3, "dense")]
    print(against_others(cases, cores, seconds), "\n")
    print(other_ways(example, seconds), "\n")
    sizes = (16, 512, 8192) if quick else (16, 64, 256, 512, 4096, 65536)
    print(growth({n: (example, n) for n in sizes}, "runs", seconds), "\n")
    if quick:
        return
    games = {n: (random_game(n, 3, 2, "sure"), 512) for n in (4, 16, 64, 225)}
    print(growth(games, "states (3 actions, 2 agents)", seconds), "\n")
    games = {n: (random_game(4, 2, n, "sure"), 512) for n in (1, 2, 3, 4)}
    print(growth(games, "agents (4 states, 2 actions)", seconds))


if __name__ == "__main__":
    main()
