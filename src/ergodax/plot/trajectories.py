"""What results hold over time, brought into one form: lines, ensemble means, bands, single runs."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..averaged.flow import Solution
from ..averaged.stationary import stationary_distribution
from ..model.wrapped import WrappedGame
from ..second_order.fluctuations import Fluctuations
from ..simulation.simulate import Simulation
from ..studies.compare import Comparison

Result = Comparison | Solution | Simulation | Fluctuations
Quantity = Literal["parameters", "policies"]


class Course(NamedTuple):
    """A quantity over time as far as a result holds it: None, an array or a tree of arrays.

    Attributes:
        times: `[K]`.
        line: on the averaged ODE, `[K, ...]`.
        mean: of the ensemble, `[K, ...]`.
        band: centre and standard deviation, each `[K, ...]`.
        edge: the same as predicted for the ensemble.
        runs: of single runs, `[R, K, ...]`.
    """

    times: np.ndarray
    line: Any = None
    mean: Any = None
    band: tuple[Any, Any] | None = None
    edge: tuple[Any, Any] | None = None
    runs: Any = None

    def pick(self, choose: Callable[[Any], Any]) -> "Course":
        """The course of a part of the quantity."""

        def part(tree):
            return None if tree is None else np.asarray(choose(tree))

        def both(pair):
            return None if pair is None else (part(pair[0]), part(pair[1]))

        return Course(
            self.times,
            part(self.line),
            part(self.mean),
            both(self.band),
            both(self.edge),
            part(self.runs),
        )


def course(result: Result, quantity: Quantity, scale: Any = None) -> Course:
    """Parameters or policies of all agents over time.

    Raises:
        ValueError: if a scale is missing or not needed, or a simulation did not observe the
            quantity.
    """
    _check_scale(result, scale)
    if isinstance(result, Comparison):
        part = ("parameters", "policies").index(quantity)
        simulation = result.simulation
        mean, variance = simulation.mean[part], simulation.variance[part]
        return Course(
            np.asarray(simulation.ts),
            line=(result.solution.params, result.policies)[part],
            mean=mean,
            band=(mean, jax.tree.map(np.sqrt, variance)),
            edge=_predicted(result) if quantity == "parameters" else None,
        )
    if isinstance(result, Simulation):
        mean, variance, runs = _observed(result, quantity)
        deviation = jax.tree.map(np.sqrt, variance)
        return Course(np.asarray(result.ts), mean=mean, band=(mean, deviation), runs=runs)
    observe = _Parameters() if quantity == "parameters" else _Policies(result.wrapped)
    return _along(result, observe, scale)


def state_courses(result: Result, scale: Any = None) -> list[Course]:
    """How often states occur, `[K, S]`: stationary distribution, simulated frequencies, or both.

    Frequencies, means over the steps between two report times, stand at their midpoints.
    """
    _check_scale(result, scale)
    if isinstance(result, Fluctuations):
        return [_along(result, _States(result.wrapped), scale)]
    courses = []
    if isinstance(result, Comparison | Solution):
        solution = result if isinstance(result, Solution) else result.solution
        line = np.asarray(solution.state_distribution)
        courses.append(Course(np.asarray(solution.ts), line=line))
    if isinstance(result, Comparison | Simulation):
        simulation = result if isinstance(result, Simulation) else result.simulation
        midpoints = simulation.ts - np.diff(simulation.ts, prepend=0.0) / 2
        taken = np.isfinite(simulation.state_frequency).all(axis=1)
        frequency = simulation.state_frequency[taken]
        courses.append(Course(midpoints[taken], mean=frequency))
    return courses


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
    return jax.device_get(_mapped(_Policies(wrapped), params))


class _Parameters(eqx.Module):
    """Observables are modules, so that compiled programs serve again."""

    def __call__(self, params):
        return params


class _Policies(eqx.Module):
    wrapped: WrappedGame

    def __call__(self, params):
        return self.wrapped.policies(params)


class _States(eqx.Module):
    wrapped: WrappedGame

    def __call__(self, params):
        return stationary_distribution(self.wrapped, params)


@eqx.filter_jit
def _mapped(observe, params):
    return jax.vmap(observe)(params)


def _policies_of_runs(wrapped: WrappedGame, params: Any) -> tuple:
    """Policies of runs at times, `[R, K, S, A_i]` per agent, from parameters `[R, K, ...]`."""
    # Every run may have its own game: then all arrays have one more axis.
    own = wrapped.game.probabilities.ndim > wrapped.game.num_agents + 2
    return jax.device_get(_mapped_runs(wrapped, jax.tree.map(np.asarray, params), own))


@eqx.filter_jit
def _mapped_runs(wrapped, params, own: bool):
    each = eqx.if_array(0) if own else None
    return eqx.filter_vmap(
        lambda wrapped, params: jax.vmap(wrapped.policies)(params), in_axes=(each, 0)
    )(wrapped, params)


def _along(result: Solution | Fluctuations, observe: Any, scale) -> Course:
    """An observable on the averaged ODE, with its fluctuations where they are known."""
    line = jax.device_get(_mapped(observe, result.params))
    times, band = np.asarray(result.ts), None
    if isinstance(result, Fluctuations):
        near = np.asarray(result.near_kink(scale))
        band = tuple(
            jax.tree.map(lambda leaf: _hidden(leaf, near), moment)
            for moment in result.band(observe, scale=scale)
        )
    return Course(times, line=line, band=band)


def _hidden(leaf: Any, near: np.ndarray) -> np.ndarray:
    """NaN at times where theory does not hold."""
    return np.where(near.reshape(-1, *(1,) * (np.ndim(leaf) - 1)), np.nan, np.asarray(leaf))


def _predicted(comparison: Comparison) -> tuple[Any, Any] | None:
    if comparison.prediction is None:
        return None
    mean, variance = comparison.prediction
    return mean, jax.tree.map(lambda leaf: np.sqrt(np.maximum(leaf, 0)), variance)


def _check_scale(result: Result, scale) -> None:
    if isinstance(result, Fluctuations) != (scale is not None):
        raise ValueError(
            "fluctuations are drawn at a scale: give scale."
            if scale is None
            else f"a {type(result).__name__} has its own scale, or none; found scale {scale}."
        )


def _observed(simulation: Simulation, quantity: Quantity) -> tuple[Any, Any, Any]:
    """Mean, variance and, if kept, single runs of a quantity."""
    held = _holds(simulation, quantity)
    if held is not None:
        runs = None if simulation.values is None else held(simulation.values)
        return held(simulation.mean), held(simulation.variance), runs
    if quantity == "policies" and simulation.values is not None:
        kept = _holds(simulation, "parameters")
        if kept is not None:
            policies = _policies_of_runs(simulation.wrapped, kept(simulation.values))
            variance = (np.var(p, axis=0, ddof=min(1, len(p) - 1)) for p in policies)
            return tuple(np.mean(p, axis=0) for p in policies), tuple(variance), policies
    also = ", or parameters with keep_runs" if quantity == "policies" else ""
    raise ValueError(
        f"the simulation did not observe {quantity}{also}, or was interrupted before its end."
    )


def _holds(simulation: Simulation, quantity: Quantity) -> Callable[[Any], Any] | None:
    """How to pick a quantity from what was observed; None if it is not there.

    A simulation does not say what it observed, and parameters and policies may have the same
    shapes: the runs' last parameters tell.
    """
    if simulation.final is None:
        return None
    values = simulation.final.params
    if quantity == "policies":
        last = jax.tree.map(lambda leaf: leaf[:, None], values)
        policies = _policies_of_runs(simulation.wrapped, last)
        values = tuple(policy[:, 0] for policy in policies)
    expected = jax.tree.map(lambda leaf: np.mean(leaf, axis=0, dtype=np.float64), values)

    def fits(part) -> bool:
        if jax.tree.structure(part) != jax.tree.structure(expected):
            return False
        pairs = zip(jax.tree.leaves(part), jax.tree.leaves(expected), strict=True)
        return all(
            found.shape[1:] == np.shape(mean)
            and np.allclose(found[-1], mean, rtol=1e-4, atol=1e-6, equal_nan=True)
            for found, mean in pairs
        )

    choices: list[Callable[[Any], Any]] = [lambda observed: observed]
    if isinstance(simulation.mean, tuple) and len(simulation.mean) == 2:
        choices += [lambda observed: observed[0], lambda observed: observed[1]]
    return next((choose for choose in choices if fits(choose(simulation.mean))), None)
