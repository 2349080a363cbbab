"""The stationary law of a finite Markov chain, its derivative, and when it exists.

A transition matrix P with one closed class has a unique law nu with `nu P = nu`, `sum nu = 1`.
Along a direction dP with zero row sums it changes by the solution of `x (I - P) = nu dP`,
`sum x = 0`. Both come from one elimination of states (`censoring`). Periodic chains and transient
states are fine; only a second closed class is not.
"""

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..base.checks import is_concrete
from ..base.compiling import lightly_compiled, precise, quickly_compiled
from ..model.game import row_preserving
from ..model.learner import At
from ..model.validity import check_probabilities
from ..model.wrapped import WrappedGame, admit
from .censoring import censor

# Mixing times that are long; and, in units of the inverse working precision, hopelessly so.
_SLOW_MIXING, _REDUCIBLE = 1e3, 1e-2


@jax.custom_jvp
def stationary_law(chain: Float[Array, "S S"]) -> Float[Array, " S"]:
    """Stationary law of a transition matrix with one closed class.

    Its derivatives are defined along directions that keep the row sums.

    Args:
        chain: the transition matrix, `[S, S]`, rows summing to one.

    Returns:
        The stationary law, `[S]`, exactly zero at transient states.
    """
    if len(chain) == 1:  # a law that JAX sees depend on the chain, as its derivative does
        return chain[0] / chain[0].sum()
    law = censor(chain).law()
    return law / law.sum()


@stationary_law.defjvp
@precise
def _stationary_law_jvp(primals, tangents):
    (chain,), (tangent,) = primals, tangents
    law = stationary_law(chain)
    return law, poisson_solver(chain, law)(jnp.dot(law, tangent))


def poisson_solver(
    chain: Float[Array, "S S"], law: Float[Array, " S"]
) -> Callable[[Float[Array, " S"]], Float[Array, " S"]]:
    """Solver of `x (I - P) = b`, `sum x = 0`, for right-hand sides with `sum b = 0`.

    Args:
        chain: the transition matrix P, `[S, S]`, with one closed class.
        law: its stationary law, `[S]`.

    Returns:
        A linear function from b to x, both `[S]`; the chain is factorised once.
    """
    fixed, law = jax.lax.stop_gradient((chain, law))
    order = _order(law)
    censored = censor(_reordered(fixed, order, axes=(0, 1)))

    def product(x):
        return x - jnp.dot(x, chain)

    def solve(_, b):
        x = _reordered(censored.solve(_reordered(b, order)), order)
        return x - law * x.sum()

    def transposed(_, y):
        y = _reordered(y - jnp.sum(law * y), order)
        return _reordered(censored.solve_transposed(y), order)

    # Derivatives of all orders solve again, for derivatives of the product with the live chain.
    return lambda b: jax.lax.custom_linear_solve(product, b, solve, transposed)


def _order(law):
    """States, the most visited one first: the one that is not censored must be recurrent."""
    states, first = jnp.arange(len(law)), jnp.argmax(law)
    return jnp.where(states == 0, first, jnp.where(states == first, 0, states))


def _reordered(x, order, axes=(0,)):
    for axis in axes:
        x = jnp.take(x, order, axis=axis, mode="clip")  # no number is negative
    return x


@jax.custom_jvp
def deviation_matrix(
    chain: Float[Array, "S S"],
) -> tuple[Float[Array, " S"], Float[Array, "S S"]]:
    """Stationary law nu and deviation matrix `D = sum over k of (P^k - 1 nu^T)`.

    D solves Poisson's equation: `v = D h` has `v - P v = h - 1 (nu . h)` and `nu . v = 0`. For a
    periodic chain the sum is that of the means over k. Along a direction dP with zero row sums,
    `dnu = nu dP D` and `dD = D dP D - 1 nu dP D D`.

    Args:
        chain: the transition matrix P, `[S, S]`, with one closed class.
    """
    law = stationary_law(chain)
    return law, _deviations(chain, law)


@deviation_matrix.defjvp
@precise
def _deviation_matrix_jvp(primals, tangents):
    (chain,), (tangent,) = primals, tangents
    law, deviation = deviation_matrix(chain)
    moved = tangent @ deviation
    return (law, deviation), (law @ moved, deviation @ moved - (law @ moved @ deviation)[None])


