"""Discounted values of policies, best responses to them, and what is lost by not giving them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from ..averaged.stationary import stationary_law
from ..base.checks import (
    check_array,
    check_choice,
    check_count,
    check_number,
    check_type,
    describe,
    is_concrete,
    is_within,
)
from ..base.devices import as_array
from ..model.chain import joint_policy, state_chain
from ..model.game import MarkovGame, check_agent
from .tables import check_policies, over_runs


class BestResponse(NamedTuple):
    """The best an agent can do against the others' policies.

    Attributes:
        strategy: an action that is best in each state, `[S]`.
        values: the discounted value of each state, `[S]`.
        action_values: that of each action followed by best ones, `[S, A_i]`.
    """

    strategy: Int[Array, "*R S"]
    values: Float[Array, "*R S"]
    action_values: Float[Array, "*R S A"]


def values(
    game: MarkovGame, policies: tuple, discount: Real[ArrayLike, "*n"] | Sequence[float]
) -> Float[Array, "*R S n"]:
    """The discounted value of every state to every agent, `V = (I - gamma P)^-1 r`.

    Differentiable by policies, discount and the game.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
        discount: gamma in [0, 1), one number or one per agent.

    Raises:
        ValueError: if policies do not fit the game or the discount is not in [0, 1).
    """
    worth = Partial(_values, game, *_check_discount(game, discount))
    return over_runs(worth, check_policies(game, policies), 2)


def action_values(
    game: MarkovGame, policies: tuple, discount: Real[ArrayLike, ""], agent: int
) -> Float[Array, "*R S A"]:
    """The value of each action of one agent, all agents following their policies afterwards.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
        discount: gamma of the agent, in [0, 1).
        agent: the agent.
    """
    agent = check_agent(game, agent)
    discounts, doublings = _check_discount(game, discount)
    worth = Partial(_once, game, agent, discounts[agent], doublings)
    return over_runs(worth, check_policies(game, policies), 2)


def best_response(
    game: MarkovGame, policies: tuple, discount: Real[ArrayLike, ""], agent: int
) -> BestResponse:
    """The best response of one agent to the others' policies, by policy iteration.

    Its values are differentiable by the others' policies, discount and game, the best strategy held
    fixed (the envelope theorem). Of equally good actions the first is named.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`; the agent's own is not read.
        discount: gamma of the agent, in [0, 1).
        agent: the agent.
    """
    agent = check_agent(game, agent)
    discounts, doublings = _check_discount(game, discount)
    best = Partial(_best, game, agent, discounts[agent], doublings)
    return over_runs(best, check_policies(game, policies), 2)


def exploitability(
    game: MarkovGame, policies: tuple, discount: Real[ArrayLike, "*n"] | Sequence[float]
) -> Float[Array, "*R S n"]:
    """What every agent would gain in each state by its best response to the others, at least 0.

    Zero for all agents in all states in a (Markov perfect) equilibrium.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
        discount: gamma in [0, 1), one number or one per agent.
    """
    gains = Partial(_gains, game, *_check_discount(game, discount))
    return over_runs(gains, check_policies(game, policies), 2)


def is_equilibrium(
    game: MarkovGame,
    policies: tuple,
    discount: Real[ArrayLike, "*n"] | Sequence[float],
    *,
    states: Bool[ArrayLike, "*R S"] | None = None,
    against: str = "best response",
    tolerance: float = 1e-6,
) -> Bool[Array, "*R"]:
    """Whether no agent could gain by playing otherwise; its mean over runs is the share that is so.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
        discount: gamma in [0, 1), one number or one per agent.
        states: where to look, `[S]` or `[R, S]`, such as `on_cycle` of `play`: an equilibrium on
            the path of play (Calvano, Calzolari, Denicolo and Pastorello 2020, section III). In
            all states by default: a Markov perfect equilibrium.
        against: "best response": by any other policy; "one deviation": by another action for one
            step, after which one returns to one's own policy.
        tolerance: gains up to this share of the agent's largest value are none.
    """
    given = _check_discount(game, discount)
    full = check_choice("against", against, _AGAINST) == "best response"
    tables = check_policies(game, policies)
    tolerance = check_number("tolerance", tolerance, "[0, 1)")
    shape = tables[0].shape[:-1]
    if states is not None:
        what = f"truth values {shape}, as on_cycle of play"
        check_type("states", states, (np.ndarray, jax.Array), what)
    looked = jnp.asarray(np.ones(shape, bool) if states is None else states)
    if looked.dtype != bool or looked.shape not in {(game.num_states,), shape}:
        raise ValueError(
            f"states must be truth values {shape}, as on_cycle of play; found {describe(states)}."
        )
    holds = Partial(_holds, game, *given, full, jnp.asarray(tolerance))
    return over_runs(holds, tables, 2, jnp.broadcast_to(looked, shape))


def q_loss(
    game: MarkovGame,
    policies: tuple,
    discount: Real[ArrayLike, "*n"] | Sequence[float],
    *,
    against: str = "best response",
) -> Float[Array, "*R S n"]:
    """The share of value that each agent forgoes in each state by playing as it does.

    `1 - Q(s, pi) / max_a Q(s, a)` (Calvano, Calzolari, Denicolo and Pastorello 2020, section III).
    Strategies are an equilibrium on the path of play where it is zero in the states of the cycle,
    and subgame perfect where it is zero in all states. For positive rewards.

    Args:
        game: the game.
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
        discount: gamma in [0, 1), one number or one per agent.
        against: "best response": Q is that of acting optimally ever after; "one deviation": that of
            returning to one's own policy after one step.
    """
    full = check_choice("against", against, _AGAINST) == "best response"
    losses = Partial(_losses, game, *_check_discount(game, discount), full)
    return over_runs(losses, check_policies(game, policies), 2)


def mean_rewards(game: MarkovGame, policies: tuple) -> Float[Array, "*R n"]:
    """Every agent's mean reward per step in the long run, under the stationary law.

    Args:
        game: the game; its states must have one closed class under the policies (strategies
            without exploration may have several: then use `play`).
        policies: one table `[S, A_i]` per agent, or `[R, S, A_i]`.
    """
    return over_runs(Partial(_mean_rewards, game), check_policies(game, policies), 2)


def cross_pair(policies: tuple, agent: int = 0, shift: int = 1) -> tuple:
    """Pairs agents that were trained apart: one from each run, the others from another run.

    Args:
        policies: tables with a leading axis of runs, policies or strategies.
        agent: the agent that stays in its own run.
        shift: run r meets the others of run r + shift, in a circle.

    Returns:
        Tables of the same shapes.

    Raises:
        ValueError: unless all tables have the same number of runs and the agent has one.
    """
    check_type("policies", policies, (tuple, list), "a tuple of tables, one per agent")
    tables = [jnp.asarray(check_array("policies", table)) for table in policies]
    if not tables or len({table.shape[:1] for table in tables}) > 1 or tables[0].ndim == 0:
        raise ValueError(
            "policies must be tables of every agent with a leading axis of runs; found "
            f"{', '.join(str(table.shape) for table in tables) or 'none'}."
        )
    if check_count("agent", agent, 0) >= len(tables):
        raise ValueError(f"agent must be 0 to {len(tables) - 1}; found {agent}.")
    if not isinstance(shift, int | np.integer) or isinstance(shift, bool):
        raise ValueError(f"shift must be a whole number; found {describe(shift)}.")
    return tuple(
        table if own == agent else jnp.roll(table, -shift, axis=0)
        for own, table in enumerate(tables)
    )


def _check_discount(game: MarkovGame, discount: Any) -> tuple[Array, Array]:
    """The discount of every agent, and after how many doublings of the horizon nothing is left."""
    check_type("game", game, MarkovGame, "a MarkovGame")
    found = check_array("discount", discount, "one number in [0, 1), or one per agent")
    if np.shape(found) not in ((), (game.num_agents,)):
        raise ValueError(
            f"discount must be one number or one for each of {game.num_agents} agents; found shape "
            f"{np.shape(found)}."
        )
    every = jnp.broadcast_to(jnp.asarray(found, dtype=float), (game.num_agents,))
    if not is_concrete(found):
        return every, as_array(_MOST_DOUBLINGS)
    if not is_within(found, "[0, 1)"):
        raise ValueError(f"discount must be in [0, 1); found {discount}.")
    largest = float(np.max(found))
    if largest == 0:
        return every, as_array(1)
    steps = math.log(float(jnp.finfo(every.dtype).eps) / 16) / math.log(largest)
    return every, as_array(min(max(math.ceil(math.log2(steps)), 1), _MOST_DOUBLINGS))


_MOST_DOUBLINGS = 30  # a horizon of 1e9 steps


def _discounted(chain, rewards, discount, doublings):
    """`sum_t discount^t chain^t rewards`, its number of terms doubled again and again.

    Products of positive terms alone: accurate to rounding relative to the largest, at any size of
    game, on any device.
    """
    dtype = jnp.result_type(chain, rewards, discount)
    chain, rewards, discount = (x.astype(dtype) for x in (chain, rewards, discount))

    def product(matrix, x):
        return jnp.matmul(matrix, x, precision="highest")

    def summed(chain, terms):
        def double(_, carry):
            total, power = carry
            return total + product(power, total), product(power, power)

        first = terms, discount * chain
        total, power = jax.lax.fori_loop(0, doublings - 1, double, first)
        return total + product(power, total)

    # Derivatives are sums of this kind too.
    return jax.lax.custom_linear_solve(
        lambda total: total - discount * product(chain, total),
        rewards,
        lambda _, terms: summed(chain, terms),
        lambda _, terms: summed(chain.T, terms),
    )


def _events(game, policies):
    """Probabilities of outcomes given the state, `[S, *A, K]`."""
    return joint_policy(policies)[..., None] * game.probabilities


def _chain(game, policies):
    return state_chain(game, _events(game, policies))


def _rewards(game, policies):
    events = _events(game, policies)
    axes = tuple(range(1, events.ndim))
    return jnp.sum(events[..., None] * game.rewards, axis=axes)


def _decision(game, policies, agent):
    """The agent's own problem: rewards `[S, A_i]` and kernel `[S, A_i, S]`, the others fixed."""
    free = tuple(jnp.ones_like(p) if j == agent else p for j, p in enumerate(policies))
    events = jnp.moveaxis(_events(game, free), 1 + agent, 1)
    successors = jnp.moveaxis(game.successors, 1 + agent, 1)
    paid = jnp.moveaxis(game.rewards[..., agent], 1 + agent, 1)
    axes = tuple(range(2, events.ndim))
    states, actions = events.shape[:2]
    index = jnp.indices((states, actions)).reshape(2, states, actions, *(1,) * len(axes))
    kernel = jnp.zeros((states, actions, states), events.dtype)
    return jnp.sum(events * paid, axis=axes), kernel.at[index[0], index[1], successors].add(events)


def _look_ahead(rewards, kernel, discount, worth):
    return rewards + discount * jnp.matmul(kernel, worth, precision="highest")


def _values(game, discounts, doublings, policies):
    chain, rewards = _chain(game, policies), _rewards(game, policies)
    return jax.vmap(
        lambda gamma, own: _discounted(chain, own, gamma, doublings), in_axes=(0, 1), out_axes=1
    )(discounts, rewards)


def _once(game, agent, discount, doublings, policies):
    """Values of an agent's actions `[S, A_i]`, all agents following their policies afterwards."""
    rewards, kernel = _decision(game, policies, agent)
    own = jnp.einsum("sa,sa->s", policies[agent], rewards)
    worth = _discounted(_chain(game, policies), own, discount, doublings)
    return _look_ahead(rewards, kernel, discount, worth)


def _best(game, agent, discount, doublings, policies) -> BestResponse:
    rewards, kernel = _decision(game, policies, agent)
    states = jnp.arange(game.num_states)

    def worth(strategy, rewards, kernel, discount):
        return _discounted(kernel[states, strategy], rewards[states, strategy], discount, doublings)

    fixed = jax.lax.stop_gradient((rewards, kernel, discount))

    def improve(carry):
        strategy, _, count = carry
        table = _look_ahead(*fixed, worth(strategy, *fixed))
        kept = table[states, strategy]
        # Only real gains count, or rounding would go around in circles.
        margin = 64 * jnp.finfo(table.dtype).eps * jnp.abs(table).max()
        better = jnp.where(table.max(axis=1) > kept + margin, table.argmax(axis=1), strategy)
        return better, jnp.any(better != strategy), count + 1

    first = jnp.argmax(fixed[0], axis=1)
    strategy, _, _ = jax.lax.while_loop(
        lambda carry: carry[1] & (carry[2] < _MOST_IMPROVEMENTS), improve, (first, True, 0)
    )
    found = worth(strategy, rewards, kernel, discount)
    return BestResponse(strategy, found, _look_ahead(rewards, kernel, discount, found))


def _gains(game, discounts, doublings, policies):
    best = [
        _best(game, agent, gamma, doublings, policies).values
        for agent, gamma in enumerate(discounts)
    ]
    return jnp.maximum(jnp.stack(best, axis=-1) - _values(game, discounts, doublings, policies), 0)


def _holds(game, discounts, doublings, full: bool, tolerance, policies, looked):
    worth, holds = _values(game, discounts, doublings, policies), []
    for agent, gamma in enumerate(discounts):
        own = worth[:, agent]
        if full:
            best = _best(game, agent, gamma, doublings, policies).values
        else:
            best = _look_ahead(*_decision(game, policies, agent), gamma, own).max(axis=-1)
        gains = jnp.where(looked, best - own, 0)
        holds.append(jnp.all(gains <= tolerance * jnp.abs(own).max()))
    return jnp.stack(holds).all()


def _losses(game, discounts, doublings, full: bool, policies):
    losses = []
    for agent, gamma in enumerate(discounts):
        given = game, agent, gamma, doublings, policies
        table = _best(*given).action_values if full else _once(*given)
        played = jnp.einsum("sa,sa->s", policies[agent], table)
        losses.append(1 - played / table.max(axis=-1))
    return jnp.stack(losses, axis=-1)


def _mean_rewards(game, policies):
    return stationary_law(_chain(game, policies)) @ _rewards(game, policies)


_MOST_IMPROVEMENTS = 1000
_AGAINST = ("best response", "one deviation")
