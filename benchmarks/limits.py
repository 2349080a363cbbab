"""Where the limit theorem does not apply: the averaged ODE against what learners really do.

1. Argmax learners: share of mutual cooperation of two-price duopolists (den Boer, Meylahn and
   Schinkel) with exploration that decays, for softmax temperatures and for argmax, by scale N.
2. Sliding along a kink: the bias of the mean is of order 1/sqrt(N), not 1/N.
3. Nearly reducible chains: the ODE holds only where N exceeds the time the states take to mix.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import ergodax as ex
from _common import machine, table

PAYOFFS = [[(0.3375, 0.3375), (0.1180, 0.3679)], [(0.3679, 0.1180), (0.2229, 0.2229)]]
PERIODS = 80_000.0


class DecayingQLearning(ex.AbstractLearner):
    """Q-learning whose exploration epsilon is one more parameter: `epsilon *= exp(-beta)`."""

    temperature: jax.Array = ex.hyper(0.1)  # 0: argmax
    rate: jax.Array = ex.hyper(0.15)
    discount: jax.Array = ex.hyper(0.95)
    decay: jax.Array = ex.hyper(1e-4)
    start: jax.Array = ex.hyper(scalar=False, default=0.0)

    def init(self, game, agent, *, key):
        shape = (game.num_states, game.num_actions[agent])
        return {"table": jnp.broadcast_to(self.start, shape), "epsilon": jnp.ones(())}

    def policy(self, params, state):
        values, is_greedy = params["table"][state], self.temperature == 0
        warm = ex.EpsilonSoftmax(jnp.where(is_greedy, 1.0, self.temperature), params["epsilon"])
        return jnp.where(is_greedy, ex.EpsilonGreedy(params["epsilon"])(values), warm(values))

    def update(self, params, transition, game, agent):
        t, values = transition, params["table"]
        target = t.reward + self.discount * values[t.next_state].max()
        here = (t.state, t.action)
        return {
            "table": ex.At(here, self.rate * (target - values[here])),
            "epsilon": params["epsilon"] * jnp.expm1(-self.decay),
        }


class Greedy(ex.AbstractLearner):
    """One state, two actions, a maximum of nearly equal values: the flow rests on a kink."""

    def init(self, game, agent, *, key):
        return jnp.zeros((2, 2))

    def policy(self, params, state):
        return jnp.full(2, 0.5)

    def maximised(self, params):
        return params[1:]

    def update(self, params, transition, game, agent):
        # Row 1 tracks two rewards of equal mean; the first entry of row 0, their maximum.
        t = transition
        track = jnp.zeros((2, 2)).at[1, t.action].set(t.reward - params[1, t.action])
        return track.at[0, 0].set(params[1].max() - params[0, 0])


def cooperation(quick: bool) -> str:
    game = ex.games.repeated(PAYOFFS)
    start = np.mean(np.array(PAYOFFS)[..., 0], axis=1) / 0.05
    rows = []
    sessions = {1.0: 4096, 10.0: 1024, 50.0: 256} if not quick else {1.0: 512, 5.0: 64}
    for name, temperature in (("softmax 0.1", 0.1), ("softmax 0.01", 0.01), ("argmax", 0.0)):
        learners = [DecayingQLearning(temperature, start=start)] * 2
        wrapped = ex.WrappedGame(game, learners)
        cells = []
        for scale, runs in sessions.items():
            simulation = ex.simulate(
                wrapped,
                wrapped.init(),
                [PERIODS],
                scale=scale,
                runs=runs,
                key=jax.random.key(0),
                observe=Cooperation(wrapped),
            )
            # The share in the long run of the chain that each session has ended in.
            cells.append(f"{simulation.mean[0]:.3f} ({simulation.standard_error[0]:.3f})")
        ode = "none: drift discontinuous"
        if temperature > 0:
            solution = ex.solve(wrapped, wrapped.init(), [PERIODS], throw=False)
            end = jax.tree.map(lambda leaf: leaf[0], solution.params)
            ode = f"{float(Cooperation(wrapped)(end)):.3f}"
        rows.append([name, *cells, ode])
    head = ["policy", *(f"N = {scale:g} ({runs} sessions)" for scale, runs in sessions.items())]
    return table([*head, "ODE"], rows)


class Cooperation:
    """Stationary probability of mutual cooperation at the parameters of one session."""

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __call__(self, params):
        # A little exploration, so that the long run does not depend on the last state.
        params = tuple(p | {"epsilon": jnp.maximum(p["epsilon"], 1e-3)} for p in params)
        law = jnp.ones(4) / 4
        chain = self.wrapped.frozen_chain(params)
        power = jax.lax.fori_loop(0, 14, lambda _, P: P @ P, chain)
        return (law @ power)[0]


def resting_on_a_kink(quick: bool) -> str:
    """E max exceeds the max of the means by sqrt(N) times a constant: 1 / sqrt(4 pi) per unit."""
    rewards = np.array([[[[1.0], [-1.0]], [[1.0], [-1.0]]]])
    game = ex.MarkovGame(np.zeros((1, 2, 2), int), np.full((1, 2, 2), 0.5), rewards)
    wrapped = ex.WrappedGame(game, [Greedy()])
    runs = 8192 if quick else 65_536
    rows = []
    for scale in (16.0, 64.0, 256.0):
        simulation = ex.simulate(
            wrapped, wrapped.init(), [10.0], scale=scale, runs=runs, key=jax.random.key(0)
        )
        mean = simulation.mean[0][0, 0, 0]
        error = simulation.standard_error[0][0, 0, 0]
        root = np.sqrt(scale)
        cells = (f"{root * mean:.3f} ({root * error:.3f})", f"{scale * mean:.2f}")
        rows.append([f"{scale:g}", *cells])
    return table(["N", "sqrt(N) bias (s.e.)", "N bias"], rows)


def nearly_reducible(quick: bool) -> str:
    """Two states that hardly communicate, unlike rewards: mixing takes 1 / (2 p) steps."""
    runs = 512 if quick else 4096
    rows = []
    for p in (0.1, 0.01, 0.001):
        kernel = np.array([[[1 - p, p]] * 2, [[p, 1 - p]] * 2])
        game = ex.MarkovGame.from_dense(kernel, np.array([[[1.0], [0.0]], [[0.0], [1.0]]]))
        learner = ex.QLearning(1.0, 0.5, ex.EpsilonSoftmax(0.2, 0.1))
        wrapped = ex.WrappedGame(game, [learner])
        comparison = ex.compare(
            wrapped, wrapped.init(), [1.0, 4.0], scale=20.0, runs=runs, key=jax.random.key(0)
        )
        theory = comparison.agreement
        z = theory if isinstance(theory, str) else f"{theory.mean_z:.1f}, {theory.variance_z:.1f}"
        gap = comparison.parameter_gap
        rows.append(
            [
                f"{p:g}",
                f"{comparison.separation:.3g}",
                f"{gap.largest:.4f} ({gap.standard_error:.4f})",
                z,
            ]
        )
    return table(
        ["p", "separation N / (mixing * rate)", "|mean - ODE| (s.e.)", "z mean, var"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sessions and runs")
    quick = parser.parse_args().quick
    ex.use_all_cores()
    jax.config.update("jax_enable_x64", True)
    print(machine())
    print("\nNearly reducible chains, N = 20\n")
    print(nearly_reducible(quick))
    print("\nResting on a kink\n")
    print(resting_on_a_kink(quick))
    print("\nShare of mutual cooperation after 80,000 periods\n")
    print(cooperation(quick))


if __name__ == "__main__":
    main()
