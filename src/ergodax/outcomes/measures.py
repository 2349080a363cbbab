"""Names and numbers that the literature gives to outcomes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from ..base.checks import check_array, describe, is_concrete
from ..model.game import MarkovGame
from .tables import check_strategies


def profit_gain(
    profits: Real[ArrayLike, "..."],
    competitive: Real[ArrayLike, "..."],
    collusive: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """How far profits lie between competition (0) and collusion (1).

    `Delta = (pi - pi_N) / (pi_M - pi_N)` (Calvano, Calzolari, Denicolo and Pastorello 2020,
    section II), of any arrays that broadcast.

    Args:
        profits: pi, profits per step.
        competitive: pi_N, those of the one-shot equilibrium.
        collusive: pi_M, those of joint profit maximisation.

    Raises:
        ValueError: if one is no array of numbers, or pi_N or pi_M is not finite.
    """
    named = {"profits": profits, "competitive": competitive, "collusive": collusive}
    own, low, high = (
        jnp.asarray(check_array(name, value), dtype=float) for name, value in named.items()
    )
    for name, value in (("competitive", low), ("collusive", high)):
        if is_concrete(value) and not jnp.isfinite(value).all():
            raise ValueError(f"{name} must be finite; found {describe(named[name])}.")
    own, low, high = jnp.broadcast_arrays(own, low, high)
    return (own - low) / (high - low)


# By what is played after CC, CD, DC, DD, one's own action first.
_NAMES = {
    "CCCC": "always cooperate",
    "DDDD": "always defect",
    "CDCD": "tit for tat",
    "CDDD": "grim trigger",
    "CDDC": "win-stay-lose-shift",
    "CCDD": "never change",
    "DDCC": "always change",
    "DCDC": "reverse tit for tat",
    "DCCD": "lose-stay-win-shift",
}


def strategy_class(game: MarkovGame, strategies: tuple) -> tuple[Any, ...]:
    """Names each agent's memory-one strategy in a game of two agents and two actions.

    States must be the last joint action, as in `games.repeated(memory=1)`; the first action is
    called cooperation. A strategy without a name in the literature is written as what it plays
    after CC, CD, DC, DD, its own action first.

    Args:
        game: the game.
        strategies: one table of actions `[4]` per agent, or `[R, 4]`.

    Returns:
        For each agent a name, or an array of names `[R]`.

    Raises:
        ValueError: if the game has other states or more agents or actions.
    """
    tables = check_strategies(game, strategies)
    if game.num_actions != (2, 2) or game.num_states != 4:
        raise ValueError(
            "strategy_class needs two agents, two actions each and the last joint action as state; "
            f"found {game}."
        )
    named = []
    for agent, table in enumerate(tables):
        # The second agent's own action stands last in the state.
        order = [0, 1, 2, 3] if agent == 0 else [0, 2, 1, 3]
        letters = np.array(["C", "D"])[np.asarray(table)[..., order]]
        texts = np.apply_along_axis("".join, -1, letters)
        names = np.vectorize(lambda text: _NAMES.get(str(text), str(text)), otypes=[object])(texts)
        named.append(str(names) if names.ndim == 0 else names.astype(str))
    return tuple(named)
