"""What an experiment may do: one class per task, whose fields are its keys in the file."""

import abc
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .. import plot, replications
from ..averaged.flow import solve
from ..model.build import Build
from ..model.observable import PARAMETERS
from ..model.wrapped import WrappedGame
from ..simulation import until
from ..simulation.simulate import simulate
from ..simulation.simulate_until import simulate_until
from ..studies.compare import compare
from ..studies.convergence import convergence_study
from ..studies.sweep import sweep


class Setup(NamedTuple):
    """What all tasks of an experiment share.

    Attributes:
        wrapped: the game and its learners; None where the only task is to replicate a paper.
        build: the same with other values, by their places in the file.
        seed: of all random numbers.
        initial_state: the first state; None to draw it.
        progress: whether to show progress bars.
        part: which part of a sweep is done, as `sweep` takes it.
    """

    wrapped: WrappedGame
    build: Build
    seed: int
    initial_state: int | str | None
    progress: bool
    part: Any = None

    @property
    def key(self) -> Any:
        """The random key."""
        return jax.random.key(self.seed)


class Task(BaseModel, abc.ABC):
    """A task: its settings, how it is carried out, and the figure of what comes of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abc.abstractmethod
    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Returns the result; unfinished work may be kept at a path."""

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws the result; None if it has no picture."""
        return None


class _Timed(Task):
    t1: float = Field(1000.0, gt=0, allow_inf_nan=False)
    points: int = Field(101, ge=2)
    times: list[float] | None = None

    @property
    def ts(self) -> np.ndarray:
        """The report times."""
        return (
            np.linspace(0.0, self.t1, self.points) if self.times is None else np.array(self.times)
        )


class Ensembles(BaseModel):
    """What is simulated, of a sweep too if it does not solve."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    runs: int = Field(1000, ge=1)
    scale: float = Field(10.0, gt=0, allow_inf_nan=False)
    dtype: Literal["float64", "float32"] = "float64"

    def ensemble(self, setup: Setup) -> dict[str, Any]:
        """What `simulate` and others are told of the runs."""
        own = {"scale": self.scale, "runs": self.runs, "dtype": self.dtype}
        return own | {"key": setup.key, "initial_state": setup.initial_state}


class Simulate(Ensembles, _Timed):
    """An ensemble of runs."""

    observe: Literal["parameters", "policies"] = "parameters"
    keep_runs: bool = False

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Simulates."""
        return simulate(
            setup.wrapped,
            setup.wrapped.init(),
            self.ts,
            observe=PARAMETERS if self.observe == "parameters" else setup.wrapped.policies,
            keep_runs=self.keep_runs,
            checkpoint=unfinished,
            progress=setup.progress,
            **self.ensemble(setup),
        )

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws agent 0 in the first state, where it has a table."""
        return _of_agent(plot.policies if self.observe == "policies" else plot.parameters, result)


class Until(Ensembles, Task):
    """Runs that each stop when they meet a criterion."""

    max_steps: int = Field(ge=1)
    criterion: Literal["greedy_unchanged", "settled"] = "greedy_unchanged"
    steps: int = Field(100_000, ge=1)
    tolerance: float | None = Field(None, gt=0)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Simulates."""
        if (self.criterion == "settled") != (self.tolerance is not None):
            raise ValueError('tolerance is needed by the criterion "settled", and by it alone.')
        criterion = until.greedy_unchanged(self.steps)
        if self.tolerance is not None:
            criterion = until.settled(self.tolerance, self.steps)
        return simulate_until(
            setup.wrapped,
            setup.wrapped.init(),
            criterion,
            max_steps=self.max_steps,
            checkpoint=unfinished,
            progress=setup.progress,
            **self.ensemble(setup),
        )


class Solve(_Timed):
    """The averaged ODE."""

    rtol: float = Field(1e-8, gt=0)
    atol: float = Field(1e-8, gt=0)

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Solves."""
        params0 = setup.wrapped.init()
        return solve(setup.wrapped, params0, self.ts, rtol=self.rtol, atol=self.atol)

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws agent 0 in the first state, where it has a table."""
        return _of_agent(plot.parameters, result)


class Compare(Ensembles, _Timed):
    """An ensemble of runs beside the averaged ODE."""

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Simulates, solves and measures the gap."""
        params0, given = setup.wrapped.init(), self.ensemble(setup)
        return compare(setup.wrapped, params0, self.ts, progress=setup.progress, **given)

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws both."""
        return plot.comparison(result)


class Convergence(Task):
    """How fast the gap closes as the scale grows."""

    t1: float = Field(8.0, gt=0, allow_inf_nan=False)
    runs: int = Field(16384, ge=2)
    scales: list[float] = Field([64.0, 128.0, 256.0, 512.0, 1024.0], min_length=3)

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Measures the errors."""
        return convergence_study(
            setup.wrapped,
            setup.wrapped.init(),
            self.t1,
            scales=self.scales,
            runs=self.runs,
            key=setup.key,
            initial_state=cast(Any, setup.initial_state),
            checkpoint=unfinished,
            progress=setup.progress,
        )

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws errors against scales."""
        return plot.convergence(result).figure


class Sweep(_Timed):
    """Many parameter sets, solved or simulated."""

    values: dict[str, list[float]] = Field(min_length=1)
    design: Literal["grid", "paired"] = "grid"
    simulation: Ensembles | None = None

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Solves or simulates all sets."""
        return sweep(
            setup.build,
            cast(Any, self.values),
            self.ts,
            design=self.design,
            simulation=self.simulation and self.simulation.ensemble(setup),
            folder=unfinished,
            part=setup.part,
            progress=setup.progress,
        )


class Replicate(Task):
    """The numbers of a published study, with its own game and learners."""

    name: str
    sessions: int | None = Field(None, ge=2)
    grid: tuple[list[float], list[float]] | None = None

    def carry_out(self, setup: Setup, unfinished: Path) -> Any:
        """Finds them anew."""
        given = {key: value for key, value in self if key != "name" and value is not None}
        offered = {"seed": setup.seed, "checkpoint": unfinished, "progress": setup.progress}
        given |= {k: v for k, v in offered.items() if replications.takes(self.name, k)}
        return replications.replicate(self.name, **given)

    def figure(self, setup: Setup, result: Any) -> Any:
        """Draws what was found, if there is anything to draw."""
        return None if result.draw is None else result.draw()


def _of_agent(draw: Any, result: Any) -> Any:
    try:
        return draw(result, 0, 0).figure
    except ValueError:  # parameters that are no table of states and actions
        return None


class Tasks(BaseModel):
    """All tasks, by their keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    simulate: Simulate | None = None
    until: Until | None = None
    solve: Solve | None = None
    compare: Compare | None = None
    convergence: Convergence | None = None
    sweep: Sweep | None = None
    replicate: Replicate | None = None
