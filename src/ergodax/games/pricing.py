"""Games of firms that set prices or quantities, as in the literature on algorithmic collusion."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_count, check_number, check_numbers, check_type
from ..base.memory import check_room
from ..model.game import MarkovGame
from .market import AbstractMarket, LogitMarket, price_names
from .matrix import check_states, repeated


def _market(market: Any) -> AbstractMarket:
    """The market, by default that of Calvano et al."""
    if market is None:
        return LogitMarket()
    return check_type("market", market, AbstractMarket, "a market, e.g. games.LogitMarket(3)")


def bertrand(
    market: AbstractMarket | None = None,
    *,
    num_prices: int = 15,
    extension: Real[ArrayLike, ""] = 0.1,
    memory: int = 1,
) -> MarkovGame:
    """Firms that set prices on a grid around competitive and collusive ones.

    The default is the baseline of Calvano, Calzolari, Denicolo and Pastorello 2020: logit demand,
    two firms, 15 prices, memory one; 225 states.

    Args:
        market: the firms and their demand; `LogitMarket()` by default.
        num_prices: m.
        extension: of the grid beyond the Nash and the monopoly prices, see `price_grid`.
        memory: number of past periods remembered; there are `m^(n memory)` states.
    """
    market = _market(market)
    return market.game(market.price_grid(num_prices, extension), memory=memory)


def two_prices(market: AbstractMarket | None = None, *, memory: int = 1) -> MarkovGame:
    """Firms that choose between the competitive and the collusive price.

    With the default market it is the two-price game of den Boer, Meylahn and Schinkel 2022, a
    prisoner's dilemma in which the monopoly price cooperates.

    Args:
        market: the firms and their demand; `LogitMarket()` by default.
        memory: number of past periods remembered.
    """
    market = _market(market)
    return market.game(
        jnp.stack([market.nash_prices(), market.monopoly_prices()], axis=-1), memory=memory
    )


def unit_demand(
    num_firms: int = 2,
    num_prices: int = 20,
    *,
    cost: float = 2.0,
    value: float = 10.0,
    memory: int = 0,
) -> MarkovGame:
    """Bertrand competition for one consumer who buys from the cheapest firm.

    The consumer buys one unit at a price up to `value`; firms with the same lowest price share it.
    After Asker, Fershtman and Pakes 2022, where cost is 2 and the value 10.

    Args:
        num_firms: n.
        num_prices: m; prices are `value k / m` for k = 1 .. m.
        cost: marginal cost.
        value: what the unit is worth to the consumer.
        memory: number of past periods remembered; there are `m^(n memory)` states.
    """
    num_firms = check_count("num_firms", num_firms)
    check_numbers(cost=cost, value=value)
    prices = value * np.arange(1, check_count("num_prices", num_prices) + 1) / num_prices
    check_states([num_prices] * num_firms, memory)
    offered = np.stack(np.meshgrid(*[prices] * num_firms, indexing="ij"), axis=-1)
    cheapest = offered == offered.min(axis=-1, keepdims=True)
    payoffs = (offered - cost) * cheapest / cheapest.sum(axis=-1, keepdims=True)
    names = price_names(np.broadcast_to(prices, (num_firms, len(prices))))
    return repeated(tuple(np.moveaxis(payoffs, -1, 0)), memory=memory, action_names=names)


def cournot(
    num_firms: int = 2,
    num_quantities: int = 15,
    *,
    intercept: Float[Array, ""] | float = 1.0,
    slope: Float[Array, ""] | float = 1.0,
    cost: Float[Array, ""] | float = 0.0,
    extension: Real[ArrayLike, ""] = 0.1,
    memory: int = 1,
) -> MarkovGame:
    """Firms that set quantities at the price `intercept - slope sum_i q_i`, but not below zero.

    Quantities are equally spaced between the collusive `(a - c) / (2 b n)` and the Nash quantity
    `(a - c) / (b (n + 1))`, extended on both sides as in `AbstractMarket.price_grid`.
    Q-learning in this game: Waltman and Kaymak 2008.

    Args:
        num_firms: n.
        num_quantities: m.
        intercept: a.
        slope: b, positive.
        cost: c, marginal cost.
        extension: of the grid, as a share of the interval.
        memory: number of past periods remembered; there are `m^(n memory)` states.
    """
    num_firms = check_count("num_firms", num_firms)
    check_numbers(intercept=intercept, cost=cost, extension=extension)
    check_number("slope", slope, "(0, inf)")
    size = jnp.asarray((intercept - cost) / slope, dtype=float)
    collusive, nash = size / (2 * num_firms), size / (num_firms + 1)
    margin = extension * (nash - collusive)
    count = check_count("num_quantities", num_quantities)
    check_states([count] * num_firms, memory)
    grid = jnp.broadcast_to(
        jnp.linspace(collusive - margin, nash + margin, count), (num_firms, count)
    )
    quantities = jnp.stack(jnp.meshgrid(*grid, indexing="ij"), axis=-1)
    price = jnp.maximum(intercept - slope * quantities.sum(axis=-1, keepdims=True), 0)
    payoffs = (price - cost) * quantities
    tables = tuple(jnp.moveaxis(payoffs, -1, 0))
    return repeated(tables, memory=memory, action_names=price_names(grid))


def sequential(intervals: int = 6, *, cost: float = 0.0) -> MarkovGame:
    """Two firms that set prices in turn (Maskin and Tirole 1988; Klein 2021).

    Prices are `k / intervals` for k = 0 .. intervals. Demand is `1 - p` at the lower price p, of
    the cheaper firm, or shared. A price holds for two periods. The state says whose turn it is and
    the other firm's standing price; the action of the firm whose turn it is not has no effect.

    Args:
        intervals: number of steps between prices 0 and 1.
        cost: marginal cost.
    """
    cost, count = check_number("cost", cost), check_count("intervals", intervals) + 1
    check_room(64 * 2 * count**3, f"a game of {2 * count} states", "take fewer prices")
    prices = np.linspace(0, 1, count)
    mine, other = np.meshgrid(prices, prices, indexing="ij")
    share = np.where(mine < other, 1.0, np.where(mine > other, 0.0, 0.5))
    profit = (mine - cost) * (1 - mine) * share  # [own price, other's price]

    turn, standing, first, second = np.indices((2, count, count, count))
    now = np.where(turn == 0, first, second)
    by_mover, by_other = profit[now, standing], profit[standing, now]
    rewards = np.stack(
        [np.where(turn == 0, by_mover, by_other), np.where(turn == 0, by_other, by_mover)], axis=-1
    )
    next_state = (1 - turn) * count + now
    shape = (2 * count, count, count)
    [names] = price_names(prices[None]) or [[str(k) for k in range(count)]]
    return MarkovGame.deterministic(
        next_state.reshape(shape),
        rewards.reshape(*shape, 2),
        state_names=[f"{firm} after {name}" for firm in (0, 1) for name in names],
        action_names=[names, names],
    )
