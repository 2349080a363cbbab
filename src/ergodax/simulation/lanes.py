"""Batches the code of one run over lanes, so that a processor's vector unit does the work.

`jax.vmap` would turn the reading of `table[state, action]` in every run into a gather, which a CPU
does number by number. Here the lanes stand on the last axis, and a small table is read by
selections over all its entries. Of a large table, whose lanes stand on the first axis, one row per
lane is gathered. The code of the run is not touched: it is traced once, and its operations are done
again for all lanes together. Operations not named here are left to `jax.vmap`.

XLA fuses chains of such operations, computing anew in every fusion what several of them use. The
code of the run says `reused` where a value is worth keeping.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from .primitives import ALONG_OTHER_AXES, CALLS, ELEMENTWISE, FOLDS, READS, SCATTERS

# A table of more entries than this is large.
_MOST_SELECTIONS = 16
# Rows of at most so many entries are worked on entry by entry for a GPU.
_MOST_ENTRIES = 32
# A product of tensors of so many terms is summed term by term, in the same order in any batch.
_MOST_TERMS = 1024
# Places in a table are counted by 32-bit integers.
MOST_PLACES = 2**31


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axis"])
@dataclasses.dataclass(frozen=True, slots=True)
class Lanes:
    """One array of every run.

    Attributes:
        array: the arrays of all runs.
        axis: the axis of the runs: last, or first if the array is large; None if all runs share one
            array.
    """

    array: Any
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one run's array."""
        shape = jnp.shape(self.array)
        return {None: shape, 0: shape[1:], -1: shape[:-1]}[self.axis]


def reused(tree: Any) -> Any:
    """Marks values that several later operations use and that are worth computing only once."""
    return jax.lax.optimization_barrier(tree)


def is_large(shape: Sequence[int]) -> bool:
    """Whether a table is too large to be read or written by selections over all its entries."""
    return math.prod(shape) > _MOST_SELECTIONS


def to_lanes(tree: Any) -> Any:
    """Arrays with a leading axis of runs as `Lanes`."""
    return jax.tree.map(lambda array: _stand(Lanes(array, 0)), tree)


def from_lanes(tree: Any) -> Any:
    """`Lanes`, not all of them shared, as arrays with a leading axis of runs."""
    values, structure = jax.tree.flatten(tree, is_leaf=_is_lanes)
    own = [_spread(v, _count(values)) if v.axis is None else v for v in values]
    return structure.unflatten(_move(value, 0).array for value in own)


def choose(which: Any, chosen: Any, others: Any) -> Any:
    """Pytrees of `Lanes`: the first where a lane is chosen, `[R]`, the second elsewhere."""

    def of_lanes(a, b):
        axes = (1,) * (a.array.ndim - 1)
        mask = which.reshape(-1, *axes) if a.axis == 0 else which
        return Lanes(jnp.where(mask, a.array, b.array), a.axis)

    return jax.tree.map(of_lanes, chosen, others, is_leaf=_is_lanes)


class _Manner(NamedTuple):
    """How operations are done; see `over_lanes` and `in_loop`."""

    ordered: bool
    in_entries: bool


def over_lanes(
    function: Callable[..., Any],
    *arguments: Any,
    ordered: bool = False,
    like: Any = None,
) -> Any:
    """Calls `function`, written for one run, for every lane.

    What depends only on what all lanes share is computed once for all.

    Args:
        function: a pure function of pytrees of arrays. What it closes over is shared by all lanes.
        arguments: pytrees of `Lanes`.
        ordered: whether terms are added in the same order whatever the number of lanes; slower.
        like: a pytree of `Lanes` like the result: which of it all lanes share. Nothing by default.

    Returns:
        What `function` returns, as `Lanes`.
    """
    how = _Manner(ordered, False)
    return _prepared(lambda _, *given: function(*given), (), arguments, how, like)(*arguments)


