"""Games, learners, exploration rules, schedules and markets by name, with their settings."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import games, learners
from ..base.checks import as_real
from ..games.market import AbstractMarket
from ..games.matrix import repeated
from ..games.tables import from_table, read_nfg
from ..model import exploration, schedules
from ..model.game import MarkovGame
from ..model.learner import AbstractLearner
from ..model.wrapped import WrappedGame
from .source import Place, Source, nearest

Maker = Callable[..., Any]


@functools.wraps(repeated)
def _repeated(payoffs: Any, **options: Any) -> MarkovGame:
    # Files have no tuples: payoffs are [A_1, .., A_n, n], whatever the numbers are.
    return repeated(tuple(np.moveaxis(np.asarray(payoffs), -1, 0)), **options)


_FILES = ("from_table", "read_nfg", "write_nfg")
GAMES: dict[str, Maker] = {
    name: getattr(games, name) for name in games.__all__ if name[0].islower() and name not in _FILES
} | {"repeated": _repeated}
LEARNERS: dict[str, Maker] = {
    name: made
    for name, made in vars(learners).items()
    if isinstance(made, type) and issubclass(made, AbstractLearner)
}
# What tables inside those of games and learners may name.
_PARTS: dict[str, Maker] = {
    **{
        name: made
        for name, made in [*vars(exploration).items(), *vars(games).items()]
        if isinstance(made, type)
        and issubclass(made, exploration.AbstractExploration | AbstractMarket)
        and not inspect.isabstract(made)
    },
    **{name: getattr(schedules, name) for name in ("exponential", "power", "piecewise")},
}
_READERS: dict[str, Callable[..., MarkovGame]] = {".csv": from_table, ".nfg": read_nfg}


class Builder:
    """Builds what an experiment names."""

    def __init__(self, source: Source):
        """Takes the file that messages are about."""
        self._source = source

    def wrapped(self, table: Mapping[str, Any]) -> WrappedGame:
        """The game and its learners.

        Args:
            table: what the file says, or the same with other values.

        Raises:
            ValueError: naming line and key of what does not fit.
        """
        game, seen = self.game(table["game"])
        told = table["learners"]
        if len(told) not in (1, game.num_agents):
            raise self._source.error(
                ("learners",),
                f"one for all agents or one for each of {game.num_agents}; found {len(told)}.",
            )
        rows = list(range(len(told))) * (game.num_agents // len(told))
        made = [self._learner(told[k], k, game, agent, seen) for agent, k in enumerate(rows)]
        try:
            return WrappedGame(game, made)
        except (ValueError, TypeError) as error:
            raise self._source.error(("learners",), str(error)) from None

    def game(self, table: Mapping[str, Any]) -> tuple[MarkovGame, Any]:
        """The game, and what each agent sees of it where it has signals of its own."""
        if "file" in table:
            return self._from_file(table), None
        made = self._make(table, ("game",), "a game", GAMES)
        return made if isinstance(made, tuple) else (made, None)

    def file_of(self, table: Mapping[str, Any]) -> Path | None:
        """The file that the game stands in; relative to that of the experiment."""
        return self._source.path.parent / table["file"] if "file" in table else None

    def _from_file(self, table: Mapping[str, Any]) -> MarkovGame:
        path = self.file_of(table)
        assert path is not None
        readers = {**_READERS, ".npz": _read_npz}
        if path.suffix not in readers:
            raise self._source.error(
                ("game", "file"), f"a file {', '.join(readers)}; found {table['file']!r}."
            )
        for key in table:
            if key not in ("file", "memory"):
                raise self._source.unknown(("game", key), "a game in a file", ("file", "memory"))
        options = {key: value for key, value in table.items() if key != "file"}
        try:
            return readers[path.suffix](path, **options)
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise self._source.error(("game", "file"), str(error)) from None

    def _learner(self, table, row: int, game: MarkovGame, agent: int, seen) -> AbstractLearner:
        place = ("learners", row)
        table = dict(table)
        initial = table.get("initial")
        if isinstance(initial, str):
            try:
                discount = table.get("discount", 0.9)
                table["initial"] = learners.initial_values(game, agent, initial, discount=discount)
            except ValueError as error:
                raise self._source.error((*place, "initial"), str(error)) from None
        if table.get("observation") == "signals":
            if seen is None:
                problem = "the game has no signals: give a number for each state."
                raise self._source.error((*place, "observation"), problem)
            table["observation"] = seen[agent]
        return self._make(table, place, "a learner", LEARNERS)

    def _make(self, table: Any, place: Place, what: str, known: Mapping[str, Maker]) -> Any:
        """What a table names, made with its settings."""
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            listed = ", ".join(known)
            raise self._source.error(place, f"{what} is a table with a name, one of {listed}.")
        name = table["name"].replace("-", "_")
        if name not in known:
            raise self._source.error(
                (*place, "name"), f"{table['name']!r} is not {what}{nearest(name, known)}"
            )
        takes = list(inspect.signature(known[name]).parameters)
        given = {key: value for key, value in table.items() if key != "name"}
        for key in given:
            if key not in takes:
                raise self._source.unknown((*place, key), name, takes)
        values = {key: self._value(value, (*place, key)) for key, value in given.items()}
        try:
            return known[name](**values)
        except (ValueError, TypeError) as error:
            text = re.sub(r"^[\w.]+\(\) missing", "missing", str(error))
            told = (key for key in given if re.match(rf"(\w+\.)?{re.escape(key)}\b", text))
            raise self._source.error((*place, *list(told)[:1]), text) from None

    def _value(self, value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            kinds = {"game": ("a game", GAMES), "learner": ("a learner", LEARNERS)}
            what, known = kinds.get(str(place[-1]), ("a setting with settings", _PARTS))
            return self._make(value, place, what, known)
        if place[-1] == "key" and isinstance(value, int):
            return jax.random.key(value)
        if place[-1] == "num_actions":
            return tuple(value)
        if isinstance(value, list):
            found = as_real(value)
            return value if found is None else found
        return value


def _read_npz(path: Path, **options: Any) -> MarkovGame:
    """A game from arrays: `payoffs` `[A_1, .., A_n, n]`, or the arguments of `MarkovGame`."""
    with np.load(path) as file:
        arrays = dict(file)
    if "payoffs" in arrays:
        return _repeated(**arrays, **options)
    return MarkovGame(**arrays, **options)
