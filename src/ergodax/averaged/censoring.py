"""A Markov chain looked at in fewer and fewer of its states, and what follows for all of them.

Censored to the states 0..k, a chain is looked at only while it is in one of these. That it is taken
from k to `k - 1` is one step of an elimination which never subtracts, and so is accurate on nearly
reducible chains too (Grassmann, Taksar and Heyman 1985).

Everything here is plain array code without LAPACK: it batches well under `vmap`, and batched
factorisations of two systems at once can lock up the CPU's thread pool (seen with jaxlib 0.10.2).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW = 8


def censor(chain: Float[Array, "S S"]) -> "_Few | _Many":
    """Censors all states of a transition matrix but the first, from the last one on.

    The steps of few states are written out, for arrays that get shorter: that is quick to compile
    and to run. Those of many are loops.
    """
    return (_Few if len(chain) <= _FEW else _Many).of(chain)


class _Few(NamedTuple):
    """A censored chain: of every state k but the first, in the chain of states 0..k, j < k.

    Its steps are traced once for all programs that they are a part of.

    Attributes:
        rows: `P(k, j) / leave`, `[k]`.
        columns: `P(j, k) / leave`, `[k]`.
        leave: the probability to move from k to a lower state.
    """

    rows: Any
    columns: Any
    leave: Any

    @classmethod
    @functools.partial(jax.jit, static_argnums=0)
    def of(cls, chain):
        parts = []
        for k in range(len(chain) - 1, 0, -1):
            row, column = chain[k, :k], chain[:k, k]
            leave = jnp.sum(row)
            leaves = jnp.where(leave > 0, leave, 1)
            column = column / leaves
            chain = chain[:k, :k] + column[:, None] * row[None]
            parts.append((row / leaves, column, leave))
        return cls(*zip(*reversed(parts), strict=True)) if parts else cls((), (), ())

    @jax.jit
    def law(self):
        """The stationary law, up to a factor."""
        law = jnp.ones(1, self.leave[0].dtype)
        for column, leave in zip(self.columns, self.leave, strict=True):
            # A state that cannot leave downwards closes a class: all below it are transient.
            closes = leave == 0
            here = jnp.where(closes, 1, jnp.sum(law * column))
            law = jnp.append(jnp.where(closes, 0, law), here)
        return law

    def solve(self, b):
        """The x with `x (I - P) = b` for all states but the first, where it is 0.

        Args:
            b: right-hand side, `[S]`; or several as columns, `[S, R]`.
        """
        return self._eliminate(self.rows, self.columns, b)

    def solve_transposed(self, b):
        """The same for `(I - P) x = b`."""
        return self._eliminate(self.columns, self.rows, b)

    @jax.jit
    def _eliminate(self, down, up, b):
        sides = []
        for row in reversed(down):
            sides.append(b[-1:])
            b = b[:-1] + _column(row, b) * b[-1:]
        x = jnp.zeros_like(b)
        for column, leave, side in zip(up, self.leave, reversed(sides), strict=True):
            here = jnp.sum(x * _column(column, x), axis=0, keepdims=True) + side / leave
            x = jnp.append(x, here, axis=0)
        return x


class _Many(NamedTuple):
    """The same in arrays: row k is that of state k, zero from its k-th entry on; leave[0] is 0."""

    rows: Float[Array, "S S"]
    columns: Float[Array, "S S"]
    leave: Float[Array, " S"]

    @classmethod
    def of(cls, chain):
        states = jnp.arange(len(chain))

        def remove(i, censored):
            chain, leave = censored
            k = len(states) - 1 - i
            lower = states < k
            row = jnp.where(lower, chain[k], 0)
            total = row.sum()
            # By a vector: divided by a number, every entry of the matrix would be divided again.
            leaves = jnp.where(lower & (total > 0), total, 1)
            column = jnp.where(lower, chain[:, k], 0) / leaves
            # What is above the diagonal stays divided.
            here = lower[:, None] & (states == k)[None]
            chain = jnp.where(here, column[:, None], chain + column[:, None] * row[None])
            return chain, jnp.where(states == k, total, leave)

        start = chain, jnp.zeros_like(chain[0])
        chain, leave = jax.lax.fori_loop(0, len(chain) - 1, remove, start)
        rows = jnp.tril(chain, -1) / jnp.where(leave > 0, leave, 1)[:, None]
        return cls(rows, jnp.triu(chain, 1).T, leave)

    def law(self):
        """As of `_Few`."""
        states = jnp.arange(len(self.leave))

        def restore(k, law):
            closes = self.leave[k] == 0
            here = jnp.where(closes, 1, jnp.sum(law * self.columns[k]))
            return jnp.where(states == k, here, jnp.where(closes, 0, law))

        start = (states == 0).astype(self.leave.dtype)
        return jax.lax.fori_loop(1, len(states), restore, start)

    def solve(self, b):
        """As of `_Few`."""
        return self._eliminate(self.rows, self.columns, b)

    def solve_transposed(self, b):
        """As of `_Few`."""
        return self._eliminate(self.columns, self.rows, b)

    def _eliminate(self, down, up, b):
        def remove(i, b):
            k = len(b) - 1 - i
            return b + _column(down[k], b) * b[k][None]

        def restore(k, x):
            here = jnp.sum(x * _column(up[k], x), axis=0) + b[k] / self.leave[k]
            return jax.lax.dynamic_update_index_in_dim(x, here, k, 0)

        b = jax.lax.fori_loop(0, len(b) - 1, remove, b)
        return jax.lax.fori_loop(1, len(b), restore, jnp.zeros_like(b))


def _column(x, like):
    """A vector with as many axes as another array, `[S, 1...]`."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))