def in_loop(function: Callable[..., Any], shared: Any, *arguments: Any) -> Callable[..., Any]:
    """`over_lanes` for a loop on a GPU, so that its compiler makes few kernels.

    Rows are worked on entry by entry, and those of large tables found in all tables at once.
    Numbers that all steps share are computed now: each would be a kernel, launched at every step.

    Args:
        function: a pure function of `shared` and of pytrees of arrays.
        shared: a pytree of arrays, the same in all steps and lanes.
        arguments: pytrees of `Lanes`, of which only the forms are used.

    Returns:
        A function of such arguments.
    """
    return _prepared(function, shared, arguments, _Manner(False, True))


def _prepared(function, shared, arguments, how: _Manner, form: Any = None) -> Callable[..., Any]:
    """The function over lanes, with those of its numbers that need only what all lanes share."""
    fixed, of_fixed = jax.tree.flatten(shared)
    like, structure = jax.tree.flatten(arguments, is_leaf=_is_lanes)
    single = [jax.ShapeDtypeStruct(v.shape, v.array.dtype) for v in like]

    def of_leaves(fixed, single):
        return function(of_fixed.unflatten(fixed), *structure.unflatten(single))

    program, out = jax.make_jaxpr(of_leaves, return_shape=True)(fixed, single)
    jaxpr, count = program.jaxpr, len(fixed)
    known = dict(zip(jaxpr.constvars, (Lanes(c, None) for c in program.consts), strict=True))
    numbers = set(jaxpr.invars[:count])
    known |= {v: Lanes(array, None) for v, array in zip(jaxpr.invars, fixed, strict=False)}
    equations = []
    for equation in jaxpr.eqns:
        given = [v for v in equation.invars if not isinstance(v, Literal)]
        if given and numbers.issuperset(given) and equation.outvars[0].aval.shape == ():
            _carry_out([equation], known, how)
            numbers.update(equation.outvars)
        else:
            equations.append(equation)

    def call(*arguments):
        values = jax.tree.leaves(arguments, is_leaf=_is_lanes)
        now = known | dict(zip(jaxpr.invars[count:], values, strict=True))
        _carry_out(equations, now, how)
        results = [_value(now, variable) for variable in jaxpr.outvars]
        width, result = _count(values), jax.tree.structure(out)
        forms = [None] * len(results) if form is None else result.flatten_up_to(form)
        for k, (value, one) in enumerate(zip(results, forms, strict=True)):
            if one is None or one.axis is not None:
                results[k] = _stand(value if value.axis is not None else _spread(value, width))
        return jax.tree.unflatten(result, results)

    return call


def _is_lanes(leaf) -> bool:
    return isinstance(leaf, Lanes)


def _count(values: list[Lanes]) -> int:
    """The number of lanes."""
    return next(value.array.shape[value.axis] for value in values if value.axis is not None)


def _stand(value: Lanes) -> Lanes:
    return _move(value, 0 if is_large(value.shape) else -1)


def _move(value: Lanes, axis: int) -> Lanes:
    if value.axis == axis:
        return value
    source: Any = value.axis
    return Lanes(jnp.moveaxis(value.array, source, axis), axis)


def _spread(value: Lanes, count: int, shape: tuple[int, ...] | None = None) -> Lanes:
    """With all lanes on the last axis, broadcast to `shape` in one run."""
    shape = value.shape if shape is None else shape
    array = jnp.asarray(value.array)[..., None] if value.axis is None else _move(value, -1).array
    array = array.reshape((1,) * (len(shape) - len(value.shape)) + array.shape)
    return Lanes(jnp.broadcast_to(array, (*shape, count)), -1)


def _evaluate(jaxpr, constants: list[Lanes], arguments: list[Lanes], how: _Manner) -> list[Lanes]:
    known = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))
    _carry_out(jaxpr.eqns, known, how)
    return [_value(known, variable) for variable in jaxpr.outvars]


