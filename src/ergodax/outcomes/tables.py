"""Tables of policies and strategies: checks, and maps over their axis of runs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base.checks import check_array, check_type, is_concrete
from ..base.compiling import lightly_compiled
from ..model.game import MarkovGame

_AT_ONCE = 64  # runs mapped at the same time: games with hundreds of states have large tables


def check_policies(game: MarkovGame, policies: Any) -> tuple:
    """Returns policies, or one per run, as arrays.

    Raises:
        ValueError: unless there is a table `[S, A_i]`, or `[R, S, A_i]`, of probabilities for every
            agent.
    """
    tables = check_tables(game, policies, "[S, A_i] of probabilities")
    for agent, table in enumerate(tables):
        if is_concrete(table):
            sums = np.asarray(table).sum(axis=-1)
            if not (np.asarray(table) >= -1e-6).all() or not np.allclose(sums, 1, atol=1e-4):
                raise ValueError(
                    f"policies of agent {agent} must be probabilities that sum to 1 in every state."
                )
    return tables


def check_tables(game: MarkovGame, policies: Any, what: str) -> tuple:
    """Returns tables `[S, A_i]` or `[R, S, A_i]` as arrays; raises ValueError for other shapes."""
    found = _check_arrays("policies", game, policies)
    _check_shapes("policies", found, [(game.num_states, count) for count in game.num_actions], what)
    return found


def check_strategies(game: MarkovGame, strategies: Any) -> tuple:
    """Returns strategies, or one per run, as arrays of whole numbers.

    Raises:
        ValueError: unless there is a table `[S]`, or `[R, S]`, of actions for every agent.
    """
    name = "strategies"
    tables = _check_arrays(name, game, strategies)
    _check_shapes(name, tables, [(game.num_states,)] * game.num_agents, "[S] of actions")
    for agent, (table, count) in enumerate(zip(tables, game.num_actions, strict=True)):
        if not jnp.issubdtype(table.dtype, jnp.integer):
            raise ValueError(f"{name} of agent {agent} must be whole numbers; found {table.dtype}.")
        if is_concrete(table) and not ((table >= 0) & (table < count)).all():
            raise ValueError(f"{name} of agent {agent} must be actions, 0 to {count - 1}.")
    return tables


def _check_arrays(name, game, tables) -> tuple:
    check_type("game", game, MarkovGame, "a MarkovGame")
    check_type(name, tables, (tuple, list), f"a tuple of {game.num_agents} tables, one per agent")
    if len(tables) != game.num_agents:
        raise ValueError(
            f"{name} must hold one table for each of {game.num_agents} agents; found {len(tables)}."
        )
    return tuple(jnp.asarray(check_array(name, table)) for table in tables)


def _check_shapes(name, tables, shapes, what) -> None:
    leading = {table.shape[: -len(shape)] for table, shape in zip(tables, shapes, strict=True)}
    fits = [
        table.shape[-len(shape) :] == shape for table, shape in zip(tables, shapes, strict=True)
    ]
    if not all(fits) or len(leading) > 1 or len(next(iter(leading))) > 1:
        found = ", ".join(str(table.shape) for table in tables)
        raise ValueError(
            f"{name} must be tables {what}, {', '.join(map(str, shapes))}, or such tables with one "
            f"leading axis of runs; found {found}."
        )


@lightly_compiled
def over_runs(function: Callable, tables: tuple, ndim: int, *others: Any) -> Any:
    """Applies a function to the tables of every run, or once where they have no axis of runs.

    Args:
        function: of the tables of one run, and of the entries of `others`; one of a module, and
            what it needs beside them given by `Partial`, so that it is compiled but once.
        tables: one per agent.
        ndim: number of axes of a table of one run.
        others: arrays with one entry per run.
    """
    if tables[0].ndim == ndim:
        return function(tables, *others)
    return jax.lax.map(
        lambda one: function(*one),
        (tables, *others),
        batch_size=min(_AT_ONCE, tables[0].shape[0]),
    )
