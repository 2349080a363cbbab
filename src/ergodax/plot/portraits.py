"""The averaged flow on a plane or a simplex, and which start leads where."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from ..basins import Basins
from ..drift import average
from ..equilibrium import RestPoint
from ..flow import Solution
from ..simulate import Simulation
from ..stationary import check_ergodic, preserve_rows
from ..wrapped import WrappedGame
from .courses import policies_along, runs_of
from .embedding import Embed, with_policy
from .look import GREY, axes_or_new, legend, look, title
from .places import (
    Coordinate,
    check_agent,
    find_state,
    flat,
    one,
    parameter_plane,
    policy_plane,
)

if TYPE_CHECKING:
    import matplotlib.axes

Flow = WrappedGame | Solution
Limits = tuple[tuple[float, float], tuple[float, float]]

_LINES_PER_SIDE = 25
_ARROWS_PER_SIDE = 14
_BATCH = 64
_MARGIN = 0.08
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


def phase_portrait(
    flow: Flow,
    coordinates: tuple[Coordinate, Coordinate],
    *,
    policy: bool = False,
    at: Any = None,
    limits: Limits | None = None,
    embed: Embed | None = None,
    paths: Sequence[Solution] = (),
    rest_points: Sequence[RestPoint] = (),
    runs: Simulation | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws the averaged flow on a plane: streamlines, ODE paths, rest points, simulated runs.

    Streamlines are those of two components of the averaged drift F on a slice: all other parameters
    are held at the point `at`. Everything else is projected onto the plane. With more than two
    parameters the projection is only a slice: the flow leaves it, so paths may cross streamlines
    and each other, and rest points need not be where the slice's streamlines end.

    With `policy` the coordinates are action probabilities, and the streamlines those of the
    policies' velocity, their derivative along F. The parameters of each point of the plane are then
    those of `at` with the row of values changed so that it has the probability, without changing
    the row's mean or the ratios of the other actions' probabilities.

    Args:
        flow: a solution, whose path is drawn too; or a game and its learners.
        coordinates: two parameters, each by agent, state and action (numbers or names), or by its
            number in `jax.flatten_util.ravel_pytree(params)`; with `policy` only the former.
        policy: draw in policy space.
        at: parameters of all agents through which the slice goes; by default the solution's last,
            or the initial ones of the game's learners.
        limits: of the two coordinates; by default those of all that is drawn with a margin, or 0 to
            1 for probabilities.
        embed: where a learner is not a softmax of a table, a function that returns an agent's
            parameters for given action probabilities in one state, `embed(params of the agent,
            state, probabilities)`.
        paths: further solutions.
        rest_points: rest points, as `ergodax.rest_points` finds them.
        runs: a simulation that kept its runs, all of which are drawn.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if a coordinate does not exist, the learners cannot be embedded, nothing gives
            the limits, runs were not kept, or as `ergodax.drift`.
    """
    wrapped, at, paths = _given(flow, at, paths)
    if policy:
        plane, places = policy_plane(wrapped, coordinates)
    else:
        plane, numbers = parameter_plane(wrapped, at, coordinates)
    ax = axes_or_new(ax, 3.0)
    drawn = _draw_over(ax, plane.project, paths, rest_points, runs, policy)
    if limits is None:
        limits = ((0.0, 1.0), (0.0, 1.0)) if policy else _limits(drawn)
    x, y = (low + (high - low) * _centres(_LINES_PER_SIDE) for low, high in limits)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    batch = jax.tree.map(lambda leaf: np.repeat(leaf, len(points), axis=0), one(at))
    if policy:
        inside = _embed_plane(wrapped, batch, places, points, embed)
        velocity = np.full(points.shape, np.nan)
        if inside is not None:
            kept, batch = inside
            speeds = _policy_velocity(wrapped, batch)
            velocity[kept] = np.stack([speeds[i][:, s, a] for i, s, a in places], axis=1)
    else:
        vectors = flat(batch)
        vectors[:, numbers] = points
        velocity = _velocity(wrapped, at, vectors)[:, numbers]
    shape = (len(y), len(x))
    u, v = (np.ma.masked_invalid(part.reshape(shape)) for part in velocity.T)
    ax.streamplot(x, y, u, v, color=GREY, linewidth=0.6, arrowsize=0.7, density=0.9, zorder=1)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=plane.labels[0], ylabel=plane.labels[1])
    legend(ax)
    return ax