def _carry_out(equations, known: dict, how: _Manner) -> None:
    for equation in equations:
        inputs = [_value(known, variable) for variable in equation.invars]
        known.update(zip(equation.outvars, _apply(equation, inputs, how), strict=True))


def _value(known, variable) -> Lanes:
    return Lanes(variable.val, None) if isinstance(variable, Literal) else known[variable]


def _apply(equation, inputs: list[Lanes], how: _Manner) -> list[Lanes]:
    """One operation, for all lanes unless they share all its inputs."""
    primitive, params, name = equation.primitive, equation.params, equation.primitive.name
    if name in CALLS:
        inner = params[CALLS[name]]
        constants = [Lanes(constant, None) for constant in getattr(inner, "consts", ())]
        return _evaluate(getattr(inner, "jaxpr", inner), constants, inputs, how)

    bind = functools.partial(_bind, primitive, params)
    batched = [value for value in inputs if value.axis is not None]
    if not batched:
        return [Lanes(result, None) for result in bind(*(value.array for value in inputs))]
    if name == "optimization_barrier":
        return [value if value.axis is None else _keep(value) for value in inputs]

    count = batched[0].array.shape[batched[0].axis]
    first = inputs[0]
    if name in READS and first.axis != 0 and _reads_few(name, inputs, params):
        return [_spread(_read(name, inputs, params), count)]
    if how.in_entries and first.axis == 0:
        found = _at_row(name, inputs, params, count)
        if found is not None:
            return [found]
    if name in SCATTERS or name in READS:
        return _vmapped(bind, inputs, first.axis if name in SCATTERS else -1)

    # All that is left is done with the lanes last.
    inputs = [value if value.axis is None else _move(value, -1) for value in inputs]
    array = inputs[0].array
    shape = jnp.broadcast_shapes(*(v.shape for v in inputs)) if name in ELEMENTWISE else first.shape
    few = how.in_entries and len(shape) == 1 and 1 < shape[0] <= _MOST_ENTRIES
    if few and name in ELEMENTWISE:
        whole = [_spread(value, count, shape).array for value in inputs]
        rows = [bind(*(array[k : k + 1] for array in whole)) for k in range(shape[0])]
        results = [jnp.concatenate(column) for column in zip(*rows, strict=True)]
    elif few and name in FOLDS:
        results = [functools.reduce(FOLDS[name], array)]
    elif name in ELEMENTWISE:
        results = bind(*(_spread(value, count, shape).array for value in inputs))
    elif how.ordered and name == "reduce_sum" and jnp.issubdtype(array.dtype, jnp.floating):
        results = [_sum(array, params["axes"])]
    elif name in ALONG_OTHER_AXES and not params.get("reverse"):
        results = bind(array)
    elif how.ordered and name == "dot_general" and _terms(inputs, params) <= _MOST_TERMS:
        results = [_dot(inputs, params, count)]
    elif name == "concatenate":
        results = bind(*(_spread(value, count).array for value in inputs))
    elif name == "broadcast_in_dim" and len(inputs) == 1:
        shape = params["shape"]
        axes = (*params["broadcast_dimensions"], len(shape))
        results = [jax.lax.broadcast_in_dim(array, (*shape, count), axes)]
    elif name == "reshape" and params["dimensions"] is None:
        results = [array.reshape(*params["new_sizes"], count)]
    elif name == "slice":
        starts, ends = (*params["start_indices"], 0), (*params["limit_indices"], count)
        steps = params["strides"]
        results = [jax.lax.slice(array, starts, ends, None if steps is None else (*steps, 1))]
    else:
        return _vmapped(bind, inputs, -1)
    return [Lanes(result, -1) for result in results]


def _terms(inputs: list[Lanes], params) -> int:
    """Terms of a product of two tensors."""
    (contracted, _), (batch, _) = params["dimension_numbers"]
    common = math.prod(inputs[0].shape[axis] for axis in (*contracted, *batch))
    return math.prod(inputs[0].shape) * math.prod(inputs[1].shape) // max(common, 1)


