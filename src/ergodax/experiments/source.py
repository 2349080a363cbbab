"""A TOML file and the lines on which its keys stand, for messages that name both."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?")
_ENTRY = re.compile(
    r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*="""
)


class PlacedError(ValueError):
    """What is wrong in a file, with its line and key."""


class Source:
    """What a file holds, and where.

    Attributes:
        path: the file.
        content: its bytes.
        table: what it says.
    """

    def __init__(self, path: Path, content: bytes | None = None):
        """Reads a file, or takes what is given for it.

        Raises:
            ValueError: if it is no TOML, naming the line.
            OSError: if it cannot be read.
        """
        self.path = path
        self.content = path.read_bytes() if content is None else content
        try:
            text = self.content.decode()
            self.table: dict[str, Any] = tomllib.loads(text)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{path} is no TOML: {error}") from None
        self._lines = _lines_of(text)

    def error(self, place: Iterable[str | int], problem: str) -> PlacedError:
        """An error that names the line of a key, or of the nearest one around it, and the key."""
        place = tuple(place)
        known = [place[:k] for k in range(len(place), 0, -1) if place[:k] in self._lines]
        line = f", line {self._lines[known[0]]}" if known else ""
        named = ".".join(map(str, place))
        return PlacedError(f"{self.path}{line}: {named + ': ' if named else ''}{problem}")

    def unknown(self, place: Place, what: str, known: Iterable[str]) -> PlacedError:
        """An error about a key that is not known, with the nearest that is."""
        return self.error(place, f"{what} has no {place[-1]!r}{nearest(str(place[-1]), known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Which name was meant, or all that there are: the end of a message."""
    known = list(known)
    meant = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {meant[0]}?" if meant else f"; there are {', '.join(known)}."


def _lines_of(text: str) -> dict[Place, int]:
    """The lines of all tables and of the keys that begin a line."""
    lines: dict[Place, int] = {}
    above: Place = ()
    counts: dict[Place, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            above = _inside(_keys(header[2]), counts)
            if header[1] == "[[":
                counts[above] = counts.get(above, -1) + 1
                lines.setdefault(above, number)
                above = (*above, counts[above])
            lines.setdefault(above, number)
        elif entry := _ENTRY.match(line):
            keys = _keys(entry[1])
            for k in range(1, len(keys) + 1):
                lines.setdefault((*above, *keys[:k]), number)
    return lines


def _keys(text: str) -> Place:
    """The parts of a dotted key; none where a line only looks like one."""
    try:
        table: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys: Place = ()
    while isinstance(table, Mapping):
        ((key, table),) = table.items()
        keys = (*keys, key)
    return keys


def _inside(keys: Place, counts: Mapping[Place, int]) -> Place:
    """The place of a table, inside the last of each list of tables."""
    place: Place = ()
    for key in keys[:-1]:
        place = (*place, key)
        place = (*place, counts[place]) if place in counts else place
    return (*place, *keys[-1:])
