"""Responses to a deviation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Real

from ..base.checks import check_array, check_count, check_type
from ..outcomes.deviations import DeviationResponse
from .style import GREY, axes_or_new, legend, look

if TYPE_CHECKING:
    import matplotlib.axes


def deviation_response(
    response: DeviationResponse,
    values: Real[ArrayLike, "..."] | Sequence | None = None,
    *,
    deviating: int | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws what all agents play before, during and after a deviation: means over runs.

    Args:
        response: what `outcomes.deviation_response` returned, of one run or several.
        values: what is drawn for every action, e.g. prices: `[A]`, or `[n, A]` if agents differ;
            numbers of actions by default.
        deviating: the agent that deviates, who is named so.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if values do not have one number per action.
    """
    check_type("response", response, DeviationResponse, "what deviation_response returns")
    actions = np.asarray(response.actions)
    actions = actions.reshape(-1, *actions.shape[-2:])  # run, time, agent
    time = np.asarray(response.time).reshape(-1, actions.shape[1])[0]
    count = actions.shape[-1]
    if deviating is not None and check_count("deviating", deviating, 0) >= count:
        raise ValueError(f"deviating must be an agent, 0 to {count - 1}; found {deviating}.")
    drawn = actions.astype(float)
    if values is not None:
        table = np.asarray(check_array("values", values))
        table = np.broadcast_to(table, (count, table.shape[-1])) if table.ndim == 1 else table
        if table.ndim != 2 or len(table) != count or table.shape[1] <= actions.max():
            raise ValueError(
                f"values must have one number per action, [A] or [{count}, A]; found shape "
                f"{np.shape(values)}."
            )
        drawn = table[np.arange(count), actions]
    ax = axes_or_new(ax)
    ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
    for agent in range(count):
        name = f"agent {agent}" + (" (deviates)" if agent == deviating else "")
        style = look(agent)
        ax.plot(time, drawn[..., agent].mean(axis=0), **style.joined, label=name)
    ax.set_xlabel("steps since the deviation")
    ax.set_ylabel("action" if values is None else "mean")
    legend(ax)
    return ax
