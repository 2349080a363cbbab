"""Checks that a learner keeps its contract, with a message for each way to break it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .game import MarkovGame
from .learner import AbstractLearner, At, Transition
from .wrapped import WrappedGame

_PROBED_EVENTS = 3


def check_learner(learner: AbstractLearner, game: MarkovGame) -> None:
    """Checks a learner in every agent's seat of a game, at its initial parameters.

    Looked at: parameters are finite floating-point arrays; policies are probability vectors in
    every state; increments have the structure and shapes of the parameters, stay inside their
    tables and are finite at every event of the game; and all three methods are pure, so that
    calling them twice, or compiled, gives the same numbers.

    Args:
        learner: the learner to check.
        game: a game to check it in; a small one will do.

    Raises:
        ValueError: naming the agent, the method and what is wrong.
    """
    wrapped = WrappedGame(game, (learner,) * game.num_agents)
    for agent in range(game.num_agents):
        name = f"agent {agent}: {type(learner).__name__}"
        params = _check_init(f"{name}.init", learner, game, agent)
        _check_policy(f"{name}.policy", learner, game, agent, params)
        _check_update(f"{name}.update", wrapped, agent, params)


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
        if not np.all(np.isfinite(policy)) or np.min(policy) < 0:
            raise ValueError(f"{where} must not be negative or NaN; found {policy}.")
        if abs(float(jnp.sum(policy)) - 1) > 1e-5:
            raise ValueError(f"{where} must sum to 1; found {policy}, sum {jnp.sum(policy)}.")
        _check_same(where, policy, learner.policy(params, jnp.asarray(state)))
        _check_same(where, policy, eqx.filter_jit(learner.policy)(params, jnp.asarray(state)))


def _check_update(name, wrapped, agent, params):
    learner, game = wrapped.learners[agent], wrapped.game
    transitions = wrapped.transitions(agent)
    count = transitions.state.shape[0]

    def update(event: int):
        one = jax.tree.map(lambda leaf: leaf[event], transitions)
        return learner.update(params, one, game, agent)

    _check_structure(name, params, update(0))
    increments = eqx.filter_jit(wrapped.increments)(agent, params)
    structure = jax.tree.structure(params)
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
    for event in np.linspace(0, count - 1, _PROBED_EVENTS, dtype=int).tolist():
        compiled = jax.tree.map(lambda leaf, e=event: leaf[e], increments)
        _check_same(name, update(event), update(event))
        _check_same(name, update(event), compiled)


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