def simplex(
    flow: Flow,
    agent: int,
    state: int | str,
    *,
    at: Any = None,
    embed: Embed | None = None,
    paths: Sequence[Solution] = (),
    rest_points: Sequence[RestPoint] = (),
    runs: Simulation | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws how one agent's policy over three actions moves in one state, on the triangle.

    Arrows show the direction of the policy's velocity along the averaged drift, darker ones a
    faster one; the others' policies, and this agent's in other states, are held at the point `at`.
    As in `phase_portrait`, this is a slice, and all else is projected onto it.

    Args:
        flow: a solution, whose path is drawn too; or a game and its learners.
        agent: the agent, of three actions.
        state: the state, by number or name.
        at: parameters of all agents through which the slice goes; as for `phase_portrait`.
        embed: as for `phase_portrait`.
        paths: further solutions.
        rest_points: rest points, as `ergodax.rest_points` finds them.
        runs: a simulation that kept its runs, all of which are drawn.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such agent or state, the agent has not three actions, or as
            `phase_portrait`.
    """
    wrapped, at, paths = _given(flow, at, paths)
    game = wrapped.game
    names = game.action_names[check_agent(game, agent)]
    if len(names) != 3:
        raise ValueError(f"agent {agent} must have 3 actions; found {len(names)}.")
    s = find_state(game, state)

    def project(batch):
        return policies_along(wrapped, batch)[agent][:, s] @ _CORNERS

    ax = axes_or_new(ax, 3.0)
    ax.plot(*_CORNERS[[0, 1, 2, 0]].T, color="black", linewidth=0.8, zorder=1)
    for (x, y), name, (dx, dy) in zip(_CORNERS, names, ((0, -5), (0, -5), (0, 5)), strict=True):
        side = "bottom" if dy > 0 else "top"
        ax.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha="center", va=side)
    drawn = _draw_over(ax, project, paths, rest_points, runs, True)
    del drawn
    rule = getattr(wrapped.learners[agent], "exploration", None)
    least = float(getattr(rule, "epsilon", 0.0)) / 3
    policies = least + (1 - 3 * least) * _lattice(_ARROWS_PER_SIDE)
    batch = jax.tree.map(lambda leaf: np.repeat(leaf, len(policies), axis=0), one(at))
    batch = with_policy(wrapped, batch, agent, s, policies, embed)
    velocity = _policy_velocity(wrapped, batch)[agent][:, s] @ _CORNERS
    speed = np.linalg.norm(velocity, axis=1)
    moving = speed > 0
    heading = velocity[moving] / speed[moving, None] / (1.4 * _ARROWS_PER_SIDE)
    foot = (policies @ _CORNERS)[moving] - heading / 2
    ax.quiver(
        *foot.T,
        *heading.T,
        np.sqrt(speed[moving] / speed.max()),
        cmap="Greys",
        clim=(-0.6, 1.2),
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.005,
        zorder=1.5,
    )
    ax.set(xlim=(-0.06, 1.06), ylim=(-0.1, 0.97), aspect="equal")
    ax.set_axis_off()
    title(ax, f"agent {agent}, state {game.state_names[s]}")
    legend(ax)
    return ax


def basins(
    result: Basins,
    params0: Any,
    coordinates: tuple[Coordinate, Coordinate],
    *,
    policy: bool = False,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draws starts by the attractor they lead to, and the attractors, on a plane.

    Small markers are starts, in the colour and shape of their attractor; crosses in grey are starts
    whose attractor was not identified. Large circles are rest points, closed lines limit cycles.
    The legend has the attractors' shares of the starts, with their confidence intervals. With more
    than two parameters all of this is a projection.

    Args:
        result: what `ergodax.basins` returned.
        params0: the starts it was given, each leaf `[B, ...]`.
        coordinates: two parameters, as for `phase_portrait`.
        policy: draw action probabilities instead of parameters.
        ax: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if a coordinate does not exist, or there are not as many starts as in `result`.
    """
    wrapped, count = result.wrapped, len(jax.tree.leaves(params0)[0])
    if count != len(result.labels):
        raise ValueError(
            f"params0 must be the {len(result.labels)} starts of the basins; found {count}."
        )
    first = jax.tree.map(lambda leaf: leaf[0], params0)
    if policy:
        plane, _ = policy_plane(wrapped, coordinates)
    else:
        plane, _ = parameter_plane(wrapped, first, coordinates)
    ax = axes_or_new(ax, 3.0)
    starts = plane.project(params0)
    lost = starts[result.labels < 0]
    if len(lost):
        share = f"not identified: {result.unidentified:.0%}"
        ax.plot(*lost.T, "x", color=GREY, markersize=3, label=share)
    for k, attractor in enumerate(result.attractors):
        own, (low, high) = look(k), result.intervals[k]
        kind = (
            attractor.kind if attractor.rest is None else f"{attractor.rest.stability} rest point"
        )
        text = f"{kind}: {result.shares[k]:.0%} ({low:.0%} to {high:.0%})"
        ax.plot(*starts[result.labels == k].T, label=text, **own.point | {"markersize": 3.0})
        orbit = plane.project(attractor.orbit)
        if attractor.rest is None:
            ax.plot(*np.concatenate([orbit, orbit[:1]]).T, **own.line)
        else:
            _mark(ax, orbit[0], attractor.rest, own.colour, None)
    ax.set(xlabel=plane.labels[0], ylabel=plane.labels[1])
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize="small")
    return ax


