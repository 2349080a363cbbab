"""What policies are worth and how they are played: values, best replies, cycles, deviations.

Functions of a game and policies; they know no learning. Policies are a tuple with one table
`[S, A_i]` of probabilities per agent, as `WrappedGame.policies` returns them, strategies a tuple
with one table `[S]` of actions. A leading axis of all tables is one of runs.
"""

from .deviations import DeviationResponse, deviation_response
from .measures import profit_gain, strategy_class
from .play import Play, greedy, play
from .values import (
    action_values,
    best_response,
    cross_pair,
    exploitability,
    is_equilibrium,
    mean_rewards,
    q_loss,
    values,
)

__all__ = [
    "DeviationResponse",
    "Play",
    "action_values",
    "best_response",
    "cross_pair",
    "deviation_response",
    "exploitability",
    "greedy",
    "is_equilibrium",
    "mean_rewards",
    "play",
    "profit_gain",
    "q_loss",
    "strategy_class",
    "values",
]
