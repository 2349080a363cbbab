"""The contract between ergodax and a learning algorithm.

A learner is three pure functions of one trajectory: `init` makes its parameters, `policy` turns
them into action probabilities, and `update` returns the **increment** of the parameters after one
transition: `X_{k+1} = X_k + update(X_k, transition) / scale`. Batching, scaling and averaging are
not its business. Parameters may be any pytree of floating-point arrays.

An increment has the structure of the parameters; each leaf is an array of the leaf's shape, or an
`At(index, value)` that touches one entry or row. Tables stay fast only with `At`.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped

from .game import MarkovGame, is_concrete
from .text import describe_value

Params = PyTree[Float[Array, "..."]]
# A hyper-parameter: given as a number or an array, held as an array.
Scalar = Float[Array, ""] | float


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
    """

    state: Int[Array, ""]
    action: Int[Array, ""]
    joint_action: Int[Array, " n"]
    reward: Float[Array, ""]
    next_state: Int[Array, ""]
    next_action: Int[Array, ""] | None = None


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
        flat = flat * size + index
    one_hot = (jnp.arange(rows)[:, None] == flat).astype(table.dtype)
    added = jnp.matmul(one_hot, batch.value.reshape(events, -1), precision="highest")
    return table + added.reshape(table.shape)


_ONE_HOT_LIMIT = 2**14


def hyper(default: Any = None, *, within: str = "(-inf, inf)", scalar: bool = True) -> Any:
    """Declares a hyper-parameter: a field that always holds a floating-point array.

    Arrays keep one compiled program valid for all values, and can be swept and differentiated.

    Args:
        default: the default value; None makes the field required.
        within: the interval of valid values, e.g. `"[0, 1]"` or `"(0, inf)"`.
        scalar: False where the field may hold an array of any shape.

    Returns:
        An `equinox.field`. Concrete values outside the interval raise ValueError when the module
        is made.
    """
    metadata = {"within": within, "scalar": scalar}
    options = {} if default is None else {"default": default}
    return eqx.field(converter=_as_float_array, metadata=metadata, **options)


def _as_float_array(value) -> Array:
    return jnp.asarray(value, dtype=float)


class _Hyper(eqx.Module):
    """A module whose `hyper` fields are checked when it is made."""

    def __check_init__(self):
        for field in dataclasses.fields(self):
            if "within" not in field.metadata:
                continue
            name, value = f"{type(self).__name__}.{field.name}", getattr(self, field.name)
            if field.metadata["scalar"] and jnp.ndim(value) > 0:
                raise ValueError(
                    f"{name} must be a scalar (each agent has its own learner); found an array of "
                    f"shape {jnp.shape(value)}."
                )
            if is_concrete(value) and not is_within(np.asarray(value), field.metadata["within"]):
                interval = field.metadata["within"]
                raise ValueError(f"{name} must be finite and in {interval}; found {value}.")

    def __repr__(self) -> str:
        settings = [
            f"{field.name}={describe_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
        ]
        return f"{type(self).__name__}({', '.join(settings)})"


def is_within(value: np.ndarray, interval: str) -> bool:
    """Whether all values are finite and in an interval written as for `hyper`."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return bool(np.all(np.isfinite(value) & above & below))


class AbstractLearner(_Hyper):
    """A learning algorithm: subclass it and write `init`, `policy` and `update`.

    Declare hyper-parameters with `hyper`. All three methods are pure functions of one trajectory.
    """

    # True (as for SARSA): every agent draws its next action before the update, then executes it.
    needs_next_action: ClassVar[bool] = False

    @property
    def continuous(self) -> bool:
        """Whether the policy is continuous in the parameters.

        Argmax policies say False: they can be simulated, but the averaged side refuses them, as
        their drift is discontinuous.
        """
        return True

    @property
    def smooth(self) -> bool:
        """Whether policy and update have no kinks, as a maximum would make.

        Only asked for second derivatives of `solve`, which are refused unless all learners say so.
        """
        return False

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


class AbstractExploration(_Hyper):
    """Turns the action values of one state into action probabilities."""

    @property
    def continuous(self) -> bool:
        """Whether the probabilities are continuous in the values."""
        return True

    @property
    def smooth(self) -> bool:
        """Whether the probabilities have no kinks in the values."""
        return False

    @abc.abstractmethod
    def __call__(self, values: Float[Array, " A"]) -> Float[Array, " A"]:
        """Returns the action probabilities for the action values `[A]`."""

    def score(self, values: Float[Array, " A"], action: Int[Array, ""] | int) -> Float[Array, " A"]:
        """Returns the derivative of the log probability of `action` by the values, `[A]`."""
        return jax.grad(lambda values: jnp.log(self(values)[action]))(values)


class EpsilonSoftmax(AbstractExploration):
    """Softmax (Boltzmann) exploration mixed with uniform play.

    `pi = (1 - epsilon) softmax(values / temperature) + epsilon / A`.

    Attributes:
        temperature: positive; a small one is greedy.
        epsilon: probability of a uniformly drawn action, in [0, 1].
    """

    temperature: Scalar = hyper(1.0, within="(0, inf)")
    epsilon: Scalar = hyper(0.0, within="[0, 1]")

    @property
    def smooth(self) -> bool:
        """True."""
        return True

    def __call__(self, values: Float[Array, " A"]) -> Float[Array, " A"]:
        """Returns the action probabilities for the action values `[A]`."""
        softmax = jax.nn.softmax(values / self.temperature)
        return (1 - self.epsilon) * softmax + self.epsilon / values.shape[-1]

    def score(self, values: Float[Array, " A"], action: Int[Array, ""] | int) -> Float[Array, " A"]:
        """Returns the score `w (1{b = action} - softmax_b) / temperature`, `[A]`.

        `w` is the share of the softmax in the action's probability: 1 without epsilon, also where
        the probability itself underflows to zero.
        """
        softmax = jax.nn.softmax(values / self.temperature)
        explored = (1 - self.epsilon) * softmax[action]
        total = explored + self.epsilon / values.shape[-1]
        share = jnp.where(total > 0, explored / jnp.where(total > 0, total, 1), 1)
        chosen = jnp.arange(values.shape[-1]) == action
        return share * (chosen - softmax) / self.temperature


class EpsilonGreedy(AbstractExploration):
    """The best action, ties broken at random, mixed with uniform play; for simulation only.

    `pi = (1 - epsilon) 1{a is best} / (number of best actions) + epsilon / A`. Its probabilities
    jump, so that the averaged drift is discontinuous and the averaged side refuses it.

    Attributes:
        epsilon: probability of a uniformly drawn action, in [0, 1].
    """

    epsilon: Scalar = hyper(0.1, within="[0, 1]")

    @property
    def continuous(self) -> bool:
        """False: the best action jumps."""
        return False

    def __call__(self, values: Float[Array, " A"]) -> Float[Array, " A"]:
        """Returns the action probabilities for the action values `[A]`."""
        best = values == values.max()
        greedy = best / best.sum(dtype=values.dtype)
        return (1 - self.epsilon) * greedy + self.epsilon / values.shape[-1]
