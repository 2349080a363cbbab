"""Games, one family per file."""

from .auctions import first_price_auction, second_price_auction
from .lottery import repeated_lottery
from .many_players import minority, public_goods, travellers_dilemma, volunteers_dilemma
from .market import AbstractMarket, LinearMarket, LogitMarket
from .matrix import bimatrix, prisoners_dilemma, repeated
from .pricing import bertrand, cournot, sequential, two_prices, unit_demand
from .signals import with_signals
from .tables import from_table, read_nfg, write_nfg
from .two_by_two import (
    battle_of_the_sexes,
    chicken,
    coordination,
    hawk_dove,
    matching_pennies,
    rock_paper_scissors,
    stag_hunt,
    symmetric,
)
from .with_states import (
    ecological_public_good,
    random_ergodic,
    two_state_dilemma,
    two_state_matching_pennies,
)

__all__ = [
    "AbstractMarket",
    "LinearMarket",
    "LogitMarket",
    "battle_of_the_sexes",
    "bertrand",
    "bimatrix",
    "chicken",
    "coordination",
    "cournot",
    "ecological_public_good",
    "first_price_auction",
    "from_table",
    "hawk_dove",
    "matching_pennies",
    "minority",
    "prisoners_dilemma",
    "public_goods",
    "random_ergodic",
    "read_nfg",
    "repeated",
    "repeated_lottery",
    "rock_paper_scissors",
    "second_price_auction",
    "sequential",
    "stag_hunt",
    "symmetric",
    "travellers_dilemma",
    "two_prices",
    "two_state_dilemma",
    "two_state_matching_pennies",
    "unit_demand",
    "volunteers_dilemma",
    "with_signals",
    "write_nfg",
]
