"""An experiment: what its file says, checked, and what it is carried out with."""

import copy
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, Field, ValidationError

from .build import Builder
from .source import Place, Source
from .tasks import Setup, Task, Tasks


class Keys(Tasks):
    """The keys of an experiment's file.

    Attributes:
        title: what it is about.
        seed: of all random numbers.
        initial_state: the first state, by name or number; drawn if not given.
        game: the name of a game with its settings, or a file; not needed to replicate a paper.
        learners: one for all agents, or one for each; likewise.
    """

    title: str = ""
    seed: int = Field(0, ge=0)
    initial_state: int | str | None = None
    game: dict[str, Any] | None = None
    learners: list[dict[str, Any]] | None = Field(None, min_length=1)


class Experiment:
    """A checked experiment.

    Attributes:
        source: its file.
        keys: what it says.
        game_file: the file of the game; None if the game is named.
    """

    def __init__(self, path: Path):
        """Reads and checks a file.

        Raises:
            ValueError: naming line and key of what does not fit.
            OSError: if the file cannot be read.
        """
        self.source = Source(path)
        try:
            self.keys = Keys.model_validate(self.source.table)
        except ValidationError as error:
            raise _first(error, self.source) from None
        if set(self.tasks) != {"replicate"}:
            for name in ("game", "learners"):
                if getattr(self.keys, name) is None:
                    raise self.source.error((name,), "is missing.")
        self._builder = Builder(self.source)
        game = self.keys.game
        self.game_file = None if game is None else self._builder.file_of(game)

    @property
    def tasks(self) -> dict[str, Task]:
        """What is to be done, in the order of the file."""
        return {
            name: getattr(self.keys, name)
            for name in self.source.table
            if name in Tasks.model_fields
        }

    def setup(self, progress: bool, part: Any = None) -> Setup:
        """What tasks are carried out with; raises ValueError if games or learners do not fit."""
        table = {"game": self.keys.game, "learners": self.keys.learners}
        played = None not in table.values()
        wrapped = self._builder.wrapped(table) if played else cast(Any, None)
        places: dict[str, list[Place]] = {}
        if self.keys.sweep is not None:
            places = {name: self._places(table, name) for name in self.keys.sweep.values}

        def build(theta):
            changed = copy.deepcopy(table)
            for name, value in theta.items():
                for place in places[name]:
                    _inner(changed, place[:-1])[place[-1]] = value
            built = self._builder.wrapped(changed)
            return built, built.init()

        return Setup(
            wrapped=wrapped,
            build=build,
            seed=self.keys.seed,
            initial_state=self.keys.initial_state,
            progress=progress,
            part=part,
        )

    def _places(self, table: dict[str, Any], name: str) -> list[Place]:
        """Where a quantity to be swept stands: of one learner, or of all."""
        first, *rest = (int(part) if part.isdigit() else part for part in name.split("."))
        places: list[Place] = [(first, *rest)]
        if first == "learners" and rest and isinstance(rest[0], str):
            places = [(first, k, *rest) for k in range(len(table["learners"]))]
        for place in places:
            if len(place) < 2 or not isinstance(_inner(table, place[:-1]), dict):
                raise self.source.error(
                    ("sweep", "values", name),
                    "names no setting: write game.NAME, learners.NAME, or learners.0.NAME for one "
                    "agent, through tables that the file has.",
                )
        return places


def _inner(table: Any, place: Place) -> Any:
    """What stands at a place; None if there is none."""
    for key in place:
        try:
            table = table[key]
        except (LookupError, TypeError):
            return None
    return table


def _first(error: ValidationError, source: Source) -> ValueError:
    """The first of the problems, with its line, key and, of unknown keys, the nearest known."""
    # A key that is not known explains one that is missing.
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place: Place = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return source.unknown(
            place, ".".join(map(str, place[:-1])) or "an experiment", _known(place)
        )
    if problem["type"] == "missing":
        return source.error(place, "is missing.")
    return source.error(place, f"{problem['msg'].lower()}; found {problem['input']!r}.")


def _known(place: Place) -> list[str]:
    """The keys of the table that holds a place."""
    model: type[BaseModel] = Keys
    for key in place[:-1]:
        kinds = model.model_fields[str(key)].annotation
        model = next(k for k in kinds.__args__ if issubclass(k, BaseModel))  # pyright: ignore
    return list(model.model_fields)
