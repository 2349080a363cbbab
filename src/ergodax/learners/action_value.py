"""What all learners of a table of action values share."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..base.checks import is_concrete
from ..base.devices import as_array
from ..model.exploration import AbstractExploration, EpsilonSoftmax
from ..model.game import MarkovGame
from ..model.hyper import Scalar, hyper
from ..model.learner import AbstractLearner


class AbstractActionValueLearner(AbstractLearner):
    """A learner whose parameters are a table `Q[s, a]`, shape `[S, A]`, of its own action values.

    Attributes:
        learning_rate: alpha, per unscaled step.
        discount: gamma, in [0, 1].
        exploration: turns the values of a state into action probabilities.
        initial: initial values, anything that broadcasts to `[S, A]`.
    """

    symbol: ClassVar[str | None] = "Q"
    in_payoffs: ClassVar[bool] = True

    learning_rate: Scalar = hyper(0.1, within="[0, inf)")
    discount: Scalar = hyper(0.9, within="[0, 1]")
    exploration: AbstractExploration = eqx.field(default_factory=EpsilonSoftmax)
    initial: Float[Array, "..."] | float = hyper(0.0, scalar=False)

    @property
    def smooth(self) -> bool:
        """Whether the exploration is, and updates take no maximum."""
        own = type(self).maximised is not AbstractActionValueLearner.maximised
        return self.exploration.smooth and not own

    def maximised(self, params: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """Those maxima that the exploration takes."""
        return self.exploration.maximised(params)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Float[Array, "S A"]:
        """Returns the table filled with `initial`.

        Raises:
            ValueError: if `initial` does not broadcast to the table.
        """
        return filled(self.initial, (game.num_states, game.num_actions[agent]), agent)

    def policy(self, params: Float[Array, "S A"], state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the exploration rule's probabilities for the values of `state`."""
        return self.exploration(params[state])


def filled(
    initial: Float[Array, "..."] | float, shape: tuple[int, ...], agent: int
) -> Float[Array, "..."]:
    """Returns an array of the given shape filled with initial values that broadcast to it."""
    try:
        # By NumPy: nothing is compiled.
        return as_array((np if is_concrete(initial) else jnp).broadcast_to(initial, shape))
    except ValueError:
        raise ValueError(
            f"agent {agent}: initial values of shape {jnp.shape(initial)} do not broadcast to "
            f"{shape}."
        ) from None


def joined(*tables: Float[Array, "..."] | None) -> Float[Array, "rows B"] | None:
    """Rows whose maxima are taken, of all tables that have any; filled up by lower values."""
    several = [table for table in tables if table is not None and table.shape[-1] > 1]
    width = max((table.shape[-1] for table in several), default=0)
    filled_up = []
    for table in several:
        missing = (len(table), width - table.shape[-1])
        # A constant: where a minimum is rounded to none of its values, its derivative is 0 / 0.
        lowest = jax.lax.stop_gradient(table).min(axis=-1, keepdims=True)
        lower = jnp.broadcast_to(lowest - 1, missing)
        filled_up.append(jnp.concatenate([table, lower], axis=-1))
    return jnp.concatenate(filled_up) if several else None