def _dot(inputs: list[Lanes], params, count: int):
    """A product of two tensors: all terms, then their sum."""
    contracted, batch = params["dimension_numbers"]
    free = [
        [axis for axis in range(len(value.shape)) if axis not in (*c, *b)]
        for value, c, b in zip(inputs, contracted, batch, strict=True)
    ]
    factors = []
    for k, value in enumerate(inputs):
        array = _spread(value, count).array
        array = array.transpose(*batch[k], *free[k], *contracted[k], array.ndim - 1)
        # Axes: those in common, those of the first, of the second, those summed over, the lanes.
        first = len(batch[k]) + len(free[k]) if k == 0 else len(batch[k])
        ones = range(first, first + len(free[1 - k]))
        factors.append(jnp.expand_dims(array, tuple(ones)))
    dtype = params["preferred_element_type"] or jnp.result_type(*factors)
    product = factors[0].astype(dtype) * factors[1].astype(dtype)
    kept = product.ndim - 1 - len(contracted[0])
    return _sum(product, range(kept, product.ndim - 1))


def _sum(array, axes):
    """Sum over axes in halves: XLA's own order of additions depends on the number of lanes."""
    array = jnp.moveaxis(array, axes, range(len(axes)))
    array = array.reshape(-1, *array.shape[len(axes) :])
    terms = array.shape[0]
    filled = 1 << max(terms - 1, 0).bit_length()
    array = jnp.pad(array, [(0, filled - terms), *[(0, 0)] * (array.ndim - 1)])
    while len(array) > 1:
        half = len(array) // 2
        array = array[:half] + array[half:]
    return _keep(Lanes(array[0], -1)).array


def _bind(primitive, params, *arrays):
    results = primitive.bind(*arrays, **params)
    return results if primitive.multiple_results else [results]


def _at_row(name: str, inputs: list[Lanes], params, count: int) -> Lanes | None:
    """One row, or entry, of every lane's large table, read or written where all tables are one.

    None for all other ways of reading and writing.
    """
    table, sizes = inputs[0], params.get("slice_sizes")
    if name == "dynamic_slice":
        axes = [k for k, size in enumerate(sizes) if size != table.shape[k]]
        indices = [inputs[1 + k] for k in axes]
        shape = sizes
    elif name in ("gather", "scatter", "scatter-add", "scatter_add"):
        numbers, index = params["dimension_numbers"], inputs[1]
        reads, mode = name == "gather", params["mode"]
        outside = jax.lax.GatherScatterMode.FILL_OR_DROP
        if len(index.shape) != 1 or numbers.operand_batching_dims or (mode == outside) == reads:
            return None
        axes = numbers.start_index_map if reads else numbers.scatter_dims_to_operand_dims
        indices = [Lanes(index.array[k], index.axis and -1) for k in range(len(axes))]
        kept = [
            k
            for k in range(len(table.shape))
            if k not in getattr(numbers, "collapsed_slice_dims", ())
        ]
        shape = [sizes[k] for k in kept] if reads else inputs[2].shape
    else:
        return None
    lead = len(axes)
    rows, row = table.shape[:lead], table.shape[lead:]
    one_row = sizes is None or tuple(sizes) == (*(1,) * lead, *row)
    whole = list(axes) == list(range(lead)) and lead and math.prod(shape) == math.prod(row)
    if not whole or not one_row or count * (math.prod(rows) + 1) >= MOST_PLACES:
        return None

    place, inside = jnp.arange(count, dtype=jnp.int32) * math.prod(rows), True
    for k, (index, length) in enumerate(zip(indices, rows, strict=True)):
        at = _spread(index, count).array.astype(jnp.int32)
        inside = inside & (at >= 0) & (at < length)
        place = place + (jnp.clip(at, 0, length - 1)) * math.prod(rows[k + 1 :])
    flat = table.array.reshape(-1, *row)
    if sizes is not None:
        found = flat.at[place].get(mode="promise_in_bounds", indices_are_sorted=True)
        return _move(Lanes(found.reshape(count, *shape), 0), -1)
    values = jnp.moveaxis(_spread(inputs[2], count).array, -1, 0).reshape(count, *row)
    # A kernel that wrote to one table and read others would need copies of them.
    values = jax.lax.optimization_barrier(values)
    at = flat.at[jnp.where(inside, place, len(flat) + jnp.arange(count, dtype=jnp.int32))]
    write = at.set if name == "scatter" else at.add
    flat = write(values, mode="drop", unique_indices=True)
    return Lanes(flat.reshape(table.array.shape), 0)


