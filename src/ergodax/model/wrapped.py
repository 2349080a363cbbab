"""The wrapped game: a Markov game and one learner per agent, W(RL, G) in Kerzreho (2025).

For frozen parameters the joint policy turns the game into a Markov chain on its states, with an
event `(s, a, k)` for every stored outcome. This module enumerates that chain and what every agent
would learn from each event; it neither averages nor simulates.
"""

import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Real

from ..base.checks import as_real, check_key, check_number, check_type, describe, is_concrete
from ..base.compiling import shapes_of
from .chain import joint_policy, state_chain
from .clock import Clocked, has_schedule
from .game import MarkovGame, check_agent
from .learner import AbstractLearner, Params, Transition, undecided
from .private import check_lottery, drawn_by, with_lotteries

# Parameters as users give them.
_Given = PyTree[Float[ArrayLike, "..."]]
# Indices of so many events are constants of a program.
_FEW_EVENTS = 2**12


class WrappedGame(eqx.Module):
    """A Markov game together with one learner per agent.

    Attributes:
        game: the Markov game, its outcomes split by the results of lotteries that learners draw.
        learners: one learner per agent; one with schedules is held with its clock, and its
            parameters are a pair of its own and the time.
    """

    game: MarkovGame
    learners: tuple[AbstractLearner, ...]

    def __init__(self, game: MarkovGame, learners):
        """Pairs a game with its learners.

        Args:
            game: a Markov game of n agents.
            learners: n learners, in the order of the agents.

        Raises:
            ValueError: if the number of learners is not n, one is not a learner, or one holds a
                plain Python number where an array is needed.
        """
        check_type("game", game, MarkovGame, "a MarkovGame")
        if isinstance(learners, AbstractLearner):
            raise ValueError(
                "learners must hold one learner per agent; found one alone: for agents alike, "
                f"write [learner] * {game.num_agents}."
            )
        learners = tuple(check_type("learners", learners, (tuple, list), "a list of learners"))
        if len(learners) != game.num_agents:
            raise ValueError(
                f"the game has {game.num_agents} agents but {len(learners)} learners were given."
            )
        for agent, learner in enumerate(learners):
            if not isinstance(learner, AbstractLearner):
                called = ": call it" if isinstance(learner, type) else ""
                raise ValueError(
                    f"learners must be instances of AbstractLearner; found {describe(learner)} as "
                    f"that of agent {agent}{called}."
                )
            check_lottery(f"agent {agent}: {type(learner).__name__}", learner.lottery)
            for path, leaf in jax.tree_util.tree_leaves_with_path(learner):
                if isinstance(leaf, float | int | complex):
                    raise ValueError(
                        f"agent {agent}: {type(learner).__name__}{jax.tree_util.keystr(path)} is "
                        f"the plain Python number {leaf}; declare the field with ergodax.hyper."
                    )
        self.game = with_lotteries(game, learners)
        self.learners = tuple(
            Clocked(learner) if has_schedule(learner) else learner for learner in learners
        )

    @property
    def needs_next_action(self) -> bool:
        """Whether any learner needs the next action before its update, as SARSA does."""
        return any(learner.needs_next_action for learner in self.learners)

    def init(self, key: Array | None = None) -> tuple[Params, ...]:
        """Initial parameters of all agents.

        Args:
            key: a JAX random key, needed only by learners that start at random.

        Returns:
            A tuple with one pytree of parameters per agent.
        """
        count = len(self.learners)
        keys = [None] * count if key is None else jax.random.split(check_key(key), count)
        return tuple(
            learner.init(self.game, agent, key=keys[agent])
            for agent, learner in enumerate(self.learners)
        )

    def at(self, t: Real[ArrayLike, ""]) -> "WrappedGame":
        """The same game, with learners whose schedules stand still at their values at time t.

        Their parameters are those without the clock: `params[i].params`.

        Args:
            t: time in unscaled steps.
        """
        t = check_number("t", t)
        frozen = [own.at(t) if isinstance(own, Clocked) else own for own in self.learners]
        return eqx.tree_at(lambda wrapped: wrapped.learners, self, tuple(frozen))

    def policies(self, params: tuple[_Given, ...]) -> tuple[Float[Array, "S _"], ...]:
        """Policies of all agents in all states: one array `[S, A_i]` per agent.

        Raises:
            ValueError: if `params` does not hold the parameters of every agent, or a policy does
                not return one probability per action.
        """
        params = self.check_structure(params)
        states = jnp.arange(self.game.num_states)
        policies = []
        for agent, learner in enumerate(self.learners):
            name = f"agent {agent}: {type(learner).__name__}.policy"
            with undecided(name):
                policy = jax.vmap(learner.policy, in_axes=(None, 0))(params[agent], states)
            expected = (self.game.num_states, self.game.num_actions[agent])
            found = getattr(policy, "shape", None)
            if found != expected:
                raise ValueError(
                    f"{name} must return {expected[1]} probabilities; found "
                    + (f"a {type(policy).__name__}." if found is None else f"shape {found[1:]}.")
                )
            policies.append(policy)
        return tuple(policies)

    def are_policies(self, policies: tuple[Float[Array, "S _"], ...]) -> Bool[Array, ""]:
        """Whether all rows are probabilities: not negative, and of sum one, up to 1e-5."""
        least = jnp.stack([policy.min() for policy in policies])
        off = jnp.stack([jnp.abs(policy.sum(axis=-1) - 1).max() for policy in policies])
        return jnp.all((least >= -1e-5) & (off <= 1e-5))

    def joint_policy(self, policies: tuple[Float[Array, "S _"], ...]) -> Float[Array, "S *A"]:
        """Probabilities of the joint actions, `[S, A_1, .., A_n]`: agents draw independently."""
        return joint_policy(policies)

    def event_probabilities(self, joint: Float[Array, "S *A"]) -> Float[Array, "S *A K"]:
        """Probability of the event (a, k) given the state, for a joint policy `[S, *A]`."""
        return joint[..., None] * self.game.probabilities

    def state_chain(self, events: Float[Array, "S *A K"]) -> Float[Array, "S S"]:
        """Transition matrix `P(s, s')` of the state chain, for event probabilities given s."""
        return state_chain(self.game, events)

    def frozen_chain(self, params: tuple[_Given, ...]) -> Float[Array, "S S"]:
        """Transition matrix of the states when all agents' parameters are frozen."""
        return self.state_chain(self.event_probabilities(self.joint_policy(self.policies(params))))

    def transitions(self, agent: int) -> Transition:
        """All events as one agent sees them, flattened to one leading axis.

        Returns:
            A `Transition` of arrays `[E]`, E = S A_1 .. A_n K, events in C order. For a learner
            that needs its next action, E is A_agent times larger, the next action varying fastest.
        """
        game, learner = self.game, self.learners[check_agent(self.game, agent)]
        following = game.num_actions[agent] if learner.needs_next_action else 1
        shape = (*game.successors.shape, following)
        if math.prod(shape) <= _FEW_EVENTS:
            index = [jnp.asarray(axis.ravel()) for axis in np.indices(shape, dtype=np.int32)]
        else:  # XLA takes long to compute with large constants as it compiles
            axes = range(len(shape))
            index = [jax.lax.broadcasted_iota(jnp.int32, shape, axis).ravel() for axis in axes]

        def of_events(table):
            return jnp.broadcast_to(table[..., None], shape).ravel()

        return Transition(
            state=index[0],
            action=index[1 + agent],
            joint_action=jnp.stack(index[1 : 1 + game.num_agents], axis=-1),
            reward=of_events(game.rewards[..., agent]),
            next_state=of_events(game.successors),
            next_action=index[-1] if learner.needs_next_action else None,
            lottery=drawn_by(self.learners, agent, index[1 + game.num_agents]),
        )

    def increments(self, agent: int, params: _Given) -> PyTree:
        """What one agent's learner would add to its parameters at every event of `transitions`."""
        learner = self.learners[check_agent(self.game, agent)]
        transitions = self.transitions(agent)
        params = jax.tree.map(jnp.asarray, params)
        with undecided(f"agent {agent}: {type(learner).__name__}.update"):
            return jax.vmap(lambda t: learner.update(params, t, self.game, agent))(transitions)

    def check_structure(
        self, params: Any, name: str = "params", batch: str | None = None
    ) -> tuple[Params, ...]:
        """Checks that parameters are like those of `init`.

        Args:
            params: parameters of all agents.
            name: what they are called, for messages.
            batch: what a leading axis of all arrays is of; None if there shall be none.

        Returns:
            The same as arrays of JAX.

        Raises:
            ValueError: unless they have the structure, shapes and types of those of `init`.
        """
        if not isinstance(params, tuple) or len(params) != len(self.learners):
            several = isinstance(params, tuple | list)
            kind = f"{type(params).__name__} of length {len(params)}" if several else ""
            raise ValueError(
                f"{name} must be a tuple as wrapped.init() returns it, with one pytree for each "
                f"of {len(self.learners)} agents; found {kind or describe(params)}."
            )
        expected, lengths = shapes_of(_first_params, self), set()
        for agent, (found, like) in enumerate(zip(params, expected, strict=True)):
            who = f"{name} of agent {agent}"
            if jax.tree.structure(found) != jax.tree.structure(like):
                raise ValueError(
                    f"{who} must have the structure {jax.tree.structure(like)}; found "
                    f"{jax.tree.structure(found)}."
                )
            for (path, leaf), aval in zip(
                jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(like), strict=True
            ):
                where, shape, array = who + jax.tree_util.keystr(path), aval.shape, as_real(leaf)
                if array is None or not jnp.issubdtype(array.dtype, jnp.floating):
                    kind = describe(leaf) if array is None else array.dtype
                    raise ValueError(f"{where} must be floating-point; found {kind}.")
                ahead = array.shape[: array.ndim - len(shape)]
                fits = array.shape[len(ahead) :] == shape and len(ahead) == (batch is not None)
                if not fits or 0 in ahead:
                    raise ValueError(_misfit(where, shape, array.shape, batch))
                lengths.add(ahead)
        if len(lengths) > 1:
            raise ValueError(
                f"{name} must have one leading axis of {batch} of the same length in all arrays; "
                f"found lengths {sorted(length[0] for length in lengths)}."
            )
        return jax.tree.map(jnp.asarray, params)

    def check_finite(self, params: tuple[Params, ...], name: str = "params") -> None:
        """Raises ValueError if a concrete parameter is infinite or NaN, naming its agent."""
        for agent, own in enumerate(params):
            for path, leaf in jax.tree_util.tree_leaves_with_path(own):
                if is_concrete(leaf) and not np.all(np.isfinite(leaf)):
                    raise ValueError(
                        f"{name} of agent {agent}{jax.tree_util.keystr(path)} must be finite; "
                        f"found {leaf}."
                    )

    def __repr__(self) -> str:
        agents: dict[str, list[str]] = {}
        for agent, learner in enumerate(self.learners):
            agents.setdefault(repr(learner), []).append(str(agent))
        lines = [f"  {', '.join(numbers)}: {learner}" for learner, numbers in agents.items()]
        return "\n".join([f"WrappedGame of {self.game!r} and the learners", *lines])


