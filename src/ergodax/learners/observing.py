"""Learners that see less than the state."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..base.checks import check_array, check_type
from ..model.game import MarkovGame
from ..model.learner import AbstractLearner, AbstractOuterLearner, Params, Transition


class AbstractFilter(AbstractOuterLearner):
    """A learner with the parameters of another one, which sees the game in its own way."""

    @abc.abstractmethod
    def rows(self, game: MarkovGame) -> tuple[int, ...]:
        """Returns which row of its tables the learner reads in each state."""

    @property
    def symbol(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the learner."""
        return self.learner.symbol

    @property
    def in_payoffs(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the learner."""
        return self.learner.in_payoffs

    def maximised(self, params: Params) -> Float[Array, "*rows A"] | None:
        """As the learner."""
        return self.learner.maximised(params)


class Observing(AbstractFilter):
    """A learner whose state is a function of the game's state.

    Agents with less memory than the game, memoryless ones, coarse or private observations are
    written so. The averaged drift stays exact: the law of states given an observation is that of
    the game, and not a belief of the learner.

    Attributes:
        learner: any learner; its tables have one row per observation.
        observation: what is observed in each state, S numbers from 0 on.
    """

    learner: AbstractLearner
    observation: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, learner: AbstractLearner, observation: ArrayLike | Sequence):
        """Makes a learner observe a function of the state.

        Args:
            learner: the learner.
            observation: for each state the number of what is observed in it, `[S]`.

        Raises:
            ValueError: unless observations are whole numbers from 0 on, none left out.
        """
        seen = np.asarray(check_array("observation", observation, "one whole number per state"))
        if seen.ndim != 1 or not np.issubdtype(seen.dtype, np.integer):
            raise ValueError(
                "observation must hold one whole number per state, [S]; found "
                f"{seen.dtype}{list(seen.shape)}."
            )
        values = np.unique(seen)
        if not np.array_equal(values, np.arange(len(values))):
            raise ValueError(
                "observation must number what is observed from 0 on without gaps; found "
                f"{values.tolist()}."
            )
        self.learner = check_type("learner", learner, AbstractLearner, "a learner")
        self.observation = tuple(seen.tolist())

    def rows(self, game: MarkovGame) -> tuple[int, ...]:
        """Returns the observations."""
        return self.observation

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Params:
        """Returns the learner's parameters in the game as it observes it.

        Raises:
            ValueError: unless there is one observation per state.
        """
        return self.learner.init(self._observed(game), agent, key=key)

    def policy(self, params: Params, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the learner's policy at the observation."""
        return self.learner.policy(params, jnp.asarray(self.observation)[state])

    def update(self, params: Params, transition: Transition, game: MarkovGame, agent: int):
        """Returns the learner's increment after the observed transition."""
        seen = jnp.asarray(self.observation)
        seen = transition._replace(
            state=seen[transition.state], next_state=seen[transition.next_state]
        )
        return self.learner.update(params, seen, self._observed(game), agent)

    def _observed(self, game: MarkovGame) -> MarkovGame:
        """The game of observations in which all states behind one are equally likely.

        Only learners that read the game's tables, as counterfactual ones do, see its numbers.
        """
        if len(self.observation) != game.num_states:
            raise ValueError(
                f"observation must have one entry for each of the game's {game.num_states} states; "
                f"found {len(self.observation)}."
            )
        seen = np.asarray(self.observation)
        behind = [np.flatnonzero(seen == o) for o in range(seen.max() + 1)]
        most = max(map(len, behind))
        # Observations with fewer states behind them are filled up with probability zero.
        members = np.stack([np.resize(states, most) for states in behind])
        weights = np.stack([np.arange(most) < len(states) for states in behind])
        weights = weights / weights.sum(axis=1, keepdims=True)

        def side_by_side(table):  # [O, most, *A, K, ..] -> [O, *A, most K, ..]
            place = 1 + game.num_agents
            moved = jnp.moveaxis(table[members], 1, place)
            return moved.reshape(*moved.shape[:place], -1, *moved.shape[place + 2 :])

        scaled = weights.reshape(*weights.shape, *(1,) * (game.num_agents + 1))
        scaled = scaled.astype(game.probabilities.dtype)
        probabilities = jnp.moveaxis(game.probabilities[members] * scaled, 1, 1 + game.num_agents)
        return MarkovGame(
            jnp.asarray(seen)[side_by_side(game.successors)],
            probabilities.reshape(*probabilities.shape[: 1 + game.num_agents], -1),
            side_by_side(game.rewards),
            action_names=game.action_names,
        )


def rows_read(learner: Any, game: MarkovGame) -> tuple[int, ...]:
    """Which row of its tables a learner reads in each state: as a rule that of the state."""
    while isinstance(learner, AbstractOuterLearner) and not isinstance(learner, AbstractFilter):
        learner = learner.learner
    if isinstance(learner, AbstractFilter):
        return learner.rows(game)
    return tuple(range(game.num_states))
