"""Programs kept on disk, so that another process neither traces nor compiles them again.

JAX keeps what it has compiled, and finds it by the program's text, which must be traced and lowered
first. Here that text is kept too (`jax.export`), and found by all that tracing depends on:

- the function, the source of ergodax, and the versions of the packages that it is made of;
- the arguments: shapes and types of arrays, and all else by its contents;
- JAX's settings, the kind of device, and options of the compiler.

Arguments with what is none of these packages' own, such as a learner of yours or a function of the
observable, are not looked up: their programs are traced in every process. So are all programs on a
GPU, and while files of ergodax are newer than the process. What is replaced in these packages while
Python runs, a method say, counts as unchanged.

Whoever can write to the folder decides what is computed, as with JAX's own. Of a file no more is
run than such programs: only classes of results are read from it.
"""

import contextlib
import functools
import hashlib
import io
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .checks import check_path, is_concrete
from .files import replacing

_COMPILED_BYTES, _TRACED_BYTES = 2**28, 2**26
# Settings of JAX that no program depends on.
_ASIDE = ("cache", "_log", "dump", "profile", "coordination", "traceback", "distributed")
_PACKAGES = ("ergodax", "jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax")
_PACKAGES += ("jaxtyping", "numpy")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
_SOURCE = Path(__file__).parents[1]
# A file that was written so many seconds before is taken to be as new as the process.
_MARGIN = 0.05


