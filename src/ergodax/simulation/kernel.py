"""The steps of an interval as one kernel of a GPU: no launch, no wait, no memory between the steps.

The code of a step is that of `step`, evaluated entry by entry (`entries`). A kernel works on some
runs from its first step to its last: their small tables stay in registers, large ones stay where
they are in the card's memory and are read and written there by index.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .entries import by_entries, entries, is_value
from .lanes import MOST_PLACES, is_large
from .tables import Refused, Table

# The kernel's name in compiled programs.
NAME = "ergodax_steps"
# Runs that a block of threads works on, at most, and threads of a warp. Every run has one thread,
# for only its own writes to memory is a thread sure to read.
_RUNS, _WARP = 128, 32
# Entries of a table that is kept in registers where it is used as a whole, at most.
_MOST_ENTRIES = 64


@dataclasses.dataclass(eq=False)
class _Leaf:
    """One array: of the shape of one run's, and how it lies.

    Attributes:
        shape: its shape in one run.
        dtype: its type.
        shared: whether all runs share it.
        in_memory: whether it stays in memory.
        rows: how many rows of it a step reads in memory, at different indices.
        keeps: whether the row read last is kept for the next step.
    """

    shape: tuple[int, ...]
    dtype: Any
    shared: bool
    in_memory: bool
    rows: int = 0
    keeps: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def packed(self, array):
        """As the kernel takes it: all in one row in memory, or runs last."""
        if self.shared or self.in_memory:
            return array.reshape(-1)
        return jnp.moveaxis(array.reshape(len(array), -1), 0, -1)

    def unpacked(self, array, runs: int):
        """What `packed` was given."""
        if not self.in_memory:
            array = jnp.moveaxis(array, -1, 0)
        return array.reshape(runs, *self.shape)


def take_steps(
    step: Callable, count: Any, shared: Any, own: Any, run: Any, *, interpret: bool = False
) -> Any:
    """Takes steps of many runs in one kernel.

    Args:
        step: a pure function of (number of steps already taken, shared, own, run) of one run that
            returns the run after one step more. It closes over no arrays.
        count: how many steps, an integer known when the kernel runs.
        shared: a pytree of arrays that all runs share.
        own: a pytree of what every run has for itself, with leading axes of runs.
        run: the runs, likewise.
        interpret: whether Pallas interprets the kernel, on any device.

    Returns:
        The runs afterwards.

    Raises:
        Refused: if there is no such kernel; it says why.
    """
    given, structure = jax.tree.flatten((shared, own, run))
    first = len(jax.tree.leaves(shared))
    kept = len(given) - len(jax.tree.leaves(run))
    leaves = [_Leaf(a.shape[k >= first :], a.dtype, k < first, False) for k, a in enumerate(given)]
    runs = given[-1].shape[0]
    if runs % _WARP:
        raise Refused(f"the number of runs is no multiple of {_WARP}")
    for leaf in leaves:
        if leaf.dtype == bool:
            raise Refused("there is an array of bools")
        leaf.in_memory = leaf.size > 1 if leaf.shared else is_large(leaf.shape)
        if leaf.in_memory and leaf.size * (1 if leaf.shared else runs) >= MOST_PLACES:
            raise Refused("the tables of all runs have too many entries")
    call = functools.partial(_call, step, count, given, leaves, structure, kept, interpret)
    while True:
        try:
            jax.eval_shape(call)
            break
        except Refused as refused:
            leaf = refused.table and refused.table.origin
            if leaf is None or not leaf.in_memory or leaf.size > _MOST_ENTRIES:
                raise
            leaf.in_memory = False
    for leaf in leaves[kept:]:
        # The next state's is the next step's first.
        leaf.keeps = leaf.in_memory and leaf.rows > 1
    return call()


def _call(step, count, given, leaves: list[_Leaf], structure, kept: int, interpret: bool):
    # Here, for it takes long, and a processor needs none of it.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    runs = given[-1].shape[0]
    block = min(_RUNS, runs & -runs)
    passed = [k for k, leaf in enumerate(leaves) if leaf.size]
    returned = [k for k in passed if k >= kept]

    def body(count_ref, *refs):
        of_input = dict(zip(passed, refs[: len(passed)], strict=True))
        of_output = dict(zip(returned, refs[len(passed) :], strict=True))
        lane = pallas.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)

        def table(k, row):
            leaf, base = leaves[k], lane * leaves[k].size
            ref: Any = of_output.get(k, of_input.get(k))

            def load(place, missing=None, known=None):
                if leaf.shared:
                    return ref[place] if np.ndim(place) == 0 else triton.load(ref.at[place])
                return triton.load(ref.at[base + place], mask=missing, other=known)

            return Table(leaf.shape, leaf.dtype, load, leaf, row and (row[0], row[1:]))

        def in_registers(k):
            leaf = leaves[k]
            ref = of_input[k]
            values = [ref[j] if leaf.shared else ref[j, :] for j in range(leaf.size)]
            return entries(leaf.shape, values)

        numbers = {
            k: in_registers(k) for k, leaf in enumerate(leaves) if leaf.size and not leaf.in_memory
        }

        def spread(value, dtype):
            return jnp.broadcast_to(jnp.asarray(value, dtype), (block,))

        def one(taken, state_and_rows):
            state, rows = state_and_rows
            now = numbers | {k: entries(leaves[k].shape, state[k]) for k in state}
            values = [now[k] if k in now else table(k, rows.get(k)) for k in range(len(leaves))]
            after = by_entries(step, entries((), [taken]), *structure.unflatten(values))
            found = jax.tree.leaves(after, is_leaf=is_value)
            results: dict[int, Any] = dict(enumerate(found, kept))
            for k in returned:
                if leaves[k].in_memory:
                    if getattr(results[k], "origin", None) is not leaves[k]:
                        raise Refused("a table in memory is replaced by another one")
                    leaves[k].rows = len(results[k].rows)
                    for place, value, inside in results[k].writes:
                        place = leaves[k].size * lane + place
                        mask = None if inside is True else spread(inside, bool)
                        value = spread(value, leaves[k].dtype)
                        triton.store(of_output[k].at[place], value, mask=mask)
            state = {k: [spread(v, leaves[k].dtype) for v in results[k].ravel()] for k in state}
            return state, {k: last_row(results[k]) for k in rows}

        def last_row(table):
            place, values, _ = list(table.rows.values())[-1]
            values = (table.changed(place + np.int32(j), v) for j, v in enumerate(values))
            return [spread(place, np.int32), *(spread(v, table.dtype) for v in values)]

        def no_row(leaf):
            return [spread(-1, np.int32)] + [spread(0, leaf.dtype)] * leaf.shape[-1]

        state = {k: list(numbers[k].ravel()) for k in returned if not leaves[k].in_memory}
        rows = {k: no_row(leaves[k]) for k in returned if leaves[k].keeps}
        state, _ = jax.lax.fori_loop(0, count_ref[0], one, (state, rows))
        for k, values in state.items():
            for j, value in enumerate(values):
                of_output[k][j, :] = value

    def spec(k):
        leaf = leaves[k]
        if leaf.shared or leaf.in_memory:
            return pallas.BlockSpec(memory_space=pallas.ANY)
        return pallas.BlockSpec((leaf.size, block), lambda i: (0, i))

    packed = [leaves[k].packed(given[k]) for k in passed]
    inputs = [jnp.asarray(count, jnp.int32).reshape(1), *packed]
    results = pallas.pallas_call(
        body,
        out_shape=[
            jax.ShapeDtypeStruct(packed[passed.index(k)].shape, leaves[k].dtype) for k in returned
        ],
        grid=(runs // block,),
        in_specs=[pallas.BlockSpec(memory_space=pallas.ANY), *map(spec, passed)],
        out_specs=[spec(k) for k in returned],
        name=NAME,
        input_output_aliases={1 + passed.index(k): j for j, k in enumerate(returned)},
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=block // _WARP, num_stages=1),
    )(*inputs)
    found = dict(zip(returned, results, strict=True))
    after = [
        leaves[k].unpacked(found[k], runs) if k in found else given[k]
        for k in range(kept, len(leaves))
    ]
    inner = jax.tree.structure(structure.unflatten(given)[2])
    return inner.unflatten(after)
