"""Linear maps that are given together with their transposes, as a primitive of JAX.

For maps that are computed by solving something: their transpose is solved for as well, not made of
the solver's operations. Unlike with `jax.custom_vjp`, forward mode works too. Where nothing is
being traced, both directions are called as they are, so that each can be a compiled program of its
own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .devices import as_array

_linear_map = Primitive("linear_map")
_linear_map.multiple_results = True


def linear_map(push: Callable, pull: Callable, known: Any, inputs: Any, like: Any) -> Any:
    """`push(known, inputs)`, linear in the inputs, whose transpose is `pull(known, outputs)`.

    It cannot be differentiated by what is known.

    Args:
        push: a function of `known` and pytrees like the inputs.
        pull: a function of `known` and pytrees like the outputs that returns one like the inputs.
        known: a pytree; what in it is no array must be hashable.
        inputs: a pytree of floating-point arrays.
        like: the outputs' shapes and dtypes, a pytree of arrays.
    """
    arrays, static = eqx.partition(known, eqx.is_array)
    leaves, frame = jax.tree.flatten(arrays)
    kept, of_static = jax.tree.flatten(static)
    sides = [
        _Side(function, frame, tuple(kept), of_static, jax.tree.structure(given))
        for function, given in ((push, inputs), (pull, like))
    ]
    shapes = [
        tuple(ShapedArray(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(given))
        for given in (inputs, like)
    ]
    way = _Way(*sides, *shapes)
    found = _linear_map.bind(*leaves, *jax.tree.leaves(inputs), way=way)
    return jax.tree.unflatten(jax.tree.structure(like), found)


class _Side(NamedTuple):
    """One direction as a function of the arrays of what is known, and of those it maps."""

    function: Callable
    frame: Any
    static: tuple
    of_static: Any
    structure: Any

    def __call__(self, known: list, given: list) -> list:
        static = self.of_static.unflatten(self.static)
        known = eqx.combine(self.frame.unflatten(known), static)
        return jax.tree.leaves(self.function(known, self.structure.unflatten(given)))


class _Batched(NamedTuple):
    """One direction for all of a batch; what is not batched of the results is summed over it."""

    side: Callable
    known_axes: tuple
    axes: tuple
    results: tuple

    def __call__(self, known: list, given: list) -> list:
        mapped = jax.vmap(self.side, (list(self.known_axes), list(self.axes)))
        found = mapped(list(known), list(given))
        return [
            leaf.sum(axis=0) if axis is None else leaf
            for leaf, axis in zip(found, self.results, strict=True)
        ]


class _Way(NamedTuple):
    """Both directions, and the shapes and dtypes of what the first is given and returns."""

    forward: Callable
    backward: Callable
    inputs: tuple
    outputs: tuple

    def apply(self, *operands):
        known, given = self.split(operands)
        return self.forward(known, given)

    def split(self, operands):
        """What is known, and what is mapped."""
        count = len(operands) - len(self.inputs)
        return list(operands[:count]), list(operands[count:])

    def transposed(self) -> "_Way":
        return _Way(self.backward, self.forward, self.outputs, self.inputs)


@_linear_map.def_impl
def _apply(*operands, way: _Way):
    return way.apply(*operands)


@_linear_map.def_abstract_eval
def _shapes(*_, way: _Way):
    return list(way.outputs)


def _instantiate(tangent):
    """A tangent or cotangent as an array, for zeros too: of the host, which needs no program."""
    if isinstance(tangent, ad.Zero):
        like: Any = tangent.aval
        return as_array(np.zeros(like.shape, like.dtype))
    return tangent


def _jvp(primals, tangents, *, way: _Way):
    known, _ = way.split(primals)
    moved, given = way.split(tangents)
    if not all(isinstance(tangent, ad.Zero) for tangent in moved):
        raise NotImplementedError("a linear map is not differentiated by what it depends on.")
    given = map(_instantiate, given)
    return _linear_map.bind(*primals, way=way), _linear_map.bind(*known, *given, way=way)


def _transpose(cotangents, *operands, way: _Way):
    known, given = way.split(operands)
    pulled = _linear_map.bind(*known, *map(_instantiate, cotangents), way=way.transposed())
    wanted = [
        found if ad.is_undefined_primal(operand) else None
        for found, operand in zip(pulled, given, strict=True)
    ]
    return [None] * len(known) + wanted


def _batch(operands, axes, *, way: _Way):
    known_axes, input_axes = way.split(axes)
    size = next(
        operand.shape[axis]
        for operand, axis in zip(operands, axes, strict=True)
        if axis is not None
    )
    known, given = way.split(operands)
    given = [
        leaf if axis is None else jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(given, input_axes, strict=True)
    ]
    axes = tuple(None if axis is None else 0 for axis in input_axes)
    whole = (0,) * len(way.outputs)
    batched = _Way(
        _Batched(way.forward, tuple(known_axes), axes, whole),
        _Batched(way.backward, tuple(known_axes), whole, axes),
        tuple(
            shape if axis is None else _wider(shape, size)
            for shape, axis in zip(way.inputs, axes, strict=True)
        ),
        tuple(_wider(shape, size) for shape in way.outputs),
    )
    return _linear_map.bind(*known, *given, way=batched), whole


def _wider(shape, size):
    return shape.update(shape=(size, *shape.shape))


ad.primitive_jvps[_linear_map] = _jvp
ad.primitive_transposes[_linear_map] = _transpose
batching.primitive_batchers[_linear_map] = _batch
mlir.register_lowering(
    _linear_map, mlir.lower_fun(lambda *operands, way: way.apply(*operands), multiple_results=True)
)
