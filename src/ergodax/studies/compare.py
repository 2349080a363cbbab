"""Simulated learners against their averaged ODE: how far apart, where, and how sure.

The theorem says that the rescaled process follows `dx/dt = F(x)` as the scale N grows. At a given
N, `compare` runs both from the same parameters, on the same times, and measures the gap. It also
says whether the ensemble has the mean `x + b / N` and the variance `C / N` that theory predicts.
"""

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, ArrayLike, Float, Real, UInt32

from ..averaged.drift import jacobian
from ..averaged.flow import Solution, solve
from ..averaged.maxima import changes
from ..averaged.stationary import mixing_time
from ..base.codes import RESULTS
from ..base.compiling import quickly_compiled
from ..base.times import check_scale, check_times, steps_at
from ..learners.action_value import AbstractActionValueLearner
from ..model.game import MarkovGame, first_state_law
from ..model.wrapped import WrappedGame
from ..results.labels import PER_STEP, Part, attributes, dataset, precision, tables, time_coordinate
from ..second_order.fluctuations import Fluctuations, fluctuate
from ..simulation.simulate import Observe, Simulation, simulate

if TYPE_CHECKING:
    import xarray

# The ratio of time scales is looked at this often along the ODE, and for so many parameters.
_MOST_TIMES = 101
_MOST_PARAMETERS = 256
_SMALL_SEPARATION = 10
# Fluctuations and bias are predicted for up to so many parameters.
_MOST_PREDICTED = 64


class Series(NamedTuple):
    """One array of one agent, along the ODE and over the ensemble.

    Attributes:
        agent: the agent.
        name: where the array stands in the agent's parameters; empty if they are one array.
        is_table: whether its axes are the states and the agent's actions.
        ode: along the ODE, `[K, ...]`.
        mean: mean over runs, `[K, ...]`.
        variance: variance over runs, `[K, ...]`.
        predicted_mean: `x + b / N`, `[K, ...]`; None if not predicted.
        predicted_variance: `C / N`, `[K, ...]`; None if not predicted.
    """

    agent: int
    name: str
    is_table: bool
    ode: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    predicted_mean: np.ndarray | None = None
    predicted_variance: np.ndarray | None = None


class Gap(eqx.Module):
    """The distance between ensemble mean and ODE, over all entries and times.

    Attributes:
        largest: the largest `|ensemble mean - ODE|`.
        standard_error: standard error of the ensemble mean there; NaN for a single run.
        agent: the agent there.
        entry: the entry there, by the game's names of state and action where it has them.
        time: the time there, in unscaled steps.
        root_mean_square: root mean square of `ensemble mean - ODE`.
        root_mean_square_error: root mean square of the standard errors: what sampling noise alone
            would give.
    """

    largest: float
    standard_error: float
    agent: int
    entry: str = eqx.field(static=True)
    time: float
    root_mean_square: float
    root_mean_square_error: float


class Agreement(eqx.Module):
    """How the ensemble's moments compare with those that theory predicts, in standard errors.

    Attributes:
        mean_z: largest `|ensemble mean - (x + b / N)|`, in standard errors.
        variance_z: largest `|ensemble variance - C / N|`, in standard errors.
        bound: what each would exceed by chance once in a thousand, were all numbers independent.
        numbers: how many numbers were compared: parameters times times.
        left_out: times left out, where the ODE is within three standard deviations of a kink and
            fluctuations are not Gaussian.
    """

    mean_z: float
    variance_z: float
    bound: float
    numbers: int
    left_out: int


