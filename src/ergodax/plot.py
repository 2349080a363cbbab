"""Figures of results. Each function draws on one axes, or makes one figure, and returns it.

The ODE is drawn as lines, the ensemble's mean as markers, two standard deviations over runs on
either side of it as a band. An action keeps its colour (Okabe and Ito 2008, safe for colour-blind
readers), line style and marker everywhere, so that figures stay readable in print. Nothing global
is changed: figures are plain `matplotlib.figure.Figure` objects.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .compare import Comparison, Series
from .convergence import ConvergenceStudy
from .game import MarkovGame
from .learners.action_value import AbstractActionValueLearner

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v")
_MOST_STATES = 8
_MARKERS_PER_LINE = 10
_TIME = "time (unscaled steps)"


def parameters(
    comparison: Comparison,
    agent: int,
    state: int | str,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws one agent's parameters in one state over time: ODE, ensemble mean and band.

    Args:
        comparison: what `ergodax.compare` returned.
        agent: the agent.
        state: the state, by number or name.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such agent or state, or the agent's parameters hold no table
            `[S, A_i]` of states and actions.
    """
    table = _table(comparison, _check_agent(comparison, agent))
    if table is None:
        raise ValueError(f"the parameters of agent {agent} hold no table of states and actions.")
    return _draw(comparison, table, state, _parameter_symbol(comparison, table), ax)


