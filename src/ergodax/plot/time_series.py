"""Parameters, policies and states over time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike, Real

from ..base.checks import check_count, check_type, describe
from ..model.game import check_agent
from ..model.wrapped import WrappedGame
from ..studies.comparison import Comparison
from .coordinates import find_state, find_table, row_name
from .style import NEUTRAL, Look, axes_or_new, is_geometric, legend, look, plain, title
from .trajectories import TimedResult, Trajectory, check_result, state_trajectories, trajectory

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_MOST_STATES = 8
_TIME = "time (unscaled steps)"


def parameters(
    result: TimedResult,
    agent: int,
    state: int | str,
    *,
    scale: Real[ArrayLike, ""] | None = None,
    sample_runs: int = 0,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws one agent's parameters in one state over time.

    Lines are the averaged ODE, markers the mean over runs, a band two standard deviations on either
    side of it; dotted edges are the same as theory predicts it for the ensemble. The time axis is
    logarithmic where the report times are more evenly spaced so.

    Args:
        result: a `Solution`, a `Simulation` that observed the parameters, a `Comparison`, or
            `Fluctuations`, whose band is left out near kinks, where it does not hold.
        agent: the agent.
        state: the state, by number or name.
        scale: N, for fluctuations only.
        sample_runs: how many single runs to draw as thin lines, of a simulation with `keep_runs`.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such agent or state, the agent's parameters hold no table
            `[S, A_i]` of states and actions, the simulation did not observe the parameters or keep
            that many runs, or `scale` is missing or not needed.
    """
    check_result(result, scale)
    check_count("sample_runs", sample_runs, least=0)
    ax = axes_or_new(ax)
    legend(ax, _parameters(ax, result, agent, state, scale, sample_runs))
    return ax


