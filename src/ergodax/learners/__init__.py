"""Learning algorithms, one family per file."""

from .actor_critic import ActorCritic, ActorCriticParams
from .double_q import DoubleQLearning
from .initial import initial_values
from .lenient import Lenient
from .observing import Observing
from .policy_gradient import ExponentialWeights, ProjectedGradient, Reinforce
from .q_learning import CounterfactualQLearning, FrequencyAdjustedQLearning, QLearning
from .reinforcement import BushMosteller, Cross, RothErev
from .sarsa import ExpectedSarsa, Sarsa
from .visits import CountedParams, FallingRate
from .wolf import WolfParams, WolfPHC

__all__ = [
    "ActorCritic",
    "ActorCriticParams",
    "BushMosteller",
    "CountedParams",
    "CounterfactualQLearning",
    "Cross",
    "DoubleQLearning",
    "ExpectedSarsa",
    "ExponentialWeights",
    "FallingRate",
    "FrequencyAdjustedQLearning",
    "Lenient",
    "Observing",
    "ProjectedGradient",
    "QLearning",
    "Reinforce",
    "RothErev",
    "Sarsa",
    "WolfPHC",
    "WolfParams",
    "initial_values",
]
