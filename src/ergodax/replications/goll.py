"""Goll, Heitzig and Barfuss (2024): cooperation that does not last, and oscillations.

Two Boltzmann Q-learners without a state play the prisoner's dilemma with payoffs 0, 1, 3, 5 at
temperature 1. Their one symmetric rest point turns unstable as the discount rises, by a Hopf
bifurcation of the averaged ODE; the map of single steps at a learning rate has its own.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..averaged.drift import jacobian
from ..averaged.rest_points import rest_point
from ..games import symmetric
from ..learners import QLearning
from ..model.exploration import EpsilonSoftmax
from ..model.wrapped import WrappedGame
from .agreement import Quantity, Replication, root

SOURCE = (
    "Goll, Heitzig and Barfuss (2024), Deterministic model of incremental multi-agent Boltzmann "
    "Q-learning, arXiv 2501.00160"
)
RATE = 0.01


def learners(discount: float, temperature: float = 1.0, rate: float = 1.0) -> WrappedGame:
    """Two Q-learners without a state in the prisoner's dilemma; the first action cooperates."""
    explore = EpsilonSoftmax(temperature)
    return WrappedGame(symmetric(memory=0), [QLearning(rate, discount, explore)] * 2)


def cooperation(temperature: float) -> float:
    """The chance of cooperation at the symmetric rest point, which no discount changes."""
    wrapped = learners(0.0, temperature)
    return float(wrapped.policies(rest_point(wrapped, _GUESS).params)[0][0, 0])


_GUESS = (np.array([[1.0, 2.0]]),) * 2


@functools.cache
def _rewards() -> np.ndarray:
    """The values at the rest point without discount: the mean rewards of both actions."""
    return np.asarray(rest_point(learners(0.0), _GUESS).params[0])


def _eigenvalues(discount: float) -> Any:
    values = _rewards() + discount * _rewards().max() / (1 - discount)
    return np.linalg.eigvals(np.asarray(jacobian(learners(discount), (jnp.asarray(values),) * 2)))


def growth(discount: float) -> float:
    """The largest real part of the eigenvalues at the rest point."""
    return float(_eigenvalues(discount).real.max())


def expansion(discount: float) -> float:
    """By how much the map of single steps at rate .01 expands: its largest factor less one."""
    return float(np.abs(1 + RATE * _eigenvalues(discount)).max() - 1)


def replicate() -> Replication:
    """Rest point and bifurcations."""
    hopf = root(growth, 0.7, 0.8)
    step = root(expansion, 0.7, 0.8)
    frequency = float(np.abs(_eigenvalues(hopf).imag).max())
    chances = [cooperation(temperature) for temperature in (1.0, 10.0)]
    return Replication(
        SOURCE,
        (
            Quantity("cooperation at the rest point", "0.227", chances[0]),
            Quantity("the same, to more digits", "0.226751", chances[0], anew=True),
            Quantity("the same at temperature 10", "0.463478", chances[1], anew=True),
            Quantity("discount of the bifurcation, steps of rate .01", "0.745676", step),
            Quantity("discount of the Hopf bifurcation of the ODE", "0.746152", hopf, anew=True),
            Quantity("its angular frequency", "0.19158", frequency, anew=True),
        ),
    )
