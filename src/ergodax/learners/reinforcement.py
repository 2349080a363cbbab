"""Reinforcement of what was played: Cross, Bush and Mosteller, Roth and Erev.

These learners keep probabilities or propensities themselves, and no values of actions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner, At, Transition
from .action_value import filled


def _one_hot(action, like):
    return jax.nn.one_hot(action, like.shape[-1], dtype=like.dtype)


class _MixedStrategy(AbstractLearner):
    """A learner whose parameters are its probabilities in every state, `[S, A]`, from uniform on.

    Attributes:
        learning_rate: alpha, per unscaled step and unit of reward.
        epsilon: probability of a uniformly drawn action, in [0, 1].
    """

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    epsilon: Scalar = hyper(0.0, within="[0, 1]")

    @property
    def smooth(self) -> bool:
        """True."""
        return True

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Float[Array, "S A"]:
        """Returns uniform probabilities."""
        count = game.num_actions[agent]
        return filled(1 / count, (game.num_states, count), agent)

    def policy(self, params: Float[Array, "S A"], state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the probabilities of `state`, mixed with uniform play."""
        return (1 - self.epsilon) * params[state] + self.epsilon / params.shape[-1]


class Cross(_MixedStrategy):
    """Cross learning: `x(s,b) += alpha r (1{a=b} - x(s,b))` (Cross 1973).

    Its averaged drift, which is smooth, is the replicator equation of every state, weighted by how
    often the state is visited (Boergers and Sarin 1997). Rewards must be positive and below
    `scale / alpha`, or probabilities leave the simplex.

    Attributes:
        learning_rate: alpha, per unscaled step and unit of reward.
        epsilon: probability of a uniformly drawn action, in [0, 1].
    """

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the probabilities of `state` towards the action."""
        t = transition
        own = params[t.state]
        return At((t.state,), self.learning_rate * t.reward * (_one_hot(t.action, own) - own))


class BushMosteller(_MixedStrategy):
    """Bush-Mosteller learning: rewards above an aspiration reinforce, those below inhibit.

    With the stimulus `z = alpha (r - aspiration)`: the action's probability x moves by
    `z (1 - x)` if z is positive and by `z x` if it is negative; the other probabilities keep their
    proportions (Bush and Mosteller 1955; Macy and Flache 2002). z must lie in [-scale, scale].
    Averaged, it is the replicator equation if all rewards are above the aspiration; the drift is
    smooth inside of the simplex in any case.

    Attributes:
        learning_rate: alpha, per unscaled step and unit of reward.
        epsilon: probability of a uniformly drawn action, in [0, 1].
        aspiration: the reward that changes nothing.
    """

    aspiration: Scalar = hyper(0.0)

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the probabilities of `state`."""
        t = transition
        own = params[t.state]
        stimulus = self.learning_rate * (t.reward - self.aspiration)
        chosen = _one_hot(t.action, own)
        # Below aspiration x falls by |z| x, shared by the others in proportion to what they have.
        others = jnp.where(chosen > 0, 0.0, own)
        rest = others.sum()
        shared = others / jnp.where(rest > 0, rest, 1.0)
        inhibited = own[t.action] * jnp.where(rest > 0, chosen - shared, 0.0)
        return At((t.state,), stimulus * jnp.where(stimulus > 0, chosen - own, inhibited))


class RothErev(AbstractLearner):
    """Roth-Erev learning: propensities grow by what was earned, and are forgotten.

    `q(s,b) += alpha (E(b) - forgetting q(s,b))`, with `E(b) = (1 - experimentation) r` for the
    action played and `experimentation r / (A - 1)` for the others; actions are played in proportion
    to their propensities (Roth and Erev 1995; Erev and Roth 1998). Rewards must not be negative.
    Averaged, a propensity grows by the action's expected reward times its probability; the drift is
    smooth where propensities are positive.

    Attributes:
        learning_rate: alpha, per unscaled step.
        forgetting: phi, in [0, 1].
        experimentation: share of the reward that spills over to other actions, in [0, 1].
        initial: initial propensities, positive; anything that broadcasts to `[S, A]`.
    """

    learning_rate: Scalar = hyper(1.0, within="[0, inf)")
    forgetting: Scalar = hyper(0.1, within="[0, 1]")
    experimentation: Scalar = hyper(0.05, within="[0, 1]")
    initial: Float[Array, "..."] | float = hyper(1.0, within="(0, inf)", scalar=False)

    @property
    def smooth(self) -> bool:
        """True."""
        return True

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Float[Array, "S A"]:
        """Returns the initial propensities.

        Raises:
            ValueError: if `initial` does not broadcast to the table.
        """
        return filled(self.initial, (game.num_states, game.num_actions[agent]), agent)

    def policy(self, params: Float[Array, "S A"], state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the propensities of `state` divided by their sum."""
        return params[state] / params[state].sum()

    def update(
        self, params: Float[Array, "S A"], transition: Transition, game: MarkovGame, agent: int
    ) -> At:
        """Returns the step of the propensities of `state`."""
        t = transition
        own = params[t.state]
        chosen, spread = _one_hot(t.action, own), max(own.shape[-1] - 1, 1)
        share = (1 - self.experimentation) * chosen + self.experimentation * (1 - chosen) / spread
        return At((t.state,), self.learning_rate * (share * t.reward - self.forgetting * own))
