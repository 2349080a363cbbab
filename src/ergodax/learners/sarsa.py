"""SARSA (Rummery and Niranjan 1994) and its expected form (van Seijen et al. 2009)."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..model.game import MarkovGame
from ..model.learner import At, Transition
from .action_value import AbstractActionValueLearner


class Sarsa(AbstractActionValueLearner):
    """SARSA: `Q(s,a) += alpha (r + gamma Q(s',a') - Q(s,a))`, with a' the action taken next.

    All agents draw their next actions before the update and then execute them. Averaged, this is
    expected SARSA: the drift is smooth wherever the policy is (Rummery and Niranjan 1994).
    """

    needs_next_action: ClassVar[bool] = True

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        target = t.reward + self.discount * params[t.next_state, t.next_action]
        return At((t.state, t.action), self.learning_rate * (target - params[t.state, t.action]))


class ExpectedSarsa(AbstractActionValueLearner):
    """Expected SARSA: `Q(s,a) += alpha (r + gamma sum_b pi(b|s') Q(s',b) - Q(s,a))`.

    Its averaged drift is that of SARSA, smooth wherever the policy is; its noise is smaller, as the
    next action is not drawn (van Seijen, van Hasselt, Whiteson and Wiering 2009).
    """

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        values = params[t.next_state]
        target = t.reward + self.discount * jnp.sum(self.exploration(values) * values)
        return At((t.state, t.action), self.learning_rate * (target - params[t.state, t.action]))
