"""Learning algorithms, one family per file."""

from .actor_critic import ActorCritic, ActorCriticParams
from .q_learning import CounterfactualQLearning, QLearning
from .sarsa import Sarsa

__all__ = ["ActorCritic", "ActorCriticParams", "CounterfactualQLearning", "QLearning", "Sarsa"]
