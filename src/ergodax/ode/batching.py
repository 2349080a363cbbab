"""Loops of many solves at once, as `jax.vmap` makes them.

Where solves differ in whether a loop goes on, vmap goes on until all are done, and after every
round puts back what the finished ones carry: all of it, a stored path too. Where they differ in a
branch, it takes both. A loop that asks `anywhere` is the same for all, and sees to finished ones
itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def anywhere(flag):
    """Whether something holds, and under vmap, whether it does in any of the batch."""
    return flag


@anywhere.def_vmap
def _anywhere_in_batch(size, batched, flag):
    return anywhere(jnp.any(flag, axis=0)), False


def select(flag, one: Any, other: Any) -> Any:
    """One of two pytrees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), one, other)
