"""What results hold over time, brought into one form: lines, ensemble means, bands, single runs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..averaged.flow import Solution
from ..averaged.stationary import stationary_distribution
from ..base.checks import check_type
from ..base.compiling import compiled
from ..base.times import check_scale
from ..model.observable import PARAMETERS, named
from ..model.wrapped import WrappedGame
from ..second_order.prediction import Fluctuations
from ..simulation.simulate import Simulation
from ..studies.comparison import Comparison

TimedResult = Comparison | Solution | Simulation | Fluctuations
# What of it, as an observable names it.
Quantity = Literal["parameters", "policy"]


class Trajectory(NamedTuple):
    """A quantity over time as far as a result holds it: None, an array or a tree of arrays.

    Attributes:
        times: `[K]`.
        line: on the averaged ODE, `[K, ...]`.
        mean: of the ensemble, `[K, ...]`.
        band: centre and standard deviation, each `[K, ...]`.
        edge: the same as predicted for the ensemble.
        runs: of single runs, `[R, K, ...]`.
        bounds: between which bands are shown.
    """

    times: np.ndarray
    line: Any = None
    mean: Any = None
    band: tuple[Any, Any] | None = None
    edge: tuple[Any, Any] | None = None
    runs: Any = None
    bounds: tuple[float, float] = (-np.inf, np.inf)

    @property
    def highest(self) -> float:
        """The largest number of lines, means and bands, but no less than zero."""
        tops = self.line, self.mean, self.band and self.reach(self.band)[1]
        return max(float(np.nanmax(top, initial=0.0)) for top in tops if top is not None)

    def within(self, low: float, high: float) -> "Trajectory":
        """The same, of a quantity that lies between two bounds: bands end there."""
        return self._replace(bounds=(low, high))

    def reach(self, around: tuple[Any, Any]) -> tuple[Any, Any]:
        """Two standard deviations below and above a centre."""
        centre, deviation = around
        return tuple(np.clip(centre + k * deviation, *self.bounds) for k in (-2, 2))

    def pick(self, choose: Callable[[Any], Any]) -> "Trajectory":
        """The trajectory of a part of the quantity."""

        def part(tree):
            return None if tree is None else np.asarray(choose(tree))

        def both(pair):
            return None if pair is None else (part(pair[0]), part(pair[1]))

        return Trajectory(
            self.times,
            part(self.line),
            part(self.mean),
            both(self.band),
            both(self.edge),
            part(self.runs),
            self.bounds,
        )


def trajectory(result: TimedResult, quantity: Quantity, scale: Any = None) -> Trajectory:
    """Parameters or policies of all agents over time.

    Raises:
        ValueError: if a simulation did not observe the quantity.
    """
    if isinstance(result, Comparison | Simulation):
        simulation = result if isinstance(result, Simulation) else result.simulation
        mean, variance, runs = _observed(simulation, quantity)
        band = mean, jax.tree.map(np.sqrt, variance)
        shown = Trajectory(np.asarray(simulation.ts), mean=mean, band=band, runs=runs)
        if isinstance(result, Simulation):
            return shown
        if quantity == "policy":
            return shown._replace(line=result.policies)
        return shown._replace(line=result.solution.params, edge=_predicted(result))
    wrapped = result.wrapped
    return _along(result, PARAMETERS if quantity == "parameters" else wrapped.policies, scale)


def state_trajectories(result: TimedResult, scale: Any = None) -> list[Trajectory]:
    """How often states occur, `[K, S]`: stationary distribution, simulated frequencies, or both.

    Frequencies, means over the steps between two report times, stand at their midpoints.
    """
    if isinstance(result, Fluctuations):
        return [_along(result, eqx.Partial(stationary_distribution, result.wrapped), scale)]
    trajectories = []
    if isinstance(result, Comparison | Solution):
        solution = result if isinstance(result, Solution) else result.solution
        line = np.asarray(solution.state_distribution)
        trajectories.append(Trajectory(np.asarray(solution.ts), line=line))
    if isinstance(result, Comparison | Simulation):
        simulation = result if isinstance(result, Simulation) else result.simulation
        midpoints = simulation.ts - np.diff(simulation.ts, prepend=0.0) / 2
        taken = np.isfinite(simulation.state_frequency).all(axis=1)
        frequency = simulation.state_frequency[taken]
        trajectories.append(Trajectory(midpoints[taken], mean=frequency))
    return trajectories


def runs_of(simulation: Simulation, quantity: Quantity) -> Any:
    """Parameters or policies of every run, leaves `[R, K, ...]`.

    Raises:
        ValueError: if the simulation did not keep them.
    """
    if simulation.values is None:
        raise ValueError("the simulation kept no runs: simulate(..., keep_runs=True).")
    return _observed(simulation, quantity)[2]


def policies_along(wrapped: WrappedGame, params: Any) -> tuple:
    """Policies for a batch of parameters: one array `[K, S, A_i]` per agent."""
    return jax.device_get(_mapped(wrapped.policies, params))


@compiled
def _mapped(observe, params):
    return jax.vmap(observe)(params)


def _policies_of_runs(wrapped: WrappedGame, params: Any) -> tuple:
    """Policies of runs at times, `[R, K, S, A_i]` per agent, from parameters `[R, K, ...]`."""
    # Every run may have its own game: then all arrays have one more axis.
    own = wrapped.game.probabilities.ndim > wrapped.game.num_agents + 2
    return jax.device_get(_mapped_runs(wrapped, jax.tree.map(np.asarray, params), own))


@compiled
def _mapped_runs(wrapped, params, own: bool):
    each = eqx.if_array(0) if own else None
    return eqx.filter_vmap(
        lambda wrapped, params: jax.vmap(wrapped.policies)(params), in_axes=(each, 0)
    )(wrapped, params)


def _along(result: Solution | Fluctuations, observe: Any, scale) -> Trajectory:
    """An observable on the averaged ODE, with its fluctuations where they are known."""
    line = jax.device_get(_mapped(observe, result.params))
    times, band = np.asarray(result.ts), None
    if isinstance(result, Fluctuations):
        near = np.asarray(result.near_kink(scale))
        band = tuple(
            jax.tree.map(lambda leaf: _hidden(leaf, near), moment)
            for moment in result.band(observe, scale=scale)
        )
    return Trajectory(times, line=line, band=band)


def _hidden(leaf: Any, near: np.ndarray) -> np.ndarray:
    """NaN at times where theory does not hold."""
    return np.where(near.reshape(-1, *(1,) * (np.ndim(leaf) - 1)), np.nan, np.asarray(leaf))


def _predicted(comparison: Comparison) -> tuple[Any, Any] | None:
    if comparison.prediction is None:
        return None
    mean, variance = comparison.prediction
    return mean, jax.tree.map(lambda leaf: np.sqrt(np.maximum(leaf, 0)), variance)


def check_result(result: Any, scale: Any) -> None:
    """Raises ValueError unless a result holds something over time, and a scale is where needed."""
    what = "a Comparison, Solution, Simulation or Fluctuations"
    check_type("result", result, (Comparison, Solution, Simulation, Fluctuations), what)
    if scale is not None:
        check_scale(scale)
    if isinstance(result, Fluctuations) != (scale is not None):
        raise ValueError(
            "fluctuations are drawn at a scale: give scale."
            if scale is None
            else f"a {type(result).__name__} has its own scale, or none; found scale {scale}."
        )


def _observed(simulation: Simulation, quantity: Quantity) -> tuple[Any, Any, Any]:
    """Mean, variance and, if kept, single runs of a quantity."""
    moments = simulation.mean, simulation.variance, simulation.values
    mean, variance, runs = (
        {} if values is None else named(simulation.observed, values) for values in moments
    )
    if quantity in mean:
        return mean[quantity], variance[quantity], runs.get(quantity)
    if quantity == "policy" and "parameters" in runs:
        policies = _policies_of_runs(simulation.wrapped, runs["parameters"])
        spread = (np.var(p, axis=0, ddof=min(1, len(p) - 1)) for p in policies)
        return tuple(np.mean(p, axis=0) for p in policies), tuple(spread), policies
    also = "policies, or parameters with keep_runs" if quantity == "policy" else quantity
    raise ValueError(f"the simulation did not observe {also}.")
