"""Makes the pictures of the page on plots: `python docs/pictures.py` writes docs/pictures/*.png."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex

jax.config.update("jax_enable_x64", True)
OUT = Path(__file__).parent / "pictures"
DPI = 100


def save(ax, name):
    ax.figure.savefig(OUT / f"{name}.png", dpi=DPI)


def over_time():
    """Two Q-learners in the paper's prisoner's dilemma."""
    explore = ex.EpsilonSoftmax(0.5, 0.1)
    wrapped = ex.WrappedGame(
        ex.games.prisoners_dilemma(), [ex.QLearning(0.05, 0.9, explore, 25.0)] * 2
    )
    ts = np.linspace(0.0, 400.0, 41)
    key = jax.random.key(0)
    comparison = ex.compare(wrapped, wrapped.init(), ts, scale=10, runs=200, key=key)
    simulation = ex.simulate(
        wrapped, wrapped.init(), ts, scale=10, runs=50, key=key, keep_runs=True
    )
    save(ex.plot.parameters(comparison, agent=0, state="DD"), "parameters")
    save(ex.plot.policies(simulation, agent=0, state="DD", sample_runs=20), "policies")
    save(ex.plot.state_distribution(comparison), "state_distribution")
    fast = [ex.QLearning(1.0, 0.9, explore, initial) for initial in (30.0, [22.0, 20.0])]
    wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(), fast)
    study = ex.convergence_study(
        wrapped, wrapped.init(), 4.0, scales=[32, 64, 128, 256, 512], runs=512, key=key
    )
    save(ex.plot.convergence(study), "convergence")


def flow():
    """A coordination game: three rest points, two basins."""
    payoffs = np.stack([np.eye(2)] * 2, axis=-1)
    game = ex.games.repeated(payoffs, memory=0, action_names=[["left", "right"]] * 2)
    learner = ex.QLearning(0.1, 0.0, ex.EpsilonSoftmax(0.3))
    wrapped = ex.WrappedGame(game, [learner, learner])
    key = jax.random.key(1)
    starts = tuple(jax.random.uniform(k, (200, 1, 2)) for k in jax.random.split(key))
    first = (jnp.array([[0.75, 0.2]]), jnp.array([[0.1, 0.55]]))
    solution = ex.solve(wrapped, first, np.linspace(0, 400, 200))
    found = ex.rest_points(wrapped, starts)
    runs = ex.simulate(
        wrapped, first, np.linspace(0, 400, 80), scale=20, runs=10, key=key, keep_runs=True
    )
    left = ((0, 0, "left"), (1, 0, "left"))
    ax = ex.plot.phase_portrait(solution, left, policy=True, rest_points=found, runs=runs)
    save(ax, "phase_portrait")
    save(ex.plot.basins(ex.basins(wrapped, starts, 2000.0), starts, left, policy=True), "basins")


def triangle():
    """Rock, paper, scissors between two actor-critics."""
    beats = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    names = [["rock", "paper", "scissors"]] * 2
    game = ex.games.repeated(np.stack([beats, beats.T], axis=-1), memory=0, action_names=names)
    learner = ex.ActorCritic(0.1, 0.1, 0.0)
    wrapped = ex.WrappedGame(game, [learner, learner])
    start = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.shape[-1]) * 0.5, wrapped.init())
    solution = ex.solve(wrapped, start, np.linspace(0, 300, 300))
    save(ex.plot.simplex(solution, agent=0, state=0), "simplex")


def quantities():
    """How cooperation depends on temperature and gain."""

    def build(theta):
        explore = ex.EpsilonSoftmax(theta["temperature"], 0.1)
        learner = ex.Sarsa(theta.get("rate", 0.05), 0.9, explore, 25.0)
        wrapped = ex.WrappedGame(ex.games.prisoners_dilemma(theta["gain"]), [learner, learner])
        return wrapped, wrapped.init()

    grid = {"temperature": np.linspace(0.2, 1.0, 9), "gain": np.linspace(1.1, 1.9, 9)}
    solved = ex.sweep(build, grid, [0.0, 2000.0])
    save(ex.plot.sweep(solved, "rewards", {"agent": 0}, gradient=True), "sweep")
    theta = {"temperature": 0.5, "gain": 1.5, "rate": 0.05}
    result = ex.sensitivities(build, theta, [0.0, 500.0])
    save(ex.plot.sensitivities(result, (0, "DD", "C"), theta=theta), "sensitivities")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    over_time()
    flow()
    triangle()
    quantities()
