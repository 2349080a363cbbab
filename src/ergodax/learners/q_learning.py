"""Q-learning (Watkins and Dayan 1992), its counterfactual and its frequency-adjusted form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import At, Transition
from .action_value import AbstractActionValueLearner, joined


class QLearning(AbstractActionValueLearner):
    """Q-learning: `Q(s,a) += alpha (r + gamma max_b Q(s',b) - Q(s,a))`.

    The maximum makes the averaged drift piecewise smooth; at an exact tie its derivative is the
    mean over the maximising actions (Watkins and Dayan 1992).
    """

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """The table itself, as targets take the maximum of a row; then those of the exploration."""
        return joined(params, self.exploration.maximised(params))

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        target = t.reward + self.discount * params[t.next_state].max()
        return At((t.state, t.action), self.learning_rate * (target - params[t.state, t.action]))


class CounterfactualQLearning(AbstractActionValueLearner):
    """Q-learning of all own actions at once, from the game's own tables (Kerzreho 2025).

    After each step the agent computes, for every own action b against the others' actions, what b
    would have led to on average:
    `Q(s,b) += alpha (sum_s' T(s'|s,b,a_-i) (R_i(s,b,a_-i,s') + gamma max_c Q(s',c)) - Q(s,b))`.
    Averaged, all values of a state move as often as it is visited; the drift has kinks at maxima.
    """

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """The table itself, as targets take the maximum of a row; then those of the exploration."""
        return joined(params, self.exploration.maximised(params))

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the whole row of `state`."""
        t = transition
        successors, probabilities, rewards = game.unilateral(agent, t.state, t.joint_action)
        values = rewards + self.discount * params[successors].max(axis=-1)
        targets = jnp.sum(probabilities * values, axis=-1)
        return At((t.state,), self.learning_rate * (targets - params[t.state]))


class FrequencyAdjustedQLearning(AbstractActionValueLearner):
    """Q-learning whose rare actions learn faster (Kaisers and Tuyls 2010).

    `Q(s,a) += alpha min(beta / pi(a|s), 1) (r + gamma max_b Q(s',b) - Q(s,a))`: as long as every
    action is played with probability beta or more, all values of a state are updated equally fast
    on average, as if at once. The averaged drift has kinks at maxima and where `pi(a|s) = beta`.

    Attributes:
        frequency: beta, in (0, 1]; with 1 it is plain Q-learning.
    """

    frequency: Scalar = hyper(0.01, within="(0, 1]")

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """The table, for every entry the pair (pi, beta), and those of the exploration."""
        policies = jax.vmap(self.exploration)(params).ravel()
        pairs = jnp.stack([policies, jnp.broadcast_to(self.frequency, policies.shape)], axis=-1)
        return joined(params, pairs, self.exploration.maximised(params))

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        played = self.exploration(params[t.state])[t.action]
        rate = self.learning_rate * self.frequency / jnp.maximum(played, self.frequency)
        target = t.reward + self.discount * params[t.next_state].max()
        return At((t.state, t.action), rate * (target - params[t.state, t.action]))