def _deviations(chain, law):
    order = _order(law)
    censored = censor(_reordered(chain, order, axes=(0, 1)))
    sides = jnp.eye(len(law), dtype=law.dtype) - law[:, None]
    x = _reordered(censored.solve(_reordered(sides, order)), order)
    return (x - law[:, None] * x.sum(axis=0, keepdims=True)).T


def mixing_time(chain: Float[Array, "S S"], law: Float[Array, " S"]) -> Float[Array, ""]:
    """How many steps a chain takes to forget its state.

    The largest row sum of `|D|`, D the deviation matrix. At least `1 / |1 - lambda|` for every
    eigenvalue lambda of P but the simple 1. Infinite where the chain is reducible.

    Args:
        chain: the transition matrix P, `[S, S]`; nothing is differentiated by it.
        law: its stationary law, `[S]`.
    """
    deviations = _deviations(*jax.lax.stop_gradient((chain, law)))
    return jnp.abs(deviations).sum(axis=1).max()


def is_reducible(mixing: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a mixing time is so long that working precision is used up to two digits.

    That is about 5e13 steps in float64 and 8e4 in float32. The law itself may be accurate still,
    but a rounding error in the chain, or a small derivative, is magnified by that much.
    """
    return ~(mixing * jnp.finfo(mixing.dtype).eps < _REDUCIBLE)


def mixing_time_on_host(chain: Float[np.ndarray, "S S"]) -> float:
    """`mixing_time` by LAPACK: nothing to compile, but the longer it is, the less exact.

    With `Z = (I - P + 1 u^T)^-1`, u the uniform law, `nu = u Z` and `D = Z - 1 nu^T Z`. It loses as
    many digits as the mixing time has, so that a reducible chain's is very long, or infinite.
    """
    matrix = -chain.astype(float)
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, -matrix.sum(axis=1))  # the probability to leave, not 1 - P(s, s)
    try:
        inverse = np.linalg.inv(matrix + 1 / len(chain))
    except np.linalg.LinAlgError:
        return np.inf
    inverse -= inverse.mean(axis=0) @ inverse
    return float(np.abs(inverse).sum(axis=1).max())


def stationary_distribution(wrapped: WrappedGame, params) -> Float[Array, " S"]:
    """Stationary distribution of the states when all agents' parameters are frozen.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents, as `wrapped.init()` returns them.

    Returns:
        nu, `[S]`. Transient states have probability zero. Differentiable by the parameters, the
        learners' hyper-parameters and, along directions that keep the row sums, by the
        transition probabilities.

    Raises:
        ValueError: if the chain has several closed classes or is numerically reducible, or a policy
            is not continuous; where values are concrete.
    """
    wrapped, params = check_ergodic(wrapped, params)
    return _stationary_distribution(wrapped, params)


@lightly_compiled
def _stationary_distribution(wrapped, params):
    return stationary_law(preserve_rows(wrapped).frozen_chain(params))


def preserve_rows(wrapped: WrappedGame) -> WrappedGame:
    """The wrapped game, differentiable by transition probabilities: see `game.row_preserving`."""
    return eqx.tree_at(lambda w: w.game, wrapped, row_preserving(wrapped.game))


@quickly_compiled
def _look(wrapped, params):
    """What `check_ergodic` checks: policies, state chain, which events are learnt outside tables.

    The latter in the order of `wrapped.transitions`, per agent.
    """
    policies = wrapped.policies(params)
    chain = wrapped.state_chain(wrapped.event_probabilities(wrapped.joint_policy(policies)))
    outside = []
    for agent, own in enumerate(params):
        bad = jnp.zeros(wrapped.transitions(agent).state.shape, bool)
        increments = jax.tree.structure(own).flatten_up_to(wrapped.increments(agent, own))
        for table, increment in zip(jax.tree.leaves(own), increments, strict=True):
            if isinstance(increment, At):
                for index, size in zip(increment.index, table.shape, strict=False):
                    bad |= (index < 0) | (index >= size)
        outside.append(bad)
    return policies, chain, outside


def check_ergodic(
    wrapped: WrappedGame, params: Any, name: str = "params"
) -> tuple[WrappedGame, tuple]:
    """Checks that the averaged dynamics exist at the given parameters.

    Policies must be continuous and probabilities, increments must lie in their tables, and the
    frozen state chain must have one closed class and not be reducible to working precision. Only
    concrete values are checked, on the host.

    Args:
        wrapped: a game and its learners.
        params: parameters of all agents.
        name: what these are called, for messages.

    Returns:
        Both in JAX's precision, as `admit` returns them.

    Raises:
        ValueError: otherwise, naming the agent or the closed classes; as `admit`.

    Warns:
        UserWarning: if some states are transient, or the chain mixes slowly.
    """
    wrapped, params = admit(wrapped, params, name)
    for agent, learner in enumerate(wrapped.learners):
        if not learner.continuous:
            raise ValueError(
                f"agent {agent}: the policy of {type(learner).__name__} is not continuous in its "
                "parameters (argmax), or its update, so the averaged drift is discontinuous and "
                "the theorem behind the ODE does not hold; such learners can only be simulated."
            )
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((wrapped, params))):
        return wrapped, params
    found = _look(wrapped, params)
    if not is_concrete(found[1]):  # under an outer trace that closes over concrete values
        return wrapped, params
    # On the host from here on: every other operation would be a program to compile.
    policies, chain, outside = jax.device_get(found)
    names, shape = wrapped.game.state_names, wrapped.game.successors.shape
    for agent, learner in enumerate(wrapped.learners):
        who = f"agent {agent}: {type(learner).__name__}"
        table = policies[agent]
        fits = (table.min(axis=1) >= 0) & (np.abs(table.sum(axis=1) - 1) < 1e-5)
        for state in np.flatnonzero(~fits):
            check_probabilities(f"{who}.policy in state {state} ({names[state]})", table[state])
        for state, *actions, _, _ in np.argwhere(outside[agent].reshape(*shape, -1))[:1].tolist():
            raise ValueError(
                f"{who}.update returns an At outside its table in state {state} ({names[state]}), "
                f"joint action {tuple(actions)}."
            )
    closed, transient = closed_classes(chain)
    if len(closed) > 1:
        listed = "; ".join("{" + ", ".join(names[s] for s in c) + "}" for c in closed)
        raise ValueError(
            f"the state chain has {len(closed)} closed classes, {listed}: where it ends depends on "
            "where it starts, so there is no unique stationary distribution to average over."
        )
    mixing, longest = mixing_time_on_host(chain), _REDUCIBLE / np.finfo(chain.dtype).eps
    if not mixing < longest:
        raise ValueError(
            "the state chain is numerically reducible: it forgets its state in more than "
            f"{longest:.0e} steps. Use a higher temperature or a positive epsilon."
        )
    if transient:
        warnings.warn(
            f"states {', '.join(names[s] for s in transient)} are transient: the averaged dynamics "
            "never visit them, so that what is learnt only there keeps its initial value.",
            stacklevel=3,
        )
    if mixing > _SLOW_MIXING:
        warnings.warn(
            f"the state chain is nearly reducible: it forgets its state in about {mixing:.0e} "
            "steps, and the averaged ODE describes the learners only where their parameters "
            "change little in that time.",
            stacklevel=3,
        )
    return wrapped, params


def closed_classes(chain: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Closed communicating classes of a transition matrix, and its transient states.

    Args:
        chain: the transition matrix, `[S, S]`, in NumPy.

    Returns:
        A list of closed classes (lists of states) and the list of transient states.
    """
    leads, closed, left = chain > 0, [], np.ones(len(chain), bool)
    while left.any():
        state = np.argmax(left)
        while True:  # onward, until all that follows leads back
            after, before = _reached(leads, state), _reached(leads.T, state)
            onward = after & ~before
            if not onward.any():
                break
            state = np.argmax(onward)
        closed.append(np.flatnonzero(after).tolist())
        left &= ~before
    transient = np.setdiff1d(np.arange(len(chain)), np.concatenate(closed))
    return sorted(closed), transient.tolist()


def _reached(leads: np.ndarray, state: Any) -> np.ndarray:
    """Which states are reached from one, itself included."""
    reached = np.zeros(len(leads), bool)
    new = np.arange(len(leads)) == state
    while new.any():
        reached |= new
        new = leads[new].any(axis=0) & ~reached
    return reached
