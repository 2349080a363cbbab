"""What the runs of a simulation start from: checked, in one precision, the same or run by run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base.checks import as_real, check_count, check_type
from ..base.compiling import compiled, shapes_of
from ..model.clock import times_of
from ..model.game import first_state_law
from ..model.wrapped import WrappedGame, cast, warn_rounded
from .step import Ensemble


class Inputs(NamedTuple):
    """What the runs start from.

    Attributes:
        wrapped: the wrapped game; or those of all runs, with a leading axis on every array.
        params0: initial parameters, the same in all runs or with a leading axis.
        law: law of the first state, `[S]` or `[R, S]`.
        standing: where the runs stand, if they have begun already; else None.
        runs: number of runs R.
        own_game: whether every run has its own game.
        own_params: whether every run has its own parameters.
        like: shapes and types of one run's parameters.
    """

    wrapped: WrappedGame
    params0: Any
    law: Any
    standing: Ensemble | None
    runs: int
    own_game: bool
    own_params: bool
    like: Any

    @property
    def dtype(self) -> np.dtype:
        """Precision of the parameters."""
        return np.dtype(jnp.result_type(*jax.tree.leaves(self.like)))

    @property
    def compensated(self) -> bool:
        """Whether additions to the parameters are: in float32, and as they were before."""
        if self.standing is not None:
            return self.standing.compensation is not None
        return self.dtype == np.float32

    @property
    def in_step(self) -> bool:
        """Whether the clocks of all runs show the same time; False where schedules differ."""
        params: Any = (self.params0,) if self.own_params else ()
        if self.standing is not None:
            params = self.standing.params, self.standing.compensation
        clocks = map(np.asarray, times_of(params))
        return not self.own_game and all((clock == clock[0]).all() for clock in clocks)

    def part(self, first: int, count: int, observed: Any) -> "tuple[Inputs, Any]":
        """The inputs of some runs, and what is observed of them; as `rows` has it."""
        index = slice(first, first + count)
        part = self._replace(
            wrapped=take(self.wrapped, index) if self.own_game else self.wrapped,
            params0=take(self.params0, index) if self.own_params else self.params0,
            law=self.law[index] if self.law.ndim == 2 else self.law,
            standing=take(self.standing, index),
            runs=count,
        )
        return part, take(observed, index) if self.own_game else observed

    def rows(self, numbers: np.ndarray, observe: Any) -> "tuple[Inputs, Any]":
        """The inputs of some runs; the last one stands for numbers beyond.

        Args:
            numbers: the numbers of the runs.
            observe: what is observed, whose arrays are cut likewise if every run has its own game.

        Returns:
            The inputs, all with a leading axis but for a game that is the same for all runs, and
            the observable.
        """
        index, count = np.minimum(numbers, self.runs - 1), len(numbers)
        wrapped, params0 = self.wrapped, self.params0
        if self.own_game:
            wrapped, observe = rows_of((wrapped, observe), index)
        rows = self._replace(
            wrapped=wrapped,
            params0=rows_of(params0, index) if self.own_params else _repeat(params0, count),
            law=take(self.law, index) if self.law.ndim == 2 else _repeat(self.law, count),
            standing=take(self.standing, index),
        )
        return rows, observe


def take(tree: Any, index: Any) -> Any:
    """The rows of all arrays of a pytree."""
    return jax.tree.map(lambda a: a[index] if isinstance(a, jax.Array | np.ndarray) else a, tree)


# All arrays at once, where they lie on the device: each by itself takes longer to dispatch than to
# read. Those of the host are cut there, lest all of them go to the device every time.
rows_of = compiled(take)


def _repeat(tree, count):
    return jax.tree.map(lambda a: np.broadcast_to(a, (count, *np.shape(a))), tree)


def _of_learners(wrapped, params):
    increments = [wrapped.increments(agent, own) for agent, own in enumerate(params)]
    return wrapped.policies(params), increments


def check_inputs(
    wrapped: WrappedGame,
    params0: Any,
    initial_state: Any,
    standing: Ensemble | None,
    runs: Any,
    dtype: Any,
) -> Inputs:
    """Checks what the runs start from; the arguments are those of `simulate`.

    Raises:
        ValueError: if parameters, first states or numbers of runs do not fit.
    """
    check_type("wrapped", wrapped, WrappedGame, "a WrappedGame(game, learners)")
    if standing is not None:
        if initial_state is not None:
            raise ValueError("initial_state and start cannot both be given.")
        params0 = standing.params
    own_game = wrapped.game.initial.ndim == 2
    one = take(wrapped, 0) if own_game else wrapped
    like = jax.eval_shape(lambda: one.init(jax.random.key(0)))
    own_params = _has_leading_axis(params0, like)
    first_states = as_real(initial_state)

    counts = {"runs": None if runs is None else check_count("runs", runs)}
    if own_game:
        counts["wrapped"] = _leading("wrapped", wrapped)
    if own_params:
        counts["params0"] = _leading("params0", params0)
    if np.ndim(first_states) == 1:
        counts["initial_state"] = first_states.size
    given = {name: count for name, count in counts.items() if count is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in given.items())
        raise ValueError(f"the numbers of runs differ: {listed}.")
    runs = next(iter(given.values()), 1)

    params0 = one.check_structure(params0, "params0", "runs" if own_params else None)
    one.check_finite(params0, "params0")
    # Traced once here, where a learner that cannot be is named.
    shapes_of(_of_learners, one, tuple(like))
    dtype = _check_dtype(dtype, params0)
    if dtype == np.float64:
        warn_rounded(wrapped, stacklevel=4)
    if standing is not None:
        _check_standing(standing, dtype)
    wrapped, params0 = cast((wrapped, params0), dtype)
    if standing is None:
        law = np.asarray(first_state_law(wrapped.game, initial_state, several=True), dtype)
    else:
        law = np.zeros(wrapped.game.num_states, dtype)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), like)
    return Inputs(wrapped, params0, law, standing, runs, own_game, own_params, like)


def _check_standing(standing: Ensemble, dtype: np.dtype) -> None:
    """Raises ValueError unless runs under way fit the precision."""
    found = np.dtype(jnp.result_type(*jax.tree.leaves(standing.params)))
    if found != dtype:
        raise ValueError(f"start has parameters in {found}; found dtype {dtype}.")


def _has_leading_axis(params, like) -> bool:
    """Whether parameters have one axis more than those of one run."""
    leaves, expected = jax.tree.leaves(params), jax.tree.leaves(like)
    return len(leaves) == len(expected) and all(
        jnp.ndim(leaf) == len(one.shape) + 1 for leaf, one in zip(leaves, expected, strict=True)
    )


def _leading(name: str, tree) -> int:
    """Length of the leading axis that all arrays share."""
    lengths = {a.shape[0] if a.ndim else 0 for a in map(jnp.asarray, jax.tree.leaves(tree))}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"all arrays in {name} must have a leading axis of runs, of one length; found "
            f"{sorted(lengths)}."
        )
    return lengths.pop()


def check_rows(name: str, tree: Any, runs: int) -> None:
    """Checks that all arrays of a pytree, if it has any, have a row for every run.

    Raises:
        ValueError: if they do not.
    """
    found = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]
    if found and _leading(name, found) != runs:
        raise ValueError(
            f"every run has its own game: arrays in {name} must have a leading axis of {runs} "
            f"runs; found {_leading(name, found)}."
        )


def _check_dtype(dtype, params0) -> np.dtype:
    found = jnp.result_type(*jax.tree.leaves(params0)) if dtype is None else dtype
    try:
        found = np.dtype(found)
    except TypeError:
        raise ValueError(f"dtype must be float32 or float64; found {dtype!r}.") from None
    if found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64; found {found}.")
    if found == jnp.float64 and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            'dtype float64 needs jax.config.update("jax_enable_x64", True) before any computation.'
        )
    return found
