"""Klein (2021): do firms that move in turns learn to fix a price?

Two firms sell the same good and set prices in turns. Each learns values of its price given the
other's, and updates them once the other has moved:
`Q(s, p) += alpha (r_t + delta r_{t+1} + delta^2 max_b Q(s', b) - Q(s, p))`.
Exploration falls from 1 to 1e-6 over the periods that they learn.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jaxtyping import Array, Float

from ..base.checks import check_count
from ..games import sequential
from ..model.exploration import EpsilonGreedy
from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner, At, Transition
from ..model.schedules import Exponential
from ..model.wrapped import WrappedGame
from ..outcomes import best_response, greedy, play, values
from ..results.labels import attributes
from ..simulation.simulate import simulate
from .agreement import Replication, mean_of, share_of

SOURCE = (
    "Klein (2021), Autonomous algorithmic collusion: Q-learning under sequential pricing, RAND "
    "Journal of Economics 52(3)"
)
PERIODS = 500_000
_PUBLISHED = 1000  # sessions
DISCOUNT = 0.95
_NASH = 1e-5  # the paper's tolerance of relative losses


class Memory(NamedTuple):
    """What a firm knows, or an increment of it.

    Attributes:
        values: of its price given the other's, `[m, m]`, the other's first.
        other: the other's price when it last moved.
        reward: its profit then; NaN before its first move.
    """

    values: Any
    other: Any
    reward: Any


class TurnLearner(AbstractLearner):
    """Q-learning over two periods, from one's own move to the next.

    Attributes:
        learning_rate: alpha.
        discount: delta, per period.
        exploration: by the values of the prices given the other's.
    """

    learning_rate: Scalar = hyper(0.3, within="[0, 1]")
    discount: Scalar = hyper(DISCOUNT, within="[0, 1)")
    exploration: EpsilonGreedy = EpsilonGreedy(0.1)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Memory:
        """Values of zero."""
        count = game.num_actions[agent]
        nothing = jnp.zeros(())
        return Memory(jnp.zeros((count, count)), nothing - 1, nothing)

    def policy(self, params: Memory, state: Array) -> Float[Array, " m"]:
        """Explores by the values given the other's price, also when it is not its turn."""
        return self.exploration(params.values[state % len(params.values)])

    def update(
        self, params: Memory, transition: Transition, game: MarkovGame, agent: int
    ) -> Memory:
        """Remembers at its own move, learns at the other's."""
        t, count = transition, len(params.values)
        mine, standing = t.state // count == agent, t.state % count
        # At the other's turn its own price stands, and the next state holds the other's new one.
        place = jnp.maximum(params.other, 0).astype(int), standing
        target = (
            params.reward
            + self.discount * t.reward
            + self.discount**2 * params.values[t.next_state % count].max()
        )
        error = jnp.where(mine | (params.other < 0), 0.0, target - params.values[place])
        return Memory(
            At(place, self.learning_rate * error),
            jnp.where(mine, standing.astype(params.other.dtype) - params.other, 0.0),
            jnp.where(mine, t.reward - params.reward, 0.0),
        )


def learners(intervals: int = 6, periods: int = PERIODS, rate: float = 0.3) -> WrappedGame:
    """The paper's firms: exploration falls to 1e-6 by the last period."""
    explore = EpsilonGreedy(Exponential(1.0, 6 * math.log(10) / periods))
    return WrappedGame(sequential(intervals), [TurnLearner(rate, DISCOUNT, explore)] * 2)


def replicate(sessions: int = 200, *, seed: int = 0, progress: bool = False) -> Replication:
    """Equilibria after learning, at the baseline of six intervals of prices.

    A session's outcome is the cycle of its greedy strategies from where it ended; firms are in
    equilibrium where neither could gain more than 1e-5 of its value there.

    Args:
        sessions: how many; the paper has 1000.
        seed: of the random numbers.
        progress: whether to show a bar.
    """
    sessions = check_count("sessions", sessions, least=2)
    wrapped = learners()
    game = wrapped.game
    runs = simulate(
        wrapped,
        wrapped.init(),
        [0.0, PERIODS],
        runs=sessions,
        key=jax.random.key(seed),
        dtype="float32",
        progress=progress,
    )
    if runs.final is None:
        raise KeyboardInterrupt
    # In either firm's turn the values are those given the other's price.
    learnt = [np.asarray(own.params.values) for own in runs.final.params]
    strategies, _ = greedy(game, tuple(np.tile(table, (1, 2, 1)) for table in learnt))
    policies = tuple(jax.nn.one_hot(own, learnt[0].shape[-1]) for own in strategies)
    end = np.asarray(runs.final.state)
    cycle = play(game, strategies, end)
    own = np.asarray(values(game, policies, DISCOUNT))[np.arange(sessions), end]
    best = np.stack(
        [np.asarray(best_response(game, policies, DISCOUNT, agent).values) for agent in range(2)],
        axis=-1,
    )[np.arange(sessions), end]
    optimality = own / best
    mean, profit = optimality.mean(axis=1), np.asarray(cycle.rewards)
    nash = (optimality > 1 - _NASH).all(axis=1)
    joint = nash & (np.abs(profit - 0.125) < 1e-6).all(axis=1)
    data = xarray.Dataset(
        {
            "profit": (("session", "agent"), profit, attributes("profit on the cycle")),
            "optimality": (
                ("session", "agent"),
                optimality,
                attributes("value over that of the best reply, where the session ended"),
            ),
            "cycle_length": ("session", np.asarray(cycle.length), attributes("periods of a cycle")),
        },
        attrs={"seed": seed},
    )
    return Replication(
        SOURCE,
        (
            share_of("share in Nash equilibrium", "0.667", nash, _PUBLISHED),
            share_of("share in it at the joint optimum", "0.241", joint, _PUBLISHED),
            mean_of("value as a share of the best reply's", "0.97", mean, mean.std(), _PUBLISHED),
        ),
        data,
        notes=(f"{sessions} sessions at {runs.steps_per_second / 1e6:.1f} million steps/s.",),
    )