class Comparison(eqx.Module):
    """An ensemble of simulated learners beside the solution of their averaged ODE.

    Printing it gives a table.

    Attributes:
        wrapped: the game and its learners.
        solution: the averaged ODE, at the times of the simulation.
        policies: policies of all agents along the ODE, one array `[K, S, A_i]` per agent.
        simulation: the ensemble; its mean and variance are pairs (parameters, policies).
        parameter_gap: the gap of the parameters.
        policy_gap: the gap of the policies.
        separation: how many times faster the state chain forgets its state than the parameters
            move: the smallest `scale / (mixing time * |DF|_2)` along the ODE; None if there are too
            many parameters for the Jacobian DF.
        prediction: mean `x + b / N` and variance `C / N` of the parameters, each leaf `[K, ...]`;
            None if not computed.
        agreement: of the ensemble with them; a reason if they were not computed.
        solve_compile_seconds: time spent compiling the ODE.
        solve_run_seconds: time spent solving it.
        initial_state: the first state of every run; None if drawn.
        key_data: the words of the random key.
    """

    wrapped: WrappedGame
    solution: Solution
    policies: tuple[Float[np.ndarray, "K S _"], ...]
    simulation: Simulation
    parameter_gap: Gap
    policy_gap: Gap
    separation: float | None
    prediction: tuple[Any, Any] | None
    agreement: Agreement | str
    solve_compile_seconds: float
    solve_run_seconds: float
    initial_state: int | str | None = eqx.field(static=True)
    key_data: UInt32[np.ndarray, "..."]

    @property
    def parameter_series(self) -> list[Series]:
        """All agents' parameters, array by array."""
        series = _series(
            self.wrapped.game,
            self.solution.params,
            self.simulation.mean[0],
            self.simulation.variance[0],
        )
        if self.prediction is None:
            return series
        moments = zip(*map(jax.tree.leaves, self.prediction), strict=True)
        return [
            own._replace(predicted_mean=mean, predicted_variance=variance)
            for own, (mean, variance) in zip(series, moments, strict=True)
        ]

    @property
    def policy_series(self) -> list[Series]:
        """All agents' policies, one table per agent."""
        return _series(
            self.wrapped.game, self.policies, self.simulation.mean[1], self.simulation.variance[1]
        )

    def to_xarray(self) -> "xarray.Dataset":
        """The comparison as a labelled data set.

        Dimensions are `time`, `agent`, `state` and `action`, with the game's own names as
        coordinates. Variables:

        - `ode_parameters`, `ensemble_parameters`, `ensemble_parameters_variance` and likewise
          `.._policy`, `.._policy_variance`: `(time, agent, state, action)`. Where the agents'
          actions differ there is one variable per agent, `ode_policy_agent0` on `(time, state,
          action_agent0)`, and where their parameters are not one table of states and actions, one
          per array, named after its place, e.g. `ode_parameters_agent0_theta`.
        - `ode_state_distribution`, `ensemble_state_frequency`: `(time, state)`.
        - `ode_rewards`, `ensemble_rewards`: `(time, agent)`.

        The attribute `settings` says in JSON how the comparison was made.
        """
        simulation, solution = self.simulation, self.solution
        final: Any = simulation.final
        distribution = "stationary distribution of the states along the ODE"
        share = "share of steps since the previous time, mean over runs"
        reward = "mean reward per step since the previous time, mean over runs"
        variables: dict[str, Any] = {
            "ode_state_distribution": (
                ("time", "state"),
                np.asarray(solution.state_distribution),
                attributes(distribution, "1"),
            ),
            "ensemble_state_frequency": (
                ("time", "state"),
                simulation.state_frequency,
                attributes(share, "1"),
            ),
            "ode_rewards": (
                ("time", "agent"),
                np.asarray(solution.rewards),
                attributes("expected reward per step along the ODE", PER_STEP),
            ),
            "ensemble_rewards": (
                ("time", "agent"),
                simulation.rewards,
                attributes(reward, PER_STEP),
            ),
        }
        game = self.wrapped.game
        for quantity, series in (
            ("parameters", self.parameter_series),
            ("policy", self.policy_series),
        ):
            for kind, name, long_name in (
                ("ode", f"ode_{quantity}", f"{quantity} along the ODE"),
                ("mean", f"ensemble_{quantity}", f"{quantity}, mean over runs"),
                ("variance", f"ensemble_{quantity}_variance", f"{quantity}, variance over runs"),
            ):
                arrays = [Part(s.agent, s.name, s.is_table, getattr(s, kind)) for s in series]
                variables |= tables(game, name, long_name, arrays, ("time",), quantity)
        return dataset(
            self.wrapped,
            "Comparison",
            variables,
            time_coordinate(simulation.ts)
            | {"step": ("time", simulation.steps, attributes("step of the simulation"))},
            scale=simulation.scale,
            runs=simulation.runs,
            key_data=self.key_data.tolist(),
            initial_state=self.initial_state,
            dtype=precision(final.params),
        )

    def __repr__(self) -> str:
        return (
            f"Comparison({self.simulation!r}; "
            f"largest gap {self.parameter_gap.largest:.4g} of parameters, "
            f"{self.policy_gap.largest:.4g} of policies)"
        )

    def __str__(self) -> str:
        return f"{_gap_table(self)}\n\n{_cost_table(self)}"


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
        ValueError: as `simulate` and `solve`; also if two times are the same step.
        RuntimeError: if the ODE cannot be solved up to the last time.
    """
    scale = check_scale(scale)
    times = _times_of_steps(ts, scale)
    # The ODE first: it is quick, and says whether there is anything to compare with.
    solution, compile_seconds, run_seconds = _timed_solve(wrapped, params0, times)
    with ThreadPoolExecutor(1) as thread:  # both compile for some seconds
        predicting = thread.submit(_predict, wrapped, params0, times, initial_state, scale)
        simulation = simulate(
            wrapped,
            params0,
            times,
            scale=scale,
            runs=runs,
            key=key,
            initial_state=initial_state,
            observe=Observe(wrapped),
            dtype=dtype,
            progress=progress,
        )
        predicted = predicting.result()
    if len(simulation.ts) < len(times):
        raise KeyboardInterrupt  # no run is complete
    prediction, agreement = _theory(predicted, simulation)
    params = jax.device_get(solution.params)
    policies = jax.device_get(_policies(wrapped, params))
    parameters, chances = (
        _series(wrapped.game, ode, mean, variance)
        for ode, mean, variance in zip(
            (params, policies), simulation.mean, simulation.variance, strict=True
        )
    )
    return Comparison(
        wrapped=wrapped,
        solution=solution,
        policies=policies,
        simulation=simulation,
        parameter_gap=_gap(wrapped.game, parameters, simulation),
        policy_gap=_gap(wrapped.game, chances, simulation),
        separation=_separation(wrapped, params, scale),
        prediction=prediction,
        agreement=agreement,
        solve_compile_seconds=compile_seconds,
        solve_run_seconds=run_seconds,
        initial_state=initial_state,
        key_data=np.asarray(jax.random.key_data(key)),
    )


_fluctuate = quickly_compiled(fluctuate)


def _predict(wrapped, params0, times, initial_state, scale) -> Fluctuations | str:
    """Fluctuations and bias along the ODE, or a reason for their absence."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params0))
    if size > _MOST_PREDICTED:
        return f"not computed ({size} parameters; at most {_MOST_PREDICTED})"
    if times[-1] == 0:
        return "not computed (no time passes)"
    law = jnp.asarray(first_state_law(wrapped.game, initial_state))
    # Tracking kinks takes long to compile, and is needed only if results beyond one are.
    predicted = _fluctuate(wrapped, params0, jnp.asarray(times), law, max_kinks=0)
    before = np.cumsum(changes(wrapped, predicted.params)) > 0
    if np.any(before & ~np.asarray(predicted.near_kink(scale))):
        predicted = _fluctuate(wrapped, params0, jnp.asarray(times), law)
    return jax.block_until_ready(predicted)


