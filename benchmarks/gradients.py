"""Derivatives of the averaged flow: accuracy and cost of every method, in one process.

Error: largest error over largest entry of the derivative of x(T) by a parameter (or of one
cotangent's product with it), worst parameter, against the reference. Cost: ratio to the compiled
forward solve at the same tolerance. Compilation is reported apart.

Usage: python benchmarks/gradients.py [--quick]
"""

import argparse
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import ergodax as ex
from _common import best_of, golden, machine, table

NAMES = ("alpha", "gamma", "tau", "eps")


def reference(case):
    """A golden case as a function of theta `[p]`, theta, and the derivatives `[d, p]` of x(T)."""
    values = golden(case)
    agents = range(len(values["alpha"]))
    own = case == "mixed"
    keys = [(n, i) for n in NAMES for i in agents] if own else [(n, 0) for n in NAMES]
    theta = jnp.array([values[name][agent] for name, agent in keys])
    suffix = [f"dxT_d{name}{agent if own else ''}" for name, agent in keys]
    derivatives = np.stack([values[name] for name in suffix], axis=-1)
    game = ex.MarkovGame.from_dense(values["T"], values["R"])

    def build(theta):
        def learner(agent):
            mine = [theta[keys.index((name, agent if own else 0))] for name in NAMES]
            return ex.QLearning(*mine[:2], ex.EpsilonSoftmax(*mine[2:]))

        learners = [learner(agent) for agent in agents]
        wrapped = ex.WrappedGame(game, learners)
        return wrapped, ravel_pytree(wrapped.init())[1](values["x0"])

    return build, theta, derivatives, values["times"][-1:]


def ring(num_states):
    """Two agents with two actions who move on a ring of states, and the theta of `build`: alpha."""
    rng = np.random.default_rng(0)
    states = np.arange(num_states)
    next_state = (states[:, None, None] + np.array([[0, 1], [-1, 2]])) % num_states
    game = ex.MarkovGame.deterministic(next_state, rng.normal(size=(num_states, 2, 2, 2)))

    def build(theta):
        learners = [ex.Sarsa(rate, 0.8, ex.EpsilonSoftmax(0.5, 0.1)) for rate in theta]
        wrapped = ex.WrappedGame(game, learners)
        return wrapped, wrapped.init()

    return build, jnp.array([0.5, 0.6])


def final(build, ts, **options):
    def end(theta):
        params = ex.solve(*build(theta), ts, **options).params
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[-1], params))[0]

    return end


