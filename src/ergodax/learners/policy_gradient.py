"""Learners that follow the gradient of their reward: preferences, weights, projections."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int

from ..model.exploration import AbstractExploration, EpsilonSoftmax, Projection
from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner, At, Transition
from .action_value import filled


class _Preferences(AbstractLearner):
    """A learner of one table of preferences `[S, A]`, which its exploration turns into a policy.

    Fields are declared by learners alone: type checkers would have those of a base come first.
    """

    @property
    def smooth(self: Any) -> bool:
        """As the exploration."""
        return self.exploration.smooth

    def maximised(self: Any, params: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """Those maxima that the exploration takes."""
        return self.exploration.maximised(params)

    def init(self: Any, game: MarkovGame, agent: int, *, key: Array | None) -> Float[Array, "S A"]:
        """Returns the table filled with `initial`.

        Raises:
            ValueError: if `initial` does not broadcast to the table.
        """
        return filled(self.initial, (game.num_states, game.num_actions[agent]), agent)

    def policy(self: Any, params: Float[Array, "S A"], state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the exploration rule's probabilities for the preferences of `state`."""
        return self.exploration(params[state])


class Reinforce(_Preferences):
    """One-step REINFORCE: `theta(s, .) += alpha (r - baseline) grad log pi(a | s)`.

    The policy gradient of the immediate reward (Williams 1992). Under a softmax policy its averaged
    drift is smooth and, state by state, the softmax policy gradient of the stage game.

    Attributes:
        learning_rate: alpha, per unscaled step.
        baseline: subtracted from rewards; changes the noise and not the drift.
        exploration: turns preferences into action probabilities.
        initial: initial preferences, anything that broadcasts to `[S, A]`.
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    baseline: Scalar = hyper(0.0)
    exploration: AbstractExploration = eqx.field(default_factory=EpsilonSoftmax)
    initial: Float[Array, "..."] | float = hyper(0.0, scalar=False)

    @property
    def continuous(self) -> bool:
        """Whether the exploration is, and its derivative, by which the preferences move."""
        return self.exploration.continuous and not isinstance(self.exploration, Projection)

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the preferences of `state`."""
        t = transition
        score = self.exploration.score(params[t.state], t.action)
        return At((t.state,), self.learning_rate * (t.reward - self.baseline) * score)


class _ImportanceWeighted(_Preferences):
    """A learner that adds rewards over the probability of what was played."""

    def update(
        self: Any,
        params: Float[Array, "S A"],
        transition: Transition,
        game: MarkovGame,
        agent: int,
    ) -> At:
        """Returns the step of the entry (state, action)."""
        t = transition
        played = self.policy(params, t.state)[t.action]
        return At((t.state, t.action), self.learning_rate * t.reward / played)


class ExponentialWeights(_ImportanceWeighted):
    """Exponential weights with importance weights, EXP3: `theta(s,a) += eta r / pi(a|s)`.

    The policy is a softmax of the preferences mixed with uniform play (Auer, Cesa-Bianchi, Freund
    and Schapire 2002, with the weights' logarithms as parameters). Averaged, every preference
    grows by the expected reward of its action, a smooth function of the policies.

    Attributes:
        learning_rate: eta, per unscaled step.
        exploration: turns preferences into action probabilities; its `epsilon` bounds the noise.
        initial: initial preferences, anything that broadcasts to `[S, A]`.
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    exploration: AbstractExploration = eqx.field(default_factory=lambda: EpsilonSoftmax(1.0, 0.1))
    initial: Float[Array, "..."] | float = hyper(0.0, scalar=False)


class ProjectedGradient(_ImportanceWeighted):
    """Gradient ascent projected on the simplex (Zinkevich 2003, the lazy form).

    `theta(s,a) += alpha r / pi(a|s)`, an unbiased estimate of the gradient of the reward by the
    probabilities of `state`, which theta follows on average; the policy is the point of the simplex
    next to theta. It has kinks where an action's probability reaches zero.

    Attributes:
        learning_rate: alpha, per unscaled step.
        exploration: a `Projection`; its `epsilon` bounds the noise.
        initial: initial values of theta, anything that broadcasts to `[S, A]`.
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    exploration: Projection = eqx.field(default_factory=lambda: Projection(epsilon=0.1))
    initial: Float[Array, "..."] | float = hyper(0.0, scalar=False)
