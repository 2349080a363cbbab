"""Lenient learning (Panait, Tuyls and Luke 2008; Bloembergen, Kaisers and Tuyls 2011)."""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..base.checks import check_count, check_type, is_concrete
from ..model.game import MarkovGame
from ..model.learner import AbstractLearner, Params, Transition
from .observing import AbstractFilter, Observing
from .q_learning import CounterfactualQLearning


class Lenient(AbstractFilter):
    """A learner that forgives: it learns from the best of several rewards of its action.

    In a repeated game that remembers `draws - 1` rounds or more, the reward is replaced by the
    largest that the action would have earned against what the others played in this round and in
    the `draws - 1` before. Policies do not depend on what is remembered. Averaged, each action's
    reward is the expected maximum of so many independent draws of the others' actions: with `Cross`
    the lenient replicator equation (Panait, Tuyls and Luke 2008), with `FrequencyAdjustedQLearning`
    lenient FAQ-learning (Bloembergen, Kaisers and Tuyls 2011). In these papers agents collect the
    rewards by taking the action several times; the averaged equation is the same, and as smooth as
    the learner's own.

    Attributes:
        learner: any learner; its tables have one row.
        draws: kappa, over how many rounds the maximum is taken; 1 forgives nothing.

    Example:
        >>> climbing = ex.games.bimatrix(payoffs, payoffs.T, memory=2)
        >>> learner = ex.Lenient(ex.FrequencyAdjustedQLearning(0.1, 0.0), draws=3)
    """

    learner: AbstractLearner
    draws: int = eqx.field(static=True)

    def __init__(self, learner: AbstractLearner, draws: int = 2):
        """Makes a learner lenient.

        Raises:
            ValueError: unless `draws` is a whole number from 1 on and the learner reads its reward.
        """
        self.learner = check_type("learner", learner, AbstractLearner, "a learner")
        if isinstance(learner, CounterfactualQLearning):
            raise ValueError(
                "learner must learn from its reward; CounterfactualQLearning reads the game's "
                "tables instead, so that it cannot be lenient."
            )
        self.draws = check_count("draws", draws)

    def rows(self, game: MarkovGame) -> tuple[int, ...]:
        """Returns the only row for every state."""
        return (0,) * game.num_states

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Params:
        """Returns the learner's parameters in a game of one state.

        Raises:
            ValueError: unless the states are the last rounds, as `games.repeated` has them, enough
                of them, and payoffs depend on the joint action alone.
        """
        _check_repeated(game, agent, self.draws)
        return self._blind(game).init(game, agent, key=key)

    def policy(self, params: Params, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the learner's policy, the same in all states."""
        return self.learner.policy(params, jnp.zeros_like(state))

    def update(self, params: Params, transition: Transition, game: MarkovGame, agent: int):
        """Returns the learner's increment for the best of the rewards."""
        best, joint = transition.reward, math.prod(game.num_actions)
        for back in range(self.draws - 1):
            played = np.arange(game.num_states) // joint**back % joint
            actions = np.stack(np.unravel_index(played, game.num_actions), axis=-1)
            others = list(jnp.asarray(actions)[transition.state])
            others[agent] = transition.action
            best = jnp.maximum(best, game.rewards[(0, *others, 0, agent)])
        return self._blind(game).update(params, transition._replace(reward=best), game, agent)

    def _blind(self, game: MarkovGame) -> Observing:
        """The learner that sees one state only."""
        return Observing(self.learner, self.rows(game))


def _check_repeated(game: MarkovGame, agent: int, draws: int) -> None:
    """Raises ValueError unless a game remembers all but the last of the rounds that are needed."""
    joint = math.prod(game.num_actions)
    rounds = round(math.log(game.num_states, joint)) if joint > 1 else draws - 1
    repeated = game.num_states == joint**rounds and rounds >= draws - 1
    if repeated and is_concrete(game.successors):
        follows = np.arange(game.num_states)[:, None] * joint + np.arange(joint)
        follows = (follows % game.num_states).reshape(*game.successors.shape[:-1], 1)
        repeated = bool(np.all(np.asarray(game.successors) == follows))
    if repeated and is_concrete(game.rewards):
        rewards = np.asarray(game.rewards)
        repeated = bool(np.all(rewards == rewards[:1, ..., :1, :]))
    if not repeated:
        raise ValueError(
            f"agent {agent}: Lenient(draws={draws}) needs a game whose states are the last rounds, "
            f"with payoffs of the joint action alone, as games.repeated(payoffs, "
            f"memory={draws - 1}) makes it; found {game}."
        )