def _first_params(wrapped: WrappedGame) -> tuple[Params, ...]:
    return wrapped.init(jax.random.key(0))


def _misfit(where: str, shape: tuple, found: tuple, batch: str | None) -> str:
    """What is wrong with the shape of a parameter, and what to do about it."""
    hint = "."
    if batch is None and found[1:] == shape:
        hint = ", with a leading axis: take one of them, or map all by jax.vmap."
    elif batch is not None and found == shape:
        hint = f": one alone, without the leading axis of {batch}."
    needed = shape if batch is None else f"[{', '.join(map(str, (batch, *shape)))}]"
    return f"{where} must have shape {needed}; found {found}{hint}"


def admit(
    wrapped: WrappedGame, params: Any, name: str = "params", batch: str | None = None
) -> tuple[WrappedGame, tuple[Params, ...]]:
    """A wrapped game and parameters as users give them, checked and in JAX's precision.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents.
        name: what these are called, for messages.
        batch: what a leading axis of all parameters is of; None if there shall be none.

    Returns:
        The same with all floating-point arrays in float64, or in float32 where JAX computes in it.

    Raises:
        ValueError: if either is something else, or a concrete parameter is not finite.

    Warns:
        UserWarning: if the game or a learner holds constants in a lower precision.
    """
    check_type("wrapped", wrapped, WrappedGame, "a WrappedGame(game, learners)")
    params = wrapped.check_structure(params, name, batch)
    wrapped.check_finite(params, name)
    warn_rounded(wrapped)
    return cast((wrapped, params), jnp.result_type(float))


def warn_rounded(wrapped: WrappedGame, stacklevel: int = 5) -> None:
    """Warns if JAX computes in float64 with constants that were rounded to float32."""
    if jnp.result_type(float) != np.float64:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(wrapped):
        if is_concrete(leaf) and getattr(leaf, "dtype", None) == np.float32:
            warnings.warn(
                f"wrapped{jax.tree_util.keystr(path)} is in float32, precise to 7 digits: make "
                "games and learners after jax_enable_x64 is turned on.",
                stacklevel=stacklevel,
            )
            return


def cast(tree: Any, dtype: Any) -> Any:
    """The same pytree with all floating-point leaves in one precision."""

    def of_leaf(leaf):
        if isinstance(leaf, jax.Array) and leaf.dtype == dtype:
            return leaf
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return leaf  # a function, say
        leaf = jnp.asarray(leaf)
        changes = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype
        return leaf.astype(dtype) if changes else leaf

    return jax.tree.map(of_leaf, tree)
