"""The classes of two-player games with two or three actions, by name."""

from typing import Any

from jaxtyping import Array, Float

from ..base.checks import check_number, check_numbers, describe
from ..model.game import MarkovGame
from .matrix import bimatrix, table_of

# A number, or an array of no axes, which JAX may be tracing.
Payoff = Float[Array, ""] | float


def _named(rows: Any, actions: list[str], memory: int) -> MarkovGame:
    """The repeated game of payoffs given as rows of pairs of numbers, any of them traced."""
    tables = [table_of([[pair[i] for pair in row] for row in rows]) for i in range(2)]
    return bimatrix(*tables, memory=memory, action_names=[actions] * 2)


def symmetric(
    reward: Payoff = 3.0,
    sucker: Payoff = 0.0,
    temptation: Payoff = 5.0,
    punishment: Payoff = 1.0,
    *,
    memory: int = 1,
) -> MarkovGame:
    """Any symmetric game of two actions, C and D, by its four payoffs.

    CC pays `(R, R)`, CD `(S, T)`, DC `(T, S)`, DD `(P, P)`. With T > R > P > S it is a prisoner's
    dilemma (the defaults are those of Axelrod 1984, The Evolution of Cooperation), with R > T > P
    > S a stag hunt, with T > R > S > P a game of chicken.

    Args:
        reward: R, for mutual cooperation.
        sucker: S, for cooperating alone.
        temptation: T, for defecting alone.
        punishment: P, for mutual defection.
        memory: number of past rounds remembered.
    """
    r, s, t, p = check_numbers(
        reward=reward, sucker=sucker, temptation=temptation, punishment=punishment
    )
    payoffs = [[(r, r), (s, t)], [(t, s), (p, p)]]
    return _named(payoffs, ["C", "D"], memory)


def stag_hunt(
    stag: Payoff = 4.0, hare: Payoff = 3.0, shared_hare: Payoff = 2.0, *, memory: int = 1
) -> MarkovGame:
    """The stag hunt: hunt the stag together, or catch a hare alone (Skyrms 2004, The Stag Hunt).

    Both hunting the stag pays `stag`; a lone stag hunter gets 0 and the other `hare`; two hare
    hunters get `shared_hare` each.

    Args:
        stag: payoff of each of two stag hunters.
        hare: payoff of a hare hunter beside a stag hunter.
        shared_hare: payoff of each of two hare hunters.
        memory: number of past rounds remembered.
    """
    check_numbers(stag=stag, hare=hare, shared_hare=shared_hare)
    payoffs = [[(stag, stag), (0, hare)], [(hare, 0), (shared_hare, shared_hare)]]
    return _named(payoffs, ["stag", "hare"], memory)


def hawk_dove(value: Payoff = 2.0, cost: Payoff = 3.0, *, memory: int = 1) -> MarkovGame:
    """Hawks fight for a resource, doves share it or leave (Maynard Smith and Price 1973).

    Two hawks get `(value - cost) / 2` each, a hawk takes `value` from a dove, who gets 0, and two
    doves get `value / 2` each. With cost above value both mixed play of hawk with probability
    value / cost and either unequal outcome are equilibria.

    Args:
        value: of the resource.
        cost: of a lost fight.
        memory: number of past rounds remembered.
    """
    check_numbers(value=value, cost=cost)
    fight, share = (value - cost) / 2, value / 2
    payoffs = [[(fight, fight), (value, 0)], [(0, value), (share, share)]]
    return _named(payoffs, ["hawk", "dove"], memory)


def chicken(win: Payoff = 1.0, crash: Payoff = 10.0, *, memory: int = 1) -> MarkovGame:
    """The game of chicken: who swerves loses face, who crashes loses all (Rapoport, Chammah 1966).

    Both swerving pays 0; going straight alone pays `win`, taken from the one who swerved; going
    straight together costs both `crash`.

    Args:
        win: won by going straight alone, and lost by the other.
        crash: lost by both who go straight.
        memory: number of past rounds remembered.
    """
    check_numbers(win=win, crash=crash)
    payoffs = [[(0, 0), (-win, win)], [(win, -win), (-crash, -crash)]]
    return _named(payoffs, ["swerve", "straight"], memory)


def battle_of_the_sexes(
    preferred: Payoff = 2.0, other: Payoff = 1.0, apart: Payoff = 0.0, *, memory: int = 1
) -> MarkovGame:
    """Two want to meet, each rather at its own place (Luce and Raiffa 1957, section 5.3).

    Args:
        preferred: payoff of meeting at the place one prefers: the first for agent 0, the second
            for agent 1.
        other: payoff of meeting at the place the other prefers.
        apart: payoff of not meeting.
        memory: number of past rounds remembered.
    """
    check_numbers(preferred=preferred, other=other, apart=apart)
    payoffs = [[(preferred, other), (apart, apart)], [(apart, apart), (other, preferred)]]
    return _named(payoffs, ["first", "second"], memory)


def coordination(
    first: Payoff = 1.0, second: Payoff = 1.0, miss: Payoff = 0.0, *, memory: int = 1
) -> MarkovGame:
    """Pure coordination: both want the same action, whichever it is.

    With the defaults the learning dynamics of softmax Q-learners without discounting have a
    pitchfork bifurcation at temperature 1/2 (Kaisers and Tuyls 2010).

    Args:
        first: payoff of each where both take the first action.
        second: payoff of each where both take the second action.
        miss: payoff of each otherwise.
        memory: number of past rounds remembered.
    """
    check_numbers(first=first, second=second, miss=miss)
    payoffs = [[(first, first), (miss, miss)], [(miss, miss), (second, second)]]
    return _named(payoffs, ["first", "second"], memory)


def matching_pennies(stake: Payoff = 1.0, *, memory: int = 1) -> MarkovGame:
    """Matching pennies: agent 0 wins the stake where both show the same side, agent 1 otherwise.

    Zero-sum, with uniform play as the only equilibrium (von Neumann and Morgenstern 1944).

    Args:
        stake: what the loser pays to the winner.
        memory: number of past rounds remembered.
    """
    check_numbers(stake=stake)
    same, differ = (stake, -stake), (-stake, stake)
    payoffs = [[same, differ], [differ, same]]
    return _named(payoffs, ["heads", "tails"], memory)


def rock_paper_scissors(tie: tuple[Payoff, Payoff] = (0.0, 0.0), *, memory: int = 1) -> MarkovGame:
    """Rock, paper, scissors with payoffs for ties (Sato, Akiyama and Farmer 2002).

    A win pays 1, a loss -1, and a tie `tie[i]` to agent i, between -1 and 1. The game is zero-sum
    where `tie[0] = -tie[1]`; replicator-like learners are then chaotic unless both are 0.

    Args:
        tie: payoffs of a tie to both agents.
        memory: number of past rounds remembered.
    """
    if not isinstance(tie, tuple | list) or len(tie) != 2:
        raise ValueError(f"tie must be the payoffs of both agents; found {describe(tie)}.")
    even = [check_number(f"tie[{agent}]", payoff) for agent, payoff in enumerate(tie)]
    win, loss = (1, -1), (-1, 1)
    payoffs = [[even, loss, win], [win, even, loss], [loss, win, even]]
    return _named(payoffs, ["rock", "paper", "scissors"], memory)
