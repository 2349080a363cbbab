"""Simulated learners against their averaged ODE: how far apart, where, and how sure.

The theorem says that the rescaled process follows `dx/dt = F(x)` as the scale N grows. At a given
N, `compare` runs both from the same parameters, on the same times, and measures the gap. It also
says whether the ensemble has the mean `x + b / N` and the variance `C / N` that theory predicts.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Real

from ..averaged.drift import average
from ..averaged.flow import Solution, check_reached, flow_of, warn_single_precision
from ..averaged.maxima import changes
from ..averaged.room import size_of
from ..averaged.stationary import check_ergodic, mixing_time_on_host
from ..base.checks import check_concrete, check_count, check_flag, check_key
from ..base.codes import RESULTS, is_one_of
from ..base.compiling import in_this_context, quickly_compiled
from ..base.devices import as_array
from ..base.times import check_scale, check_times, steps_at
from ..model.check import check_kinks
from ..model.clock import check_schedules
from ..model.game import MarkovGame, first_state_law
from ..model.observable import parameters_and_policies
from ..model.wrapped import WrappedGame
from ..second_order.fluctuations import fluctuate
from ..simulation.inputs import check_inputs
from ..simulation.simulate import NO_DERIVATIVES, Simulation, prepare
from .comparison import Agreement, Comparison, Gap, Series, make_series

# The ratio of time scales is looked at this often along the ODE, and for so many parameters.
_MOST_TIMES = 101
_MOST_PARAMETERS = 256
# Fluctuations and bias are predicted for up to so many parameters.
_MOST_PREDICTED = 64


def compare(
    wrapped: WrappedGame,
    params0: Any,
    ts: Real[ArrayLike, " K"] | Sequence,
    *,
    scale: Real[ArrayLike, ""] = 10,
    runs: int = 1000,
    key: Array,
    initial_state: int | str | None = None,
    dtype: Any = None,
    progress: bool = False,
) -> Comparison:
    """Simulates an ensemble of learners, solves their averaged ODE, and measures the gap.

    Args:
        wrapped: a game and its learners.
        params0: parameters of all agents at time 0.
        ts: times at which to compare, increasing, in unscaled steps. The times really used are
            those of whole steps, `floor(scale t) / scale`.
        scale: N: updates are N times smaller and N times as many.
        runs: number of independent runs R.
        key: a JAX random key.
        initial_state: the first state, by number or name; drawn from the game's initial law by
            default.
        dtype: precision of the simulation, float32 or float64; that of `params0` by default.
        progress: show a progress bar of the simulation.

    Returns:
        Both trajectories and the gap between them.

    Raises:
        ValueError: as `simulate` and `solve`; also if two times are the same step, or a learner has
            a kink that it does not declare.
        RuntimeError: if the ODE cannot be solved up to the last time.
    """
    check_concrete("compare", (wrapped, params0, ts, scale), NO_DERIVATIVES)
    check_flag("progress", progress)
    scale = float(check_scale(scale))
    times = _times_of_steps(ts, scale)
    runs = check_count("runs", runs, least=2)
    inputs = check_inputs(wrapped, params0, None, None, runs, dtype)
    if inputs.own_game or inputs.own_params:
        raise ValueError("compare takes one game and one start, without an axis of runs.")
    law = as_array(first_state_law(wrapped.game, initial_state))
    inputs = inputs._replace(law=np.asarray(law, inputs.dtype))
    key_data = np.asarray(jax.random.key_data(check_key(key)))
    averaged = check_ergodic(wrapped, params0, "params0")
    check_schedules(wrapped.learners, times)
    check_kinks(averaged[0])
    warn_single_precision()
    with ThreadPoolExecutor(2) as threads:  # all compile for some seconds
        preparing = threads.submit(
            in_this_context(prepare),
            wrapped,
            inputs,
            times,
            scale=scale,
            key=key,
            observe=parameters_and_policies(wrapped),
            progress=progress,
        )
        predicting = threads.submit(in_this_context(_predict), *averaged, times, law, scale)
        # The solution does not wait for them: it says whether there is anything to compare with.
        solution, compile_seconds, run_seconds = _timed_solve(*averaged, times)
        params = jax.device_get(solution.params)
        looking = threads.submit(in_this_context(_look_along), wrapped, params, scale)
        simulation = preparing.result()()
        predicted, (policies, separation) = predicting.result(), looking.result()
    if len(simulation.ts) < len(times):
        raise KeyboardInterrupt  # no run is complete
    if isinstance(predicted, str):
        prediction, agreement = None, predicted
    else:
        prediction, near = predicted
        agreement = _agreement(prediction, near, simulation)
    parameters, chances = (
        make_series(wrapped.game, *trees)
        for trees in zip((params, policies), simulation.mean, simulation.variance, strict=True)
    )
    return Comparison(
        wrapped=wrapped,
        solution=solution,
        policies=policies,
        simulation=simulation,
        parameter_gap=_gap(wrapped.game, parameters, simulation),
        policy_gap=_gap(wrapped.game, chances, simulation),
        separation=separation,
        prediction=prediction,
        agreement=agreement,
        solve_compile_seconds=compile_seconds,
        solve_run_seconds=run_seconds,
        initial_state=initial_state,
        key_data=key_data,
    )


@quickly_compiled
def _theory(wrapped, params0, times, law, scale, **options):
    """Fluctuations and bias; the mean that they predict; when it is near a kink, or beyond one."""
    found = fluctuate(wrapped, params0, times, law, **options)
    near, crossed = found.near_kink(scale), jnp.cumsum(changes(wrapped, found.params)) > 0
    return found, found.corrected_mean(scale), near, crossed & ~near


def _predict(wrapped, params0, times, law, scale) -> tuple[tuple[Any, Any], np.ndarray] | str:
    """Mean and variance by fluctuations and bias, and when it is near a kink; or why not."""
    size = size_of(params0)
    if size > _MOST_PREDICTED:
        return f"not computed ({size} parameters; at most {_MOST_PREDICTED})"
    given = wrapped, params0, as_array(times), law, as_array(scale)
    # Tracking kinks takes long to compile, and is needed only if results beyond one are.
    predicted, mean, near, beyond = _theory(*given, max_kinks=0)
    if np.asarray(beyond).any():
        predicted, mean, near, _ = _theory(*given)
    # Times at which the flow rests on a kink are near one at every scale, and left out.
    if not is_one_of(predicted.result, RESULTS.successful, RESULTS.resting):
        return f"not computed: {RESULTS[predicted.result]}"
    mean = jax.device_get(mean)
    variances = np.einsum("kii->ki", np.asarray(predicted.covariance)) / scale
    leaves, structure = jax.tree.flatten(mean)
    ends = np.cumsum([leaf[0].size for leaf in leaves])
    parts = np.split(variances, ends[:-1], axis=1)
    variance = structure.unflatten(
        part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    )
    return (mean, variance), np.asarray(near)


def _agreement(prediction, near, simulation: Simulation) -> Agreement | str:
    """Largest z-scores of mean and variance, where there is noise and it is Gaussian.

    Parameters without noise, such as an exploration rate that decays, have a deviation instead.
    """
    if simulation.runs < 2:
        return "not computed (a single run)"

    def flat(tree):
        return np.concatenate([np.reshape(v, (len(near), -1)) for v in jax.tree.leaves(tree)], 1)

    mean, variance = map(flat, prediction)
    # What rounding makes of no noise.
    least = (32 * np.finfo(variance.dtype).eps * mean) ** 2 / simulation.scale
    random = np.any(variance > least, axis=0)
    compared = (variance > least) & ~near[:, None]
    if random.any() and not compared.any():
        return "not computed (no time is far enough from a kink)"
    expected = variance[compared]
    with np.errstate(invalid="ignore", over="ignore"):
        deviations = flat(simulation.mean[0]) - mean
        mean_z = deviations[compared] / np.sqrt(expected / simulation.runs)
        spread = flat(simulation.variance[0])[compared] / expected - 1
        variance_z = spread * np.sqrt((simulation.runs - 1) / 2)
        still = np.maximum(np.abs(deviations), np.sqrt(flat(simulation.variance[0])))
    still = still[np.ix_(~near, ~random)]
    return Agreement(
        mean_z=float(np.abs(mean_z).max(initial=0.0)),
        variance_z=float(np.abs(variance_z).max(initial=0.0)),
        bound=-NormalDist().inv_cdf(0.5e-3 / max(expected.size, 1)),
        numbers=int(expected.size),
        left_out=int(near.sum()),
        without_noise=int(still.size),
        deviation=float(still.max(initial=0.0)),
    )


def _times_of_steps(ts, scale: float) -> Float[np.ndarray, " K"]:
    ts = check_times(ts)
    steps, times = steps_at(ts, scale)
    if steps[-1] == 0:
        raise ValueError(f"ts must reach beyond the first step; found {ts[-1]:g} as the last time.")
    same = np.flatnonzero(np.diff(steps) == 0)
    if same.size:
        k = int(same[0])
        raise ValueError(
            f"ts[{k}] = {float(ts[k]):g} and ts[{k + 1}] = {float(ts[k + 1]):g} are the same step "
            f"at scale {scale:g}; leave at least {1 / scale:g} between times."
        )
    return times


def _timed_solve(wrapped, params0, times) -> tuple[Solution, float, float]:
    """The solution, and the seconds spent compiling and solving."""
    before = time.perf_counter()
    # A solve over almost no time takes as long as its compilation.
    jax.block_until_ready(flow_of(wrapped, params0, times * 1e-6))
    compiled = time.perf_counter()
    solution = jax.block_until_ready(flow_of(wrapped, params0, times))
    check_reached(solution)
    return solution, compiled - before, time.perf_counter() - compiled


@quickly_compiled
def _met(wrapped, params, some):
    """Policies at all times; Jacobian of the drift and state chain at some, one by one."""

    def at(params):
        x, unravel = ravel_pytree(params)

        def drift(x):
            found = average(wrapped, unravel(x))
            return ravel_pytree(found.drift)[0], found.chain

        return jax.jacfwd(drift, has_aux=True)(x)

    policies = jax.vmap(wrapped.policies)(params)
    if some is None:
        return policies, None
    return policies, jax.lax.map(at, jax.tree.map(lambda leaf: leaf[some], params))


def _look_along(wrapped, params, scale: float) -> tuple[Any, float | None]:
    """Policies along the solution, and by how much its time scale is above that of the states."""
    leaves = jax.tree.leaves(params)
    num_times, some = len(leaves[0]), None
    if sum(leaf[0].size for leaf in leaves) <= _MOST_PARAMETERS:
        some = as_array(np.linspace(0, num_times - 1, min(num_times, _MOST_TIMES)).astype(int))
    policies, linearised = jax.device_get(_met(wrapped, params, some))
    return policies, None if linearised is None else _separation(linearised, scale)


def _separation(linearised: tuple, scale: float) -> float:
    jacobians, chains = linearised
    if not np.all(np.isfinite(jacobians)):
        return float("nan")
    mixing_times = np.array([mixing_time_on_host(chain) for chain in chains])
    rates = np.linalg.norm(jacobians, 2, axis=(1, 2))
    with np.errstate(divide="ignore"):
        return float(np.min(scale / (mixing_times * rates)))


def _gap(game: MarkovGame, series: Sequence[Series], simulation: Simulation) -> Gap:
    with np.errstate(invalid="ignore"):
        gaps = [np.abs(s.mean - s.ode) for s in series]
        errors = [np.sqrt(s.variance / simulation.runs) for s in series]
    # NaN counts as the largest, so that a lost ensemble shows.
    worst = int(np.argmax([gap.max(initial=0.0) for gap in gaps]))
    place = np.unravel_index(np.argmax(gaps[worst]), gaps[worst].shape)
    return Gap(
        largest=float(gaps[worst][place]),
        standard_error=float(errors[worst][place]),
        agent=series[worst].agent,
        entry=_entry(game, series[worst], tuple(int(i) for i in place[1:])),
        time=float(simulation.ts[place[0]]),
        root_mean_square=_root_mean_square(gaps),
        root_mean_square_error=_root_mean_square(errors),
    )


def _root_mean_square(arrays: Sequence[np.ndarray]) -> float:
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.concatenate([a.ravel() for a in arrays]) ** 2)))


def _entry(game: MarkovGame, series: Series, index: tuple[int, ...]) -> str:
    if series.is_table:
        state, action = index
        names = game.state_names[state], game.action_names[series.agent][action]
        return " ".join(filter(None, [series.name, f"state {names[0]}, action {names[1]}"]))
    return series.name + (str(list(index)) if index else "")
