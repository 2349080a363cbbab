"""Actor-critic with tabular preferences and values (Sutton and Barto 2018, section 13.5)."""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Int

from ..model.exploration import AbstractExploration, EpsilonSoftmax, Projection
from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner, At, Transition
from .action_value import filled


class ActorCriticParams(NamedTuple):
    """Parameters of an actor-critic learner, or an increment of them.

    Attributes:
        theta: the actor's preferences, `[S, A]`.
        V: the critic's state values, `[S]`.
    """

    theta: Any
    V: Any


class ActorCritic(AbstractLearner):
    """One-step actor-critic: the policy gradient with the critic's temporal difference.

    With `delta = r + gamma V(s') - V(s)`: `V(s) += alpha_v delta` and
    `theta(s, .) += alpha delta grad log pi(a | s)`. States count as often as they are visited, as
    in practice, so the averaged drift is not the gradient of the discounted return; under a softmax
    it is smooth (Sutton and Barto 2018).

    Attributes:
        learning_rate: the actor's rate alpha, per unscaled step.
        critic_rate: the critic's rate alpha_v, per unscaled step.
        discount: gamma, in [0, 1].
        exploration: turns the preferences of a state into action probabilities.
        initial_preferences: anything that broadcasts to `[S, A]`.
        initial_values: anything that broadcasts to `[S]`.
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    critic_rate: Scalar = hyper(0.1, within="[0, inf)")
    discount: Scalar = hyper(0.9, within="[0, 1]")
    exploration: AbstractExploration = eqx.field(default_factory=EpsilonSoftmax)
    initial_preferences: Float[Array, "..."] | float = hyper(0.0, scalar=False)
    initial_values: Float[Array, "..."] | float = hyper(0.0, scalar=False)

    @property
    def continuous(self) -> bool:
        """Whether the exploration is, and its derivative, by which the preferences move."""
        return self.exploration.continuous and not isinstance(self.exploration, Projection)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> ActorCriticParams:
        """Returns the initial preferences and values.

        Raises:
            ValueError: if either does not broadcast to its table.
        """
        states, actions = game.num_states, game.num_actions[agent]
        return ActorCriticParams(
            theta=filled(self.initial_preferences, (states, actions), agent),
            V=filled(self.initial_values, (states,), agent),
        )

    def policy(self, params: ActorCriticParams, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the exploration rule's probabilities for the preferences of `state`."""
        return self.exploration(params.theta[state])

    def update(
        self, params: ActorCriticParams, transition: Transition, game: MarkovGame, agent: int
    ) -> ActorCriticParams:
        """Returns the steps of the actor's row and of the critic's entry of `state`."""
        t = transition
        delta = t.reward + self.discount * params.V[t.next_state] - params.V[t.state]
        score = self.exploration.score(params.theta[t.state], t.action)
        return ActorCriticParams(
            theta=At((t.state,), self.learning_rate * delta * score),
            V=At((t.state,), self.critic_rate * delta),
        )
