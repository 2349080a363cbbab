"""The wrapped game: a Markov game and one learner per agent, W(RL, G) in Kerzreho (2025).

For frozen parameters the joint policy turns the game into a Markov chain on its states, with an
event `(s, a, k)` for every stored outcome. This module enumerates that chain and what every agent
would learn from each event; it neither averages nor simulates.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..base.checks import is_concrete
from .game import MarkovGame
from .learner import AbstractLearner, At, Params, Transition, accumulate


class WrappedGame(eqx.Module):
    """A Markov game together with one learner per agent.

    Attributes:
        game: the Markov game.
        learners: one learner per agent.
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
        learners = tuple(learners)
        if len(learners) != game.num_agents:
            raise ValueError(
                f"the game has {game.num_agents} agents but {len(learners)} learners were given."
            )
        for agent, learner in enumerate(learners):
            if not isinstance(learner, AbstractLearner):
                raise ValueError(f"agent {agent}: {learner!r} is not an AbstractLearner instance.")
            for path, leaf in jax.tree_util.tree_leaves_with_path(learner):
                if isinstance(leaf, float | int | complex):
                    raise ValueError(
                        f"agent {agent}: {type(learner).__name__}{jax.tree_util.keystr(path)} is "
                        f"the plain Python number {leaf}; declare the field with ergodax.hyper."
                    )
        self.game = game
        self.learners = learners

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
        keys = (
            [None] * len(self.learners)
            if key is None
            else jax.random.split(key, len(self.learners))
        )
        return tuple(
            learner.init(self.game, agent, key=keys[agent])
            for agent, learner in enumerate(self.learners)
        )

    def policies(self, params: tuple[Params, ...]) -> tuple[Float[Array, "S _"], ...]:
        """Policies of all agents in all states: one array `[S, A_i]` per agent.

        Raises:
            ValueError: if `params` does not hold the parameters of every agent, or a policy does
                not return one probability per action.
        """
        self.check_structure(params)
        states = jnp.arange(self.game.num_states)
        policies = []
        for agent, learner in enumerate(self.learners):
            policy = jax.vmap(learner.policy, in_axes=(None, 0))(params[agent], states)
            expected = (self.game.num_states, self.game.num_actions[agent])
            if policy.shape != expected:
                raise ValueError(
                    f"agent {agent}: {type(learner).__name__}.policy must return "
                    f"{expected[1]} probabilities; found shape {policy.shape[1:]}."
                )
            policies.append(policy)
        return tuple(policies)

    def joint_policy(self, policies: tuple[Float[Array, "S _"], ...]) -> Float[Array, "S *A"]:
        """Probabilities of the joint actions, `[S, A_1, .., A_n]`: agents draw independently."""
        joint = jnp.ones((self.game.num_states,), dtype=policies[0].dtype)
        for policy in policies:
            joint = joint[..., None] * policy.reshape(
                policy.shape[0], *(1,) * (joint.ndim - 1), policy.shape[1]
            )
        return joint

    def event_probabilities(self, joint: Float[Array, "S *A"]) -> Float[Array, "S *A K"]:
        """Probability of the event (a, k) given the state, for a joint policy `[S, *A]`."""
        return joint[..., None] * self.game.probabilities

    def state_chain(self, events: Float[Array, "S *A K"]) -> Float[Array, "S S"]:
        """Transition matrix `P(s, s')` of the state chain, for event probabilities given s."""
        num_states = self.game.num_states
        states = jnp.broadcast_to(
            jnp.arange(num_states).reshape(-1, *(1,) * (events.ndim - 1)), events.shape
        )
        batch = At((states.ravel(), self.game.successors.ravel()), events.ravel())
        return accumulate(jnp.zeros((num_states, num_states), events.dtype), batch)

    def frozen_chain(self, params: tuple[Params, ...]) -> Float[Array, "S S"]:
        """Transition matrix of the states when all agents' parameters are frozen."""
        return self.state_chain(self.event_probabilities(self.joint_policy(self.policies(params))))

    def transitions(self, agent: int) -> Transition:
        """All events as one agent sees them, flattened to one leading axis.

        Returns:
            A `Transition` of arrays `[E]`, E = S A_1 .. A_n K, events in C order. For a learner
            that needs its next action, E is A_agent times larger, the next action varying fastest.
        """
        game, learner = self.game, self.learners[agent]
        shape = game.successors.shape
        if learner.needs_next_action:
            shape = (*shape, game.num_actions[agent])
        index = [jnp.asarray(axis.ravel()) for axis in np.indices(shape, dtype=np.int32)]
        event = tuple(index[: game.num_agents + 2])
        return Transition(
            state=index[0],
            action=index[1 + agent],
            joint_action=jnp.stack(index[1 : 1 + game.num_agents], axis=-1),
            reward=game.rewards[event][:, agent],
            next_state=game.successors[event],
            next_action=index[-1] if learner.needs_next_action else None,
        )

    def increments(self, agent: int, params: Params) -> PyTree:
        """What one agent's learner would add to its parameters at every event of `transitions`."""
        learner = self.learners[agent]
        transitions = self.transitions(agent)
        return jax.vmap(lambda t: learner.update(params, t, self.game, agent))(transitions)

    def check_structure(self, params: tuple[Params, ...]) -> None:
        """Raises ValueError unless `params` has the structure and shapes of `init`."""
        if not isinstance(params, tuple) or len(params) != len(self.learners):
            raise ValueError(
                f"params must be a tuple with one pytree for each of {len(self.learners)} agents; "
                f"found {type(params).__name__}"
                + (f" of length {len(params)}." if isinstance(params, tuple) else ".")
            )
        expected = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        for agent, (found, like) in enumerate(zip(params, expected, strict=True)):
            if jax.tree.structure(found) != jax.tree.structure(like):
                raise ValueError(
                    f"params of agent {agent} must have the structure "
                    f"{jax.tree.structure(like)}; found {jax.tree.structure(found)}."
                )
            for (path, leaf), aval in zip(
                jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(like), strict=True
            ):
                if jnp.shape(leaf) != aval.shape:
                    raise ValueError(
                        f"params of agent {agent}{jax.tree_util.keystr(path)} must have shape "
                        f"{aval.shape}; found {jnp.shape(leaf)}."
                    )
                if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                    raise ValueError(
                        f"params of agent {agent}{jax.tree_util.keystr(path)} must be "
                        f"floating-point; found {jnp.result_type(leaf)}."
                    )

    def check_finite(self, params: tuple[Params, ...]) -> None:
        """Raises ValueError if a concrete parameter is infinite or NaN, naming its agent."""
        for agent, own in enumerate(params):
            for path, leaf in jax.tree_util.tree_leaves_with_path(own):
                if is_concrete(leaf) and not np.all(np.isfinite(leaf)):
                    raise ValueError(
                        f"params of agent {agent}{jax.tree_util.keystr(path)} must be finite; "
                        f"found {leaf}."
                    )

    def __repr__(self) -> str:
        agents: dict[str, list[str]] = {}
        for agent, learner in enumerate(self.learners):
            agents.setdefault(repr(learner), []).append(str(agent))
        lines = [f"  {', '.join(numbers)}: {learner}" for learner, numbers in agents.items()]
        return "\n".join([f"WrappedGame of {self.game!r} and the learners", *lines])
