"""Recorders: what a simulation sums up of every run, beside carrying it."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model.wrapped import WrappedGame
from .step import Event, add

# With more states than this, a visit is written at its place instead of added by comparisons.
_ONE_HOT_STATES = 64


class AbstractRecorder(eqx.Module):
    """What a simulation sums up of every run, step by step.

    A recorder describes one run; batching over runs is done by the package. Its state, any pytree
    of arrays, is carried beside the run: `init` makes it, every step passes it through `update`,
    and at a report time `report` says what is reported and how the state goes on. All three are
    pure, and the state keeps its shapes and dtypes. Fields that are arrays are data, the same for
    all runs; if every run has its own game, they have a leading axis of runs too.
    """

    @abc.abstractmethod
    def init(self, wrapped: WrappedGame, params: Any) -> Any:
        """The state before the first step.

        Args:
            wrapped: the game and its learners.
            params: parameters of all agents at the start.
        """

    @abc.abstractmethod
    def update(self, state: Any, event: Event, before: Any, after: Any) -> Any:
        """The state after one more step.

        Args:
            state: the state before it.
            event: what happened in the step.
            before: parameters of all agents before they learnt from it.
            after: their parameters afterwards.
        """

    @abc.abstractmethod
    def report(self, state: Any) -> tuple[Any, Any]:
        """What is reported at a report time, and the state with which the next interval begins.

        Return the same state to go on, or zeros to start anew after every report. What is reported
        depends neither on batches nor on devices, but for the last bit of a division: multiply by
        a reciprocal if that matters.
        """


class Recorded(NamedTuple):
    """What a recorder reported; each leaf has the shape of a report after the axes named here.

    Attributes:
        mean: mean over runs, each leaf `[K, ...]`.
        variance: variance over runs (divisor runs - 1), each leaf `[K, ...]`; like the mean NaN or
            infinite where some run's value is infinite.
        values: the reports of every run, each leaf `[R, K, ...]`; None unless `keep_runs`.
    """

    mean: Any
    variance: Any
    values: Any


class _Sums(NamedTuple):
    """Visits of states, summed rewards, and what float32 additions of these have lost."""

    visits: Int[Array, " S"]
    rewards: Float[Array, " n"]
    lost: Float[Array, " n"] | None


class Tally(AbstractRecorder):
    """Share of steps from each state `[S]` and mean reward `[n]`, since the previous report."""

    def init(self, wrapped, params):
        """Nothing is summed; rewards will be in float64 where there is any."""
        game = wrapped.game
        rewards = jnp.zeros(game.num_agents, jnp.result_type(float))
        lost = rewards if rewards.dtype == jnp.float32 else None
        return _Sums(jnp.zeros(game.num_states, jnp.int32), rewards, lost)

    def update(self, state, event, before, after):
        """Counts the state that the step started from, and adds its rewards."""
        rewards, lost = add(state.rewards, state.lost, event.rewards.astype(state.rewards.dtype))
        return _Sums(_count(state.visits, event.state), rewards, lost)

    def report(self, state):
        """Means over the steps since the previous report; starts anew."""
        # XLA divides by an array's reciprocal on one device, and not on several: so do it always.
        share = 1 / jnp.sum(state.visits).astype(state.rewards.dtype)
        shares = state.visits.astype(share.dtype) * share, state.rewards * share
        return shares, jax.tree.map(jnp.zeros_like, state)


def _count(visits, state):
    if visits.shape[0] <= _ONE_HOT_STATES:
        return visits + jax.nn.one_hot(state, visits.shape[0], dtype=visits.dtype)
    return visits.at[state].add(1)


def check_recorder(recorder: AbstractRecorder, wrapped: WrappedGame, params: Any) -> Any:
    """Checks that a recorder's state keeps its form.

    Args:
        recorder: the recorder of one run.
        wrapped: its game and learners.
        params: its parameters, or their shapes and dtypes.

    Returns:
        Shapes and dtypes of one report.

    Raises:
        ValueError: if `update` or `report` returns a state of another form than `init`.
    """
    dtype = jax.tree.leaves(params)[0].dtype

    def event():
        index = jnp.zeros((), jnp.int32)
        actions = jnp.zeros(wrapped.game.num_agents, jnp.int32)
        next_action = actions if wrapped.needs_next_action else None
        rewards = actions.astype(dtype)
        return Event(jnp.zeros(()), index, actions, index, index, rewards, next_action)

    state = jax.eval_shape(recorder.init, wrapped, params)
    updated = jax.eval_shape(recorder.update, state, jax.eval_shape(event), params, params)
    _check_form("update", updated, state)
    reported = jax.eval_shape(recorder.report, state)
    if not (isinstance(reported, tuple) and len(reported) == 2):
        raise ValueError("recorder.report must return a pair: what is reported, and the state.")
    _check_form("report", reported[1], state)
    return reported[0]


def _check_form(method: str, found, state) -> None:
    """Raises ValueError unless a state has the form of the first one."""

    def form(tree):
        leaves, structure = jax.tree.flatten(tree)
        return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]

    def listed(tree):
        return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree))

    if form(found) != form(state):
        raise ValueError(
            f"recorder.{method} must return a state of the same structure, shapes and dtypes as "
            f"recorder.init does: {listed(state) or 'no arrays'}; found {listed(found)}."
        )