def _given(flow: Flow, at: Any, paths: Sequence[Solution]):
    """The wrapped game, the point of the slice, and all paths."""
    if isinstance(flow, Solution):
        wrapped, paths = flow.wrapped, [flow, *paths]
        if at is None:
            at = jax.tree.map(lambda leaf: leaf[-1], flow.params)
    else:
        wrapped, paths = flow, list(paths)
        if at is None:
            at = wrapped.init()
    check_ergodic(wrapped, at)
    return wrapped, at, paths


def _draw_over(ax, project, paths, rest_points, runs, policy: bool) -> list[np.ndarray]:
    """Runs, paths and rest points; returns all points drawn."""
    drawn = []
    if runs is not None:
        drawn += _draw_runs(ax, project, runs, policy)
    for k, path in enumerate(paths):
        points = project(path.params)
        drawn.append(points)
        label = "ODE" if k == 0 else None
        ax.plot(*points.T, label=label, zorder=3, **look(0).line)
        ax.plot(*points[0], ".", color=look(0).colour, markersize=5, zorder=3)
    marked: set[str] = set()
    for rest in rest_points:
        point = project(one(rest.params))
        drawn.append(point)
        label = None if rest.stability in marked else f"{rest.stability} rest point"
        _mark(ax, point[0], rest, "black", label)
        marked.add(rest.stability)
    return drawn


def _draw_runs(ax, project: Callable, runs: Simulation, policy: bool) -> list[np.ndarray]:
    """Single runs as thin lines."""
    del policy
    values = jax.tree.map(np.asarray, runs_of(runs, "parameters"))
    shape = jax.tree.leaves(values)[0].shape[:2]
    batch = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values)
    points = project(batch).reshape(*shape, 2)
    for k, path in enumerate(points):
        label = f"{shape[0]} runs at scale {runs.scale:g}" if k == 0 else None
        ax.plot(*path.T, label=label, zorder=2, **look(1).run)
    return list(points)


