"""SARSA (Rummery and Niranjan 1994)."""

from typing import ClassVar

from jaxtyping import Array, Float

from ..model.game import MarkovGame
from ..model.learner import At, Transition
from .action_value import AbstractActionValueLearner


class Sarsa(AbstractActionValueLearner):
    """SARSA: `Q(s,a) += alpha (r + gamma Q(s',a') - Q(s,a))`, with a' the action taken next.

    All agents draw their next actions before the update and then execute them. Averaged, this is
    expected SARSA: the drift is smooth wherever the policy is.
    """

    needs_next_action: ClassVar[bool] = True

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action)."""
        t = transition
        target = t.reward + self.discount * params[t.next_state, t.next_action]
        return At((t.state, t.action), self.learning_rate * (target - params[t.state, t.action]))
