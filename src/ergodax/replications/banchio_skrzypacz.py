"""Banchio and Skrzypacz (2022): algorithms bid low in first-price auctions, not in second-price.

Two Q-learners without a state bid for a good that is worth 1 to both, a million times, and explore
with probability `.025 exp(-.0002 t)`. A session's outcome is the pair of greedy bids at its end,
where they stayed the same over the last 1000 auctions.
"""

from typing import Any

import jax
import numpy as np
import xarray

from ..base.checks import check_count
from ..games import first_price_auction, second_price_auction
from ..learners import QLearning
from ..model.exploration import EpsilonGreedy
from ..model.schedules import Exponential
from ..model.wrapped import WrappedGame
from ..outcomes import greedy
from ..results.labels import attributes
from ..simulation.simulate import simulate
from ..simulation.until import fitted, greedy_unchanged
from .agreement import Quantity, Replication, mean_of, share_of

SOURCE = (
    "Banchio and Skrzypacz (2022), Artificial intelligence and auction design, Proceedings of the "
    "23rd ACM Conference on Economics and Computation, arXiv 2202.05947"
)
PERIODS, UNCHANGED = 1_000_000, 1000
_PUBLISHED = 1000  # sessions
# The paper's numbers are those of notes that reproduce it (github.com/fe-lipe-c/ML_Games_Group); it
# was not compared itself. Sections 3 and 4; first values are said to be optimistic: here those of
# earning the whole good for ever. A tie is decided by a draw.
RATE, DISCOUNT, EXPLORATION, DECAY, FIRST = 0.05, 0.99, 0.025, 2e-4, 100.0
_AUCTIONS = {"first price": first_price_auction, "second price": second_price_auction}
# Sessions by what the seller earns: the counts printed in Figure 1.
_COUNTS = {
    "first price": {
        **{0.10: 110, 0.15: 202, 0.20: 202, 0.25: 192},
        **{0.30: 164, 0.35: 92, 0.40: 34, 0.45: 4},
    },
    "second price": {0.10: 1, 0.25: 1, 0.45: 1, 0.65: 2, 0.70: 1, 0.95: 994},
}
_MEANS = {"first price": ("0.24", "0.2265"), "second price": ("0.95", "0.9471")}


def learners(auction: str) -> WrappedGame:
    """The paper's two bidders in a "first price" or a "second price" auction."""
    explore = EpsilonGreedy(Exponential(EXPLORATION, DECAY))
    return WrappedGame(_AUCTIONS[auction](), [QLearning(RATE, DISCOUNT, explore, FIRST)] * 2)


def replicate(sessions: int = 100, *, seed: int = 0, progress: bool = False) -> Replication:
    """What the seller earns in both auctions, by the bids on which learning ends.

    Args:
        sessions: how many of each auction; the paper has 1000.
        seed: of the random numbers.
        progress: whether to show bars.
    """
    sessions = check_count("sessions", sessions, least=2)
    quantities: list[Quantity] = []
    revenue, bids, settled, speeds = [], [], [], []
    for auction, key in zip(_AUCTIONS, jax.random.split(jax.random.key(seed)), strict=True):
        own, stayed, speed = _simulate(learners(auction), sessions, key, progress)
        paid = own.max(axis=1) if auction == "first price" else own.min(axis=1)
        revenue.append(paid)
        bids.append(own)
        settled.append(stayed)
        speeds.append(speed)
        quantities += _compared(auction, own[stayed], paid[stayed])
    data = xarray.Dataset(
        {
            "revenue": (("auction", "session"), revenue, attributes("what the seller earns")),
            "bid": (("auction", "session", "agent"), bids, attributes("greedy bid at the end")),
            "settled": (
                ("auction", "session"),
                settled,
                attributes("whether greedy bids were the same over the last 1000 auctions"),
            ),
        },
        {"auction": list(_AUCTIONS)},
        attrs={"seed": seed},
    )
    left_out = sessions * len(_AUCTIONS) - int(np.sum(settled))
    return Replication(
        SOURCE,
        tuple(quantities),
        data,
        notes=(
            f"{left_out} sessions whose bids had not settled are left out, as in the paper.",
            "The paper's numbers are those of notes that reproduce it (fe-lipe-c/ML_Games_Group).",
            "The paper does not say with which optimistic values bidders begin: here with 100.",
            f"2 x {sessions} sessions at {np.mean(speeds) / 1e6:.1f} million steps/s.",
        ),
    )


def _simulate(wrapped: WrappedGame, sessions: int, key: Any, progress: bool):
    """Greedy bids at the end `[R, 2]`, whether they had settled `[R]`, and steps per second."""
    start = wrapped.init()
    runs = simulate(
        wrapped,
        start,
        [0.0, PERIODS - UNCHANGED, PERIODS],
        runs=sessions,
        key=key,
        recorder=fitted(greedy_unchanged(UNCHANGED), wrapped, start),
        keep_runs=True,
        progress=progress,
    )
    if runs.final is None or runs.recorded is None:
        raise KeyboardInterrupt
    tables = tuple(np.asarray(own.params) for own in runs.final.params)
    best, _ = greedy(wrapped.game, tables)
    count = wrapped.game.num_actions[0]
    bids = (np.stack([own[:, 0] for own in best], axis=1) + 1) / (count + 1)
    changes = np.asarray(runs.recorded.values["changes"])
    return bids, changes[:, -1] == changes[:, -2], runs.steps_per_second


def _compared(auction: str, bids: np.ndarray, revenue: np.ndarray) -> list[Quantity]:
    """The paper's numbers of one auction beside those of the sessions that settled."""
    levels, counts = (np.array(list(part)) for part in zip(*_COUNTS[auction].items(), strict=True))
    spread = float(np.sqrt(np.cov(levels, fweights=counts)))
    names = (f"revenue, {auction}, as in the text", f"revenue, {auction}, by Figure 1")
    found = [
        mean_of(name, published, revenue, spread, _PUBLISHED)
        for name, published in zip(names, _MEANS[auction], strict=True)
    ]
    if auction == "second price":
        highest = (np.abs(bids - 0.95) < 1e-9).all(axis=1)
        found.append(share_of("share of highest bids, second price", "0.994", highest, _PUBLISHED))
    return found
