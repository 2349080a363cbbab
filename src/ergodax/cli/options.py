"""Options that several commands take, and the kinds of their values."""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.wrapped import WrappedGame

LAYOUT = argparse.RawDescriptionHelpFormatter
EXAMPLES = """\
examples:
  ergodax compare prisoners-dilemma
  ergodax compare prisoners-dilemma --runs 4000 --scale 100 --out results
  ergodax compare prisoners-dilemma --temperature 0.5 0.3 --initial-state DD
  ergodax convergence prisoners-dilemma
"""


def add_option(group, name, kind, default, text, **options) -> None:
    """Adds an option whose help says its default."""
    shown = "drawn" if default is None else default
    if isinstance(default, list):
        shown = " ".join(f"{value:g}" for value in default)
    group.add_argument(
        name, type=kind, default=default, help=f"{text} (default: {shown})", **options
    )


def add_cache(group) -> None:
    """Adds the option of where compiled programs are kept."""
    text = "folder for compiled programs, or off (default: ERGODAX_CACHE, or the user's cache)"
    group.add_argument("--cache", default=None, help=text, metavar="CACHE")


def add_game(command, learning_rate: float) -> None:
    """Adds the game and the options of its learners."""
    add = add_option
    command.add_argument("game", metavar="GAME", choices=list(GAMES), help=", ".join(GAMES))
    group = command.add_argument_group("game")
    add(group, "--g", float, 1.5, "gain from cooperation", metavar="G")

    group = command.add_argument_group("learners", "one value for all agents, or one for each")
    for name, default, text in (
        ("--learning-rate", learning_rate, "alpha, per unscaled step"),
        ("--discount", 0.9, "gamma"),
        ("--temperature", 0.5, "softmax temperature"),
        ("--epsilon", 0.1, "probability of a uniformly drawn action"),
    ):
        add(group, name, float, default, text, nargs="+", metavar="X")


def positive(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number; found {text}")
    return value


def count(least: int) -> Callable[[str], int]:
    """The kind of whole numbers that are not too small."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**63):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}; found {text}")
        return int(text)

    return parse


def state(text: str) -> int | str:
    """A state, by its number or its name."""
    return int(text) if text.isascii() and text.isdigit() else text


def _prisoners_dilemma(options: argparse.Namespace) -> "WrappedGame":
    """The example of Kerzreho (2025): two Q-learners with memory one and unlike initial values."""
    import jax.numpy as jnp

    from ..games import prisoners_dilemma
    from ..learners import QLearning
    from ..model.exploration import EpsilonSoftmax
    from ..model.wrapped import WrappedGame

    rates, discounts, temperatures, epsilons = (
        jnp.asarray(_per_agent(options, name, 2))
        for name in ("learning_rate", "discount", "temperature", "epsilon")
    )
    initial_values = jnp.asarray(30.0), jnp.asarray([22.0, 20.0])
    learners = [
        QLearning(
            learning_rate=rates[agent],
            discount=discounts[agent],
            exploration=EpsilonSoftmax(temperatures[agent], epsilons[agent]),
            initial=initial_values[agent],
        )
        for agent in range(2)
    ]
    return WrappedGame(prisoners_dilemma(options.g), learners)


GAMES = {"prisoners-dilemma": _prisoners_dilemma}


def _per_agent(options: argparse.Namespace, name: str, agents: int) -> list[float]:
    values = getattr(options, name)
    values = values if isinstance(values, list) else [values]
    if len(values) not in (1, agents):
        option = "--" + name.replace("_", "-")
        raise ValueError(f"argument {option}: expected 1 or {agents} values; found {len(values)}")
    return values * (agents // len(values))