def _theory(
    predicted: Fluctuations | str, simulation: Simulation
) -> tuple[tuple[Any, Any] | None, Agreement | str]:
    """Predicted mean and variance, and how the ensemble agrees; or a reason for their absence."""
    if isinstance(predicted, str):
        return None, predicted
    if predicted.result != RESULTS.successful:
        return None, f"not computed: {RESULTS[predicted.result]}"
    scale = simulation.scale
    mean = jax.device_get(predicted.corrected_mean(scale))
    variances = np.einsum("kii->ki", np.asarray(predicted.covariance)) / scale
    leaves, structure = jax.tree.flatten(mean)
    ends = np.cumsum([leaf[0].size for leaf in leaves])
    parts = np.split(variances, ends[:-1], axis=1)
    variance = structure.unflatten(
        part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
    )
    near = np.asarray(predicted.near_kink(scale))
    return (mean, variance), _agreement((mean, variance), near, simulation)


def _agreement(prediction, near, simulation: Simulation) -> Agreement | str:
    """Largest z-scores of mean and variance, where there is noise and it is Gaussian."""
    if simulation.runs < 2:
        return "not computed (a single run)"

    def flat(tree):
        return np.concatenate([np.reshape(v, (len(near), -1)) for v in jax.tree.leaves(tree)], 1)

    mean, variance = map(flat, prediction)
    compared = (variance > 0) & ~near[:, None]
    if not compared.any():
        return "not computed (no time is far enough from a kink)"
    expected = variance[compared]
    with np.errstate(invalid="ignore", over="ignore"):
        deviation = (flat(simulation.mean[0]) - mean)[compared]
        mean_z = deviation / np.sqrt(expected / simulation.runs)
        spread = flat(simulation.variance[0])[compared] / expected - 1
        variance_z = spread * np.sqrt((simulation.runs - 1) / 2)
    return Agreement(
        mean_z=float(np.abs(mean_z).max()),
        variance_z=float(np.abs(variance_z).max()),
        bound=float(-scipy.special.ndtri(0.5e-3 / expected.size)),
        numbers=int(expected.size),
        left_out=int(near.sum()),
    )


