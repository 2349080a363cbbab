"""Learners whose hyper-parameters change with time, made autonomous by a clock of their own.

A learner with schedules has no averaged equation dx/dt = F(x), but dx/dt = F(x, t). With the time
as one more parameter, which every update moves by one unscaled step, it has one again, and all that
holds for learners without schedules holds for it: the algorithm reads its rates at the beginning of
a step, derivatives reach into the schedules, and fluctuations and bias get the terms that a moving
F adds.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..base.checks import is_concrete, is_within
from .game import MarkovGame
from .hyper import AbstractSchedule
from .learner import AbstractLearner, AbstractOuterLearner, Transition


class ClockedParams(NamedTuple):
    """Parameters of a learner with schedules, or an increment of them.

    Attributes:
        params: those of the learner itself.
        time: how many unscaled steps it has learnt for.
    """

    params: Any
    time: Any


def times_of(params: Any) -> list[Any]:
    """What the clocks in a pytree of parameters show."""
    parts = jax.tree.leaves(params, is_leaf=is_clocked)
    return [part.time for part in parts if is_clocked(part)]


def is_clocked(part: Any) -> bool:
    """Whether a part of parameters has a clock: a leaf where trees are mapped over agents."""
    return isinstance(part, ClockedParams)


def is_schedule(leaf: Any) -> bool:
    """Whether it is a schedule: a leaf where trees are mapped over hyper-parameters."""
    return isinstance(leaf, AbstractSchedule)


def has_schedule(learner: Any) -> bool:
    """Whether any hyper-parameter of a learner is a schedule."""
    return any(map(is_schedule, jax.tree.leaves(learner, is_leaf=is_schedule)))


class Clocked(AbstractOuterLearner):
    """A learner with schedules, and its clock; `WrappedGame` makes it of any such learner.

    Attributes:
        learner: the learner, some of whose hyper-parameters are schedules.
    """

    learner: AbstractLearner

    def at(self, t: Any) -> AbstractLearner:
        """The learner with its schedules replaced by their values at time t, in its precision."""
        t = jnp.asarray(t)
        t = t if jnp.issubdtype(t.dtype, jnp.inexact) else t.astype(float)

        def value(leaf):
            return jnp.asarray(leaf(t), t.dtype) if is_schedule(leaf) else leaf

        return jax.tree.map(value, self.learner, is_leaf=is_schedule)

    def maximised(self, params: ClockedParams) -> Float[Array, "*rows A"] | None:
        """As the learner at the time of its clock."""
        return self.at(params.time).maximised(params.params)

    def init(self, game: MarkovGame, agent: int, *, key: Array | None) -> ClockedParams:
        """Returns the learner's parameters at time 0."""
        start = jnp.zeros(())
        return ClockedParams(self.at(start).init(game, agent, key=key), start)

    def policy(self, params: ClockedParams, state: Int[Array, ""]) -> Float[Array, " A"]:
        """Returns the learner's policy at the time of its clock."""
        return self.at(params.time).policy(params.params, state)

    def update(
        self, params: ClockedParams, transition: Transition, game: MarkovGame, agent: int
    ) -> ClockedParams:
        """Returns the learner's increment at the time of its clock, and one step for that."""
        own = self.at(params.time)
        return ClockedParams(
            own.update(params.params, transition, game, agent), jnp.ones_like(params.time)
        )

    def __repr__(self) -> str:
        return repr(self.learner)


_LOOKS = 257  # times at which schedules are looked at, evenly and in proportion


def check_schedules(learners: tuple, ts: Any, by_run: bool = False) -> None:
    """Raises ValueError if a schedule leaves its hyper-parameter's interval at some time.

    Args:
        learners: the learners.
        ts: times, increasing, up to the last of which to look.
        by_run: whether all their arrays have a leading axis of runs.
    """
    until = ts[-1]
    clocked = any(isinstance(learner, Clocked) for learner in learners)
    if not clocked or not is_concrete(until) or until <= 0:
        return
    times = np.concatenate(
        [np.linspace(0, until, _LOOKS), np.geomspace(min(until, 1) * 1e-3, until, _LOOKS)]
    )
    for agent, learner in enumerate(learners):
        if isinstance(learner, Clocked):
            _check_modules(agent, learner.learner, np.sort(times), by_run)


def _check_modules(agent: int, module: Any, times: np.ndarray, by_run: bool) -> None:
    def along(schedule):
        numbers = [a for a in jax.tree.leaves(schedule) if eqx.is_inexact_array(a)]
        return jax.vmap(schedule)(jnp.asarray(times, jnp.result_type(*numbers or [float])))

    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if not is_schedule(value):
            if dataclasses.is_dataclass(value) and isinstance(value, eqx.Module):
                _check_modules(agent, value, times, by_run)
            continue
        values = eqx.filter_vmap(along)(value) if by_run else along(value)[None]
        if not is_concrete(values):
            continue
        within, name = field.metadata["within"], f"{type(module).__name__}.{field.name}"
        if is_within(np.asarray(values), within):
            continue
        t, number = next(
            (t, number)
            for t, numbers in zip(times, np.asarray(values).T, strict=True)
            for number in numbers
            if not is_within(number, within)
        )
        raise ValueError(
            f"agent {agent}: {name} must be finite and in {within}; its schedule is "
            f"{number:.6g} at t = {t:.6g}."
        )


def check_autonomous(learners: tuple, what: str) -> None:
    """Raises ValueError if a learner has schedules, where something needs an autonomous flow."""
    for agent, learner in enumerate(learners):
        if isinstance(learner, Clocked):
            raise ValueError(
                f"agent {agent}: {learner} changes with time, and {what} are defined for a flow "
                "that does not. wrapped.at(t) has the schedules' values at time t in their place."
            )
