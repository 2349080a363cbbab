"""Repeated auctions with a grid of bids."""

import numpy as np

from ..base.checks import check_count, check_number
from ..model.game import MarkovGame
from .lottery import repeated_lottery
from .market import price_names
from .matrix import check_states


def first_price_auction(
    num_bidders: int = 2, num_bids: int = 19, *, value: float = 1.0, memory: int = 0
) -> MarkovGame:
    """The highest bidder wins and pays its own bid; ties are broken at random.

    The defaults are those of Banchio and Skrzypacz 2022: two bidders to whom the good is worth 1,
    and bids .05, .10, .., .95.

    Args:
        num_bidders: n.
        num_bids: m; bids are `value k / (m + 1)` for k = 1 .. m.
        value: of the good, to every bidder.
        memory: number of past rounds remembered; there are `m^(n memory)` states.
    """
    return _auction(num_bidders, num_bids, value, memory, rank=-1)


def second_price_auction(
    num_bidders: int = 2, num_bids: int = 19, *, value: float = 1.0, memory: int = 0
) -> MarkovGame:
    """The highest bidder wins and pays the second highest bid; ties are broken at random.

    Vickrey's auction (1961). Defaults and arguments are those of `first_price_auction`.
    """
    return _auction(num_bidders, num_bids, value, memory, rank=-2)


def _auction(num_bidders, num_bids, value, memory, rank) -> MarkovGame:
    """An auction whose winner pays the bid at this place of the sorted bids."""
    num_bidders = check_count("num_bidders", num_bidders)
    if num_bidders < 2:
        raise ValueError(f"num_bidders must be at least 2; found {num_bidders}.")
    value = check_number("value", value)
    bids = value * np.arange(1, check_count("num_bids", num_bids) + 1) / (num_bids + 1)
    check_states([num_bids] * num_bidders, memory)
    made = np.stack(np.meshgrid(*[bids] * num_bidders, indexing="ij"), axis=-1)
    highest = made == made.max(axis=-1, keepdims=True)
    gain = value - np.sort(made, axis=-1)[..., rank]
    # Outcome k: the k-th of those who bid highest wins.
    place = np.where(highest, np.cumsum(highest, axis=-1) - 1, -1)
    wins = np.stack([place == k for k in range(num_bidders)])
    tied = highest.sum(axis=-1)
    probabilities = np.stack([(k < tied) / tied for k in range(num_bidders)])
    names = price_names(np.broadcast_to(bids, (num_bidders, len(bids))))
    return repeated_lottery(
        wins * gain[..., None], probabilities, memory=memory, action_names=names
    )
