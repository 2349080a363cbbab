"""Kaisers and Tuyls: the pitchfork of Boltzmann Q-learners that coordinate.

Two Q-learners without a state earn one if they choose the same action. Above the temperature 1/2
they end at even chances; below it two further rest points appear and even chances are unstable.
"""

import jax.numpy as jnp
import numpy as np

from ..averaged.drift import jacobian
from ..averaged.rest_points import rest_point
from ..games import coordination
from ..learners import QLearning
from ..model.exploration import EpsilonSoftmax
from ..model.wrapped import WrappedGame
from .agreement import Quantity, Replication, root

SOURCE = (
    "Kaisers and Tuyls (2011), FAQ-learning in matrix games: demonstrating convergence near Nash "
    "equilibria, and bifurcation of attractors in the battle of sexes"
)


def learners(temperature: float) -> WrappedGame:
    """Two Q-learners without a state in the coordination game."""
    explore = EpsilonSoftmax(temperature)
    return WrappedGame(coordination(memory=0), [QLearning(1.0, 0.0, explore)] * 2)


def growth(temperature: float) -> float:
    """The largest real part of the eigenvalues at even chances."""
    even = (jnp.full((1, 2), 0.5),) * 2
    return float(np.linalg.eigvals(np.asarray(jacobian(learners(temperature), even))).real.max())


def replicate() -> Replication:
    """The temperature of the pitchfork, and the outer rest points just below it."""
    pitchfork = root(growth, 0.4, 0.6)
    wrapped = learners(0.49)
    chances = []
    for first in (0.3, 0.7):
        start = (jnp.array([[first, 1 - first]]),) * 2
        found = rest_point(wrapped, start)
        chances.append(float(wrapped.policies(found.params)[0][0, 0]))
    return Replication(
        SOURCE,
        (
            Quantity("temperature of the pitchfork", "0.5", pitchfork),
            Quantity("lower outer rest point at .49", "0.378509", chances[0], anew=True),
            Quantity("upper outer rest point at .49", "0.621491", chances[1], anew=True),
        ),
    )
