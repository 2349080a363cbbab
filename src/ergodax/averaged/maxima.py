"""The maxima that learners take, and where one changes its owner: there the drift has a kink.

A learner that takes `max_b Q(s, b)` has a drift F that is smooth but where two entries of a row,
the best two, change order. Across such a kink, where the difference l of the two is zero, F is
continuous and DF jumps by `c n^T`, with `n = grad l` and `c = (DF_new - DF_old) n / |n|^2`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from ..model.wrapped import WrappedGame
from ..ode.path import Path, evaluate, level_times, quintic
from .units import units

# Just after the start, in units of the time span: a tie there belongs to the side the flow enters.
_START = 1e-6
# Within so short a time, in units of a step, no maximum changes its owner twice.
_INSTANT = 1e-12


class Owners(NamedTuple):
    """Which maxima there are, for all agents in turn.

    Attributes:
        agent: who takes it, `[M]`.
        row: the row of `learner.maximised`, flattened: for Q-learning the state, `[M]`.
        entries: over how many values, at least two, `[M]`.
    """

    agent: Int[np.ndarray, " M"]
    row: Int[np.ndarray, " M"]
    entries: Int[np.ndarray, " M"]

    @property
    def present(self) -> Bool[np.ndarray, "M A"]:
        """Which entries of the table of all maxima are values, and not padding."""
        return np.arange(self.entries.max(initial=2)) < self.entries[:, None]


def owners(wrapped: WrappedGame) -> Owners:
    """Which maxima the learners take."""
    none = np.zeros(0, int)
    agents, rows, entries = [none], [none], [none]
    expected = jax.eval_shape(lambda: wrapped.init(jax.random.key(0)))
    for agent, learner in enumerate(wrapped.learners):
        like = jax.eval_shape(learner.maximised, expected[agent])
        if like is not None and like.shape[-1] >= 2:
            count = int(np.prod(like.shape[:-1]))
            agents.append(np.full(count, agent))
            rows.append(np.arange(count))
            entries.append(np.full(count, like.shape[-1]))
    return Owners(*map(np.concatenate, (agents, rows, entries)))


def name_row(wrapped: WrappedGame, agent: int, row: int) -> tuple[str, tuple[str, ...]]:
    """A row of an agent's maxima and its entries, in the game's names where it is a state."""
    game, owned = wrapped.game, owners(wrapped)
    entries = owned.entries[owned.agent == agent]
    if np.array_equal(entries, np.full(game.num_states, game.num_actions[agent])):
        return f"state {game.state_names[row]}", game.action_names[agent]
    return f"row {row}", tuple(map(str, range(entries[row])))


class Kink(NamedTuple):
    """The point of a kink next to x.

    Attributes:
        gap: l at x.
        normal: n, `[d]`.
        drift: F there, `[d]`.
        change: c, `[d]`.
    """

    gap: Float[Array, ""]
    normal: Float[Array, " d"]
    drift: Float[Array, " d"]
    change: Float[Array, " d"]

    @property
    def jump(self) -> Float[Array, ""]:
        """By how much DF jumps, in the spectral norm."""
        return jnp.linalg.norm(self.change) * jnp.linalg.norm(self.normal)


class Crossings(NamedTuple):
    """When maxima change their owners, in order of time; unused places have maximum -1.

    Attributes:
        time: when, `[L]`; the end of the path where unused.
        maximum: which, a row of the table, `[L]`.
        old: the owner before, `[L]`.
        new: the owner after, `[L]`.
    """

    time: Float[Array, " L"]
    maximum: Int[Array, " L"]
    old: Int[Array, " L"]
    new: Int[Array, " L"]


class Maxima(NamedTuple):
    """All maxima in one table, as functions of the flat vector of all parameters; pure.

    Attributes:
        wrapped: the game and its learners.
        unravel: makes parameters of a flat vector.
    """

    wrapped: WrappedGame
    unravel: Callable

    def table(self, x: Float[Array, " d"]) -> Float[Array, "M A"]:
        """The values under all maxima, filled up with zeros."""
        owned = owners(self.wrapped)
        width = owned.present.shape[1]
        rows = [jnp.zeros((0, width), x.dtype)]
        for agent in dict.fromkeys(owned.agent.tolist()):
            values: Any = self.wrapped.learners[agent].maximised(self.unravel(x)[agent])
            values = values.reshape(-1, values.shape[-1])
            rows.append(jnp.pad(values, ((0, 0), (0, width - values.shape[1]))))
        return jnp.concatenate(rows)

    def best_two(self, x: Float[Array, " d"]) -> tuple[Float[Array, " M"], Int[Array, "M 2"]]:
        """By how much every maximum exceeds the next value, and which two entries they are."""
        values = jnp.where(owners(self.wrapped).present, self.table(x), -jnp.inf)
        order = jnp.argsort(-values, axis=1, stable=True)[:, :2]
        two = jnp.take_along_axis(values, order, axis=1)
        return two[:, 0] - two[:, 1], order

    def difference(self, x: Float[Array, " d"], maximum, old, new) -> Float[Array, ""]:
        """l, how much the value of entry `new` exceeds that of entry `old`."""
        values = self.table(x)[maximum]
        return values[new] - values[old]

    def kink(self, drift: Callable, x: Float[Array, " d"], maximum, old, new) -> Kink:
        """The point of a kink next to x; `drift` is F as a function of x."""
        gap, normal = jax.value_and_grad(self.difference)(x, maximum, old, new)
        length = jnp.sum(normal**2)
        foot = x - gap * normal / length
        size = units(self.wrapped, self.unravel(x)) + jnp.abs(x).max()
        reach = jnp.finfo(x.dtype).eps ** 0.75 * size * normal
        sides = jnp.stack([foot - reach, foot + reach])
        # One after the other: code for two at once takes four times as long to compile.
        drifts, slopes = jax.lax.map(lambda x: jax.jvp(drift, (x,), (normal,)), sides)
        return Kink(gap, normal, drifts.mean(axis=0), (slopes[1] - slopes[0]) / length)

    def along(self, path: Path, step: Int[Array, ""]) -> list[Float[Array, "M A"]]:
        """Bezier points of all values within a step of a path."""

        def derivatives(x, velocity, acceleration):
            def change(x, velocity):
                return jax.jvp(self.table, (x,), (velocity,))

            (values, first), (_, second) = jax.jvp(change, (x, velocity), (velocity, acceleration))
            return values, first, second

        length, ends = path.ends(step)
        return quintic(length, *jax.vmap(derivatives)(*ends))


class _Search(NamedTuple):
    """How far the search for changes has come: the step, and the time within it, 0..1."""

    step: Any
    s: Any
    owner: Any
    found: Crossings
    count: Any


def crossings(maxima: Maxima, path: Path, most: int) -> tuple[Crossings, Bool[Array, ""]]:
    """When maxima change their owners along a path, and whether more often than `most`.

    Goes from change to change, and from step to step where there is none: two changes are found
    however short the time between them.
    """
    present = owners(maxima.wrapped).present
    end = path.times[path.count - 1]

    def overtaken(lead, s):
        """When from s on a lead is lost; infinite if it is not."""
        times = jnp.maximum(level_times(lead, 0.0)[1], s)
        nodes = jnp.concatenate([s[None], times, jnp.ones_like(s)[None]])
        lost = evaluate(lead, (nodes[1:] + nodes[:-1]) / 2) < 0
        lost &= jnp.diff(nodes) > _INSTANT
        return jnp.where(jnp.any(lost), nodes[jnp.argmax(lost)], jnp.inf)

    def look(state: _Search) -> _Search:
        values = jnp.stack(maxima.along(path, state.step))
        own = jnp.take_along_axis(values, state.owner[None, :, None], axis=2)
        lead = jnp.where(present, own - values, 1)
        times = jax.lax.cond(
            # A polynomial is nowhere below its least Bezier point.
            jnp.any(lead < 0),
            lambda: jax.vmap(jax.vmap(overtaken, (0, None)), (0, None))(
                jnp.moveaxis(lead, 0, -1), state.s
            ),
            lambda: jnp.full(lead.shape[1:], jnp.inf, lead.dtype),
        )
        maximum, new = jnp.unravel_index(jnp.argmin(times), times.shape)
        s, old = times[maximum, new], state.owner[maximum]
        changed = s < jnp.inf
        begin, length = path.times[state.step], path.ends(state.step)[0]
        change = Crossings(begin + s * length, maximum, old, new)
        place = jnp.where(changed, state.count, most)  # beyond the last nothing is stored
        return _Search(
            step=jnp.where(changed, state.step, state.step + 1),
            s=jnp.where(changed, s, 0),
            owner=jnp.where(changed, state.owner.at[maximum].set(new), state.owner),
            found=jax.tree.map(
                lambda all, one: all.at[place].set(one, mode="drop"), state.found, change
            ),
            count=state.count + changed.astype(state.count.dtype),
        )

    start = _START * end
    step, s = path.locate(start)
    none = jnp.full(most, -1, jnp.asarray(0).dtype)
    state = jax.lax.while_loop(
        lambda state: (state.step < path.count - 1) & (state.count <= most),
        look,
        _Search(
            step=step,
            s=s,
            owner=maxima.best_two(path.within(step, s))[1][:, 0],
            found=Crossings(jnp.full(most, end), none, jnp.zeros_like(none), none),
            count=jnp.asarray(0),
        ),
    )
    return state.found, state.count > most


def changes(wrapped: WrappedGame, params) -> Bool[Array, " K"]:
    """At which times of a trajectory some maximum has changed its owner since the time before.

    A change that begins with a tie does not count.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, each leaf `[K, ...]`.
    """

    def table(params):
        flat, unravel = ravel_pytree(params)
        return Maxima(wrapped, unravel).table(flat)

    values = jnp.where(owners(wrapped).present, jax.vmap(table)(params), -jnp.inf)
    best = values == values.max(axis=-1, keepdims=True)
    moved = ~(best[1:] & best[:-1]).any(axis=-1)
    return jnp.append(False, moved.any(axis=-1))
