"""Checks that a learner keeps its contract, with a message for each way to break it."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..base.checks import check_type, is_concrete
from ..base.compiling import lightly_compiled
from .game import MarkovGame
from .learner import AbstractLearner, At, Transition
from .validity import check_probabilities
from .wrapped import WrappedGame

_PROBED_EVENTS = 3
# Parameters that are looked at: along so many random histories, after 1, 2, 4, .. updates.
_HISTORIES, _UPDATES = 4, 2 ** np.arange(9)
_MOST_EVENTS = 64  # by which updates are searched for kinks
_SEEN: set[tuple] = set()  # classes without kinks, and in what games
_OWN = __name__.split(".")[0] + "."
_LINES, _PARTS = 16, 8  # lines between them that are searched for jumps, and their division


def check_learner(learner: AbstractLearner, game: MarkovGame) -> None:
    """Checks a learner in every agent's seat of a game, at its first parameters and at later ones.

    Looked at: parameters are finite floating-point arrays; policies are probability vectors in
    every state; increments have the structure and shapes of the parameters, stay inside their
    tables, are finite at every event of the game, and are not the new parameters; policies do not
    jump, and neither they nor updates have kinks, unless `continuous` and `maximised` say so; and
    all three methods are pure, so that calling them twice, or compiled, gives the same numbers.

    Args:
        learner: the learner to check.
        game: a game to check it in; a small one will do.

    Raises:
        ValueError: naming the agent, the method and what is wrong.
    """
    check_type("learner", learner, AbstractLearner, "a learner")
    check_type("game", game, MarkovGame, "a MarkovGame")
    wrapped, kind = WrappedGame(game, (learner,) * game.num_agents), type(learner).__name__
    for agent, learner in enumerate(wrapped.learners):  # with its clock, if it has schedules
        name = f"agent {agent}: {kind}"
        params = _check_init(f"{name}.init", learner, game, agent)
        _check_policy(f"{name}.policy", learner, game, agent, params)
        _check_update(f"{name}.update", wrapped, agent, params)
        reached = _reach(wrapped, agent, params)
        _check_reached(name, wrapped, agent, reached)
        _check_adds(f"{name}.update", wrapped, agent, reached)
        if learner.continuous:
            _check_continuous(name, wrapped, agent, reached)


def _check_init(name, learner, game, agent):
    key = jax.random.key(0)
    params = learner.init(game, agent, key=key)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} must return at least one array of parameters; found {params!r}.")
    for path, leaf in leaves:
        label = f"{name}: parameter{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{label} must be a floating-point JAX array; found {leaf!r}.")
        if not np.all(np.isfinite(leaf)):
            raise ValueError(f"{label} must be finite; found {leaf}.")
    _check_same(name, params, learner.init(game, agent, key=key))
    return params


def _check_policy(name, learner, game, agent, params):
    count = game.num_actions[agent]
    for state in range(game.num_states):
        policy = learner.policy(params, jnp.asarray(state))
        if jnp.shape(policy) != (count,):
            raise ValueError(
                f"{name} must return {count} probabilities; found shape {jnp.shape(policy)}."
            )
        where = f"{name} in state {state} ({game.state_names[state]})"
        check_probabilities(where, np.asarray(policy))
        _check_same(where, policy, learner.policy(params, jnp.asarray(state)))
        _check_same(where, policy, _policy(learner, params, jnp.asarray(state)))


def _check_update(name, wrapped, agent, params):
    learner, game = wrapped.learners[agent], wrapped.game
    transitions = wrapped.transitions(agent)
    count = transitions.state.shape[0]

    def update(event: int):
        one = jax.tree.map(lambda leaf: leaf[event], transitions)
        return learner.update(params, one, game, agent)

    _check_structure(name, params, update(0))
    increments = _increments(wrapped, agent, params)
    _check_increments(name, transitions, params, increments)
    for event in np.linspace(0, count - 1, _PROBED_EVENTS, dtype=int).tolist():
        compiled = jax.tree.map(lambda leaf, e=event: leaf[e], increments)
        _check_same(name, update(event), update(event))
        _check_same(name, update(event), compiled)


def _check_increments(name, transitions, params, increments):
    """Checks the increments at all events."""
    count, structure = transitions.state.shape[0], jax.tree.structure(params)
    for (path, table), increment in zip(
        jax.tree_util.tree_leaves_with_path(params),
        structure.flatten_up_to(increments),
        strict=True,
    ):
        label = f"{name}: increment{jax.tree_util.keystr(path)}"
        value = increment.value if isinstance(increment, At) else increment
        bad = ~np.isfinite(np.asarray(value).reshape(count, -1)).all(axis=1)
        _raise_at(label, bad, transitions, "must be finite", value)
        for axis, index in enumerate(increment.index if isinstance(increment, At) else ()):
            bad = (np.asarray(index) < 0) | (np.asarray(index) >= table.shape[axis])
            _raise_at(label, bad, transitions, f"index must fit the table {table.shape}", index)


def _reach(wrapped, agent, params):
    """Parameters after some updates by events drawn at random, each leaf `[R, ...]`; all finite."""
    game, transitions = wrapped.game, wrapped.transitions(agent)
    repeats = transitions.state.size // game.probabilities.size
    possible = np.flatnonzero(np.repeat(np.ravel(game.probabilities) > 0, repeats))
    events = np.random.default_rng(0).choice(possible, (_HISTORIES, _UPDATES[-1]))
    histories = _histories(wrapped, agent, params, events)
    reached = jax.tree.map(
        lambda start, leaf: jnp.concatenate(
            [start[None], leaf[:, _UPDATES - 1].reshape(-1, *start.shape)]
        ),
        params,
        histories,
    )
    finite = [np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in jax.tree.leaves(reached)]
    return jax.tree.map(lambda leaf: leaf[np.all(finite, axis=0)], reached)


# Compiled once for all learners of a class.
@lightly_compiled
def _histories(wrapped, agent, params, events):
    """Parameters after each of the events, each leaf `[R, T, ...]`."""
    learner, transitions = wrapped.learners[agent], wrapped.transitions(agent)

    def add(table, increment):
        if isinstance(increment, At):
            return table.at[increment.index].add(increment.value)
        return table + increment

    def step(params, event):
        one = jax.tree.map(lambda leaf: leaf[event], transitions)
        params = jax.tree.map(add, params, learner.update(params, one, wrapped.game, agent))
        return params, params

    return jax.vmap(lambda events: jax.lax.scan(step, params, events)[1])(events)


@lightly_compiled
def _policy(learner, params, state):
    return learner.policy(params, state)


@lightly_compiled
def _increments(wrapped, agent, params):
    return wrapped.increments(agent, params)


@lightly_compiled
def _of_each(function, points):
    return jax.vmap(function)(points)


@lightly_compiled
def _moved(wrapped, agent, params, move):
    """Increments, and how they change with the parameters along a direction."""
    return eqx.filter_jvp(lambda p: wrapped.increments(agent, p), (params,), (move,))


def _policies(wrapped, agent, params):
    """All policies of a learner."""
    states = jnp.arange(wrapped.game.num_states)
    return jax.vmap(wrapped.learners[agent].policy, (None, 0))(params, states)


def _check_reached(name, wrapped, agent, reached):
    game = wrapped.game
    found = _of_each(Partial(_policies, wrapped, agent), reached)
    increments = _of_each(Partial(_increments, wrapped, agent), reached)
    transitions = wrapped.transitions(agent)
    for k, policies in enumerate(found):
        for state, policy in enumerate(policies):
            check_probabilities(
                f"{name}.policy, after some updates, in state {state} ({game.state_names[state]})",
                np.asarray(policy),
            )
        here, added = (jax.tree.map(lambda x, k=k: x[k], tree) for tree in (reached, increments))
        _check_increments(f"{name}.update, after some updates", transitions, here, added)


def _check_adds(name, wrapped, agent, reached):
    """Raises ValueError if increments follow the parameters that their events do not touch."""
    params = jax.tree.map(lambda leaf: leaf[-1], reached)
    rng = np.random.default_rng(1)
    move = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), params)
    increments, moved = _moved(wrapped, agent, params, move)
    structure = jax.tree.structure(params)
    parts = (structure.flatten_up_to(tree) for tree in (move, increments, moved))
    for (path, _), own, increment, change in zip(
        jax.tree_util.tree_leaves_with_path(params), *parts, strict=True
    ):
        if isinstance(increment, At):
            own, change = own[increment.index], change.value
        if change is None:  # the same increment whatever the parameters are
            continue
        follows = np.isclose(own, change, rtol=1e3 * jnp.finfo(own.dtype).eps, atol=0)
        if follows.reshape(len(change), -1).any(axis=1).all():
            raise ValueError(
                f"{name}: increment{jax.tree_util.keystr(path)} follows entries of the parameters "
                "that the event does not touch. It must be what is added, not the new parameters."
            )


def _check_continuous(name, wrapped, agent, reached):
    learner = wrapped.learners[agent]
    policies = Partial(_policies, wrapped, agent)
    if _jumps(policies, reached):
        raise ValueError(
            f"{name}.policy jumps between parameters that the learner reaches, as the best action "
            "does. Say so by a property `continuous` that returns False."
        )
    if learner.smooth and _jumps(policies, reached, slope=True):
        raise ValueError(f"{name}.policy has a kink, but `smooth` is True.")
    _check_declared(name, wrapped, agent, reached)


def _check_declared(name, wrapped, agent, reached):
    """Raises ValueError if the policy, or updates by some of the events, have undeclared kinks."""
    transitions = wrapped.transitions(agent)
    count = transitions.state.shape[0]
    some = np.random.default_rng(3).permutation(count)[:_MOST_EVENTS]
    events = jax.tree.map(lambda leaf: leaf[some], transitions)
    updates = Partial(_updates, wrapped, agent, events)
    declared = Partial(_are_tied, wrapped.learners[agent])
    for what, function in (("policy", Partial(_policies, wrapped, agent)), ("update", updates)):
        if _jumps(function, reached, slope=True, declared=declared):
            raise ValueError(
                f"{name}.{what} has a kink, as a maximum makes, that `maximised` does not declare. "
                "It must return the values whose row maxima are taken: for jnp.maximum(x, 0) the "
                "row (x, 0)."
            )


def _updates(wrapped, agent, events, params):
    learner = wrapped.learners[agent]
    return jax.vmap(lambda event: learner.update(params, event, wrapped.game, agent))(events)


def _are_tied(learner, params):
    """Whether two of the values of which a maximum is taken are the largest, or nearly so."""
    values = learner.maximised(params)
    if values is None or values.shape[-1] < 2:
        return jnp.asarray(False)
    best = jnp.sort(values, axis=-1)[..., -2:]
    near = np.sqrt(jnp.finfo(values.dtype).eps) * jnp.abs(values).max()
    return jnp.any(best[..., 1] - best[..., 0] <= near)


def check_kinks(wrapped: WrappedGame) -> None:
    """Checks that no learner has a kink that it does not declare, once for each class.

    What is traced by JAX cannot be looked at and passes, and so does what is all of this package.

    Raises:
        ValueError: naming agent and learner.
    """
    if not all(map(is_concrete, jax.tree.leaves(wrapped))):
        return
    game = wrapped.game
    for agent, learner in enumerate(wrapped.learners):
        # Where a hyper-parameter is zero, a kink may be without effect.
        used = tuple(bool(np.any(np.asarray(leaf))) for leaf in jax.tree.leaves(learner))
        kinds = tuple(_classes(learner))
        known = kinds, used, game.num_states, game.num_actions, agent
        if known in _SEEN or all(kind.__module__.startswith(_OWN) for kind in kinds):
            continue
        params = learner.init(game, agent, key=jax.random.key(0))
        name = f"agent {agent}: {type(learner).__name__}"
        _check_declared(name, wrapped, agent, _reach(wrapped, agent, params))
        _SEEN.add(known)


def _classes(value):
    """The classes of a learner and of what it is made of."""
    if isinstance(value, eqx.Module):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from _classes(getattr(value, field.name))


def _jumps(function, points, slope: bool = False, declared=None) -> bool:
    """Whether a function, or its slope, jumps on lines between points.

    Every line is divided, and every part is halved again and again where the function changes more.
    What is continuous changes less and less.

    Args:
        function: of parameters, returns floating-point arrays, or `At`s with such values.
        points: parameters, each leaf `[R, ...]`.
        slope: look at the derivative along the line.
        declared: a function of parameters that says whether it may jump there.
    """
    ends = np.random.default_rng(2).integers(len(jax.tree.leaves(points)[0]), size=(2, _LINES))
    first, last = (
        jax.tree.map(lambda leaf, k=k: jnp.repeat(leaf[k], _PARTS, axis=0), points) for k in ends
    )
    at = functools.partial(_along, function, slope)
    low = jnp.tile(jnp.arange(_PARTS) / _PARTS, _LINES)
    high = low + 1 / _PARTS
    left, right = at(first, last, low), at(first, last, high)
    largest = jnp.max(jnp.where(jnp.isfinite(left), jnp.abs(left), 0), initial=0.0)
    eps, sizes = float(jnp.finfo(low.dtype).eps), []
    for _ in range(int(-np.log2(eps)) - 12):
        middle = (low + high) / 2
        here = at(first, last, middle)
        before, after = (jnp.abs(x - here).max(axis=1, keepdims=True) for x in (left, right))
        down = before >= after
        left, right = jnp.where(down, left, here), jnp.where(down, here, right)
        down = down[:, 0]
        low, high = jnp.where(down, low, middle), jnp.where(down, middle, high)
        sizes.append(jnp.maximum(before, after)[:, 0])
    found = (sizes[-1] > np.sqrt(eps) * largest) & (sizes[-1] > 0.5 * sizes[-5])
    if declared is not None:
        found &= ~_of_each(Partial(_at, declared), (first, last, low))
    return bool(jnp.any(found))


@lightly_compiled
def _along(function, slope: bool, first, last, s):
    """What a function is between points, or its slope, flat, `[R, n]`."""

    def value(first, last, s):
        found = _at(function, (first, last, s))
        floats = jax.tree.leaves(eqx.filter(found, eqx.is_inexact_array))
        return jnp.concatenate([leaf.ravel() for leaf in floats])

    def found(first, last, s):
        if not slope:
            return value(first, last, s)
        return jax.jvp(lambda s: value(first, last, s), (s,), (jnp.ones_like(s),))[1]

    return jax.vmap(found)(first, last, s)


def _at(function, place):
    """What a function is at a place of the line between two points."""
    first, last, s = place
    return function(jax.tree.map(lambda a, b: a + s * (b - a), first, last))


def _check_structure(name, params, increment):
    structure = jax.tree.structure(params)
    try:
        parts = structure.flatten_up_to(increment)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must return an increment structured like the parameters, {structure}: {error}"
        ) from None
    for (path, table), part in zip(jax.tree_util.tree_leaves_with_path(params), parts, strict=True):
        label = f"{name}: increment{jax.tree_util.keystr(path)}"
        expected, found = table.shape, part
        if isinstance(part, At):
            if not isinstance(part.index, tuple) or len(part.index) > table.ndim:
                raise ValueError(
                    f"{label}: At.index must be a tuple of at most {table.ndim} scalars; "
                    f"found {part.index!r}."
                )
            for index in part.index:
                if jnp.ndim(index) != 0 or not jnp.issubdtype(jnp.result_type(index), jnp.integer):
                    raise ValueError(
                        f"{label}: At.index must hold scalar integers; found {index!r}."
                    )
            expected, found = table.shape[len(part.index) :], part.value
        if np.shape(found) != expected:
            raise ValueError(
                f"{label} must have shape {expected}; found {np.shape(found)}. (A learner that "
                "reads next_action must set needs_next_action = True.)"
            )


def _raise_at(label: str, bad, transitions: Transition, rule: str, values) -> None:
    if np.any(bad):
        event = int(np.argmax(bad))
        raise ValueError(
            f"{label} {rule}; found {np.asarray(values)[event]} in state "
            f"{transitions.state[event]} after joint action "
            f"{tuple(transitions.joint_action[event].tolist())}."
        )


def _check_same(name: str, first, second) -> None:
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if not np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError(
                f"{name} is not pure: the same call gave {one} and then {other}. It must not use "
                "global state, NumPy's random numbers or Python side effects."
            )
