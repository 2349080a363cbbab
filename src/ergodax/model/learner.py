"""The contract between ergodax and a learning algorithm.

A learner is three pure functions of one trajectory: `init` makes its parameters, `policy` turns
them into action probabilities, and `update` returns the **increment** of the parameters after one
transition: `X_{k+1} = X_k + update(X_k, transition) / scale`. Batching, scaling and averaging are
not its business. Parameters may be any pytree of floating-point arrays.

An increment has the structure of the parameters; each leaf is an array of the leaf's shape, or an
`At(index, value)` that touches one entry or row. Tables stay fast only with `At`.
"""

import abc
import contextlib
import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from ..base.checks import as_real, check_array, check_type, describe
from .exploration import AbstractExploration
from .game import MarkovGame
from .hyper import HyperModule

Params = PyTree[Float[Array, "..."]]


class Transition(NamedTuple):
    """What one agent sees of one step of the game.

    Attributes:
        state: the state s.
        action: the agent's own action.
        joint_action: the actions of all agents, `[n]`.
        reward: the agent's own reward.
        next_state: the state s' that followed.
        next_action: the agent's own action in s', or None unless the learner sets
            `needs_next_action`.
        lottery: which outcome of the learner's own `lottery` was drawn, or None without one.
    """

    state: Int[Array, ""]
    action: Int[Array, ""]
    joint_action: Int[Array, " n"]
    reward: Float[Array, ""]
    next_state: Int[Array, ""]
    next_action: Int[Array, ""] | None = None
    lottery: Int[Array, ""] | None = None


# Raised by JAX where a program asks for a value that it does not know yet.
DECIDES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


