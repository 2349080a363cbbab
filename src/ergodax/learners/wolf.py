"""Win or learn fast: policy hill-climbing with two rates (Bowling and Veloso 2002)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner, At, Transition
from .action_value import filled


class WolfParams(NamedTuple):
    """Parameters of a WoLF learner, or an increment of them.

    Attributes:
        Q: action values, `[S, A]`.
        policy: probabilities, `[S, A]`.
        average: the mean of the policies so far, `[S, A]`.
        visits: how many unscaled steps each state was visited for, `[S]`, from 1 on.
    """

    Q: Any
    policy: Any
    average: Any
    visits: Any


class WolfPHC(AbstractLearner):
    """WoLF-PHC: the policy climbs towards the best action, slowly when winning, fast when losing.

    Q is learned as in Q-learning. Each other action loses `min(pi(s,b), delta / (A - 1))`, the best
    action gains the sum; delta is `win_rate` where the policy's value exceeds that of the average
    policy and `lose_rate` otherwise (Bowling and Veloso 2002). The drift jumps where the best
    action changes, so that there is no averaged equation: it can be simulated only.

    Attributes:
        learning_rate: alpha of the action values, per unscaled step.
        discount: gamma, in [0, 1].
        win_rate: delta when winning, per unscaled step, in [0, 1].
        lose_rate: delta when losing, larger.
        epsilon: probability of a uniformly drawn action, in [0, 1].
        initial: initial action values, anything that broadcasts to `[S, A]`.
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    discount: Scalar = hyper(0.9, within="[0, 1]")
    win_rate: Scalar = hyper(0.01, within="[0, 1]")
    lose_rate: Scalar = hyper(0.04, within="[0, 1]")
    epsilon: Scalar = hyper(0.05, within="[0, 1]")
    initial: Float[Array, "..."] | float = hyper(0.0, scalar=False)

    @property
    def continuous(self) -> bool:
        """False: updates jump with the best action."""
        return False

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> WolfParams:
        """Returns the initial values, uniform policies and one visit.

        Raises:
            ValueError: if `initial` does not broadcast to the table.
        """
        states, actions = game.num_states, game.num_actions[agent]
        uniform = filled(1 / actions, (states, actions), agent)
        values = filled(self.initial, (states, actions), agent)
        visits = filled(1.0, (states,), agent)
        return WolfParams(Q=values, policy=uniform, average=uniform, visits=visits)

    def policy(self, params: WolfParams, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the policy of `state`, mixed with uniform play."""
        own = params.policy[state]
        return (1 - self.epsilon) * own + self.epsilon / own.shape[-1]

    def update(
        self, params: WolfParams, transition: Transition, game: MarkovGame, agent: int
    ) -> WolfParams:
        """Returns the steps of one value, one policy and its average."""
        t = transition
        values, own, average = params.Q[t.state], params.policy[t.state], params.average[t.state]
        target = t.reward + self.discount * params.Q[t.next_state].max()
        wins = jnp.sum((own - average) * values) > 0
        delta = jnp.where(wins, self.win_rate, self.lose_rate) / max(own.shape[-1] - 1, 1)
        best = jax.nn.one_hot(values.argmax(), own.shape[-1], dtype=own.dtype)
        lost = jnp.where(best > 0, 0.0, jnp.minimum(own, delta))
        return WolfParams(
            Q=At((t.state, t.action), self.learning_rate * (target - values[t.action])),
            policy=At((t.state,), best * lost.sum() - lost),
            average=At((t.state,), (own - average) / params.visits[t.state]),
            visits=At((t.state,), jnp.ones((), own.dtype)),
        )
