"""The steps of an interval as one kernel of a GPU: no launch, no wait, no memory between the steps.

The code of a step is that of `step`, evaluated entry by entry (`entries`). A kernel works on some
runs from its first step to its last: their small tables stay in registers, large ones stay where
they are in the card's memory and are read and written there by index.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .entries import Refused, Table, by_entries, entries, is_value
from .lanes import is_large

# The kernel's name in compiled programs.
NAME = "ergodax_steps"
# Runs that a block of threads works on, at most, and threads of a warp. Every run has one thread,
# for only its own writes to memory is a thread sure to read.
_RUNS, _WARP = 128, 32
# Entries of a table that is kept in registers where it is used as a whole, at most.
_MOST_ENTRIES = 64
# Places in memory are counted by 32-bit integers.
_MOST_PLACES = 2**31


@dataclasses.dataclass(eq=False)
class _Leaf:
    """One array: of the shape of one run's, and how it lies.

    Attributes:
        shape: its shape in one run.
        dtype: its type.
        shared: whether all runs share it.
        in_memory: whether it stays in memory.
    """

    shape: tuple[int, ...]
    dtype: Any
    shared: bool
    in_memory: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def passed(self) -> bool:
        """Whether the kernel is given it."""
        return self.size > 0

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
        if leaf.in_memory and leaf.size * (1 if leaf.shared else runs) >= _MOST_PLACES:
            raise Refused("the tables of all runs have too many entries")
    while True:
        try:
            return _call(step, count, given, leaves, structure, kept, interpret)
        except Refused as refused:
            leaf = refused.table and refused.table.origin
            if leaf is None or not leaf.in_memory or leaf.size > _MOST_ENTRIES:
                raise
            leaf.in_memory = False


def _call(step, count, given, leaves: list[_Leaf], structure, kept: int, interpret: bool):
    # Here, for it takes long, and a processor needs none of it.
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    runs = given[-1].shape[0]
    block = min(_RUNS, runs & -runs)
    passed = [k for k, leaf in enumerate(leaves) if leaf.passed]
    returned = [k for k in passed if k >= kept]

    def body(count_ref, *refs):
        of_input = dict(zip(passed, refs[: len(passed)], strict=True))
        of_output = dict(zip(returned, refs[len(passed) :], strict=True))
        lane = pallas.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)

        def table(k):
            leaf, base = leaves[k], lane * leaves[k].size
            ref: Any = of_output.get(k, of_input.get(k))

            def load(place):
                if leaf.shared:
                    return ref[place] if np.ndim(place) == 0 else triton.load(ref.at[place])
                return triton.load(ref.at[base + place])

            return Table(leaf.shape, leaf.dtype, load, leaf)

        def in_registers(k):
            leaf = leaves[k]
            ref = of_input[k]
            values = [ref[j] if leaf.shared else ref[j, :] for j in range(leaf.size)]
            return entries(leaf.shape, values)

        fixed: list[Any] = [
            table(k) if leaf.in_memory or not leaf.passed else in_registers(k)
            for k, leaf in enumerate(leaves)
        ]

        def spread(value, dtype):
            return jnp.broadcast_to(jnp.asarray(value, dtype), (block,))

        def one(taken, state):
            values = list(fixed)
            for k, numbers in state.items():
                values[k] = entries(leaves[k].shape, numbers)
            after = by_entries(step, entries((), [taken]), *structure.unflatten(values))
            found = jax.tree.leaves(after, is_leaf=is_value)
            results: dict[int, Any] = dict(enumerate(found, kept))
            for k in returned:
                if leaves[k].in_memory:
                    for place, value, inside in results[k].writes:
                        place = leaves[k].size * lane + place
                        mask = None if inside is True else spread(inside, bool)
                        value = spread(value, leaves[k].dtype)
                        triton.store(of_output[k].at[place], value, mask=mask)
            return {k: [spread(v, leaves[k].dtype) for v in results[k].ravel()] for k in state}

        state = {k: list(fixed[k].ravel()) for k in returned if not leaves[k].in_memory}
        state = jax.lax.fori_loop(0, count_ref[0], one, state)
        for k, numbers in state.items():
            for j, value in enumerate(numbers):
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
