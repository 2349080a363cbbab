"""Programs kept on disk, so that another process neither traces nor compiles them again.

JAX keeps what it has compiled, and finds it by the program's text, which must be traced and lowered
first. Here compiled programs are found by the function, the arguments, and all else that tracing
and compiling depend on (`dependencies`). A program of which that cannot be told is traced in every
process.

Whoever can write to the folder can have code run, as with JAX's own. What a damaged file holds is
not run.
"""

import contextlib
import functools
import hashlib
import io
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from .checks import check_path
from .dependencies import PACKAGES, UnknownError, describe, name_of, surroundings, versions
from .files import replacing

_JAX_BYTES, _BYTES = 2**28, 2**27


class _Kept:
    """Where programs are kept; None if they are not."""

    folder: Path | None = None


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
    what JAX keeps in the folder are left at the start. Beside it stand those of ergodax, up to
    128 MiB, found without being traced; JAX keeps no copy of them. Call it before the first
    computation: JAX does not change its folder later.

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
        _drop_oldest(chosen.glob("*-cache"), _JAX_BYTES)
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    versions()  # before there are other threads
    _Kept.folder = chosen / "compiled"
    return chosen


def are_kept() -> bool:
    """Whether programs are kept and found without being traced."""
    return _Kept.folder is not None


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        run: makes the arrays of a list of arrays.
        form: what the function returns, with places of arrays.
    """

    run: Any
    form: Any

    def __call__(self, arrays: Sequence) -> Any:
        """What the function returns, for the arrays among its arguments."""
        found = self.run(*arrays)
        leaves, structure = jax.tree.flatten(self.form)
        return structure.unflatten(found[x.number] if isinstance(x, _Place) else x for x in leaves)


def kept(
    function: Callable, trace: Callable, options: dict[str, Any], arguments: Any
) -> Program | None:
    """The compiled program of a function: read from disk, or else compiled and kept there.

    Args:
        function: a function of ergodax. Its program is no part of another one, and neither
            differentiated nor batched.
        trace: what is traced for it.
        options: of the compiler.
        arguments: a tuple and a dictionary, with `jax.ShapeDtypeStruct` for arrays, and their
            places where they are tied to devices.

    Returns:
        The program; None if it is not known what it depends on, so that it cannot be kept.
    """
    try:
        path = _path_of(name_of(function, of_wrapper=True), options, arguments)
    except (UnknownError, RecursionError, OSError):
        return None
    arrays = [leaf for leaf in jax.tree.leaves(arguments) if _is_shape(leaf)]
    program = _read(path, len(arrays))
    if program is None:
        lowered, program = _compile(trace, options, arguments)
        _write(path, lowered, program)
    return program


def _compile(trace: Callable, options: dict[str, Any], arguments: Any) -> tuple[Any, Program]:
    """The lowered and the compiled program."""
    like, others = eqx.partition(arguments, _is_shape)
    leaves, structure = jax.tree.flatten(like)
    form = None

    def flat(*arrays):
        nonlocal form
        args, given = eqx.combine(structure.unflatten(arrays), others)
        arrays, rest = eqx.partition(trace(*args, **given), eqx.is_array)
        found, of_arrays = jax.tree.flatten(arrays)
        form = eqx.combine(of_arrays.unflatten(map(_Place, range(len(found)))), rest)
        return found

    flat.__name__ = trace.__name__
    lowered = jax.jit(flat, compiler_options=options).lower(*leaves)
    with _uncopied():
        return lowered, Program(lowered.compile(), form)


class _Uncopied:
    """How many threads compile what JAX is to keep no copy of, and what its setting was before."""

    lock, threads, least = threading.Lock(), 0, 0.0


@contextlib.contextmanager
def _uncopied():
    """Has JAX keep no copy of what is compiled here, nor of what is elsewhere meanwhile."""
    setting, config = "jax_persistent_cache_min_compile_time_secs", cast(Any, jax.config)
    with _Uncopied.lock:
        if not _Uncopied.threads:
            _Uncopied.least = getattr(config, setting)
            config.update(setting, float("inf"))
        _Uncopied.threads += 1
    try:
        yield
    finally:
        with _Uncopied.lock:
            _Uncopied.threads -= 1
            if not _Uncopied.threads:
                config.update(setting, _Uncopied.least)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _path_of(function: str, options: dict[str, Any], arguments: Any) -> Path:
    """Where the program for some arguments is kept."""
    if _Kept.folder is None:
        raise UnknownError("switched off meanwhile")
    parts = surroundings(), function, sorted(options.items()), describe(arguments)
    return _Kept.folder / hashlib.sha256(repr(parts).encode()).hexdigest()


class _Reader(pickle.Unpickler):
    """Finds no more than the classes of these packages that results are made of."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of that name."""
        if module.partition(".")[0] in PACKAGES and module in sys.modules:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, _RESULTS):
                return found
        raise pickle.UnpicklingError(f"{module}:{name} is no class of results")


def _read(path: Path, arrays: int) -> Program | None:
    """The program, of so many arrays; None if it is not there, or not whole."""
    # Whatever is wrong with a file, its program is compiled.
    with contextlib.suppress(Exception):
        data = path.read_bytes()
        digest, size, rest = data[:_DIGEST], int.from_bytes(data[_DIGEST:_HEAD]), data[_HEAD:]
        if digest == _digest(path, rest):
            form, devices, needs_lapack = _Reader(io.BytesIO(rest[:size])).load()
            places = sum(isinstance(leaf, _Place) for leaf in jax.tree.leaves(form))
            if needs_lapack:
                _find_lapack()
            here = {device.id: device for device in jax.devices()}
            run = serialize_executable.deserialize_and_load(
                rest[size:],
                jax.tree.structure(((0,) * arrays, {})),
                jax.tree.structure([0] * places),
                execution_devices=[here[number] for number in devices],
            )
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)
            return Program(run, form)
    return None


def _write(path: Path, lowered: Any, program: Program) -> None:
    """Keeps a program, if it can be read again, and removes those that were not used for long."""
    with contextlib.suppress(Exception):  # it is kept for later, and not needed now
        head = pickle.dumps((program.form, _devices(program.run), "lapack_" in lowered.as_text()))
        if _outline(_Reader(io.BytesIO(head)).load()[0]) != _outline(program.form):
            return
        rest = head + serialize_executable.serialize(program.run)[0]
        with replacing(path) as temporary:
            temporary.write_bytes(_digest(path, rest) + len(head).to_bytes(8) + rest)
        _drop_oldest(path.parent.iterdir(), _BYTES)


def _devices(run: Any) -> list[int]:
    """The numbers of the devices that a compiled program runs on, in its order."""
    found = set()
    for place in jax.tree.leaves((run.input_shardings, run.output_shardings)):
        devices = place.mesh.devices.flat if hasattr(place, "mesh") else place.device_set
        found.add(tuple(device.id for device in devices))
    (devices,) = found
    return list(devices)


@functools.cache
def _find_lapack() -> None:
    """Has JAX find LAPACK, which a program that is read expects, as lowering a use of it does."""
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))


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
