"""den Boer, Meylahn and Schinkel (2022): when are two learnt strategies equilibria?

Two firms choose between the competitive and the collusive price. Both play a memory-one strategy
and explore with probability epsilon. A strategy is an equilibrium up to that epsilon at which the
best reply to it, by a firm that does not explore, becomes another.
"""

import numpy as np

from ..games import LogitMarket, repeated, two_prices
from ..model.game import MarkovGame
from ..outcomes import best_response
from .agreement import Quantity, Replication

SOURCE = (
    "den Boer, Meylahn and Schinkel (2022), Artificial collusion: examining supracompetitive "
    "pricing by Q-learning algorithms"
)
# After both prices competitive, only the second collusive, only the first, both: collude?
STRATEGIES = {"win-stay-lose-shift": (1, 0, 0, 1), "grim trigger": (0, 0, 0, 1)}
DISCOUNT = 0.95
_PAYOFFS = {
    "profit, both collusive": ("0.3375", (1, 1)),
    "profit, undercut": ("0.1180", (1, 0)),
    "profit, undercutting": ("0.3679", (0, 1)),
    "profit, both competitive": ("0.2229", (0, 0)),
}
_THRESHOLDS = {"win-stay-lose-shift": "0.291760", "grim trigger": "0.514902"}
# From payoffs of the four digits that are printed.
_ROUNDED = {"win-stay-lose-shift": "0.292042", "grim trigger": "0.515126"}


def gains(game: MarkovGame, strategy: tuple[int, ...], epsilons: np.ndarray) -> np.ndarray:
    """What the best replies to a strategy that explores are worth beyond the strategy itself.

    Args:
        game: the two-price game.
        strategy: the first firm's action in each state; the second firm's is the same after
            exchanging the two prices.
        epsilons: probabilities with which the other firm draws its price.

    Returns:
        The largest gain over states for each of them, 0 where the strategy is a best reply.
    """
    own = np.asarray(strategy)
    other = np.eye(2)[own.reshape(2, 2).T.ravel()]
    tables = (1 - epsilons[:, None, None]) * other + epsilons[:, None, None] / 2
    values = np.asarray(best_response(game, (tables, tables), DISCOUNT, 0).action_values)
    return (values.max(axis=2) - values[:, np.arange(4), own]).max(axis=1)


def threshold(game: MarkovGame, strategy: tuple[int, ...]) -> float:
    """The exploration rate up to which a strategy is a best reply to itself."""
    low, high = 0.0, 1.0
    for _ in range(4):
        tried = np.linspace(low, high, 101)
        left = int(np.argmax(gains(game, strategy, tried) > 1e-10))
        low, high = tried[left - 1], tried[left]
    return (low + high) / 2


def replicate() -> Replication:
    """The game's payoffs, and the exploration rates up to which two strategies are equilibria."""
    game = two_prices(LogitMarket())
    profit = np.asarray(game.rewards[0, :, :, 0, 0])
    rounded = profit.round(4)
    printed = repeated((rounded, rounded.T))
    quantities = [
        Quantity(name, published, float(profit[pair]))
        for name, (published, pair) in _PAYOFFS.items()
    ]
    quantities += [
        Quantity(
            f"largest exploration, {name}{text}", given[name], threshold(which, own), anew=True
        )
        for which, given, text in (
            (game, _THRESHOLDS, ""),
            (printed, _ROUNDED, ", payoffs of four digits"),
        )
        for name, own in STRATEGIES.items()
    ]
    return Replication(SOURCE, tuple(quantities))
