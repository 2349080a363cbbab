"""Finite-state Markov games, stored on the support of their transition kernel.

A Markov game has states, agents, and actions for each agent. In state `s` the joint action `a`
leads to state `s'` with probability `T(s' | s, a)` and pays agent `i` the reward `R_i(s, a, s')`.

Only outcomes that can happen are stored: for every state and joint action up to `K` successors with
their probabilities and rewards. A deterministic game has `K = 1`, so that 225 states with 225 joint
actions need fifty thousand entries rather than eleven million. The same successor may stand twice
with different rewards: that is how finite random rewards are written, and nothing else in the
package needs to know.

Rows with fewer than `K` outcomes are padded: the last outcome is repeated with probability zero.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from ..base.checks import as_real, check_array, check_type, describe, is_concrete
from ..base.devices import as_array
from .validity import (
    check_law,
    check_names,
    check_rewards,
    check_rows,
    check_successors,
    check_table,
    name_actions,
    warn_unresolved,
)


class MarkovGame(eqx.Module):
    """A finite-state Markov game on the support of its transition kernel.

    Usually built by `MarkovGame.from_dense`, `MarkovGame.deterministic` or one of `ergodax.games`;
    the constructor itself takes the support form.

    Attributes:
        successors: the states that can follow, `[S, A_1, .., A_n, K]`.
        probabilities: their probabilities, same shape; each row sums to one.
        rewards: the reward of every agent for every outcome, `[S, A_1, .., A_n, K, n]`.
        initial: the law of the first state, `[S]`.
        state_names: one name per state.
        action_names: for each agent one name per action.
        num_states: S.
        num_actions: (A_1, .., A_n).
    """

    successors: Int[Array, "..."]
    probabilities: Float[Array, "..."]
    rewards: Float[Array, "..."]
    initial: Float[Array, "..."]
    state_names: tuple[str, ...] = eqx.field(static=True)
    action_names: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    num_states: int = eqx.field(static=True)
    num_actions: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        successors: Int[ArrayLike, "S *A K"],
        probabilities: Real[ArrayLike, "S *A K"],
        rewards: Real[ArrayLike, "S *A K n"],
        *,
        initial: Real[ArrayLike, " S"] | Sequence | None = None,
        state_names: Sequence[str] | None = None,
        action_names: Sequence[Sequence[str]] | None = None,
    ):
        """Builds a game from its support.

        Args:
            successors: successor states, `[S, A_1, .., A_n, K]`.
            probabilities: their probabilities, same shape.
            rewards: rewards of all agents, `[S, A_1, .., A_n, K, n]`.
            initial: law of the first state, `[S]`; uniform by default.
            state_names: names of the states; "0", "1", ... by default.
            action_names: names of each agent's actions; "0", "1", ... by default.

        Raises:
            ValueError: if shapes disagree, a successor is not a state, a row of probabilities is
                not a probability vector (tolerance 1e-8, or 1e-5 in float32), or a reward is not
                finite. Values are checked only where they are concrete (not under a JAX trace).

        Warns:
            UserWarning: if rewards differ by so little, for their size, that JAX's precision does
                not tell them apart.
        """
        successors = check_array("successors", successors, "integers of shape [S, A_1, .., A_n, K]")
        shape = np.shape(successors)
        if len(shape) < 3 or 0 in shape:
            raise ValueError(
                "successors must have shape [S, A_1, .., A_n, K] with at least one state, agent, "
                f"action and successor; found {shape}."
            )
        num_states, num_actions = shape[0], shape[1:-1]
        num_agents = len(num_actions)
        probabilities = check_table("probabilities", probabilities, shape, ", that of successors")
        rewards = check_table("rewards", rewards, (*shape, num_agents), " (agent axis last)")
        law = check_law(initial, num_states)

        self.num_states = num_states
        self.num_actions = num_actions
        self.state_names = check_names("state_names", state_names, num_states)
        self.action_names = name_actions(action_names, num_actions)
        if is_concrete(successors):
            check_successors("successors", num_states, np.asarray(successors))
        if is_concrete(probabilities):
            check_rows("probabilities", self, np.asarray(probabilities))
        if is_concrete(rewards):
            check_rewards(self, np.asarray(rewards))
            warn_unresolved(np.asarray(rewards), jnp.result_type(float))
        self.successors = as_array(successors, jnp.int32)
        self.probabilities = as_array(probabilities, float)
        self.rewards = as_array(rewards, float)
        self.initial = as_array(law, float)

    @classmethod
    def from_dense(
        cls,
        kernel: Real[ArrayLike, "S *A S"],
        rewards: Real[ArrayLike, "..."],
        *,
        initial: Real[ArrayLike, " S"] | Sequence | None = None,
        state_names: Sequence[str] | None = None,
        action_names: Sequence[Sequence[str]] | None = None,
        support: Int[ArrayLike, "S *A K"] | None = None,
    ) -> "MarkovGame":
        """Builds a game from a dense transition kernel.

        Args:
            kernel: `T(s' | s, a)`, shape `[S, A_1, .., A_n, S]`.
            rewards: `[S, A_1, .., A_n, n]`, or `[S, A_1, .., A_n, S, n]` where they depend on the
                next state.
            initial: law of the first state, `[S]`; uniform by default.
            state_names: names of the states.
            action_names: names of each agent's actions.
            support: the successors to store, `[S, A_1, .., A_n, K]`, concrete. By default those
                with positive probability, or all states where the kernel is traced by JAX (its
                zeros are not known then). Giving it lets games of one shape be stacked.

        Raises:
            ValueError: as the constructor; also if the kernel puts probability outside `support`.
        """
        kernel = check_array("kernel", kernel, "an array of shape [S, A_1, .., A_n, S]")
        shape = np.shape(kernel)
        if len(shape) < 3 or shape[0] != shape[-1] or 0 in shape:
            raise ValueError(f"kernel must have shape [S, A_1, .., A_n, S]; found {shape}.")
        rewards = check_array("rewards", rewards, "an array of shape [S, A_1, .., A_n, n]")
        num_states, num_agents = shape[0], len(shape) - 2
        if np.shape(rewards) not in ((*shape[:-1], num_agents), (*shape, num_agents)):
            raise ValueError(
                f"rewards must have shape {(*shape[:-1], num_agents)} or {(*shape, num_agents)} "
                f"(agent axis last); found {np.shape(rewards)}."
            )
        if is_concrete(kernel):
            # Checked before the support is taken: a negative or NaN entry must not be dropped.
            check_rows("kernel", None, np.asarray(kernel))
        if support is not None:
            table = np.asarray(check_array("support", support))
            if table.ndim != len(shape) or table.shape[:-1] != shape[:-1]:
                raise ValueError(
                    f"support must have shape {(*shape[:-1], 'K')}; found {table.shape}."
                )
            check_successors("support", num_states, table)
        elif is_concrete(kernel):
            table = _support(np.asarray(kernel))
        else:
            table = np.broadcast_to(np.arange(num_states), shape)
        backend: Any = np if is_concrete(kernel) else jnp
        repeated = np.zeros(table.shape, dtype=bool)
        for k in range(1, table.shape[-1]):
            repeated[..., k] = (table[..., :k] == table[..., k : k + 1]).any(axis=-1)
        taken = backend.take_along_axis(backend.asarray(kernel), backend.asarray(table), axis=-1)
        probabilities = backend.where(repeated, 0.0, taken)
        backend = np if is_concrete(rewards) else jnp
        if np.ndim(rewards) == len(shape):
            values = backend.broadcast_to(
                backend.asarray(rewards)[..., None, :], (*table.shape, num_agents)
            )
        else:
            values = backend.take_along_axis(
                backend.asarray(rewards), backend.asarray(table)[..., None], axis=-2
            )
        return cls(
            table,
            probabilities,
            values,
            initial=initial,
            state_names=state_names,
            action_names=action_names,
        )

    @classmethod
    def deterministic(
        cls,
        next_state: Int[ArrayLike, "S *A"],
        rewards: Real[ArrayLike, "S *A n"],
        *,
        initial: Real[ArrayLike, " S"] | Sequence | None = None,
        state_names: Sequence[str] | None = None,
        action_names: Sequence[Sequence[str]] | None = None,
    ) -> "MarkovGame":
        """Builds a game whose next state is a function of state and joint action.

        Args:
            next_state: the state that follows, integers `[S, A_1, .., A_n]`.
            rewards: `[S, A_1, .., A_n, n]`.
            initial: law of the first state, `[S]`; uniform by default.
            state_names: names of the states.
            action_names: names of each agent's actions.

        Raises:
            ValueError: as the constructor.
        """
        next_state = np.asarray(check_array("next_state", next_state, "integers [S, A_1, .., A_n]"))
        shape = np.shape(next_state)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"next_state must have shape [S, A_1, .., A_n]; found {shape}.")
        check_successors("next_state", len(next_state), next_state[..., None])
        rewards = check_table("rewards", rewards, (*shape, len(shape) - 1), " (agent axis last)")
        backend = np if is_concrete(rewards) else jnp
        return cls(
            next_state[..., None],
            np.ones((*shape, 1)),
            backend.asarray(rewards)[..., None, :],
            initial=initial,
            state_names=state_names,
            action_names=action_names,
        )

    @property
    def num_agents(self) -> int:
        """Number of agents n."""
        return len(self.num_actions)

    @property
    def num_successors(self) -> int:
        """K, the number of stored outcomes per state and joint action."""
        return self.successors.shape[-1]

    @property
    def kernel(self) -> Float[Array, "S *A S"]:
        """The dense transition kernel `T(s' | s, a)`, `[S, A_1, .., A_n, S]`, made on demand."""
        return scatter_successors(self, self.probabilities)

    def unilateral(
        self, agent: int, state: Int[Array, ""], joint_action: Int[Array, " n"]
    ) -> tuple[Int[Array, "A K"], Float[Array, "A K"], Float[Array, "A K"]]:
        """Outcomes of each own action of one agent, the other agents' actions held fixed.

        Args:
            agent: the agent that varies its action.
            state: a state.
            joint_action: the actions of all agents; the entry of `agent` is not used.

        Returns:
            Successors, probabilities and the agent's rewards, each `[A_agent, K]`.
        """
        others = [joint_action[j] for j in range(self.num_agents)]
        index = (state, *others[:agent], slice(None), *others[agent + 1 :])
        return self.successors[index], self.probabilities[index], self.rewards[index][..., agent]

    def __repr__(self) -> str:
        actions = " x ".join(str(count) for count in self.num_actions)
        sizes = [
            _count(self.num_agents, "agent"),
            _count(self.num_states, "state") + _own_names(self.state_names),
            f"{actions} actions" + "".join(map(_own_names, dict.fromkeys(self.action_names))),
            _count(self.num_successors, "successor") + _payoffs(self),
        ]
        return f"MarkovGame({', '.join(sizes)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _own_names(names: tuple[str, ...]) -> str:
    """The first of some names in brackets, unless they are mere numbers."""
    if names == tuple(str(k) for k in range(len(names))):
        return ""
    return f" ({', '.join(names[:_SHOWN])}{', ..' if len(names) > _SHOWN else ''})"


def _payoffs(game: MarkovGame) -> str:
    """The payoffs of every joint action, if these are few and pay the same in all states."""
    shape = (game.num_states, *game.num_actions, 1, game.num_agents)
    few = game.rewards.shape == shape and math.prod(game.num_actions) <= _SHOWN + 1
    if not few or not is_concrete(game.rewards):
        return ""
    first, *others = np.asarray(game.rewards)[..., 0, :]
    if any(not np.array_equal(first, other) for other in others):
        return ""
    profiles = list(itertools.product(*game.action_names))
    between = "" if all(len(name) == 1 for profile in profiles for name in profile) else "-"
    listed = [
        f"{between.join(profile)} ({', '.join(f'{payoff:.6g}' for payoff in payoffs)})"
        for profile, payoffs in zip(profiles, first.reshape(-1, game.num_agents), strict=True)
    ]
    return f"; payoffs {', '.join(listed)}"


_SHOWN = 8


def check_agent(game: MarkovGame, agent: Any, name: str = "agent") -> int:
    """Returns the number of an agent; raises ValueError if there is no such agent."""
    check_type("game", game, MarkovGame, "a MarkovGame")
    whole = isinstance(agent, int | np.integer) and not isinstance(agent, bool)
    if not whole or not 0 <= agent < game.num_agents:
        raise ValueError(
            f"{name} must be the number of an agent, 0 to {game.num_agents - 1}; found "
            f"{describe(agent)}."
        )
    return int(agent)


def first_state_law(
    game: MarkovGame, initial_state: Any, *, several: bool = False
) -> Float[Array | np.ndarray, "*R S"]:
    """The law of the first state: the game's own, or certainty.

    Args:
        game: the game; its own law may have leading axes.
        initial_state: None, or a state by number or name, or the numbers of several.
        several: whether there may be several.

    Returns:
        The law, `[S]`, or `[R, S]` for several states.

    Raises:
        ValueError: if there is no such state.
    """
    if initial_state is None:
        return game.initial
    if isinstance(initial_state, str):
        if initial_state not in game.state_names:
            raise ValueError(
                f"initial_state {initial_state!r} is not a state; the states are "
                f"{', '.join(game.state_names)}."
            )
        initial_state = game.state_names.index(initial_state)
    states = as_real(initial_state)
    whole = states is not None and np.issubdtype(states.dtype, np.integer) and states.size > 0
    states = np.asarray(states if whole else -1)
    bad = ~((states >= 0) & (states < game.num_states))
    if bad.any() or states.ndim > several:
        found = np.atleast_1d(states)[np.atleast_1d(bad)]
        raise ValueError(
            f"initial_state must be a state, 0 to {game.num_states - 1}; found "
            f"{found[0] if whole and len(found) else describe(initial_state)}."
        )
    return np.eye(game.num_states)[states]


def scatter_successors(game: MarkovGame, weights: Float[Array, "S *A K"]) -> Float[Array, "S *A S"]:
    """Sums weights given per stored outcome into the dense successor axis."""
    one_hot = jax.nn.one_hot(game.successors, game.num_states, dtype=weights.dtype)
    return jnp.einsum("...k,...kt->...t", weights, one_hot, precision="highest")


def padding(game: MarkovGame) -> Bool[Array, "S *A K"]:
    """Marks the outcomes that only pad a row: a repeat of the one before, with probability zero."""
    same_state = game.successors[..., 1:] == game.successors[..., :-1]
    repeat = same_state & (game.rewards[..., 1:, :] == game.rewards[..., :-1, :]).all(axis=-1)
    first = jnp.zeros((*game.successors.shape[:-1], 1), dtype=bool)
    return jnp.concatenate([first, repeat], axis=-1) & (game.probabilities == 0)


def row_preserving(game: MarkovGame) -> MarkovGame:
    """The same game, whose derivatives by transition probabilities keep every row's sum.

    A stationary law is defined only for probability rows that sum to one, so only derivatives along
    directions that keep the sums mean anything. Tangents and cotangents of the probabilities are
    projected orthogonally on these directions, padding held at zero.
    """
    probabilities = _project_tangent(game.probabilities, padding(game))
    return eqx.tree_at(lambda g: g.probabilities, game, probabilities)


@jax.custom_jvp
def _project_tangent(probabilities, padded):
    return probabilities


@_project_tangent.defjvp
def _project_tangent_jvp(primals, tangents):
    probabilities, padded = primals
    tangent = jnp.where(padded, 0.0, tangents[0])
    stored = (~padded).sum(-1, keepdims=True).astype(tangent.dtype)
    mean = tangent.sum(-1, keepdims=True) / stored
    return probabilities, jnp.where(padded, 0.0, tangent - mean)


def _support(kernel: np.ndarray) -> np.ndarray:
    """Positive successors of every row in increasing order, the last one repeated as padding."""
    positive = kernel > 0
    counts = positive.sum(axis=-1, keepdims=True)
    order = np.argsort(~positive, axis=-1, kind="stable")
    rank = np.minimum(np.arange(counts.max()), counts - 1)
    return np.take_along_axis(order, rank, axis=-1)
