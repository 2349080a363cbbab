"""The stationary law of a finite Markov chain, its derivative, and when it exists.

For a transition matrix P with one closed class, the stationary law is the unique nu with
`nu P = nu`, `sum nu = 1`. With `M = I - P + 1 u^T`, u uniform, `nu^T = u^T M^{-1}`; its derivative
along a direction dP with zero row sums is `nu dP M^{-1}` (Schweitzer 1968). Periodic chains and
chains with transient states are fine: only a second closed class makes M singular.
"""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .game import is_concrete, row_preserving
from .wrapped import WrappedGame

_ELIMINATION_LIMIT = 8
_SLOW_MIXING = 1e-3


@jax.custom_jvp
def stationary_law(chain: Float[Array, "S S"]) -> Float[Array, " S"]:
    """Stationary law of a transition matrix with one closed class.

    Small chains (up to 8 states) by the elimination of Grassmann, Taksar and Heyman (1985), which
    subtracts nothing and stays accurate on nearly reducible chains; larger ones by one LU
    factorisation. Either is differentiated by the same rule, valid along directions that keep the
    row sums.

    Args:
        chain: the transition matrix, `[S, S]`, rows summing to one.

    Returns:
        The stationary law, `[S]`.
    """
    if chain.shape[0] <= _ELIMINATION_LIMIT:
        return _eliminate(chain)
    uniform = jnp.full(chain.shape[0], 1 / chain.shape[0], dtype=chain.dtype)
    return jnp.linalg.solve(fundamental_inverse(chain).T, uniform)


@stationary_law.defjvp
def _stationary_law_jvp(primals, tangents):
    (chain,), (tangent,) = primals, tangents
    law = stationary_law(chain)
    return law, jnp.linalg.solve(fundamental_inverse(chain).T, law @ tangent)


def fundamental_inverse(chain: Float[Array, "S S"]) -> Float[Array, "S S"]:
    """The matrix `M = I - P + 1 u^T`, whose inverse gives everything of first and second order."""
    size = chain.shape[0]
    return jnp.eye(size, dtype=chain.dtype) - chain + 1 / size


def _eliminate(chain):
    """Grassmann-Taksar-Heyman elimination, in blocks that shrink.

    States are censored from the last to the first. A state that cannot reach any lower one closes
    a class: the largest such state carries the law, and the states below it are transient.
    """
    size = chain.shape[0]
    block, columns, closes = chain, [None] * size, [None] * size
    for k in range(size - 1, 0, -1):
        row, column = block[k, :k], block[:k, k]
        leave = row.sum()
        closes[k] = leave == 0
        columns[k] = column / jnp.where(closes[k], 1, leave)
        block = block[:k, :k] + columns[k][:, None] * row
    weights = jnp.ones(1, dtype=chain.dtype)
    for k in range(1, size):
        carried = jnp.where(closes[k], 1, weights @ columns[k])
        weights = jnp.append(jnp.where(closes[k], 0, weights), carried)
    return weights / weights.sum()


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
    check_ergodic(wrapped, params)
    return _stationary_distribution(wrapped, params)


@eqx.filter_jit
def _stationary_distribution(wrapped, params):
    return stationary_law(preserve_rows(wrapped).frozen_chain(params))


def preserve_rows(wrapped: WrappedGame) -> WrappedGame:
    """The wrapped game, differentiable by transition probabilities: see `game.row_preserving`."""
    return eqx.tree_at(lambda w: w.game, wrapped, row_preserving(wrapped.game))


_frozen_chain = eqx.filter_jit(WrappedGame.frozen_chain)


def check_ergodic(wrapped: WrappedGame, params) -> None:
    """Checks that the averaged dynamics exist at the given parameters.

    Policies must be continuous, and the frozen state chain must have one closed class and not be
    reducible to working precision. Only concrete values are checked, on the host.

    Raises:
        ValueError: otherwise, naming the agent or the closed classes.

    Warns:
        UserWarning: if some states are transient, or the chain mixes slowly.
    """
    for agent, learner in enumerate(wrapped.learners):
        if not learner.continuous:
            raise ValueError(
                f"agent {agent}: the policy of {learner!r} is not continuous in its parameters "
                "(argmax), so the averaged drift is discontinuous and the theorem behind the ODE "
                "does not hold; such learners can only be simulated."
            )
    if not all(is_concrete(leaf) for leaf in jax.tree.leaves((wrapped, params))):
        return
    wrapped.check_finite(params)
    chain = np.asarray(_frozen_chain(wrapped, params))
    names = wrapped.game.state_names
    closed, transient = closed_classes(chain)
    if len(closed) > 1:
        listed = "; ".join("{" + ", ".join(names[s] for s in c) + "}" for c in closed)
        raise ValueError(
            f"the state chain has {len(closed)} closed classes, {listed}: where it ends depends on "
            "where it starts, so there is no unique stationary distribution to average over."
        )
    condition = float(condition_number(chain))
    if is_reducible(condition, chain.dtype):
        raise ValueError(
            "the state chain is numerically reducible: the condition number of I - P + 1 u^T is "
            f"{condition:.1e}. Use a higher temperature or a positive epsilon."
        )
    if transient:
        warnings.warn(
            f"states {', '.join(names[s] for s in transient)} are transient: the averaged dynamics "
            "never visit them, so their entries keep their initial values.",
            stacklevel=3,
        )
    gap = spectral_gap(chain)
    if gap < _SLOW_MIXING:
        warnings.warn(
            f"the state chain is nearly reducible (spectral gap {gap:.1e}): it forgets its state "
            f"in about {1 / gap:.0e} steps, and the averaged ODE describes the learners only where "
            "their parameters change little in that time.",
            stacklevel=3,
        )


def closed_classes(chain: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Closed communicating classes of a transition matrix, and its transient states.

    Args:
        chain: the transition matrix, `[S, S]`, in NumPy.

    Returns:
        A list of closed classes (lists of states) and the list of transient states.
    """
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(chain > 0, directed=True, connection="strong")
    leaves = np.zeros(count, dtype=bool)
    source, target = np.nonzero(chain > 0)
    leaves[label[source[label[source] != label[target]]]] = True
    closed = [np.flatnonzero(label == c).tolist() for c in range(count) if not leaves[c]]
    return sorted(closed), np.flatnonzero(leaves[label]).tolist()


def condition_number(chain) -> float | Float[Array, ""]:
    """Condition number (maximum norm) of `I - P + 1 u^T`: huge for a nearly reducible chain."""
    backend = np if isinstance(chain, np.ndarray) else jnp
    size = chain.shape[0]
    matrix = backend.eye(size, dtype=chain.dtype) - chain + 1 / size
    try:
        inverse = backend.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.inf
    return abs(matrix).sum(axis=1).max() * abs(inverse).sum(axis=1).max()


def is_reducible(condition, dtype):
    """Whether a condition number leaves fewer than two digits of the stationary law."""
    return ~(condition * np.finfo(dtype).eps < 1e-2)


def spectral_gap(chain: np.ndarray) -> float:
    """Smallest `|1 - lambda|` over the eigenvalues of a transition matrix other than the simple 1.

    It is the rate at which time averages along the chain converge, also for periodic chains, where
    the second-largest modulus is 1.
    """
    size = chain.shape[0]
    return float(np.abs(np.linalg.eigvals(np.eye(size) - chain + 1 / size)).min())