@contextlib.contextmanager
def undecided(what: str) -> Iterator[None]:
    """Raises ValueError if a function, called `what`, decides on a value that JAX traces."""
    try:
        yield
    except DECIDES as error:
        raise ValueError(
            f"{what} decides on a value, which JAX cannot trace; use jnp.where in place of `if`: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _as_arrays(index) -> tuple[Array, ...]:
    return tuple(jnp.asarray(scalar) for scalar in index)


class At(eqx.Module):
    """The increment `value` of one entry, row or slice of a table, zero elsewhere.

    Attributes:
        index: leading scalar indices into the table, e.g. `(state, action)` or `(state,)`. Each
            must lie inside the table, from 0 on: only `check_learner` looks.
        value: the increment there, of shape `table.shape[len(index):]`.
    """

    index: tuple[Shaped[Array, "..."], ...] = eqx.field(converter=_as_arrays)
    value: Shaped[Array, "..."] = eqx.field(converter=jnp.asarray)

    def __init__(self, index: Any, value: Any, *rest: Any):
        """Takes the indices as a tuple, and the increment there."""
        if rest or not isinstance(index, tuple | list):
            raise TypeError(
                "At takes the indices as a tuple, and the increment: At((state, action), value) or "
                f"At((state,), row); found {describe(index)} as index"
                + (f", and {2 + len(rest)} arguments." if rest else ".")
            )
        for where in index:
            if as_real(where) is None or isinstance(where, list):
                raise TypeError(f"At: index must hold integers; found {describe(where)}.")
        self.index, self.value = tuple(index), check_array("At: value", value)


def accumulate(table: Float[Array, "..."], batch: At) -> Float[Array, "..."]:
    """Adds a batch of `At` increments to a table, repeated indices included.

    Args:
        table: the array to add to.
        batch: indices of shape `[E]` and values of shape `[E, *table.shape[len(index):]]`.

    Returns:
        The table plus the sum of all `value * e_index`.
    """
    depth = len(batch.index)
    rows, events = math.prod(table.shape[:depth]), batch.value.shape[0]
    if rows * events > _ONE_HOT_LIMIT:
        return table.at[batch.index].add(batch.value)
    # Small tables: a product with a one-hot matrix fuses, where a scatter is a loop of its own.
    flat = jnp.zeros((), dtype=jnp.int32)
    for index, size in zip(batch.index, table.shape, strict=False):
        flat = flat * size + index.astype(flat.dtype)
    one_hot = (jnp.arange(rows, dtype=flat.dtype)[:, None] == flat[None]).astype(table.dtype)
    added = jnp.matmul(one_hot, batch.value.reshape(events, -1), precision="highest")
    return table + added.reshape(table.shape)


_ONE_HOT_LIMIT = 2**14


class AbstractLearner(HyperModule):
    """A learning algorithm: subclass it and write `init`, `policy` and `update`.

    Declare hyper-parameters with `hyper`. All three methods are pure functions of one trajectory.
    """

    # True (as for SARSA): every agent draws its next action before the update, then executes it.
    needs_next_action: ClassVar[bool] = False
    # Probabilities of a lottery of the learner's own, drawn at every step independently of all else
    # (a fair coin: (0.5, 0.5)); `update` reads `transition.lottery`.
    lottery: ClassVar[tuple[float, ...] | None] = None
    # True: all parameters are values in the unit of payoffs, and tolerances are relative to theirs.
    in_payoffs: ClassVar[bool] = False
    # The letter of a table of states and actions on axes; None where parameters have own names.
    symbol: ClassVar[str | None] = None

    def __check_init__(self):
        if hasattr(self, "exploration"):
            self._check_rule("exploration")

    def _check_rule(self, field: str) -> None:
        """Raises ValueError unless a field holds an exploration rule."""
        rule = getattr(self, field)
        hint = "called: {}(..)" if isinstance(rule, type) else "e.g. EpsilonSoftmax(0.5)"
        what = f"an exploration rule, {hint.format(getattr(rule, '__name__', ''))}"
        check_type(f"{type(self).__name__}.{field}", rule, AbstractExploration, what)

    @property
    def continuous(self) -> bool:
        """Whether the policy is continuous in the parameters: as the field `exploration` says.

        Argmax policies without that field say False themselves: they can be simulated, but the
        averaged side refuses them, as their drift is discontinuous.
        """
        exploration = getattr(self, "exploration", None)
        return exploration is None or exploration.continuous

    @property
    def smooth(self) -> bool:
        """Whether policy and update have no kinks: nothing `maximised`, and smooth exploration.

        Learners without a field `exploration` say so themselves. Only asked for second derivatives
        of `solve`, which are refused unless all learners say so.
        """
        exploration = getattr(self, "exploration", None)
        takes_maximum = type(self).maximised is not AbstractLearner.maximised
        return exploration is not None and exploration.smooth and not takes_maximum

    def maximised(self, params: Params) -> Float[Array, "*rows A"] | None:
        """The values whose row maxima `update` takes; None if it takes no maximum.

        Where two entries of a row change order, the averaged drift has a kink: the theory of
        fluctuations and bias has to know.
        """
        return None

    @abc.abstractmethod
    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> Params:
        """Returns the initial parameters of `agent`; `key` is None unless the caller gave one."""

    @abc.abstractmethod
    def policy(self, params: Params, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the probabilities of the agent's actions in `state`."""

    @abc.abstractmethod
    def update(self, params: Params, transition: Transition, game: MarkovGame, agent: int) -> Any:
        """Returns the increment: the structure of `params`, each leaf an array or an `At`."""


class AbstractOuterLearner(AbstractLearner):
    """A learner made of another one: what it does not say itself is as with that.

    Attributes:
        learner: the other one.
    """

    learner: eqx.AbstractVar[Any]

    @property
    def continuous(self) -> bool:
        """As the learner."""
        return self.learner.continuous

    @property
    def smooth(self) -> bool:
        """As the learner."""
        return self.learner.smooth

    @property
    def needs_next_action(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the learner."""
        return self.learner.needs_next_action

    @property
    def lottery(self) -> tuple[float, ...] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the learner."""
        return self.learner.lottery