def policies(
    comparison: Comparison,
    agent: int,
    state: int | str,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws one agent's policy in one state over time: ODE, ensemble mean and band.

    The ensemble's mean policy is the mean over runs, not the policy of the mean parameters.

    Args:
        comparison: what `ergodax.compare` returned.
        agent: the agent.
        state: the state, by number or name.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such agent or state.
    """
    table = comparison.policy_series[_check_agent(comparison, agent)]
    ax = _draw(comparison, table, state, r"$\pi(a \mid s)$", ax)
    reached = table.mean + 2 * np.sqrt(np.nan_to_num(table.variance))
    most = min(1.0, 1.1 * float(max(table.ode.max(), np.nan_to_num(reached).max())))
    ax.set_ylim(-0.04 * most, 1.04 * most)
    ax.locator_params(axis="y", nbins=3)
    return ax


def state_distribution(
    comparison: Comparison,
    state: int | str | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws how often states occur: the ODE's stationary distribution and simulated frequencies.

    Frequencies are means over the steps between two report times, and stand at their midpoints.

    Args:
        comparison: what `ergodax.compare` returned.
        state: the state, by number or name; all of them by default.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such state.
    """
    ax = _new_axes() if ax is None else ax
    game, simulation = comparison.wrapped.game, comparison.simulation
    midpoints = simulation.ts - np.diff(simulation.ts, prepend=0.0) / 2
    distribution = np.asarray(comparison.solution.state_distribution)
    states = range(game.num_states) if state is None else [_state(game, state)]
    for k in states:
        look = _look(k) if state is None else _NEUTRAL
        name = game.state_names[k]
        ax.plot(simulation.ts, distribution[:, k], label=f"{name}, ODE", **look.line)
        taken = np.isfinite(simulation.state_frequency[:, k])
        times, frequency = midpoints[taken], simulation.state_frequency[taken, k]
        ax.plot(times, frequency, label=f"{name}, simulated", **look.markers(len(times)))
    most = max(distribution.max(), np.nanmax(simulation.state_frequency, initial=0.0))
    ax.set(xlabel=_TIME, ylabel="share of steps", ylim=(0.0, 1.08 * most))
    ax.set_title("states" if state is None else f"state {game.state_names[_state(game, state)]}")
    return ax


def comparison(
    comparison: Comparison, states: Sequence[int | str] | None = None
) -> "matplotlib.figure.Figure":
    """Draws everything: a column per state; parameters and policies of all agents; the states.

    Args:
        comparison: what `ergodax.compare` returned.
        states: the states to show, by number or name. By default all of them, or the eight most
            frequent at the end of the ODE if there are more.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no such state.
    """
    from matplotlib.figure import Figure

    game = comparison.wrapped.game
    columns = _most_frequent(comparison) if states is None else [_state(game, s) for s in states]
    rows = []
    for agent in range(game.num_agents):
        if _table(comparison, agent) is not None:
            rows.append((parameters, (comparison, agent), f"agent {agent}\n"))
        rows.append((policies, (comparison, agent), f"agent {agent}\n"))
    rows.append((state_distribution, (comparison,), ""))

    beside = len(columns) < 3  # the legend's place: there is no room above a narrow figure
    size = (1.2 + 2.0 * len(columns) + 3.2 * beside, 0.5 + 0.7 * (not beside) + 1.45 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for axes, (draw, arguments, owner) in zip(grid, rows, strict=True):
        for ax, state in zip(axes, columns, strict=True):
            draw(*arguments, state, ax=ax)
            ax.set(title="", xlabel="")
            ax.label_outer()
        axes[0].set_ylabel(owner + axes[0].get_ylabel())
    for ax, state in zip(grid[0], columns, strict=True):
        ax.set_title(f"state {game.state_names[state]}")
    figure.align_ylabels()
    figure.supxlabel(_TIME, fontsize="medium")
    handles = _legend_handles(comparison)
    if beside:
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
    else:
        width = int(size[0] / 3.0)
        # A legend is filled column by column; it shall read row by row.
        by_rows = [handle for k in range(width) for handle in handles[k::width]]
        figure.legend(handles=by_rows, loc="outside upper center", ncols=width, frameon=False)
    return figure


def convergence(study: ConvergenceStudy) -> "matplotlib.figure.Figure":
    """Draws strong and weak errors over the scale, with the lines that theory predicts.

    Args:
        study: what `ergodax.convergence_study` returned.

    Returns:
        The figure, both axes logarithmic.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = figure.subplots()
    scales = study.scales
    lines = (
        (study.strong, study.strong_error, study.strong_theory.value / np.sqrt(scales), "strong"),
        (study.weak, study.weak_error, study.weak_theory / scales, "weak"),
    )
    texts = (r"$c_0 / \sqrt{N}$, theory", r"$|b| / N$, theory")
    for k, ((error, deviation, theory, name), text) in enumerate(zip(lines, texts, strict=True)):
        look = _look(k)
        ax.plot(scales, theory, label=text, **look.line)
        points: Any = look.markers(1) | {"markevery": 1}
        ax.errorbar(scales, error, 2 * deviation, label=f"{name} error", **points)
    ax.set(xscale="log", yscale="log", xlabel="scale $N$", ylabel="error")
    ax.legend(frameon=False)
    return figure


class _Look(NamedTuple):
    """How one action or state is drawn."""

    colour: str
    linestyle: str
    marker: str
    stagger: float

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.linestyle, "linewidth": 1.4}

    @property
    def band(self) -> dict[str, Any]:
        return {"color": self.colour, "alpha": 0.2, "linewidth": 0}

    @property
    def edge(self) -> dict[str, Any]:
        style = {"edgecolor": self.colour, "linestyle": (0, (1, 1)), "linewidth": 0.9}
        return {"facecolor": "none"} | style

    def markers(self, count: int) -> dict[str, Any]:
        """Markers at some of `count` points, staggered so that they do not hide each other."""
        every = max(1, count // _MARKERS_PER_LINE)
        return {
            "color": self.colour,
            "linestyle": "none",
            "marker": self.marker,
            "markersize": 4.0,
            "markerfacecolor": "white",
            "markeredgewidth": 1.0,
            "markevery": (int(self.stagger * every), every),
        }


_NEUTRAL = _Look("#000000", "-", "o", 0.0)


def _look(index: int) -> _Look:
    return _Look(
        _COLOURS[index % len(_COLOURS)],
        _LINES[index % len(_LINES)],
        _MARKERS[index % len(_MARKERS)],
        index % 2 / 2,
    )


def _draw(comparison: Comparison, table: Series, state: int | str, symbol: str, ax):
    """One row of a table over time."""
    ax = _new_axes() if ax is None else ax
    game, times = comparison.wrapped.game, comparison.simulation.ts
    s = _state(game, state)
    for action, name in enumerate(game.action_names[table.agent]):
        look, mean = _look(action), table.mean[:, s, action]
        reach = 2 * np.sqrt(table.variance[:, s, action])
        ax.fill_between(times, mean - reach, mean + reach, **look.band)
        ax.plot(times, table.ode[:, s, action], label=f"{name}, ODE", **look.line)
        ax.plot(times, mean, label=f"{name}, ensemble mean", **look.markers(len(times)))
    if table.predicted_mean is not None and table.predicted_variance is not None:
        for action in range(len(game.action_names[table.agent])):
            centre = table.predicted_mean[:, s, action]
            reach = 2 * np.sqrt(np.maximum(table.predicted_variance[:, s, action], 0))
            ax.fill_between(times, centre - reach, centre + reach, **_look(action).edge)
    ax.set(xlabel=_TIME, ylabel=symbol)
    ax.set_title(f"agent {table.agent}, state {game.state_names[s]}")
    return ax


def _legend_handles(comparison: Comparison) -> list[Any]:
    """What ODE, mean and band look like, and every action."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    simulation, names = comparison.simulation, comparison.wrapped.game.action_names
    mean = f"mean of {simulation.runs} runs at scale {simulation.scale:g}"
    handles: list[Any] = [
        Line2D([], [], label="averaged ODE", **_NEUTRAL.line),
        Line2D([], [], label=mean, **_NEUTRAL.markers(1)),
        Patch(label="mean ± 2 standard deviations", **_NEUTRAL.band),
    ]
    if comparison.prediction is not None:
        theory = "$x + b/N \\pm 2 (C/N)^{1/2}$, theory"
        handles.append(Patch(label=theory, **_NEUTRAL.edge))
    shared = len(set(names)) == 1
    for agent, own in enumerate(names[:1] if shared else names):
        owner = "" if shared else f"agent {agent}, "
        for action, name in enumerate(own):
            both = _look(action).markers(1) | _look(action).line
            handles.append(Line2D([], [], label=f"{owner}action {name}", **both))
    return handles


def _new_axes():
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


def _table(comparison: Comparison, agent: int) -> Series | None:
    """The agent's table of states and actions: the first one, if there are several."""
    tables = (s for s in comparison.parameter_series if s.agent == agent and s.is_table)
    return next(tables, None)


def _parameter_symbol(comparison: Comparison, table: Series) -> str:
    learner = comparison.wrapped.learners[table.agent]
    if isinstance(learner, AbstractActionValueLearner):
        return "$Q(s, a)$"
    return table.name or "parameter"


def _most_frequent(comparison: Comparison) -> list[int]:
    last = np.asarray(comparison.solution.state_distribution)[-1]
    return sorted(np.argsort(-last, kind="stable")[:_MOST_STATES].tolist())


def _check_agent(comparison: Comparison, agent: int) -> int:
    count = comparison.wrapped.game.num_agents
    if not 0 <= agent < count:
        raise ValueError(f"agent must be 0 to {count - 1}; found {agent}.")
    return agent


def _state(game: MarkovGame, state: int | str) -> int:
    if state in game.state_names:
        return game.state_names.index(state)
    if isinstance(state, str) or not 0 <= state < game.num_states:
        names = ", ".join(game.state_names)
        raise ValueError(f"state {state!r} is not a state; the states are {names}.")
    return int(state)
