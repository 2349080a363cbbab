"""Games of many agents, and the traveller's dilemma."""

import itertools

import numpy as np
from jaxtyping import ArrayLike, Real

from ..base.checks import check_count, check_number, check_numbers, describe
from ..model.game import MarkovGame
from .matrix import check_states, repeated


def _by_count(own, num_agents: int, memory: int):
    """A table `[2, .., 2]` per agent, from `own(action, others who take action 0)`."""
    check_states([2] * num_agents, memory)
    profiles = itertools.product(range(2), repeat=num_agents)
    table = [[own(a, profile.count(0) - (a == 0)) for a in profile] for profile in profiles]
    tables = np.transpose(np.asarray(table, dtype=float))
    return tuple(np.reshape(own, (2,) * num_agents) for own in tables)


def public_goods(
    num_agents: int = 3, factor: float = 1.6, endowment: float = 1.0, *, memory: int = 1
) -> MarkovGame:
    """The linear public goods game: contributions are multiplied and shared by all.

    Each agent contributes its endowment (C) or keeps it (D) and receives `factor / n` of all that
    was contributed (Ledyard 1995, in the Handbook of Experimental Economics). A dilemma for
    1 < factor < n.

    Args:
        num_agents: n.
        factor: what contributions are multiplied by.
        endowment: what each agent may contribute.
        memory: number of past rounds remembered; there are `2^(n memory)` states.
    """
    num_agents = check_count("num_agents", num_agents)
    check_numbers(factor=factor, endowment=endowment)

    def own(action, others):
        given = others + (action == 0)
        return endowment * ((action == 1) + factor * given / num_agents)

    payoffs = _by_count(own, num_agents, memory)
    return repeated(payoffs, memory=memory, action_names=[["C", "D"]] * num_agents)


def volunteers_dilemma(
    num_agents: int = 3, benefit: float = 1.0, cost: float = 0.4, *, memory: int = 1
) -> MarkovGame:
    """The volunteer's dilemma: one volunteer is enough, and pays (Diekmann 1985).

    Everyone gets `benefit` if anyone volunteers, nobody gets anything otherwise; volunteers pay
    `cost`. In the symmetric equilibrium each defects with probability `(cost / benefit)^(1/(n-1))`.

    Args:
        num_agents: n.
        benefit: to every agent.
        cost: to each volunteer, below the benefit.
        memory: number of past rounds remembered; there are `2^(n memory)` states.
    """
    num_agents = check_count("num_agents", num_agents)
    check_numbers(benefit=benefit, cost=cost)

    def own(action, others):
        return benefit * (action == 0 or others > 0) - cost * (action == 0)

    payoffs = _by_count(own, num_agents, memory)
    return repeated(payoffs, memory=memory, action_names=[["volunteer", "wait"]] * num_agents)


def minority(num_agents: int = 3, *, memory: int = 1) -> MarkovGame:
    """The minority game: who is on the smaller side wins 1 (Challet and Zhang 1997).

    Args:
        num_agents: an odd number of agents.
        memory: number of past rounds remembered; there are `2^(n memory)` states.

    Raises:
        ValueError: if the number of agents is even.
    """
    num_agents = check_count("num_agents", num_agents)
    if num_agents % 2 == 0:
        raise ValueError(f"num_agents must be odd, for a minority to exist; found {num_agents}.")

    def own(action, others):
        same_side = 1 + (others if action == 0 else num_agents - 1 - others)
        return float(same_side < num_agents / 2)

    payoffs = _by_count(own, num_agents, memory)
    return repeated(payoffs, memory=memory, action_names=[["A", "B"]] * num_agents)


def travellers_dilemma(
    low: int = 2, high: int = 10, bonus: Real[ArrayLike, ""] = 2.0, *, memory: int = 0
) -> MarkovGame:
    """The traveller's dilemma: both claim a sum, and the lower claim counts (Basu 1994).

    Both receive the lower claim; who made it gets `bonus` on top, taken from the other. The only
    equilibrium is the lowest claim, although both would gain by claiming more. Basu's claims go
    from 2 to 100.

    Args:
        low: lowest claim, a whole number.
        high: highest claim.
        bonus: what the lower claimant receives from the higher.
        memory: number of past rounds remembered; there are `(high - low + 1)^(2 memory)` states.

    Raises:
        ValueError: unless low < high.
    """
    for name, claim in (("low", low), ("high", high)):
        if not isinstance(claim, int | np.integer) or isinstance(claim, bool):
            raise ValueError(f"{name} must be a whole number; found {describe(claim)}.")
    bonus = check_number("bonus", bonus)
    if not low < high:
        raise ValueError(f"low must be below high; found {low} and {high}.")
    check_states([high - low + 1] * 2, memory)
    claims = np.arange(low, high + 1)
    mine, other = claims[:, None, None], claims[None, :, None]
    side = np.array([1, -1]) * np.sign(other - mine)
    payoffs = np.minimum(mine, other) + side * bonus
    names = [[str(claim) for claim in claims]] * 2
    return repeated(tuple(np.moveaxis(payoffs, -1, 0)), memory=memory, action_names=names)