def _times_of_steps(ts, scale: float) -> Float[np.ndarray, " K"]:
    check_times(ts)
    steps, times = steps_at(ts, scale)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A solve over almost no time takes as long as its compilation.
        jax.block_until_ready(solve(wrapped, params0, jnp.asarray(times * 1e-6), throw=False))
    compiled = time.perf_counter()
    solution = jax.block_until_ready(solve(wrapped, params0, jnp.asarray(times)))
    return solution, compiled - before, time.perf_counter() - compiled


@eqx.filter_jit
def _policies(wrapped, params):
    return jax.vmap(wrapped.policies)(params)


@eqx.filter_jit
def _linearise(wrapped, params):
    """Jacobian of the drift and mixing time of the state chain, one parameter set at a time."""
    return jax.lax.map(
        lambda x: (jacobian(wrapped, x), mixing_time(wrapped.frozen_chain(x))), params
    )


def _separation(wrapped, params, scale: float) -> float | None:
    leaves = jax.tree.leaves(params)
    num_times = len(leaves[0])
    if sum(leaf[0].size for leaf in leaves) > _MOST_PARAMETERS:
        return None
    some = np.linspace(0, num_times - 1, min(num_times, _MOST_TIMES)).astype(int)
    path = jax.tree.map(lambda leaf: leaf[some], params)
    jacobians, mixing_times = jax.device_get(_linearise(wrapped, path))
    if not np.all(np.isfinite(jacobians)):
        return float("nan")
    rates = np.linalg.norm(jacobians, 2, axis=(1, 2))
    with np.errstate(divide="ignore"):
        return float(np.min(scale / (mixing_times * rates)))


def _series(game: MarkovGame, ode, mean, variance) -> list[Series]:
    series = []
    for agent, own in enumerate(ode):
        leaves = jax.tree_util.tree_leaves_with_path(own)
        table = (game.num_states, game.num_actions[agent])
        for (path, leaf), m, v in zip(
            leaves, jax.tree.leaves(mean[agent]), jax.tree.leaves(variance[agent]), strict=True
        ):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            values = np.asarray(leaf)
            series.append(Series(agent, name, values.shape[1:] == table, values, m, v))
    return series


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


def _gap_table(comparison: Comparison) -> str:
    learners = comparison.wrapped.learners
    tabular = all(isinstance(learner, AbstractActionValueLearner) for learner in learners)
    head = ["|mean - ODE|", "largest", "std. error", "rms", "std. error", "where the largest is"]
    rows = [head]
    for name, gap in (
        ("Q-values" if tabular else "parameters", comparison.parameter_gap),
        ("policies", comparison.policy_gap),
    ):
        numbers = (
            gap.largest,
            gap.standard_error,
            gap.root_mean_square,
            gap.root_mean_square_error,
        )
        where = ", ".join(filter(None, [f"agent {gap.agent}", gap.entry, f"t = {gap.time:g}"]))
        rows.append([name, *(f"{number:.4g}" for number in numbers), where])
    return _align(rows)


def _cost_table(comparison: Comparison) -> str:
    simulation = comparison.simulation
    rows = [
        [
            "simulation",
            f"{simulation.runs} runs of {simulation.steps[-1]} steps at scale "
            f"{simulation.scale:g}, {simulation.steps_per_second / 1e6:.3g} million steps/s",
            _seconds(simulation.compile_seconds, simulation.run_seconds),
        ],
        [
            "ODE",
            f"{int(comparison.solution.stats['num_steps'])} solver steps",
            _seconds(comparison.solve_compile_seconds, comparison.solve_run_seconds),
        ],
        ["time scales", _time_scales(comparison.separation), ""],
        ["theory", _verdict(comparison.agreement), ""],
    ]
    return _align(rows)


def _seconds(compiling: float, running: float) -> str:
    return f"compile {compiling:.2f} s, run {running:.3f} s"


def _time_scales(separation: float | None) -> str:
    if separation is None:
        return "not computed (too many parameters)"
    text = f"states mix {separation:.4g} times faster than parameters move"
    if not separation >= _SMALL_SEPARATION:
        text += ": the ODE may not describe the learners at this scale"
    return text


def _verdict(agreement: Agreement | str) -> str:
    if isinstance(agreement, str):
        return agreement
    agree = max(agreement.mean_z, agreement.variance_z) < agreement.bound
    text = (
        f"mean x + b/N and variance C/N {'agree' if agree else 'do not agree'}: largest z "
        f"{agreement.mean_z:.2f} and {agreement.variance_z:.2f} of {agreement.numbers} "
        f"(chance: {agreement.bound:.2f})"
    )
    if agreement.left_out:
        text += f"; {agreement.left_out} times next to kinks left out"
    return text


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, two spaces apart."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
