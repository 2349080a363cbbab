"""Tables that a GPU's kernel leaves in memory, and reads and writes by index."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


class Refused(Exception):  # noqa: N818
    """The code cannot be evaluated entry by entry, or not with a table in memory.

    Attributes:
        table: a table in memory that is used as a whole.
    """

    def __init__(self, reason: str, table: "Table | None" = None):
        super().__init__(reason)
        self.table = table


class Table:
    """A table in memory: it is read by index, and what is written waits until the step is over.

    Attributes:
        shape: its shape in one run.
        dtype: its type.
        load: returns the entry at a place; places count entries in C order. If a row is kept, it
            takes two more arguments: whether the entry is to be read, and what stands for it if
            not.
        origin: what the table was made of.
        kept: the place of a row that is known and its entries, or None.
        writes: places, values, and whether they are written, in order.
        rows: places and entries of the rows that were read from memory, by their indices.
    """

    def __init__(self, shape: Sequence[int], dtype, load: Callable, origin: Any, kept=None):
        self.shape, self.dtype, self.load, self.origin = tuple(shape), dtype, load, origin
        self.kept: Any = kept
        self.writes: tuple = ()
        self.rows: dict[tuple, tuple] = {}
        self.strides = [math.prod(self.shape[k + 1 :]) for k in range(len(self.shape))]

    def read(self, place):
        """The entry at a place, with what waits to be written."""
        return self.changed(place, self.load(place))

    def read_row(self, index: Sequence, place) -> list:
        """The entries of a row, with what waits to be written.

        Args:
            index: indices of the row.
            place: that of its first entry.
        """
        key = tuple(map(identity, index))
        if key not in self.rows:
            values = [self._known_or_loaded(place, k) for k in range(self.shape[-1])]
            self.rows[key] = place, values, index  # whose identities stay theirs
        place, values, _ = self.rows[key]
        return [self.changed(place + np.int32(k), value) for k, value in enumerate(values)]

    def _known_or_loaded(self, place, k: int):
        if self.kept is None:
            return self.load(place + np.int32(k))
        there, values = self.kept
        return self.load(place + np.int32(k), place != there, values[k])

    def changed(self, place, value):
        """What was at a place, or what waits to be written there."""
        for there, new, inside in self.writes:
            value = jnp.where(both(inside, there == place), new, value)
        return value

    def written(self, place, value, inside) -> "Table":
        """The same table, with an entry that waits to be written if it lies inside."""
        return self._with((*self.writes, (place, value, inside)))

    def unless_held(self, live, before: "Table") -> "Table":
        """The table, or as it was before the last of what waits to be written."""
        count = len(before.writes)
        pairs = zip(before.writes, self.writes, strict=False)
        if before.load is not self.load or any(one is not other for one, other in pairs):
            raise Refused("one of two tables in memory is chosen", self)
        since = tuple(
            (place, new, both(inside, live)) for place, new, inside in self.writes[count:]
        )
        return self._with(before.writes + since)

    def _with(self, writes: tuple) -> "Table":
        table = copy.copy(self)
        table.writes = writes
        return table


def identity(value) -> tuple:
    """By which a number is told from others as long as it is there."""
    return (value.dtype, value.tobytes()) if isinstance(value, np.generic) else (id(value),)


def both(one, other):
    """Whether two conditions hold, each true or a number."""
    if one is True:
        return other
    return one if other is True else jnp.logical_and(one, other)
