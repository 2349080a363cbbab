"""Matrix games from tables and files."""

import csv
import importlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_count, check_path, check_type
from ..base.files import target, write
from ..model.game import MarkovGame
from .matrix import repeated


def from_table(table: Any, *, memory: int = 1) -> MarkovGame:
    """A matrix game from a table with one row per joint action.

    The first n columns name the agents' actions, the last n hold their payoffs, in the same order:

    ```text
    row,column,payoff row,payoff column
    C,C,3,3
    C,D,0,5
    D,C,5,0
    D,D,1,1
    ```

    Args:
        table: a pandas data frame, a dictionary of columns, or the name of a CSV file whose first
            line holds headings.
        memory: number of past rounds remembered.

    Returns:
        The repeated game; actions in the order in which the table first names them.

    Raises:
        ValueError: naming the row, if a payoff is no number, a joint action is missing or stands
            twice, or the number of columns is not even.
    """
    columns, rows = _rows(table)
    if not columns or len(columns) % 2:
        raise ValueError(
            "table must have two columns per agent, its action and its payoff; found "
            f"{len(columns)}: {', '.join(columns)}."
        )
    agents = len(columns) // 2
    payoffs: dict[tuple[str, ...], list[float]] = {}
    for line, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(f"table, row {line}: {len(columns)} entries needed, found {len(row)}.")
        profile = tuple(str(entry).strip() for entry in row[:agents])
        if profile in payoffs:
            raise ValueError(f"table, row {line}: {'-'.join(profile)} stands there before.")
        payoffs[profile] = [_number(entry) for entry in row[agents:]]
        if not np.isfinite(payoffs[profile]).all():
            raise ValueError(f"table, row {line}: payoffs must be numbers; found {row[agents:]}.")
    names = [list(dict.fromkeys(profile[i] for profile in payoffs)) for i in range(agents)]
    profiles = list(itertools.product(*names))
    missing = [profile for profile in profiles if profile not in payoffs]
    if missing or not payoffs:
        what = "-".join(missing[0]) if missing else "any joint action"
        raise ValueError(f"table has no row for {what}.")
    values = np.array([payoffs[profile] for profile in profiles]).T
    shape = tuple(map(len, names))
    return repeated(tuple(own.reshape(shape) for own in values), memory=memory, action_names=names)


def _rows(table: Any) -> tuple[list[str], list[list[Any]]]:
    """Headings and rows of a data frame or a CSV file."""
    if isinstance(table, str | Path):
        with open(target(table), newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if any(entry.strip() for entry in line)]
        return (lines[0], lines[1:]) if lines else ([], [])
    if hasattr(table, "columns") and hasattr(table, "itertuples"):
        rows: Iterable = table.itertuples(index=False, name=None)
        return [str(column) for column in table.columns], [list(row) for row in rows]
    if isinstance(table, Mapping):
        columns = list(table)
        return [str(column) for column in columns], [
            list(row) for row in zip(*table.values(), strict=True)
        ]
    raise ValueError(
        "table must be a data frame, a dictionary of columns or the name of a CSV file; found a "
        f"{type(table).__name__}."
    )


def _number(entry: Any) -> float:
    """The entry as a number; NaN if it is none."""
    try:
        return float(entry)
    except (TypeError, ValueError):
        return float("nan")


def read_nfg(path: str | Path, *, memory: int = 1) -> MarkovGame:
    """A matrix game from a file of Gambit's strategic form (`.nfg`).

    Needs the optional package pygambit: `pip install "ergodax[gambit]"`.

    Args:
        path: the file.
        memory: number of past rounds remembered.

    Raises:
        ImportError: without pygambit.
        ValueError: if it cannot read the file.
    """
    check_path("path", path)
    memory = check_count("memory", memory, least=0)
    gambit = _gambit()
    try:
        game = gambit.read_nfg(target(path))
    except ValueError as error:
        raise ValueError(f"{path} is no game in strategic form: {error}") from None
    tables = tuple(np.asarray(own, dtype=float) for own in game.to_arrays(dtype=float))
    names = [[strategy.label for strategy in player.strategies] for player in game.players]
    return repeated(tables, memory=memory, action_names=names)


def write_nfg(game: MarkovGame, path: str | Path, *, title: str = "") -> None:
    """Writes the payoffs of a matrix game to a file of Gambit's strategic form (`.nfg`).

    Random payoffs are written as their means. Needs pygambit: `pip install "ergodax[gambit]"`.

    Args:
        game: a game whose payoffs do not depend on its state.
        path: the file to write or replace.
        title: of the game.

    Raises:
        ImportError: without pygambit.
        ValueError: if payoffs depend on the state.
    """
    check_type("game", game, MarkovGame, "a MarkovGame")
    check_path("path", path)
    check_type("title", title, str, "a text")
    gambit = _gambit()
    payoffs = np.asarray((game.probabilities[..., None] * game.rewards).sum(axis=-2))
    if not np.allclose(payoffs, payoffs[:1], rtol=1e-12, atol=0):
        raise ValueError("the payoffs depend on the state: such a game has no strategic form.")
    tables = np.moveaxis(payoffs[0].astype(float), -1, 0)
    written = gambit.Game.from_arrays(*tables, title=title)
    for player, own in zip(written.players, game.action_names, strict=True):
        for strategy, name in zip(player.strategies, own, strict=True):
            strategy.label = name
    write(path, [written.to_nfg().encode()])


def _gambit() -> Any:
    try:
        return importlib.import_module("pygambit")
    except ImportError:
        raise ImportError(
            'games in Gambit\'s format need pygambit: pip install "ergodax[gambit]"'
        ) from None
