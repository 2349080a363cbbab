"""Evaluates the code of one run entry by entry, so that a GPU's kernel keeps tables in registers.

Like `lanes`, it traces the code once and does its operations again for many runs. Here every entry
of an array is a value of its own: a number that all share, or an array `[B]` over the runs that a
kernel works on. What is known when the kernel is made is computed then. All that is left in the
kernel are operations on numbers, and loads and stores of tables too large for registers.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from .primitives import CALLS, ELEMENTWISE, FOLDS
from .tables import Refused, Table, both, identity

_UNCHANGED = frozenset(("optimization_barrier", "copy", "copy_p", "stop_gradient"))
_SHAPED = frozenset(("reshape", "squeeze", "expand_dims"))
_REDUCE = FOLDS | {"reduce_prod": jnp.multiply}
_CUMULATE: dict[str, Callable] = {
    "cumsum": jnp.add,
    "cumprod": jnp.multiply,
    "cummax": jnp.maximum,
    "cummin": jnp.minimum,
}
# Entries outside of memory that are worked on, or of which one is chosen by comparisons, at most.
_MOST_ENTRIES = 2**10
# Entries of an array that is known when the kernel is made, at most.
_MOST_KNOWN = 2**14
# Entries that are put in order, at most.
_MOST_SORTED = 32
_EXTREME: dict[str, Callable] = {"argmax": jnp.greater, "argmin": jnp.less}
# Done number by number, by a GPU's kernel too.
_ELEMENTWISE = ELEMENTWISE - {"erf", "round"} | {"bitcast_convert_type", "population_count"}


def entries(shape: Sequence[int], values: Iterable) -> np.ndarray:
    """An array of entries, from those in C order."""
    values = list(values)
    found = np.empty(len(values), object)
    for k, value in enumerate(values):
        found[k] = value
    return found.reshape(tuple(shape))


def constant(array) -> np.ndarray:
    """An array of known entries."""
    array = np.asarray(array)
    return entries(array.shape, (value for value in array.ravel()))


def by_entries(function: Callable, *arguments: Any) -> Any:
    """Calls `function`, written for one run, on arrays of entries and on tables.

    Args:
        function: a pure function of pytrees of arrays. It closes over none that are not known.
        arguments: pytrees of arrays of entries, and tables.

    Returns:
        What `function` returns, in arrays of entries and tables.

    Raises:
        Refused: if it cannot be.
    """
    leaves, structure = jax.tree.flatten(arguments, is_leaf=is_value)

    def like(value):
        if isinstance(value, Table):
            return jax.ShapeDtypeStruct(value.shape, value.dtype)
        return jax.ShapeDtypeStruct(value.shape, value.flat[0].dtype)

    program, out = jax.make_jaxpr(function, return_shape=True)(
        *jax.tree.unflatten(structure, [like(leaf) for leaf in leaves])
    )
    constants = [constant(c) for c in program.consts]
    found = _evaluate(program.jaxpr, constants, leaves, {})
    return jax.tree.unflatten(jax.tree.structure(out), found)


def is_value(leaf) -> bool:
    """Whether a leaf is an array of entries or a table."""
    return isinstance(leaf, np.ndarray | Table)


def _evaluate(jaxpr, constants, arguments, done: dict) -> list:
    known = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(variable):
        return constant(variable.val) if isinstance(variable, Literal) else known[variable]

    for equation in jaxpr.eqns:
        results = _apply(equation, [value(variable) for variable in equation.invars], done)
        known.update(zip(equation.outvars, results, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _apply(equation, inputs: list, done: dict) -> list:
    """One operation; `done` holds those on numbers that were done before."""
    params, name = equation.params, equation.primitive.name
    aval = equation.outvars[0].aval
    shape = aval.shape
    if name in CALLS:
        inner = params[CALLS[name]]
        constants = [constant(c) for c in getattr(inner, "consts", ())]
        return _evaluate(getattr(inner, "jaxpr", inner), constants, inputs, done)
    if name in _UNCHANGED:
        return inputs
    if inputs and all(map(_is_all_known, inputs)):
        if math.prod(shape) > _MOST_KNOWN:
            raise Refused(f"{math.prod(shape)} numbers are known in advance, by {name}")
        types = [variable.aval.dtype for variable in equation.invars]
        arrays = [
            np.array(v.tolist(), dtype).reshape(v.shape)
            for v, dtype in zip(inputs, types, strict=True)
        ]
        with jax.ensure_compile_time_eval():
            found = equation.primitive.bind(*map(jnp.asarray, arrays), **params)
        return [constant(v) for v in (found if equation.primitive.multiple_results else [found])]
    if name == "iota":
        return [constant(np.indices(shape)[params["dimension"]].astype(params["dtype"]))]
    if name in ("dynamic_slice", "gather"):
        return [_read(name, inputs, params, shape)]
    if name in ("scatter", "scatter-add", "scatter_add"):
        return [_write(name, inputs, params)]
    if name == "slice":
        return [_sliced(inputs[0], params)]
    if name == "select_n" and not inputs[0].shape and isinstance(inputs[-1], Table):
        live, before, after = inputs
        return [after.unless_held(live[()], before)]
    for value in inputs:
        if isinstance(value, Table):
            raise Refused(f"a table in memory is used as a whole, by {name}", value)

    first = inputs[0]
    if name == "broadcast_in_dim":
        lengths = dict(zip(params["broadcast_dimensions"], first.shape, strict=True))
        spread = first.reshape([lengths.get(axis, 1) for axis in range(len(shape))])
        return [np.broadcast_to(spread, shape)]
    if name in _SHAPED:
        return [first.reshape(shape)]
    if name == "transpose":
        return [first.transpose(params["permutation"])]
    if name == "concatenate":
        return [np.concatenate(inputs, params["dimension"])]
    if name == "stack":
        return [np.stack(inputs, params["axis"])]
    if name == "unstack":
        moved = np.moveaxis(first, params["axis"], 0)
        return [moved[k, ...] for k in range(len(moved))]
    if name == "rev":
        return [np.flip(first, params["dimensions"])]
    if name in _REDUCE:
        if name == "reduce_sum" and not first.size:
            return [constant(np.zeros(shape, aval.dtype))]
        return [_reduced(_REDUCE[name], first, params["axes"], shape)]
    if name in _EXTREME and len(params["axes"]) == 1:
        rows = np.moveaxis(first, params["axes"][0], -1).reshape(math.prod(shape), -1)
        return [entries(shape, (_place(_EXTREME[name], row, aval.dtype) for row in rows))]
    if name == "dot_general" and not any(params["dimension_numbers"][1]):
        return [_product(inputs, params["dimension_numbers"][0], aval)]
    if name in _CUMULATE and not params["reverse"]:
        rows = np.moveaxis(first, params["axis"], -1)
        along = rows.reshape(-1, rows.shape[-1])
        made = [v for row in along for v in itertools.accumulate(row, _CUMULATE[name])]
        return [np.moveaxis(entries(rows.shape, made), -1, params["axis"])]
    if name == "sort" and params["num_keys"] == 1 and shape[params["dimension"]] <= _MOST_SORTED:
        return _sorted(inputs, params["dimension"])
    if name not in _ELEMENTWISE or np.broadcast_shapes(*map(np.shape, inputs)) != shape:
        raise Refused(f"there is no rule for {name} of {[v.shape for v in inputs]}")
    if math.prod(shape) > _MOST_ENTRIES:
        raise Refused(f"{math.prod(shape)} numbers are worked on outside of memory, by {name}")
    spread = [np.broadcast_to(value, shape) for value in inputs]
    made = [
        _bind(equation.primitive, params, [value[at] for value in spread], done)
        for at in np.ndindex(*shape)
    ]
    columns = zip(*made, strict=True) if made else ([] for _ in equation.outvars)
    return [entries(shape, column) for column in columns]


def _is_known(value) -> bool:
    return isinstance(value, np.generic | np.ndarray | bool | int | float)


def _is_all_known(value) -> bool:
    return isinstance(value, np.ndarray) and all(map(_is_known, value.flat))


def _bind(primitive, params, values, done: dict) -> list:
    """An operation on numbers: done now if all are known, and once if it is the same again."""
    key = primitive, str(params), *map(identity, values)
    if key not in done:
        done[key] = _bound(primitive, params, values), values  # whose identities stay theirs
    return done[key][0]


def _bound(primitive, params, values) -> list:
    if all(map(_is_known, values)):
        with jax.ensure_compile_time_eval():
            found = primitive.bind(*map(jnp.asarray, values), **params)
        found = found if primitive.multiple_results else [found]
        return [np.asarray(value)[()] for value in found]
    shape = np.broadcast_shapes(*map(np.shape, values))
    values = [jnp.broadcast_to(jnp.asarray(value), shape) for value in values]
    found = primitive.bind(*values, **params)
    return found if primitive.multiple_results else [found]


def _where(condition, one, other):
    if _is_known(condition):
        return one if bool(condition) else other
    return jnp.where(condition, one, other)


def _reduced(operation, array, axes, shape):
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    rows = array.transpose(*kept, *axes).reshape(math.prod(shape), -1)
    return entries(shape, (_fold(operation, list(row)) for row in rows))


def _place(beyond, row, dtype):
    """Where the largest or smallest is, the first of them, or the first NaN."""
    best, place = row[0], dtype.type(0)
    for k, value in enumerate(row[1:], 1):
        better = beyond(value, best) | ((value != value) & (best == best))
        best, place = jnp.where(better, value, best), jnp.where(better, dtype.type(k), place)
    return place


def _sorted(arrays: list, axis: int) -> list:
    """Arrays in the order of the first along an axis, NaN last, by exchange of neighbours."""
    moved = [np.moveaxis(array, axis, -1).copy() for array in arrays]
    length = moved[0].shape[-1]
    for at in np.ndindex(*moved[0].shape[:-1]):
        rows = [array[at] for array in moved]
        for k in (k for first in range(length) for k in range(first % 2, length - 1, 2)):
            swap = _combined(_is_before, rows[0][k + 1], rows[0][k])
            for row in rows:
                one, other = row[k], row[k + 1]
                row[k], row[k + 1] = _where(swap, other, one), _where(swap, one, other)
    return [np.moveaxis(array, -1, axis) for array in moved]


def _is_before(one, other):
    return (one < other) | ((other != other) & (one == one))


def _product(factors, contracted, aval):
    """A product of two tensors, without axes in common that are kept."""
    rows = []
    for array, axes in zip(factors, contracted, strict=True):
        free = [axis for axis in range(array.ndim) if axis not in axes]
        terms = math.prod(array.shape[axis] for axis in axes)
        rows.append(array.transpose(*free, *axes).reshape(-1, terms))
    made = (
        _fold(jnp.add, [jnp.multiply(a, b).astype(aval.dtype) for a, b in zip(x, y, strict=True)])
        for x in rows[0]
        for y in rows[1]
    )
    return entries(aval.shape, made)


def _fold(operation, values: list):
    """All values taken together, in pairs, then pairs of these."""
    while len(values) > 1:
        pairs = itertools.zip_longest(values[::2], values[1::2])
        values = [a if b is None else _combined(operation, a, b) for a, b in pairs]
    return values[0]


def _combined(operation, a, b):
    if _is_known(a) and _is_known(b):
        with jax.ensure_compile_time_eval():
            return np.asarray(operation(a, b))[()]
    return operation(a, b)


def _read(name: str, inputs: list, params, shape):
    """One place of an array, or several one by one, cut to its range."""
    array, sizes = inputs[0], params["slice_sizes"]
    if name == "gather":
        numbers, index = params["dimension_numbers"], inputs[1]
        if isinstance(index, Table):
            raise Refused("a table in memory is an index", index)
        if numbers.operand_batching_dims:
            raise Refused("a read is batched")
        if index.ndim > 1:
            lead = index.shape[:-1]
            if tuple(numbers.offset_dims) not in ((), tuple(range(len(lead), len(shape)))):
                raise Refused("reads are not laid out one by one")
            rows = [
                _read(name, [array, index[at]], params, shape[len(lead) :])
                for at in np.ndindex(*lead)
            ]
            return entries(shape, (value for row in rows for value in row.ravel()))
        starts: list[Any] = [np.int32(0)] * len(sizes)
        for k, axis in enumerate(numbers.start_index_map):
            starts[axis] = index[k]
    else:
        starts = [start[()] for start in inputs[1 : 1 + len(sizes)]]
    if isinstance(array, Table):
        base = np.int32(0)
        for start, stride, size, length in zip(
            starts, array.strides, sizes, array.shape, strict=True
        ):
            if size < length:
                base = base + _clipped(start, length - size) * np.int32(stride)
        if len(sizes) > 1 and tuple(sizes) == (*(1,) * (len(sizes) - 1), array.shape[-1]):
            return entries(shape, array.read_row(starts, base))
        inner = [np.int32(np.dot(at, array.strides)) for at in np.ndindex(*sizes)]
        found = entries(sizes, (array.read(base + place) for place in inner))
    else:
        found = array
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if size < found.shape[axis]:
                found = _slice(found, axis, start, size)
    return found.reshape(shape)


def _sliced(array, params):
    """What a slice with fixed bounds takes of an array."""
    bounds = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(array.shape)
    taken = tuple(itertools.starmap(slice, zip(*bounds, steps, strict=True)))
    if not isinstance(array, Table):
        return array[taken]
    places = np.arange(math.prod(array.shape), dtype=np.int32).reshape(array.shape)[taken]
    if places.size == math.prod(array.shape):
        raise Refused("a table in memory is used as a whole, by slice", array)
    return entries(places.shape, map(array.read, places.ravel()))


def _clipped(start, most: int):
    if _is_known(start):
        return np.int32(min(max(int(start), 0), most))
    return jnp.clip(start, 0, most).astype(jnp.int32)


def _slice(array, axis: int, start, size: int):
    """So many entries along an axis, from a start that is cut to the range."""
    moved = np.moveaxis(array, axis, 0)
    last = moved.shape[0] - size
    if _is_known(start):
        first = int(_clipped(start, last))
        found = moved[first : first + size]
    elif moved.size > _MOST_ENTRIES:
        raise Refused(f"an array of {moved.size} numbers is read by index outside of memory")
    else:
        found = moved[last:]
        for k in range(last - 1, -1, -1):
            pairs = zip(moved[k : k + size].ravel(), found.ravel(), strict=True)
            hit = start <= k
            found = entries(found.shape, (_where(hit, a, b) for a, b in pairs))
    return np.moveaxis(found, 0, axis)


def _write(name: str, inputs: list, params):
    """An array with one place of it written or added to; nothing if that lies outside."""
    array, index, update = inputs
    numbers = params["dimension_numbers"]
    for value in (index, update):
        if isinstance(value, Table):
            raise Refused("a table in memory is written to another one", value)
    if index.ndim != 1 or numbers.operand_batching_dims:
        raise Refused("several places are written at once")
    starts: list[Any] = [None] * len(array.shape)
    for k, axis in enumerate(numbers.scatter_dims_to_operand_dims):
        starts[axis] = index[k]
    window = [
        1 if start is not None else length
        for start, length in zip(starts, array.shape, strict=True)
    ]
    if update.size != math.prod(window):
        raise Refused("more than one row is written at once")
    update, adds = update.reshape(window), name != "scatter"

    if isinstance(array, Table):
        base, inside = np.int32(0), True
        for start, stride, length in zip(starts, array.strides, array.shape, strict=True):
            if start is not None:
                base = base + jnp.asarray(start).astype(jnp.int32) * np.int32(stride)
                inside = both(inside, jnp.logical_and(start >= 0, start < length))
        for at in np.ndindex(*window):
            place = base + np.int32(np.dot(at, array.strides))
            value = update[at]
            if adds:
                value = value + array.read(jnp.where(inside, place, 0))
            array = array.written(place, value, inside)
        return array

    found = array.copy()
    for at in np.ndindex(*array.shape):
        hit: Any = True
        for start, k in zip(starts, at, strict=True):
            hit = hit if start is None else both(hit, start == k)
        value = update[tuple(0 if s is not None else k for s, k in zip(starts, at, strict=True))]
        found[at] = _where(hit, array[at] + value if adds else value, array[at])
    return found
