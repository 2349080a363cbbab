"""Double Q-learning (van Hasselt 2010) and its form with a smooth choice of the next action."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.exploration import AbstractExploration, EpsilonGreedy
from ..model.game import MarkovGame
from ..model.learner import At, Transition
from .action_value import AbstractActionValueLearner, filled, joined


class DoubleQLearning(AbstractActionValueLearner):
    """Double Q-learning: one of two tables picks the next action, the other one values it.

    A fair coin of the agent's own says which table learns, C, and which one values, D:
    `Q_C(s,a) += alpha (r + gamma sum_b sigma_C(b|s') Q_D(s',b) - Q_C(s,a))`, with sigma_C the
    choice by the values of C: the best action (van Hasselt 2010). Exploration reads the mean of
    the tables.

    Averaged over the coin, each table learns half as fast. The drift jumps where the best action
    of a table changes, so that the greedy form can be simulated only. With `EpsilonSoftmax` as
    `selection` it is smooth: double expected SARSA.

    Attributes:
        learning_rate: alpha, per unscaled step.
        discount: gamma, in [0, 1].
        exploration: turns the mean values of a state into action probabilities.
        initial: initial values of both tables, anything that broadcasts to `[2, S, A]`.
        selection: turns the values of the table that learns into probabilities sigma of the action
            that the other one values.
    """

    lottery: ClassVar[tuple[float, ...] | None] = (0.5, 0.5)

    selection: AbstractExploration = eqx.field(default_factory=lambda: EpsilonGreedy(0.0))

    def __check_init__(self):
        self._check_rule("selection")

    @property
    def continuous(self) -> bool:
        """Whether both exploration and selection are."""
        return self.exploration.continuous and self.selection.continuous

    @property
    def smooth(self) -> bool:
        """Whether both exploration and selection are."""
        return self.exploration.smooth and self.selection.smooth

    def maximised(self, params: Float[Array, "2 S A"]) -> Float[Array, "rows B"] | None:
        """Those maxima that exploration and selection take."""
        chosen = self.selection.maximised(params.reshape(-1, params.shape[-1]))
        return joined(self.exploration.maximised(params.mean(axis=0)), chosen)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Float[Array, "2 S A"]:
        """Returns both tables filled with `initial`.

        Raises:
            ValueError: if `initial` does not broadcast to them.
        """
        return filled(self.initial, (2, game.num_states, game.num_actions[agent]), agent)

    def policy(self, params: Float[Array, "2 S A"], state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the exploration rule's probabilities for the mean values of `state`."""
        return self.exploration((params[0, state] + params[1, state]) / 2)

    def update(
        self, params: Float[Array, "2 S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the temporal-difference step of the entry (state, action) of one table."""
        t = transition
        chosen = self.selection(params[t.lottery, t.next_state])
        value = jnp.sum(chosen * params[jnp.where(t.lottery == 0, 1, 0), t.next_state])
        place = (t.lottery, t.state, t.action)
        return At(place, self.learning_rate * (t.reward + self.discount * value - params[place]))
