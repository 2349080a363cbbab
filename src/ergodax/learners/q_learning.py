"""Q-learning (Watkins and Dayan 1992) and its counterfactual form (Kerzreho 2025)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.game import MarkovGame
from ..model.learner import At, Transition
from .action_value import AbstractActionValueLearner


class QLearning(AbstractActionValueLearner):
    """Q-learning: `Q(s,a) += alpha (r + gamma max_b Q(s',b) - Q(s,a))`.

    The maximum makes the averaged drift piecewise smooth; at an exact tie its derivative is the
    mean over the maximising actions.
    """

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """The table itself: targets take the maximum of a row."""
        return params

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        target = t.reward + self.discount * params[t.next_state].max()
        return At((t.state, t.action), self.learning_rate * (target - params[t.state, t.action]))


class CounterfactualQLearning(AbstractActionValueLearner):
    """Q-learning of all own actions at once, from the game's own tables.

    After each step the agent computes, for every own action b against the others' actions, what b
    would have led to on average:
    `Q(s,b) += alpha (sum_s' T(s'|s,b,a_-i) (R_i(s,b,a_-i,s') + gamma max_c Q(s',c)) - Q(s,b))`.
    """

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "S A"]:
        """The table itself: targets take the maximum of a row."""
        return params

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the whole row of `state`."""
        t = transition
        successors, probabilities, rewards = game.unilateral(agent, t.state, t.joint_action)
        values = rewards + self.discount * params[successors].max(axis=-1)
        targets = jnp.sum(probabilities * values, axis=-1)
        return At((t.state,), self.learning_rate * (targets - params[t.state]))
