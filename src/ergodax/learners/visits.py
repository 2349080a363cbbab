"""Learning rates that fall with the number of visits."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..base.checks import check_type
from ..base.devices import as_array
from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractOuterLearner, At, Transition
from .action_value import AbstractActionValueLearner


class CountedParams(NamedTuple):
    """Parameters of a learner that counts its visits, or an increment of them.

    Attributes:
        Q: action values, `[S, A]`.
        visits: unscaled steps spent on each state and action, `[S, A]`, from 1 on.
    """

    Q: Any
    visits: Any


class FallingRate(AbstractOuterLearner):
    """A learner of action values whose rate is `alpha / n(s,a)^omega`.

    n(s, a) counts the unscaled steps in which the entry was updated, from 1 on; for omega in
    (1/2, 1] these are the rates under which Q-learning of one agent converges (Robbins and Monro
    1951; Even-Dar and Mansour 2003). Averaged, counts grow by the frequencies of visits, and values
    move as the learner's, over `n^omega`: as smoothly.

    Attributes:
        learner: any learner of a table of action values that updates one entry at a time.
        power: omega, in [0, 1].
    """

    learner: AbstractActionValueLearner
    power: Scalar = hyper(0.6, within="[0, 1]")

    def __check_init__(self):
        what = "a learner of a table of action values, e.g. QLearning(0.1)"
        check_type("FallingRate.learner", self.learner, AbstractActionValueLearner, what)

    def maximised(self, params: CountedParams) -> Float[Array, "*rows A"] | None:
        """As the learner, of its table."""
        return self.learner.maximised(params.Q)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> CountedParams:
        """Returns the learner's table, and one visit of every entry."""
        table = self.learner.init(game, agent, key=key)
        return CountedParams(Q=table, visits=as_array(np.ones(table.shape), table.dtype))

    def policy(self, params: CountedParams, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the learner's policy."""
        return self.learner.policy(params.Q, state)

    def update(
        self, params: CountedParams, transition: Transition, game: MarkovGame, agent: int
    ) -> CountedParams:
        """Returns the learner's step, divided by a power of the number of visits.

        Raises:
            ValueError: if the learner updates more than the entry (state, action).
        """
        step = self.learner.update(params.Q, transition, game, agent)
        if not isinstance(step, At) or len(step.index) != 2:
            raise ValueError(
                f"FallingRate needs a learner that updates the entry (state, action) alone; "
                f"{type(self.learner).__name__} does not."
            )
        rate = params.visits[step.index] ** -self.power
        return CountedParams(
            Q=At(step.index, step.value * rate), visits=At(step.index, jnp.ones_like(rate))
        )
