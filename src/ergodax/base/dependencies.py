"""All that a compiled program depends on, in plain numbers, texts and tuples.

That is:

- the function, the source of ergodax, and the versions of the packages that it is made of;
- the arguments: shapes, types and places of arrays, and all else by its contents;
- JAX's settings, processors and GPUs. Options of the compiler come with the function.

Of arguments with what is none of these packages' own, such as a learner of yours or a function of
the observable, it cannot be told; nor while files of ergodax are newer than the process. What is
replaced in these packages while Python runs, a method say, counts as unchanged.
"""

import contextlib
import functools
import hashlib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

# Settings of JAX that no program depends on.
_ASIDE = ("cache", "_log", "dump", "profile", "coordination", "traceback", "distributed")
PACKAGES = ("ergodax", "jax", "jaxlib", "equinox", "diffrax", "lineax", "optimistix", "optax")
PACKAGES += ("jaxtyping", "numpy")
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


class UnknownError(Exception):
    """It cannot be told what a program depends on."""


def surroundings() -> tuple:
    """All that programs depend on but a function and its arguments.

    Raises:
        UnknownError: if there is more that they may depend on.
    """
    config: Any = jax.config
    settings = {
        name: repr(getattr(config, name, value))
        for name, value in sorted(config.values.items())
        if not any(word in name for word in _ASIDE)
    }
    client: Any = jax.devices()[0].client
    if client.platform not in ("cpu", "gpu"):
        raise UnknownError("devices with which this was never tried")
    chosen = config.jax_default_device
    if chosen is not None and getattr(chosen, "platform", chosen) != client.platform:
        raise UnknownError("devices other than JAX's own choice")
    if config.jax_disable_jit:
        raise UnknownError("nothing is compiled")
    if not jax.sharding.get_abstract_mesh().empty:
        raise UnknownError("a mesh that holds here")
    if config.jax_debug_nans or config.jax_debug_infs:
        raise UnknownError("a search for NaN, which looks into the function")
    return (
        _installed(),
        tuple(settings.items()),
        (client.platform, client.platform_version, jax.process_count(), jax.process_index()),
        sorted({device.device_kind for device in jax.local_devices()}),
        _processor(),
        (os.environ.get("XLA_FLAGS"), os.environ.get("EQX_ON_ERROR"), sys.version_info[:3]),
    )


def _installed() -> tuple:
    """What is installed: the source of ergodax, and the versions of what it is made of."""
    if not _files():
        raise UnknownError("ergodax without its source")
    package = __name__.partition(".")[0]
    loaded = {name for name in list(sys.modules) if name.partition(".")[0] == package}
    for name in loaded - _seen:
        status = os.stat(str(sys.modules[name].__file__))
        if max(status.st_mtime, status.st_ctime) > _STARTED - _MARGIN:
            raise UnknownError(f"{name}, which may have changed since it was imported")
    _seen.update(loaded)
    return versions()


@functools.cache
def _files() -> list[Path]:
    return sorted(_SOURCE.rglob("*.py"))


@functools.cache
def versions() -> tuple:
    """A digest of the source of ergodax, and the versions of the packages that are installed."""
    source = hashlib.sha256()
    for path in _files():
        text = path.read_bytes()
        source.update(f"{path.relative_to(_SOURCE)} {len(text)} ".encode() + text)
    found = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return source.hexdigest(), *found


@functools.cache
def _processor() -> tuple:
    """What processor there is, and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine(), platform.processor()
    told = sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    return platform.machine(), *told


def describe(value: Any) -> tuple:
    """What tracing can see of a value, as plain numbers, texts and tuples.

    Raises:
        UnknownError: if it is not known what a program could depend on.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind.__name__, repr(value)
    if isinstance(value, jax.ShapeDtypeStruct):
        place = None if value.sharding is None else _place(value.sharding)
        return "array", str(value.dtype), value.shape, value.weak_type, place
    if kind in (tuple, list):
        return kind.__name__, *map(describe, value)
    if kind is dict:
        return "dict", *((describe(key), describe(item)) for key, item in value.items())
    if isinstance(value, eqx.Module):
        return name_of(kind), describe(vars(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return name_of(kind), *map(describe, value)
    if isinstance(value, functools.partial) and kind in (functools.partial, jax.tree_util.Partial):
        return "partial", *map(describe, (value.func, value.args, value.keywords))
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return "constant", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, np.dtype):
        return "dtype", str(value)
    if isinstance(value, Mesh):
        types = tuple(map(str, value.axis_types))
        return "mesh", value.axis_names, value.devices.shape, types, *map(_of, value.devices.flat)
    return "name", name_of(value)


def _place(sharding: Any) -> tuple:
    """Where an array lies that is tied to devices."""
    if type(sharding) is SingleDeviceSharding:
        return "device", sharding.memory_kind, *map(_of, sharding.device_set)
    if type(sharding) is NamedSharding:
        return "mesh", sharding.memory_kind, str(sharding.spec), describe(sharding.mesh)
    raise UnknownError("an array that lies elsewhere")


def _of(device: Any) -> tuple:
    if device.platform != jax.default_backend():
        raise UnknownError("devices other than JAX's own choice")
    return device.platform, device.device_kind, device.id, device.process_index


def name_of(value: Any, of_wrapper: bool = False) -> str:
    """The name of a class or function of the packages that ergodax is made of, or of Python.

    Args:
        value: the class or function.
        of_wrapper: whether the name may be that of what wraps the function.

    Raises:
        UnknownError: if it is of none of them, or something else goes by its name.
    """
    module, name = (getattr(value, key, None) for key in ("__module__", "__qualname__"))
    if isinstance(module, str) and isinstance(name, str):
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        same = found is value or (of_wrapper and getattr(found, "__wrapped__", None) is value)
        if same and module.partition(".")[0] in (*PACKAGES, "builtins"):
            return f"{module}:{name}"
    raise UnknownError(repr(value))
