"""Criteria by which a run stops: recorders that also say when they have seen enough.

A criterion is any `AbstractRecorder` with a method `done(state)` that returns whether the run stops
here; `simulate_until` asks it before the first step and after every step.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ..base.checks import check_count, check_number
from ..base.compiling import lightly_compiled, shapes_of
from ..model.learner import At
from ..model.wrapped import WrappedGame
from .recorders import AbstractRecorder

# Of several tables of states and actions, that with the policy or the action values.
_TABLES = ("policy", "Q")
# What only counts steps: clocks of learners with schedules, and visits.
_COUNTS = ("time", "visits")


class Watched(NamedTuple):
    """Where an array of one agent's parameters changes in a step.

    Attributes:
        agent: the agent.
        leaf: which of its arrays.
        rows: the row that a step from each state changes; None if it may change all.
    """

    agent: int
    leaf: int
    rows: tuple[int, ...] | None

    def look(self, params: Any, state: Int[Array, ""]) -> Array:
        """What may change in a step from a state."""
        array = jax.tree.leaves(params[self.agent])[self.leaf]
        return array if self.rows is None else array[self.row(state)]

    def row(self, state: Int[Array, ""]) -> Array:
        """The row that a step from a state changes."""
        if self.rows == tuple(range(len(self.rows or ()))):
            return state
        return jnp.asarray(self.rows, jnp.int32)[state]


class AbstractWatch(AbstractRecorder):
    """A criterion of learning that has come to rest: nothing has happened for so many steps.

    Attributes:
        steps: how many.
        watched: where to look; filled in by `of`.
    """

    steps: eqx.AbstractVar[int]
    watched: eqx.AbstractVar[tuple[Watched, ...]]


class _Unchanged(NamedTuple):
    """Steps since the last change, and how many changes there were."""

    steps: Int[Array, ""]
    changes: Int[Array, ""]


class GreedyUnchanged(AbstractWatch):
    """The greedy strategy of every agent has been the same in all states for so many steps.

    The usual criterion of the literature on algorithmic pricing (Calvano et al. 2020). Greedy in a
    state are the largest entries of the agent's table of states and actions: action values,
    propensities or preferences. Where several are tied, a change of their set is a change. Reported
    is the number of steps in which the strategy of some agent changed.

    Attributes:
        steps: k, steps of the process as simulated: N times as many at scale N.
        watched: filled in for the learners of a game.
    """

    steps: int = eqx.field(static=True)
    watched: tuple[Watched, ...] = eqx.field(static=True, default=())

    def init(self, wrapped: WrappedGame, params: Any) -> _Unchanged:
        """Nothing has changed yet."""
        return _Unchanged(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, state: _Unchanged, event: Any, before: Any, after: Any) -> _Unchanged:
        """Compares the best actions where they may have changed."""
        changed = jnp.zeros((), bool)
        for one in self.watched:
            old, new = (_best(one.look(params, event.state)) for params in (before, after))
            changed = changed | jnp.any(old != new)
        steps = jnp.where(changed, 0, state.steps + 1)
        return _Unchanged(steps, state.changes + changed.astype(state.changes.dtype))

    def done(self, state: _Unchanged) -> Bool[Array, ""]:
        """Whether it has been unchanged for long enough."""
        return state.steps >= self.steps

    def report(self, state: _Unchanged) -> tuple[Any, _Unchanged]:
        """Steps in which it changed."""
        return {"changes": state.changes}, state


class _Window(NamedTuple):
    """Where the parameters were when the window began, as far as they have moved since.

    Attributes:
        steps: steps since the window began.
        number: of the window.
        reference: values when it began.
        since: the window of which each row of `reference` is.
    """

    steps: Int[Array, ""]
    number: Int[Array, ""]
    reference: tuple
    since: tuple


class Settled(AbstractWatch):
    """No parameter has left the neighbourhood of where it was for so many steps.

    A window begins at step 0, and anew after every step in which a parameter is `tolerance` or more
    away from where it was when the window began. The criterion is met when a window is `steps`
    long: throughout it no parameter was that far away. Clocks of learners with schedules do not
    count, nor do counts of visits. Reported is the number of windows.

    Attributes:
        tolerance: a distance, in the parameters' own units.
        steps: k, steps of the process as simulated: N times as many at scale N.
        watched: filled in for the learners of a game.
    """

    tolerance: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    watched: tuple[Watched, ...] = eqx.field(static=True, default=())

    def init(self, wrapped: WrappedGame, params: Any) -> _Window:
        """A window begins."""
        arrays = [jax.tree.leaves(params[one.agent])[one.leaf] for one in self.watched]
        since = tuple(
            jnp.zeros(() if one.rows is None else array.shape[:1], jnp.int32)
            for one, array in zip(self.watched, arrays, strict=True)
        )
        zero = jnp.zeros((), jnp.int32)
        return _Window(zero, zero, tuple(arrays), since)

    def update(self, state: _Window, event: Any, before: Any, after: Any) -> _Window:
        """Looks at what may have moved; a row that was not touched in this window is as it was."""
        reference, since = list(state.reference), list(state.since)
        left = jnp.zeros((), bool)
        for k, one in enumerate(self.watched):
            at = () if one.rows is None else (one.row(event.state),)
            known = since[k][at] == state.number
            begun = jnp.where(known, reference[k][at], one.look(before, event.state))
            distance = jnp.abs(one.look(after, event.state) - begun)
            left = left | ~jnp.all(distance < self.tolerance)
            reference[k], since[k] = (
                reference[k].at[at].set(begun),
                since[k].at[at].set(state.number),
            )
        steps = jnp.where(left, 0, state.steps + 1)
        return _Window(
            steps, state.number + left.astype(state.number.dtype), tuple(reference), tuple(since)
        )

    def done(self, state: _Window) -> Bool[Array, ""]:
        """Whether the window is long enough."""
        return state.steps >= self.steps

    def report(self, state: _Window) -> tuple[Any, _Window]:
        """Windows so far."""
        return {"windows": state.number + 1}, state


def greedy_unchanged(steps: int | np.integer = 100_000) -> GreedyUnchanged:
    """The criterion that the greedy strategy of every agent is unchanged in all states.

    Args:
        steps: for how many steps; 100000 in Calvano et al. 2020.
    """
    return GreedyUnchanged(steps=check_count("steps", steps))


def settled(tolerance: float, steps: int | np.integer) -> Settled:
    """The criterion that no parameter moves by `tolerance` or more within `steps` steps.

    Args:
        tolerance: a distance, in the parameters' own units.
        steps: for how many steps.
    """
    tolerance = check_number("tolerance", tolerance, "(0, inf)")
    return Settled(tolerance=tolerance, steps=check_count("steps", steps))


def fitted(until: AbstractRecorder, wrapped: WrappedGame, like: tuple) -> AbstractRecorder:
    """The criterion with what it has to know of the learners of a game.

    Args:
        until: any criterion; only those of this module have to know something.
        wrapped: the game and the learners of one run.
        like: its parameters, or their shapes.

    Raises:
        ValueError: if a strategy is asked for, and an agent has no table of states and actions.
    """
    if not isinstance(until, AbstractWatch):
        return until
    watched = []
    for agent, own in enumerate(like):
        named = jax.tree_util.tree_leaves_with_path(own)
        leaves = range(len(named))
        if isinstance(until, GreedyUnchanged):
            leaves = [_table(wrapped, agent, named)]
        places = _rows_changed(wrapped, agent, own)
        counts = [bool(path) and _name(path[-1]) in _COUNTS for path, _ in named]
        watched += [Watched(agent, leaf, places[leaf]) for leaf in leaves if not counts[leaf]]
    return dataclasses.replace(until, watched=tuple(watched))


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _table(wrapped: WrappedGame, agent: int, named: list) -> int:
    """Which array of an agent is its table of states and actions."""
    width = wrapped.game.num_actions[agent]
    tables = [k for k, (_, leaf) in enumerate(named) if leaf.shape[1:] == (width,)]
    by_name = {_name(named[k][0][-1]): k for k in tables if named[k][0]}
    for name in _TABLES if len(tables) > 1 else ():
        if name in by_name:
            return by_name[name]
    if len(tables) != 1:
        learner = type(wrapped.learners[agent]).__name__
        raise ValueError(
            f"greedy_unchanged compares the rows of one table of states and actions per agent; "
            f"agent {agent} ({learner}) has {len(tables)}. Write a criterion of your own: an "
            "AbstractRecorder with a method done(state)."
        )
    return tables[0]


def _rows_changed(wrapped: WrappedGame, agent: int, own: Any) -> list[tuple[int, ...] | None]:
    """The row of every array that a step from each state changes; None if it may be any."""
    shapes = jax.tree.leaves(shapes_of(_increments, wrapped, agent, own), is_leaf=_is_at)
    rows: list[tuple[int, ...] | None] = [None] * len(shapes)
    sparse = [k for k, leaf in enumerate(shapes) if _is_at(leaf) and leaf.index]
    if not sparse:
        return rows

    def falling(leaf):
        return -jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)

    looks = [
        _written(wrapped, agent, sparse, jax.tree.map(make, own)) for make in (_zeros, falling)
    ]
    (states, indices), (_, others) = jax.device_get(looks)
    for k, index, other in zip(sparse, indices, others, strict=True):
        first = np.zeros(wrapped.game.num_states, int)
        first[states] = index
        if (first[states] == index).all() and (index == other).all():
            rows[k] = tuple(first.tolist())
    return rows


@lightly_compiled
def _written(wrapped: WrappedGame, agent: int, leaves: list[int], params: Any) -> tuple:
    """States of all events and, of some arrays, the row that each event changes."""
    found = jax.tree.leaves(wrapped.increments(agent, params), is_leaf=_is_at)
    return wrapped.transitions(agent).state, [found[k].index[0] for k in leaves]


def _is_at(leaf: Any) -> bool:
    return isinstance(leaf, At)


def _zeros(leaf: Any) -> Array:
    return jnp.zeros(leaf.shape, leaf.dtype)


def _increments(wrapped: WrappedGame, agent: int, params: Any) -> Any:
    return wrapped.increments(agent, params)


def _best(row: Array) -> Array:
    """Which entries of a row, or of every row, are the largest."""
    return row == row.max(axis=-1, keepdims=True)