def _vmapped(bind, inputs: list[Lanes], axis: int | None) -> list[Lanes]:
    axis = -1 if axis is None else axis
    results = jax.vmap(bind, in_axes=[value.axis for value in inputs], out_axes=axis)(
        *(value.array for value in inputs)
    )
    return [Lanes(result, axis) for result in results]


def _keep(value: Lanes) -> Lanes:
    """The same value, which XLA's CPU compiler does not compute twice.

    A compiler for GPUs would make a kernel more of what keeps it from doing so.
    """
    if value.axis == 0 or value.array.dtype == bool:
        return value
    kept = jax.lax.platform_dependent(value.array, cpu=_behind_sum, default=lambda array: array)
    return Lanes(kept, -1)


def _behind_sum(array):
    """The same array, behind a reduction.

    Bits are added, for sums of float32 may go to a library that is slower, or has none.
    """
    bits = array
    if jnp.issubdtype(array.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    first = jnp.arange(2).reshape(2, *(1,) * array.ndim) == 0
    kept = jnp.sum(jnp.where(first, bits, jnp.zeros_like(bits)), axis=0, dtype=bits.dtype)
    return jax.lax.bitcast_convert_type(kept, array.dtype)


def _reads_few(name: str, inputs: list[Lanes], params) -> bool:
    """Whether one place of a table is read that is one of few, along each axis one entry or all."""
    table, sizes = inputs[0], params["slice_sizes"]
    sliced = [length for length, size in zip(table.shape, sizes, strict=True) if size != length]
    whole = all(size in (1, length) for length, size in zip(table.shape, sizes, strict=True))
    if name == "gather":
        numbers = params["dimension_numbers"]
        whole &= len(inputs[1].shape) == 1 and not numbers.operand_batching_dims
    return whole and math.prod(sliced) <= _MOST_SELECTIONS


def _read(name: str, inputs: list[Lanes], params) -> Lanes:
    """One place of a small table, cut to the table's range, by selections."""
    table, sizes = inputs[0], params["slice_sizes"]
    starts: list[Any] = [0] * len(sizes)
    if name == "dynamic_slice":
        starts = [start.array for start in inputs[1 : 1 + len(sizes)]]
    else:
        for k, axis in enumerate(params["dimension_numbers"].start_index_map):
            starts[axis] = inputs[1].array[k]
    result = table.array if table.axis == -1 else jnp.asarray(table.array)[..., None]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        length = result.shape[axis]
        if size == length:
            continue
        entries = [jax.lax.slice_in_dim(result, k, k + 1, axis=axis) for k in range(length)]
        result = entries[-1]
        for k in range(length - 2, -1, -1):
            result = jnp.where(start <= k, entries[k], result)
    if name == "gather":
        collapsed = params["dimension_numbers"].collapsed_slice_dims
        kept = [size for axis, size in enumerate(sizes) if axis not in collapsed]
        result = result.reshape(*kept, result.shape[-1])
    if result.shape[-1] == 1:  # nothing to choose from a table that all share
        return Lanes(result[..., 0], None)
    return Lanes(result, -1)