def policies(
    result: TimedResult,
    agent: int,
    state: int | str,
    *,
    scale: Real[ArrayLike, ""] | None = None,
    sample_runs: int = 0,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws one agent's policy in one state over time, as `parameters` does, bands cut at 0 and 1.

    The ensemble's mean policy is the mean over runs, not the policy of the mean parameters. A
    simulation must have observed the policies, or the parameters with `keep_runs`.

    Args:
        result: as for `parameters`.
        agent: the agent.
        state: the state, by number or name.
        scale: N, for fluctuations only.
        sample_runs: how many single runs to draw as thin lines.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: as `parameters`.
    """
    check_result(result, scale)
    check_count("sample_runs", sample_runs, least=0)
    ax = axes_or_new(ax)
    legend(ax, _policies(ax, result, agent, state, scale, sample_runs))
    return ax


def state_distribution(
    result: TimedResult,
    state: int | str | None = None,
    *,
    scale: Real[ArrayLike, ""] | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws how often states occur: the ODE's stationary distribution, simulated frequencies.

    Frequencies are means over the steps between two report times, and stand at their midpoints.

    Args:
        result: as for `parameters`.
        state: the state, by number or name; all of them by default.
        scale: N, for fluctuations only.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such state, or `scale` is missing or not needed.
    """
    check_result(result, scale)
    ax = axes_or_new(ax)
    handles = _states(ax, result, state, scale)
    if state is None:
        legend(ax, handles)
    return ax


def comparison(
    comparison: Comparison, states: Sequence[int | str] | None = None
) -> "matplotlib.figure.Figure":
    """Draws everything: a column per state; parameters and policies of all agents; the states.

    A game of one state has no picture of how often it occurs.

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

    check_type("comparison", comparison, Comparison, "a Comparison, as ergodax.compare returns it")
    if states is not None and (isinstance(states, str) or not isinstance(states, Sequence)):
        raise ValueError(f"states must be a list of states; found {describe(states)}.")
    if states is not None and not states:
        raise ValueError("states must hold at least one state; found none.")
    game = comparison.wrapped.game
    columns = (
        _most_frequent(comparison) if states is None else [find_state(game, s) for s in states]
    )
    rows: list[tuple[Callable, tuple, str]] = []
    for agent in range(game.num_agents):
        if find_table(comparison.wrapped, agent, comparison.solution.params) is not None:
            rows.append((_parameters, (comparison, agent), f"agent {agent}\n"))
        rows.append((_policies, (comparison, agent), f"agent {agent}\n"))
    if game.num_states > 1:
        rows.append((_states, (comparison,), ""))

    handles, alone = _figure_legend(comparison), len(columns) == 1
    beside = len(columns) == 2  # the legend's place: two columns leave no room for it above them
    width = 4.8 if alone else 1.2 + 2.0 * len(columns) + 3.2 * beside
    beside_each_other = max(1, int(width / (2.4 if alone else 3.0)))
    above = 0.0 if beside else 0.21 * -(-len(handles) // beside_each_other)
    size = width, 0.5 + above + 1.45 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for ax in grid.flat:
        ax.set_autoscalex_on(False)  # once for all, below
    for axes, (draw, arguments, owner) in zip(grid, rows, strict=True):
        for ax, state in zip(axes, columns, strict=True):
            draw(ax, *arguments, state)
            ax.set(title="", xlabel="")
            ax.label_outer()
        axes[0].set_ylabel(owner + axes[0].get_ylabel())
    grid[0, 0].autoscale(axis="x")
    for ax, state in zip(grid[0], columns, strict=True):
        if game.num_states > 1:  # the only state needs no name
            ax.set_title(f"state {plain(game.state_names[state])}")
    figure.align_ylabels(grid[:, 0])
    figure.supxlabel(_TIME, fontsize="medium")
    if beside:
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
    else:
        # A legend is filled column by column; it shall read row by row.
        by_rows = [h for k in range(beside_each_other) for h in handles[k::beside_each_other]]
        style = {"ncols": beside_each_other, "frameon": False, "columnspacing": 1.0}
        style |= {"fontsize": "small" if alone else "medium"}
        figure.legend(handles=by_rows, loc="outside upper center", **style)
    return figure


def _parameters(ax, result, agent, state, scale=None, sample_runs=0) -> list[Any]:
    """Draws parameters; returns what a legend shows."""
    wrapped = result.wrapped
    check_agent(wrapped.game, agent)
    everyone = trajectory(result, "parameters", scale)
    held = everyone.mean if everyone.line is None else everyone.line
    table = find_table(wrapped, agent, held)
    if table is None:
        raise ValueError(f"the parameters of agent {agent} hold no table of states and actions.")
    symbol = wrapped.learners[agent].symbol
    ax.set_ylabel(f"${symbol}(s, a)$" if symbol else plain(table.name) or "parameter")
    return _draw_actions(ax, wrapped, everyone.pick(table.of), agent, state, sample_runs)


def _policies(ax, result, agent, state, scale=None, sample_runs=0) -> list[Any]:
    wrapped = result.wrapped
    check_agent(wrapped.game, agent)
    shown = trajectory(result, "policy", scale).pick(lambda tree: tree[agent]).within(0.0, 1.0)
    handles = _draw_actions(ax, wrapped, shown, agent, state, sample_runs)
    ax.set_ylabel(r"$\pi(a \mid s)$")
    most = min(1.0, 1.1 * shown.highest)
    ax.set_ylim(-0.04 * most, 1.04 * most)
    ax.locator_params(axis="y", nbins=3)
    return handles


def _states(ax, result, state=None, scale=None) -> list[Any]:
    game = result.wrapped.game
    states = range(game.num_states) if state is None else [find_state(game, state)]
    trajectories, handles = state_trajectories(result, scale), {}
    for k in states:
        own, name = look(k) if state is None else NEUTRAL, plain(game.state_names[k])
        for part in trajectories:
            shown = part.pick(lambda tree, k=k: tree[:, k]).within(0.0, 1.0)
            handle = _draw(ax, shown, own, name, "simulated", 0, alone=len(trajectories) == 1)
            handles[name] = _both(handles.get(name), handle)
    most = min(1.0, max(part.highest for part in trajectories))
    ax.set(xlabel=_TIME, ylabel="share of steps", ylim=(0.0, 1.08 * most))
    name = "" if state is None else plain(game.state_names[find_state(game, state)])
    title(ax, "states" if state is None else f"state {name}")
    return list(handles.values())


def _draw_actions(
    ax, wrapped: WrappedGame, shown: Trajectory, agent, state, sample_runs
) -> list[Any]:
    """One row of a table over time."""
    game = wrapped.game
    s = find_state(game, state)
    handles = []
    for action, name in enumerate(game.action_names[agent]):
        row = shown.pick(lambda table, action=action: table[..., s, action])
        kind, alone = "ensemble mean", shown.line is None
        handles.append(_draw(ax, row, look(action), plain(name), kind, sample_runs, alone))
    if shown.edge is not None:
        low, high = shown.reach(shown.edge)
        for action in range(len(handles)):
            edges = low[..., s, action], high[..., s, action]
            ax.fill_between(shown.times, *edges, **look(action).edge)
    ax.set_xlabel(_TIME)
    title(ax, row_name(game, agent, s))
    return handles


def _draw(
    ax, shown: Trajectory, own: Look, name: str, mean: str, sample_runs: int, alone: bool
) -> Any:
    """One number over time; returns what a legend shows."""
    from matplotlib.lines import Line2D

    times, style = shown.times, {}
    if ax.get_xscale() == "linear" and is_geometric(times[times > 0]):
        start = {} if times[0] > 0 else {"linthresh": times[times > 0][0]}
        ax.set_xscale("symlog" if start else "log", **start)
    if sample_runs:
        runs = np.zeros((0, len(times))) if shown.runs is None else shown.runs
        count = len(runs)
        if not 0 < sample_runs <= count:
            raise ValueError(
                f"sample_runs must be 0 to {count}, the runs kept; found {sample_runs}."
            )
        ax.plot(times, runs[:sample_runs].T, **own.run)
    if shown.band is not None:
        ax.fill_between(times, *shown.reach(shown.band), **own.band)
    if shown.line is not None:
        ax.plot(times, shown.line, label=f"{name}, ODE", **own.line)
        style |= own.line
    if shown.mean is not None:
        points = own.joined if alone else own.point
        ax.plot(times, shown.mean, label=f"{name}, {mean}", **points, **own.some(len(times)))
        style = points | style
    return Line2D([], [], label=name, **style)


def _both(handle: Any, other: Any) -> Any:
    """What a legend shows for a line and markers."""
    if handle is None:
        return other
    handle.set(marker=other.get_marker(), markersize=other.get_markersize())
    handle.set(markerfacecolor=other.get_markerfacecolor(), markeredgewidth=1.0)
    return handle


def _figure_legend(comparison: Comparison) -> list[Any]:
    """What ODE, mean and band look like, and every action."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    simulation, names = comparison.simulation, comparison.wrapped.game.action_names
    mean = f"mean of {simulation.runs} runs at scale {simulation.scale:g}"
    handles: list[Any] = [
        Line2D([], [], label="averaged ODE", **NEUTRAL.line),
        Line2D([], [], label=mean, **NEUTRAL.point),
        Patch(label="mean ± 2 standard deviations", **NEUTRAL.band),
    ]
    if comparison.prediction is not None:
        theory = "$x + b/N \\pm 2 (C/N)^{1/2}$, theory"
        handles.append(Patch(label=theory, **NEUTRAL.edge))
    shared = len(set(names)) == 1
    for agent, own in enumerate(names[:1] if shared else names):
        owner = "" if shared else f"agent {agent}, "
        for action, name in enumerate(map(plain, own)):
            both = look(action).point | look(action).line
            handles.append(Line2D([], [], label=f"{owner}action {name}", **both))
    return handles


def _most_frequent(comparison: Comparison) -> list[int]:
    last = np.asarray(comparison.solution.state_distribution)[-1]
    return sorted(np.argsort(-last, kind="stable")[:_MOST_STATES].tolist())
