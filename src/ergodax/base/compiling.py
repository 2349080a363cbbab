"""How programs are compiled, kept within what Linux allows a process, and compiled side by side."""

import contextlib
import functools
import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .checks import is_concrete
from .programs import Program, are_kept, kept

Function = TypeVar("Function", bound=Callable)

_MAPPINGS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
# Fusions by way of MLIR take most of the time of compiling, and help large arrays only.
_LIGHTLY = {"xla_cpu_use_fusion_emitters": False}
_QUICKLY = _LIGHTLY | {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
# Settings of JAX that hold in one thread, and their values where a thread starts.
_SETTINGS = (
    *("enable_x64", "default_device", "default_matmul_precision", "default_prng_impl"),
    *("numpy_dtype_promotion", "numpy_rank_promotion", "debug_nans", "debug_infs", "disable_jit"),
)


# Options of the compiler that any program is given: whether XLA knows them is asked but once.
_asked: dict[str, Any] = {}
# The programs that are kept on disk, by function, arguments and settings; None for what cannot be.
_held: dict[tuple, Program | None] = {}


class _Watch:
    """Whether a program was compiled since mappings were last counted; whether it was warned."""

    compiled = warned = False


def precise(function: Function) -> Function:
    """A function whose products are made in the precision of their numbers, whenever it is traced.

    Where a GPU has a quick and rough product of float32 matrices, JAX takes it unless told. What a
    compiled function consists of is traced with it; but rules of derivatives are traced later.
    """

    @functools.wraps(function)
    def traced(*args, **given):
        with jax.default_matmul_precision("highest"):
            return function(*args, **given)

    return cast(Function, traced)


def compiled(
    function: Function,
    compiler_options: dict[str, Any] | None = None,
    then: Callable | None = None,
) -> Function:
    """Compiles a function on its first call for arguments of their shapes and types.

    Its products are made in the precision of their numbers. Afterwards it sees to it that the
    process holds no more programs than Linux allows.

    Args:
        function: a function of pytrees; what in them is no array is fixed in the program. No
            argument may be a Python float: it would be fixed, too.
        compiler_options: as for `jax.jit`, where the program stands alone: is no part of another,
            and neither differentiated nor batched. Those that XLA does not know are left out.
        then: where the program stands alone and is traced, called with what the function returns
            and its arguments before they are compiled: it may begin to compile what follows.

    Returns:
        The function; its `lower` is that of `jax.jit`, its `ahead` that which `ahead` calls.
    """
    options = compiler_options or {}
    _asked.update(options)

    def tracing(then: Callable | None = None) -> Callable:
        @functools.wraps(function)
        def trace(*args, **given):
            _Watch.compiled = True
            found = precise(function)(*args, **given)
            if then is not None and not cast(Any, jax.config).jax_disable_jit:
                then(found, *args, **given)
            return found

        return trace

    jitted = cast(Any, eqx.filter_jit)(tracing())

    @functools.cache
    def alone():
        known = _known(tuple(options.items()))
        if not (known or then):
            return jitted
        settings = {"compiler_options": known} if known else {}
        return cast(Any, eqx.filter_jit)(tracing(then), **settings)

    def held(arguments) -> Program | None:
        """The program kept for arguments of such shapes, types and places."""
        leaves, structure = jax.tree.flatten(arguments)
        settings: Any = [getattr(jax.config, f"jax_{name}") for name in _SETTINGS]
        surroundings = *settings, jax.sharding.get_abstract_mesh(), are_kept()
        key = call, structure, tuple(map(_kind_of, leaves)), surroundings
        with contextlib.suppress(KeyError):  # other threads may drop all of them
            return _held[key]
        _Watch.compiled = True
        known, like = _known(tuple(options.items())), map(_shape_of, leaves)
        program = kept(function, tracing(then), known, structure.unflatten(like))
        _held[key] = program
        return program

    begun = []

    def begin(context, arguments):
        if not jax.sharding.get_abstract_mesh().empty:
            return  # threads do not take it over
        like = jax.tree.map(_shape_of, arguments)

        def compile_program():
            # Whatever is wrong shows where the function is called.
            with contextlib.suppress(Exception), context():
                if not are_kept() or held(like) is None:
                    args, given = jax.tree.map(_zeros, like)
                    alone().lower(*args, **given).compile()

        thread = threading.Thread(target=in_this_context(compile_program))
        thread.start()
        begun.append(thread)

    @functools.wraps(function)
    def call(*args, **given):
        if any(type(value) is float for value in (*args, *given.values())):
            raise TypeError(
                f"{function.__name__} would be compiled anew for every value of a Python float: "
                "give it as an array, by as_array."
            )
        keeping = are_kept()
        lone = (keeping or options or then or begun) and _is_alone((args, given))
        with contextlib.suppress(IndexError):  # of an empty list: other threads call too
            while lone and begun:
                begun.pop().join()
        program = held((args, given)) if lone and keeping else None
        if program is not None:
            found = program(list(filter(eqx.is_array, jax.tree.leaves((args, given)))))
        else:
            found = (alone() if lone else jitted)(*args, **given)
        if _Watch.compiled and all(map(is_concrete, jax.tree.leaves(found))):
            _Watch.compiled = False
            if drop_programs() and not _Watch.warned:
                _Watch.warned = True
                warnings.warn(
                    "this process has compiled nearly as many programs as Linux lets it hold: all "
                    "were dropped, and are compiled again when next needed. Fewer shapes, or "
                    "several processes, avoid that; JAX's cache on disk makes it quick (see "
                    "README).",
                    stacklevel=2,
                )
        return found

    cast(Any, call).lower, cast(Any, call).ahead = jitted.lower, begin
    return cast(Function, call)


def ahead(function: Callable, *args, context: Callable = contextlib.nullcontext, **given) -> None:
    """Begins to compile a function in a thread; the next call of it waits until that is done.

    Args:
        function: a compiled function, which will be called where nothing is being traced.
        *args: arguments, of which no more is used than the shapes and types of their arrays.
        context: of the call to come, if it is not that of this one.
        **given: further arguments.
    """
    cast(Any, function).ahead(context, (args, given))


def _kind_of(leaf: Any) -> tuple:
    """All that a program depends on: of an array shape, type and the place it is tied to."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding
    if isinstance(leaf, jax.Array):
        place = leaf.sharding if is_concrete(leaf) and leaf.committed else None
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), place
    if eqx.is_array(leaf):
        kind = jax.typeof(leaf)
        return kind.shape, kind.dtype, False, None
    return type(leaf), leaf


def _shape_of(leaf: Any) -> Any:
    """An array without its numbers; anything else as it is."""
    if not eqx.is_array(leaf):
        return leaf
    shape, dtype, weak_type, place = _kind_of(leaf)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place, weak_type=weak_type)


def _zeros(leaf: Any) -> Any:
    """An array of such a shape and type; anything else as it is."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if leaf.weak_type and leaf.shape:
        return jnp.full(leaf.shape, leaf.dtype.type(0).item())
    zeros = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(zeros.item() if leaf.weak_type else zeros)  # nothing is compiled


def transposing() -> contextlib.AbstractContextManager:
    """The context in which JAX calls the transpose of what was called without a mesh."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


@functools.cache
def _known(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those options that the installed XLA knows."""
    if _takes(tuple(_asked.items())):
        return dict(options)
    return dict(option for option in options if _takes((option,)))


@functools.cache
def _takes(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _is_alone(arguments: Any) -> bool:
    """Whether a call is no part of a program that is being traced, differentiated or batched."""
    return all(map(is_concrete, jax.tree.leaves(arguments))) and is_concrete(jax.device_put(0.0))


# In two thirds of the time: for what consists of small operations.
lightly_compiled = functools.partial(compiled, compiler_options=_LIGHTLY)
# With little optimisation too, in less than half: for what runs for milliseconds.
quickly_compiled = functools.partial(compiled, compiler_options=_QUICKLY)


def drop_programs(most: int | None = None) -> bool:
    """Drops all compiled programs if they are nearly too many; returns whether it did.

    XLA keeps each in mappings of memory of its own, several hundred for a solver. Linux allows a
    process 65530; beyond that, compiling ends in a segmentation fault (jax-ml/jax issue 27201).

    Args:
        most: the largest number of mappings; three quarters of the system's limit by default.
    """
    if not _MAPPINGS.exists():
        return False
    if most is None:
        most = int(_LIMIT.read_text()) * 3 // 4
    if _MAPPINGS.read_bytes().count(b"\n") <= most:
        return False
    jax.clear_caches()
    _held.clear()
    gc.collect()
    return True


def shapes_of(function: Callable, *args) -> Any:
    """Shapes and types of what a function returns, traced once for those of its arguments.

    Args:
        function: a function of pytrees of arrays, or of their shapes; the same in every call.
        *args: its arguments.
    """
    leaves, structure = jax.tree.flatten(args)
    like = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
        for leaf in leaves  # the others are functions that learners hold, say
    )
    return _shapes_of(function, structure, like, jnp.result_type(float))


@functools.lru_cache(maxsize=256)
def _shapes_of(function, structure, like, precision):
    arrays, others = eqx.partition(like, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return jax.eval_shape(
        lambda arrays: function(*structure.unflatten(eqx.combine(arrays, others))), arrays
    )


def in_this_context(function: Function) -> Function:
    """A function that runs in any thread with the settings of JAX that hold here and now."""
    values = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}

    @functools.wraps(function)
    def run(*args, **options):
        with contextlib.ExitStack() as entered:
            for name, value in values.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    entered.enter_context(getattr(jax, name)(value))
            return function(*args, **options)

    return cast(Function, run)