def _mark(ax, point, rest: RestPoint, colour: str, label: str | None) -> None:
    """A rest point, by its stability."""
    style = {"stable": ("o", colour), "unstable": ("o", "white")}
    marker, face = style.get(rest.stability, ("X", colour))
    ax.plot(
        *point,
        marker=marker,
        color=colour,
        markerfacecolor=face,
        markersize=7,
        markeredgewidth=1.2,
        linestyle="none",
        label=label,
        zorder=4,
        clip_on=False,
    )


def _centres(count: int) -> Float[np.ndarray, " count"]:
    return (np.arange(count) + 0.5) / count


def _lattice(side: int) -> Float[np.ndarray, "M 3"]:
    """Points inside the simplex, `side - 1` along each side."""
    i, j = np.meshgrid(np.arange(1, side), np.arange(1, side), indexing="ij")
    inside = i + j < side
    shares = np.stack([i[inside], j[inside], side - i[inside] - j[inside]], axis=1)
    return shares / side


def _limits(drawn: Sequence[np.ndarray]) -> Limits:
    """The extent of all points with a margin."""
    points = np.concatenate([np.zeros((0, 2)), *drawn])
    points = points[np.isfinite(points).all(axis=1)]
    extent = np.ptp(points, axis=0) if len(points) else np.zeros(2)
    if not np.all(extent > 0):
        raise ValueError("nothing that is drawn has an extent in both coordinates: give limits.")
    low, high = points.min(axis=0) - _MARGIN * extent, points.max(axis=0) + _MARGIN * extent
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def _embed_plane(wrapped: WrappedGame, batch: Any, places, points, embed: Embed | None):
    """Which points of a policy plane are policies, and parameters that have them."""
    policies = {}
    given = policies_along(wrapped, jax.tree.map(lambda leaf: leaf[:1], batch))
    for i, s, a in places:
        policies.setdefault((i, s), []).append(a)
    kept = np.ones(len(points), dtype=bool)
    wanted = {}
    for (i, s), actions in policies.items():
        own = np.repeat(given[i][:, s], len(points), axis=0)
        columns = [k for k, place in enumerate(places) if place[:2] == (i, s)]
        rest = np.setdiff1d(np.arange(own.shape[1]), actions)
        left = 1 - points[:, columns].sum(axis=1)
        own[:, actions] = points[:, columns]
        if len(rest):
            own[:, rest] *= (left / own[:, rest].sum(axis=1))[:, None]
        rule = getattr(wrapped.learners[i], "exploration", None)
        least = float(getattr(rule, "epsilon", 0.0)) / own.shape[1]
        kept &= (own > least).all(axis=1) & np.isclose(own.sum(axis=1), 1)
        wanted[i, s] = own
    if not kept.any():
        return None
    batch = jax.tree.map(lambda leaf: leaf[kept], batch)
    for (i, s), own in wanted.items():
        batch = with_policy(wrapped, batch, i, s, own[kept], embed)
    return kept, batch


def _velocity(wrapped: WrappedGame, like: Any, vectors: Float[np.ndarray, "M d"]):
    """The averaged drift at many points, `[M, d]`."""
    unravel = ravel_pytree(jax.tree.map(jnp.asarray, like))[1]
    batch = jax.vmap(unravel)(jnp.asarray(vectors))
    return flat(_drifts(wrapped, batch))


@eqx.filter_jit
def _drifts(wrapped, batch):
    wrapped = preserve_rows(wrapped)
    return jax.lax.map(lambda x: average(wrapped, x).drift, batch, batch_size=_BATCH)


def _policy_velocity(wrapped: WrappedGame, batch: Any) -> tuple[np.ndarray, ...]:
    """Derivative of all agents' policies along the drift, `[M, S, A_i]` each."""
    return jax.device_get(_policy_velocities(wrapped, jax.tree.map(jnp.asarray, batch)))


@eqx.filter_jit
def _policy_velocities(wrapped, batch):
    wrapped = preserve_rows(wrapped)

    def velocity(params):
        drift = average(wrapped, params).drift
        return jax.jvp(wrapped.policies, (params,), (drift,))[1]

    return jax.lax.map(velocity, batch, batch_size=_BATCH)
