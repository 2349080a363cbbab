"""What a valid game is: names, successors, probabilities and rewards, checked on the host.

Messages name the field, or agent, state and joint action.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..base.checks import check_array, describe, is_concrete

# The spacing of numbers, in units of the differences of rewards, that is worth a warning.
_RESOLVED = 1e-3


def name_actions(
    action_names: Sequence[Sequence[str]] | None, num_actions: tuple[int, ...]
) -> tuple[tuple[str, ...], ...]:
    """Names of all agents' actions, "0", "1", ... by default.

    Raises:
        ValueError: unless there is one distinct name per action of every agent.
    """
    if action_names is None:
        action_names = [[str(a) for a in range(count)] for count in num_actions]
    if isinstance(action_names, str) or not isinstance(action_names, Iterable):
        raise ValueError(
            "action_names must be a list with the names of each agent's actions; found "
            f"{describe(action_names)}."
        )
    action_names = list(action_names)
    if len(action_names) != len(num_actions):
        raise ValueError(
            f"action_names must hold one sequence per agent ({len(num_actions)}); "
            f"found {len(action_names)}."
        )
    return tuple(
        check_names(f"action_names of agent {agent}", names, count)
        for agent, (names, count) in enumerate(zip(action_names, num_actions, strict=True))
    )


def check_names(field: str, names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Returns names as texts, by default numbers; raises ValueError unless all are distinct."""
    if names is None:
        return tuple(str(k) for k in range(count))
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{field} must be a list of names; found {describe(names)}.")
    names = tuple(str(name) for name in names)
    if len(names) != count:
        raise ValueError(f"{field} must hold {count} names; found {len(names)}: {names}.")
    if len(set(names)) != count:
        raise ValueError(f"{field} must be distinct; found {names}.")
    return names


def _where(game: Any, index: tuple[np.integer, ...]) -> str:
    """Names a state and joint action for an error message."""
    state, actions = int(index[0]), tuple(int(a) for a in index[1:])
    if game is None:
        return f"state {state}, joint action {actions}"
    names = tuple(game.action_names[agent][a] for agent, a in enumerate(actions))
    labels = f" ({game.state_names[state]}: {', '.join(names)})"
    return f"state {state}, joint action {actions}" + labels


def check_table(field: str, value: Any, shape: Any, note: str = "") -> Any:
    """Returns an array of real numbers of a given shape; raises ValueError if it is none."""
    found = check_array(field, value, f"an array of shape {shape}")
    if np.shape(found) != shape:
        raise ValueError(f"{field} must have shape {shape}{note}; found {np.shape(found)}.")
    return found


def check_law(law: Any, num_states: int) -> Any:
    """Returns the law of the first state, uniform by default; raises ValueError if it is none."""
    if law is None:
        return np.full(num_states, 1.0 / num_states)
    law = check_table("initial", law, (num_states,))
    if is_concrete(law):
        check_distribution(np.asarray(law))
    return law


def check_successors(field: str, num_states: int, successors: np.ndarray) -> None:
    """Raises ValueError unless all successors are states, naming the first place that is not."""
    if not np.issubdtype(successors.dtype, np.integer):
        raise ValueError(f"{field} must be integers; found dtype {successors.dtype}.")
    bad = (successors < 0) | (successors >= num_states)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{field} at {_where(None, index[:-1])} must be states, 0 to {num_states - 1}; found "
            f"{successors[index]}."
        )


def check_rows(field: str, game: Any, probabilities: np.ndarray) -> None:
    """Raises ValueError unless every row is a distribution, naming state and joint action."""
    bad = ~np.isfinite(probabilities) | (probabilities < 0)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{field}: transition probability {probabilities[index]} at "
            f"{_where(game, index[:-1])}, entry {int(index[-1])}, is negative or not finite."
        )
    totals = probabilities.sum(axis=-1)
    bad = np.abs(totals - 1.0) > _tolerance(probabilities)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{field}: transition probabilities of {_where(game, index)} sum to "
            f"{totals[index]:.10g}, not 1."
        )


def check_rewards(game: Any, rewards: np.ndarray) -> None:
    """Raises ValueError unless all rewards are finite, naming agent, state and joint action."""
    bad = ~np.isfinite(rewards)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"reward {rewards[index]} of agent {int(index[-1])} at {_where(game, index[:-2])} "
            "is not finite."
        )


def warn_unresolved(rewards: np.ndarray, dtype: Any) -> None:
    """Warns if an agent's rewards differ by too little, for their size, to be told apart.

    Args:
        rewards: finite, agents last, as precise as they were given.
        dtype: JAX's precision.
    """
    by_agent = rewards.reshape(-1, rewards.shape[-1]).astype(float)
    lowest, highest = by_agent.min(axis=0), by_agent.max(axis=0)
    spacing = np.finfo(dtype).eps * np.abs(by_agent).max(axis=0)
    unclear = (highest > lowest) & (spacing > _RESOLVED * (highest - lowest))
    if unclear.any():
        agent = int(np.argmax(unclear))
        warnings.warn(
            f"rewards of agent {agent} lie between {lowest[agent]:.9g} and {highest[agent]:.9g}: "
            f"in {np.dtype(dtype).name} numbers of this size are {spacing[agent]:.1e} apart, so "
            "that differences are lost, and more of them in values. Subtract a constant from all "
            "rewards, or compute in float64.",
            stacklevel=3,
        )


def check_probabilities(where: str, policy: np.ndarray) -> None:
    """Raises ValueError unless an agent's policy in a state is a probability vector."""
    if not np.all(np.isfinite(policy)) or np.min(policy) < 0:
        raise ValueError(f"{where} must not be negative or NaN; found {policy}.")
    if abs(float(policy.sum()) - 1) > 1e-5:
        raise ValueError(f"{where} must sum to 1; found {policy}, sum {policy.sum():.6g}.")


def check_distribution(values: np.ndarray) -> None:
    """Raises ValueError unless the initial law is a distribution over states."""
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        state = int(np.argmax(bad))
        raise ValueError(f"initial probability {values[state]} of state {state} is not valid.")
    if abs(values.sum() - 1.0) > _tolerance(values):
        raise ValueError(f"initial probabilities sum to {values.sum():.10g}, not 1.")


def _tolerance(values: np.ndarray) -> float:
    return 1e-5 if values.dtype == np.float32 else 1e-8
