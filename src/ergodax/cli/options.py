"""Options that several commands take, and the kinds of their values."""

import argparse
import math
from collections.abc import Callable

LAYOUT = argparse.RawDescriptionHelpFormatter
EXAMPLES = """\
examples:
  ergodax compare prisoners-dilemma
  ergodax compare prisoners-dilemma --runs 4000 --scale 100 --out results
  ergodax compare prisoners-dilemma --temperature 0.5 0.3 --initial-state DD
  ergodax compare stag-hunt --set memory=0 --temperature 0.3
  ergodax convergence prisoners-dilemma
  ergodax init && ergodax run experiment.toml
  ergodax run experiment.toml --part 3/8
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