def _began() -> float:
    """When the process began, or some seconds before."""
    # In ticks of a hundredth of a second since Linux started.
    with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - max(up - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
    return time.time() - 10


_STARTED = _began()
# The modules of ergodax whose files were found to be older. Where other threads run, every look at
# a file can take some milliseconds.
_seen: set[str] = set()


class _Kept:
    """Where traced programs are kept; None if they are not."""

    folder: Path | None = None


class _Foreign(Exception):  # noqa: N818
    """Something cannot be known by what it is called."""


class _Place:
    """Stands for an array in what a program returns."""

    def __init__(self, number: int):
        self.number = number


# What results are made of.
_RESULTS = (_Place, eqx.Module, eqx.Enumeration, tuple)
# Of a file: bytes of its digest, and where the form of the results begins.
_DIGEST, _HEAD = 32, 40


def keep_programs(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Keeps programs on disk from now on, so that other processes start quickly.

    Turns on JAX's cache of compiled programs, for programs of any size, unless it is on; 256 MiB of
    what JAX keeps in the folder are left at the start. Beside it stand those of ergodax for the
    processor as they are before they are compiled, up to 64 MiB, which spares most of the time of
    tracing. Call it before the first computation: JAX does not change its folder later.

    Programs with learners or functions of your own are traced in every process, and so are
    derivatives of other functions than `solve`. A method of ergodax that you replace while Python
    runs counts as unchanged: keep nothing then.

    Args:
        folder: a folder that only you can write to, made if there is none; or "off", which leaves
            JAX's cache as it is. By default the environment's `ERGODAX_CACHE`, or else where JAX
            keeps programs already, or else the user's cache folder.

    Returns:
        The folder; None if nothing is kept by ergodax.

    Raises:
        ValueError: if `folder` is no path.
        OSError: if the folder cannot be made.
    """
    import platformdirs

    if folder is not None:
        check_path("folder", folder)
    _Kept.folder = None
    config: Any = jax.config
    given = folder or os.environ.get("ERGODAX_CACHE")
    if given == "off":
        return None
    if given is None and config.jax_compilation_cache_dir:
        if "://" in config.jax_compilation_cache_dir:  # where JAX can write, and Python cannot
            return None
        chosen = Path(config.jax_compilation_cache_dir).absolute()
    else:
        chosen = Path(given or platformdirs.user_cache_path("ergodax") / "programs").expanduser()
        chosen = chosen.absolute()
        chosen.mkdir(parents=True, exist_ok=True)
        config.update("jax_compilation_cache_dir", str(chosen))
        # JAX would look at the size of all files whenever it adds one.
        config.update("jax_compilation_cache_max_size", -1)
        _drop_oldest(chosen.glob("*-cache"), _COMPILED_BYTES)
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _versions()  # before there are other threads
    _Kept.folder = chosen / "traced"
    return chosen


def are_kept() -> bool:
    """Whether programs are kept before they are compiled."""
    return _Kept.folder is not None


def recalled(function: Callable, options: dict[str, Any]) -> Callable:
    """A function to be compiled, whose program is looked up on disk, and kept there if it is not.

    Args:
        function: what `jax.jit` is to trace; the wrapper of a function of ergodax. It is no part of
            another program, and neither differentiated nor batched.
        options: of the compiler.
    """

    @functools.wraps(function)
    def look_up(*args, **given):
        path = None
        with contextlib.suppress(_Foreign, RecursionError, OSError):
            name = _name(getattr(function, "__wrapped__", None), of_wrapper=True)
            path = _path_of(name, options, (args, given))
        arrays, rest = eqx.partition((args, given), eqx.is_array)
        leaves, structure = jax.tree.flatten(arrays)
        found = None if path is None else _read(path)
        if path is not None and found is None:
            found = _exported(function, leaves, structure, rest)
            if found is not None:
                _write(path, *found)
        if found is None:
            return function(*args, **given)
        exported, form = found
        numbers = exported.call(*leaves)
        places, form = jax.tree.flatten(form)
        return form.unflatten(
            numbers[leaf.number] if isinstance(leaf, _Place) else leaf for leaf in places
        )

    return look_up


def released(found: Any, arguments: Any, often: bool) -> Any:
    """What a kept program returned, as free to go to other devices as if it had been traced.

    JAX ties it to its device, whether or not the arguments were.

    Args:
        found: what the program returned.
        arguments: what it was called with.
        often: whether it is called so often that a quicker way, which is compiled, is worth it.
    """
    leaves, structure = jax.tree.flatten(found)
    tied = {k: x for k, x in enumerate(leaves) if isinstance(getattr(x, "dtype", None), np.dtype)}
    first: Any = next(iter(tied.values()), None)
    if first is None or not first.committed or len(first.devices()) > 1:
        return found  # nothing, or of a program that was not kept, or spread over devices
    if any(getattr(leaf, "committed", False) for leaf in jax.tree.leaves(arguments)):
        return found
    held = {k: np.asarray(leaf) for k, leaf in tied.items()}
    free = _pass(held) if often else jax.device_put(held)
    return structure.unflatten(free.get(k, leaf) for k, leaf in enumerate(leaves))


@jax.jit
def _pass(arrays: dict) -> dict:
    """Arrays of the host on JAX's own choice of a device."""
    return arrays


def _exported(function, leaves, structure, rest) -> tuple[Any, Any] | None:
    """The program and the form of what it returns; None if it cannot be kept."""
    form = None

    def program(*leaves):
        nonlocal form
        args, given = eqx.combine(structure.unflatten(leaves), rest)
        arrays, others = eqx.partition(function(*args, **given), eqx.is_array)
        found, of_arrays = jax.tree.flatten(arrays)
        # Of a number that was read nobody knows that its type gives way to others. Integers do not
        # change the type of real numbers in any case.
        found = [x.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else x for x in found]
        form = eqx.combine(of_arrays.unflatten(map(_Place, range(len(found)))), others)
        return found

    program.__name__ = function.__name__
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in leaves]
    # What JAX does not export; a fault of the function itself shows again where it is traced.
    with contextlib.suppress(ValueError, NotImplementedError):
        return jax.export.export(jax.jit(program))(*like), form
    return None


def _path_of(function: str, options: dict[str, Any], arguments: Any) -> Path:
    """Where the program for some arguments is kept."""
    if _Kept.folder is None:
        raise _Foreign("switched off meanwhile")
    parts = _surroundings(), function, sorted(options.items()), _describe(arguments)
    return _Kept.folder / hashlib.sha256(repr(parts).encode()).hexdigest()


def _surroundings() -> tuple:
    """All that programs depend on but a function and its arguments."""
    config: Any = jax.config
    settings = {
        name: repr(getattr(config, name, value))
        for name, value in sorted(config.values.items())
        if not any(word in name for word in _ASIDE)
    }
    client: Any = jax.devices()[0].client
    if client.platform != "cpu":
        raise _Foreign("a device with kernels that JAX may not export")
    if not jax.sharding.get_abstract_mesh().empty:
        raise _Foreign("a mesh that holds here")
    if config.jax_debug_nans or config.jax_debug_infs:
        raise _Foreign("a search for NaN, which looks into the function")
    return (
        _installed(),
        tuple(settings.items()),
        (client.platform, client.platform_version, jax.process_count()),
        (os.environ.get("XLA_FLAGS"), os.environ.get("EQX_ON_ERROR"), sys.version_info[:3]),
    )


def _installed() -> tuple:
    """What is installed: the source of ergodax, and the versions of what it is made of."""
    if not _files():
        raise _Foreign("ergodax without its source")
    package = __name__.partition(".")[0]
    loaded = {name for name in list(sys.modules) if name.partition(".")[0] == package}
    for name in loaded - _seen:
        status = os.stat(str(sys.modules[name].__file__))
        if max(status.st_mtime, status.st_ctime) > _STARTED - _MARGIN:
            raise _Foreign(f"{name}, which may have changed since it was imported")
    _seen.update(loaded)
    return _versions()


@functools.cache
def _files() -> list[Path]:
    return sorted(_SOURCE.rglob("*.py"))


@functools.cache
def _versions() -> tuple:
    source = hashlib.sha256()
    for path in _files():
        text = path.read_bytes()
        source.update(f"{path.relative_to(_SOURCE)} {len(text)} ".encode() + text)
    versions = []
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append((name, metadata.version(name)))
    return source.hexdigest(), *versions


def _describe(value: Any) -> tuple:
    """What tracing can see of a value, as plain numbers, texts and tuples.

    Raises:
        _Foreign: if it is not known what a program could depend on.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind.__name__, repr(value)
    if not is_concrete(value):
        aval: Any = jax.typeof(value)
        if any(axis is not None for axis in aval.sharding.spec):
            raise _Foreign("an array whose type says where it lies")
        return "array", str(aval.dtype), aval.shape, aval.weak_type
    if kind in (tuple, list):
        return kind.__name__, *map(_describe, value)
    if kind is dict:
        return "dict", *((_describe(key), _describe(item)) for key, item in value.items())
    if isinstance(value, eqx.Module):
        return _name(kind), _describe(vars(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _name(kind), *map(_describe, value)
    if isinstance(value, functools.partial) and kind in (functools.partial, jax.tree_util.Partial):
        return "partial", *map(_describe, (value.func, value.args, value.keywords))
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return "constant", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, np.dtype):
        return "dtype", str(value)
    if isinstance(value, Mesh):
        if value.devices.flat[0].platform != jax.default_backend():
            raise _Foreign("devices other than JAX's own choice")
        types = tuple(map(str, value.axis_types))
        return "mesh", value.axis_names, value.devices.shape, types, *map(_of, value.devices.flat)
    return "name", _name(value)


def _of(device: Any) -> tuple:
    return device.platform, device.device_kind, device.id, device.process_index


def _name(value: Any, of_wrapper: bool = False) -> str:
    """The name of a class or function of the packages that ergodax is made of, or of Python.

    Args:
        value: the class or function.
        of_wrapper: whether the name may be that of what wraps the function.
    """
    module, name = (getattr(value, key, None) for key in ("__module__", "__qualname__"))
    if isinstance(module, str) and isinstance(name, str):
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        same = found is value or (of_wrapper and getattr(found, "__wrapped__", None) is value)
        if same and module.partition(".")[0] in (*_PACKAGES, "builtins"):
            return f"{module}:{name}"
    raise _Foreign(repr(value))


class _Reader(pickle.Unpickler):
    """Finds no more than the classes of these packages that results are made of."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        if module.partition(".")[0] in _PACKAGES and module in sys.modules:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, _RESULTS):
                return found
        raise pickle.UnpicklingError(f"{module}:{name} is no class of results")


def _read(path: Path) -> tuple[Any, Any] | None:
    """The program and the form of what it returns; None if they are not there, or not whole."""
    # Whatever is wrong with a file, its program is traced.
    with contextlib.suppress(Exception):
        data = path.read_bytes()
        digest, size, rest = data[:_DIGEST], int.from_bytes(data[_DIGEST:_HEAD]), data[_HEAD:]
        if digest == _digest(path, rest):
            form = _Reader(io.BytesIO(rest[:size])).load()
            exported = jax.export.deserialize(bytearray(rest[size:]))
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)
            return exported, form
    return None


