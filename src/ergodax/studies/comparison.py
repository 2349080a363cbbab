"""A comparison of simulated learners with their averaged ODE, and the tables it prints."""

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float, UInt32

from ..averaged.flow import Solution
from ..base.text import in_columns
from ..model.game import MarkovGame
from ..model.wrapped import WrappedGame
from ..results.labels import SETTING, Entries, Label, labelled, of_agents, parts
from ..results.result import Result, precision
from ..simulation.simulate import Simulation

_SMALL_SEPARATION = 10


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
        without_noise: how many further numbers have no noise, as they change by rules of their own.
        deviation: their largest `|ensemble mean - (x + b / N)|`, or standard deviation over runs.
    """

    mean_z: float
    variance_z: float
    bound: float
    numbers: int
    left_out: int
    without_noise: int = 0
    deviation: float = 0.0


class Comparison(Result):
    """An ensemble of simulated learners beside the solution of their averaged ODE.

    Printing it gives a table. Its data set holds what solution and simulation do along `time`, as
    `ode_parameters`, `ensemble_parameters`, `ensemble_parameters_variance`, `ode_policy` and so on.

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
        prediction: `(mean, variance)` of the parameters in theory, `x + b / N` and `C / N`: each a
            tuple with one entry per agent, like `params0`, with leaves `[K, ...]`; None if not
            computed.
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
    initial_state: int | str | None = eqx.field(metadata=labelled(SETTING), static=True)
    key_data: UInt32[np.ndarray, "..."] = eqx.field(metadata=labelled(SETTING))

    @property
    def parameter_series(self) -> list[Series]:
        """All agents' parameters, array by array."""
        mean, variance = self.simulation.mean[0], self.simulation.variance[0]
        predicted = self.prediction or ()
        return make_series(self.wrapped.game, self.solution.params, mean, variance, *predicted)

    @property
    def policy_series(self) -> list[Series]:
        """All agents' policies, one table per agent."""
        mean, variance = self.simulation.mean[1], self.simulation.variance[1]
        return make_series(self.wrapped.game, self.policies, mean, variance)

    def _derived(self) -> Entries:
        """What solution and simulation hold over time, as `ode_` and `ensemble_`."""
        simulation = self.simulation
        final: Any = simulation.final
        return {
            name if label.coordinate else prefix + name: (value, label)
            for prefix, member in (("ode_", self.solution), ("ensemble_", simulation))
            for name, (value, label) in member._labelled_fields().items()
            if "time" in label.dims
        } | {
            "ode_policy": (self.policies, Label("policy along the ODE", ("time",), make=of_agents)),
            "scale": (simulation.scale, SETTING),
            "runs": (simulation.runs, SETTING),
            "dtype": (precision(final.params), SETTING),
        }

    def __repr__(self) -> str:
        return (
            f"Comparison({self.simulation!r}; "
            f"largest gap {self.parameter_gap.largest:.4g} of parameters, "
            f"{self.policy_gap.largest:.4g} of policies)"
        )

    def __str__(self) -> str:
        return f"{_gap_table(self)}\n\n{_cost_table(self)}"


def make_series(game: MarkovGame, *trees: tuple) -> list[Series]:
    """All agents' arrays, from trees of them in the order of a series' attributes."""
    arrays = zip(*(parts(game, tree, 1) for tree in trees), strict=True)
    return [Series(*same[0][:3], *(part.values for part in same)) for same in arrays]


def _gap_table(comparison: Comparison) -> str:
    symbols = {learner.symbol for learner in comparison.wrapped.learners}
    symbol = symbols.pop() if len(symbols) == 1 else None
    head = ["|mean - ODE|", "largest", "std. error", "rms", "std. error", "where the largest is"]
    rows = [head]
    for name, gap in (
        (f"{symbol}-values" if symbol else "parameters", comparison.parameter_gap),
        ("policies", comparison.policy_gap),
    ):
        numbers = gap.largest, gap.standard_error, gap.root_mean_square, gap.root_mean_square_error
        where = ", ".join(filter(None, [f"agent {gap.agent}", gap.entry, f"t = {gap.time:g}"]))
        rows.append([name, *(f"{number:.4g}" for number in numbers), where])
    return in_columns(rows)


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
    return in_columns(rows)


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
    text = "no parameter is random"
    if agreement.numbers:
        text = (
            f"mean x + b/N and variance C/N {'agree' if agree else 'do not agree'}: largest z "
            f"{agreement.mean_z:.2f} and {agreement.variance_z:.2f} of {agreement.numbers} "
            f"(chance: {agreement.bound:.2f})"
        )
    if agreement.without_noise:
        text += (
            f"; {agreement.without_noise} without noise are off x + b/N by at most "
            f"{agreement.deviation:.1e}"
        )
    if agreement.left_out:
        text += f"; {agreement.left_out} times next to kinks left out"
    return text
