"""Matrix games from tables and files."""

import csv
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
        with open(Path(table).expanduser(), newline="", encoding="utf-8-sig") as file:
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