def _write(path: Path, exported: Any, form: Any) -> None:
    """Keeps a program, if it can be read again, and removes those that were not used for long."""
    with contextlib.suppress(Exception):  # it is kept for later, and not needed now
        kept = pickle.dumps(form)
        again = _Reader(io.BytesIO(kept)).load()
        if any(aval.weak_type for aval in exported.out_avals) or _outline(again) != _outline(form):
            return
        rest = kept + exported.serialize()
        with replacing(path) as temporary:
            temporary.write_bytes(_digest(path, rest) + len(kept).to_bytes(8) + rest)
        _drop_oldest(path.parent.iterdir(), _TRACED_BYTES)


def _digest(path: Path, rest: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + rest).digest()


def _outline(form: Any) -> tuple:
    leaves, structure = jax.tree.flatten(form)
    return structure, [x.number if isinstance(x, _Place) else (type(x), x) for x in leaves]


def _drop_oldest(paths: Iterable[Path], most: int) -> None:
    """Removes the files that were not used for longest, until all others have so many bytes."""
    files = []
    for path in paths:
        with contextlib.suppress(OSError):  # other processes remove them too
            files.append((path, path.stat()))
    size = sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda file: max(file[1].st_mtime, file[1].st_atime)):
        if size <= most:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        size -= status.st_size
