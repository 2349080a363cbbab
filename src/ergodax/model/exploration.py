"""Exploration: how the action values of one state become action probabilities."""

import abc

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .hyper import HyperModule, Scalar, hyper


class AbstractExploration(HyperModule):
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

    def maximised(self, values: Float[Array, "S A"]) -> Float[Array, "rows B"] | None:
        """The numbers whose row maxima the policies of all states take; None if they take none."""
        return None

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
        softmax = self._softmax(values)
        return (1 - self.epsilon) * softmax + self.epsilon / values.shape[-1]

    def _softmax(self, values):
        # Centred first: large values over a small temperature would lose their differences.
        centred = values - jax.lax.stop_gradient(values).max(axis=-1, keepdims=True)
        weights = jnp.exp(centred / self.temperature)
        return weights / weights.sum(axis=-1, keepdims=True)

    def score(self, values: Float[Array, " A"], action: Int[Array, ""] | int) -> Float[Array, " A"]:
        """Returns the score `w (1{b = action} - softmax_b) / temperature`, `[A]`.

        `w` is the share of the softmax in the action's probability: 1 without epsilon, also where
        the probability itself underflows to zero.
        """
        softmax = self._softmax(values)
        explored = (1 - self.epsilon) * softmax[action]
        total = explored + self.epsilon / values.shape[-1]
        share = jnp.where(total > 0, explored / jnp.where(total > 0, total, 1), 1)
        chosen = jax.nn.one_hot(action, values.shape[-1], dtype=values.dtype)
        return share * (chosen - softmax) / self.temperature


class Projection(AbstractExploration):
    """The point of the simplex next to the values, mixed with uniform play.

    `pi = (1 - epsilon) P(values / temperature) + epsilon / A` with the Euclidean projection
    `P(z) = max(z - c, 0)`, c such that it sums to one (sparsemax; Martins and Astudillo 2016).
    Actions far behind the best have probability zero; the probabilities have kinks there.

    Attributes:
        temperature: positive.
        epsilon: probability of a uniformly drawn action, in [0, 1].
    """

    temperature: Scalar = hyper(1.0, within="(0, inf)")
    epsilon: Scalar = hyper(0.0, within="[0, 1]")

    def __call__(self, values: Float[Array, " A"]) -> Float[Array, " A"]:
        """Returns the action probabilities for the action values `[A]`."""
        projected = jnp.maximum(self.margins(values), 0)
        return (1 - self.epsilon) * projected + self.epsilon / values.shape[-1]

    def maximised(self, values: Float[Array, "S A"]) -> Float[Array, "rows 2"]:
        """For every entry the pair (margin, 0): it is played where the margin is positive."""
        margins = jax.vmap(self.margins)(values).ravel()
        return jnp.stack([margins, jnp.zeros_like(margins)], axis=-1)

    def margins(self, values: Float[Array, " A"]) -> Float[Array, " A"]:
        """Returns `values / temperature - c`: the projection where positive, `[A]`."""
        scaled = (values - values.max()) / self.temperature
        falling = jnp.sort(scaled, descending=True)
        ranks = jnp.arange(1, len(values) + 1, dtype=values.dtype)
        # The k best actions are played where the k-th lies above the level they would share.
        levels = (jnp.cumsum(falling) - 1) / ranks
        return scaled - levels[jnp.sum(falling > levels) - 1]


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
        best = (values == values.max()).astype(values.dtype)
        greedy = best / best.sum()
        return (1 - self.epsilon) * greedy + self.epsilon / values.shape[-1]