def timed(function, *args, repeat):
    """The result, the shortest time and the time to compile, in seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    first = time.perf_counter() - start
    taken = best_of(repeat, lambda: function(*args))
    return result, taken, first - taken


def methods(case, repeat, quick):
    build, theta, expected, ts = reference(case)
    cotangent = np.random.default_rng(0).normal(size=len(expected))
    forward = jax.jit(final(build, ts))
    _, base, compiled = timed(forward, theta, repeat=repeat)
    size = np.abs(expected).max(axis=0)
    rows = [[case, "forward solve", f"{base * 1e3:.2f}", "1.0", "", f"{compiled:.1f}"]]

    def row(name, error, taken, compiled):
        cells = [f"{taken * 1e3:.2f}", f"{taken / base:.1f}", f"{error:.1e}", f"{compiled:.1f}"]
        rows.append([case, name, *cells])

    def reverse(name, **options):
        end = final(build, ts, **options)
        gradient = jax.jit(jax.grad(lambda theta: end(theta) @ cotangent))
        found, taken, compiled = timed(gradient, theta, repeat=repeat)
        row(name, np.max(np.abs(found - cotangent @ expected) / size), taken, compiled)

    reverse("solve, reverse (default)")
    tight = {"rtol": 1e-12, "atol": 1e-12}
    checkpoint = diffrax.RecursiveCheckpointAdjoint()
    reverse("RecursiveCheckpointAdjoint", adjoint=checkpoint)
    if not quick:
        reverse("RecursiveCheckpointAdjoint, 1e-12", adjoint=checkpoint, **tight)
        backsolve = diffrax.BacksolveAdjoint(solver=diffrax.Tsit5())
        reverse("BacksolveAdjoint", adjoint=backsolve)
        ahead = jax.jit(jax.jacfwd(final(build, ts)))
        found, taken, compiled = timed(ahead, theta, repeat=repeat)
        error = np.max(np.abs(found - expected).max(axis=0) / size)
        row("solve, forward (default), all of theta", error, taken, compiled)

    @jax.jit
    def together(theta):
        derivatives = ex.sensitivities(build, theta, ts).derivatives
        return jnp.concatenate([leaf[-1].reshape(-1, len(theta)) for leaf in derivatives])

    found, taken, compiled = timed(together, theta, repeat=repeat)
    error = np.max(np.abs(found - expected).max(axis=0) / size)
    row(f"sensitivities, all {len(theta)} of theta", error, taken, compiled)
    return rows


def against_others(repeat):
    """A gradient by 35 parameters against differences, and the solve against SciPy's."""
    build, theta, _, ts = reference("random")
    wrapped, params0 = build(theta)
    rewards = wrapped.game.rewards
    flat = rewards.ravel()[:35]

    def end(part, tol=1e-8):
        changed = rewards.ravel().at[:35].set(part).reshape(rewards.shape)
        moved = ex.WrappedGame(
            ex.MarkovGame(wrapped.game.successors, wrapped.game.probabilities, changed),
            wrapped.learners,
        )
        return ex.solve(moved, params0, ts, rtol=tol, atol=tol).params[0][-1, 0, 0]

    forward, gradient = jax.jit(end), jax.jit(jax.grad(end))
    _, base, _ = timed(forward, flat, repeat=repeat)
    exact, taken, _ = timed(gradient, flat, repeat=repeat)

    # The error of a solve is not smooth in theta, and is divided by the step: a difference needs a
    # long step, or a tight solve.
    def differences(step, tol):
        moves = step * np.eye(35)
        return (
            np.array([(forward(flat + h, tol) - forward(flat - h, tol)) / step for h in moves]) / 2
        )

    compared = []
    for step, tol in ((1e-2, 1e-8), (1e-4, 1e-8), (1e-3, 1e-12)):
        rough, slow, _ = timed(differences, step, tol, repeat=2)
        name = f"70 solves at {tol:g}, step {step:g}"
        compared.append((name, slow, np.abs(rough - exact).max() / np.abs(exact).max()))
    start, structure = ravel_pytree(params0)
    drift = jax.jit(lambda x: ravel_pytree(ex.drift(wrapped, structure(x)))[0])

    def scipy():
        options = {"method": "RK45", "rtol": 1e-8, "atol": 1e-8}
        return solve_ivp(lambda t, x: np.asarray(drift(x)), (0, ts[-1]), start, **options).y

    _, other, _ = timed(scipy, repeat=2)
    return [
        ["forward solve", f"{base * 1e3:.2f}", "1.0", ""],
        ["jax.grad by 35 rewards", f"{taken * 1e3:.2f}", f"{taken / base:.1f}", ""],
        *(
            [name, f"{slow * 1e3:.2f}", f"{slow / base:.1f}", f"{error:.1e}"]
            for name, slow, error in compared
        ),
        ["SciPy RK45, the same jitted drift", f"{other * 1e3:.2f}", f"{other / base:.1f}", ""],
    ]


def growth(num_states, repeat):
    build, theta = ring(num_states)
    end = final(build, jnp.array([10.0]))
    _, base, first = timed(jax.jit(end), theta, repeat=repeat)
    gradient = jax.jit(jax.grad(lambda theta: end(theta).sum()))
    _, taken, second = timed(gradient, theta, repeat=repeat)
    numbers = [f"{base * 1e3:.2f}", f"{taken * 1e3:.2f}", f"{taken / base:.1f}"]
    return [str(num_states), str(4 * num_states), *numbers, f"{first:.1f} + {second:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases, under two minutes")
    quick = parser.parse_args().quick
    repeat = 5 if quick else 10
    jax.config.update("jax_enable_x64", True)
    print(f"Derivatives at rtol = atol = 1e-8; best of {repeat} calls.\n{machine()}\n")
    cases = ("pd",) if quick else ("pd", "random", "mixed")
    rows = [row for case in cases for row in methods(case, repeat, quick)]
    print(table(["case", "method", "ms", "ratio to forward", "error", "compile s"], rows), "\n")
    print("`random`, one entry of x(T):\n")
    print(table(["", "ms", "ratio", "difference to jax.grad"], against_others(repeat)), "\n")
    print("Two SARSA learners on a ring of states, gradient of a sum by two rates:\n")
    rows = [growth(count, repeat) for count in ((4, 16) if quick else (4, 16, 64, 225))]
    header = ["states", "parameters", "forward ms", "gradient ms", "ratio", "compile s"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
