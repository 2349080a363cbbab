"""What tells one piece of work from another: a digest of all that its results depend on.

Arrays count whole, with type and shape; random keys with their kind. Of a function count its code,
defaults and attributes, what it has from enclosing functions, and the global variables that it
reads: other functions and classes likewise, and everything that these refer to. A class counts
with all that it holds and inherits, an object with its class and its attributes. What stands by its
name in an installed package counts by that name and the package's version. Names of files, lines
and addresses do not count: the same program has the same digest in every process.
"""

import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib.metadata
import platform
import sys
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..base.checks import is_concrete
from ..base.version import __version__

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
# Of a class: what describes it, and what Python keeps in it for its own use.
_ASIDE = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__"),
    *("__annotations__", "__annotations_cache__", "__annotate_func__", "__static_attributes__"),
    *("__annotate__", "__slotnames__", "_abc_impl"),
}
_INTERNAL = (types.GetSetDescriptorType, types.MemberDescriptorType)
# What runs a function faster, and is known by it alone.
_FASTER = (type(jax.jit(abs)), type(eqx.filter_jit(abs)), functools._lru_cache_wrapper)


def identify(value: Any, name: str) -> str:
    """A digest of a value, whatever it is.

    Args:
        value: arrays, keys, functions, classes, objects, and what holds them.
        name: what it is, for messages.

    Raises:
        ValueError: if it holds what has no contents that can be looked at (a traced value, an open
            file, a lock), naming the place.
    """
    try:
        return _Walk().digest(value, name).hex()
    except RecursionError:
        raise ValueError(f"{name} cannot be identified: it is nested too deeply.") from None


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order, not copied if they lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _Walk:
    """One walk through a value and all that it refers to."""

    def __init__(self):
        self._above: list[int] = []
        # Values are kept beside their digests, so that no other takes their address meanwhile.
        self._known: dict[int, tuple[Any, bytes]] = {}

    def digest(self, value: Any, place: str) -> bytes:
        """The digest of a value that stands at a place."""
        if type(value) in _PLAIN:
            return _join(type(value).__name__, _plain(value))
        if id(value) in self._above:  # it refers to itself
            return _join("above", str(self._above[::-1].index(id(value))).encode())
        if id(value) not in self._known:
            self._above.append(id(value))
            self._known[id(value)] = value, self._describe(value, place)
            self._above.pop()
        return self._known[id(value)][1]

    def _all(self, kind: str, values: Iterable[tuple[Any, str]]) -> bytes:
        return _join(kind, *(self.digest(value, place) for value, place in values))

    def _named(self, kind: str, values: dict[str, Any], place: str) -> bytes:
        ordered = [(name, f"{place}: {name}") for name in sorted(values)]
        parts = [self.digest(values[name], at) for name, at in ordered]
        return _join(kind, "\0".join(sorted(values)).encode(), *parts)

    def _describe(self, value: Any, place: str) -> bytes:
        if not is_concrete(value):
            raise ValueError(f"{place} is being traced by JAX: its value is not known.")
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            return self._of_array(value, place)
        if name := _known_by(value):
            return _join("name", name.encode())
        match value:
            case types.FunctionType():
                return self._of_function(value, place)
            case types.CodeType():
                return self._of_code(value, place)
            case types.MethodType():
                return self._all("method", [(value.__func__, place), (value.__self__, place)])
            case type():
                return self._of_class(value, place)
            case property():
                return self._all("property", [(f, place) for f in (value.fget, value.fset)])
            case staticmethod() | classmethod():
                return self._all(type(value).__name__, [(value.__func__, place)])
            case functools.cached_property():
                return self._all("property", [(value.func, place)])
            case jax.tree_util.PyTreeDef():
                parts = [(part, place) for part in (value.node_data(), *value.children())]
                return self._all("structure", parts)
        if type(value) in _FASTER:
            return self._all("function", [(value.__wrapped__, place)])
        if type(value) in (tuple, list):
            items = [(item, f"{place}[{k}]") for k, item in enumerate(value)]
            return self._all(type(value).__name__, items)
        if type(value) in (set, frozenset):
            # Apart from this walk, whose way would depend on the order of the set.
            return _join("set", *sorted(_Walk().digest(item, place) for item in value))
        if type(value) in (dict, types.MappingProxyType):
            keys = {_Walk().digest(key, place): key for key in value}
            items = [(value[keys[key]], f"{place}[{keys[key]!r}]") for key in sorted(keys)]
            return _join("dict", *sorted(keys), self._all("values", items))
        return self._of_object(value, place)

    def _of_array(self, value: Any, place: str) -> bytes:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            kind = str(jax.random.key_impl(value)).encode()
            return _join("key", kind, self._of_array(jax.random.key_data(value), place))
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise ValueError(f"{place} is an array of Python objects, which cannot be identified.")
        weak = getattr(value, "weak_type", False)
        kind = f"{array.dtype}{array.shape}{'weak' if weak else ''}"
        return _join("array", kind.encode(), bytes_of(array))

    def _of_function(self, function: types.FunctionType, place: str) -> bytes:
        place = f"{function.__name__} of {place}"
        read, names = _names_in(function.__code__)
        variables: dict[str, Any] = {}
        if _version(function.__globals__.get("__name__", "")) is None:
            variables = {k: v for k, v in function.__globals__.items() if k in read}
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        variables |= {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        attributes = {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        return _join(
            "function",
            self.digest(function.__code__, place),
            self.digest(function.__defaults__, f"{place}: a default"),
            self.digest(function.__kwdefaults__, f"{place}: a default"),
            self._named("variables", _without_modules(variables, names), place),
            self._named("attributes", attributes, place),
        )

    def _of_code(self, code: types.CodeType, place: str) -> bytes:
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        steps = (code.co_code, code.co_exceptiontable)
        return self._all("code", [(part, place) for part in (shape, names, steps, code.co_consts)])

    def _of_class(self, cls: type, place: str) -> bytes:
        held = {
            name: item
            for name, item in vars(cls).items()
            if name not in _ASIDE and not isinstance(item, _INTERNAL)
        }
        bases = self._all("bases", [(base, place) for base in (type(cls), *cls.__bases__)])
        name = cls.__qualname__
        return _join("class", name.encode(), bases, self._named("held", held, f"{place}: {name}"))

    def _of_object(self, value: Any, place: str) -> bytes:
        """By what pickling would keep of it, which leaves nothing out; nothing is pickled."""
        reduce = copyreg.dispatch_table.get(type(value), lambda value: value.__reduce_ex__(4))
        try:
            reduced: Any = reduce(value)
        except Exception as error:
            raise ValueError(f"{place} cannot be identified: {error}.") from None
        if isinstance(reduced, str):
            raise ValueError(f"{place} cannot be identified: all that is known is its name.")
        make, args, state, *items = (*reduced, None, None, None)[:5]
        contents = [list(part) if part is not None else None for part in items]
        where = f"{place}: {type(value).__name__}"
        return self._all("object", [(part, where) for part in (make, args, state, *contents)])


def _join(kind: str, *parts: Any) -> bytes:
    """One digest of several parts, each with its length before it."""
    found = hashlib.sha256(kind.encode())
    for part in parts:
        found.update(memoryview(part).nbytes.to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _plain(value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode("utf-8", "surrogatepass")
        case bool() | int():
            return hex(value).encode()
        case float():
            return value.hex().encode()
        case complex():
            return f"{value.real.hex()} {value.imag.hex()}".encode()
    return repr(value).encode()


def _names_in(code: types.CodeType) -> tuple[set[str], set[str]]:
    """Global variables that a code reads, and all names in it; also in functions inside it."""
    instructions = dis.get_instructions(code)
    read = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            inner_read, inner_names = _names_in(inner)
            read, names = read | inner_read, names | inner_names
    return read, names


def _without_modules(variables: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Instead of a module of the user's, the things in it whose names occur in a function."""
    found, seen, left = {}, [], list(variables.items())
    while left:
        name, value = left.pop()
        if not isinstance(value, types.ModuleType) or _known_by(value):
            found[name] = value
        elif value not in seen:
            seen.append(value)
            left += [(f"{name}.{k}", item) for k, item in vars(value).items() if k in names]
    return found


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a variable without a value yet
        return False
    return True


def _known_by(value: Any) -> str | None:
    """Name and version of what stands by its name in an installed package."""
    if isinstance(value, types.ModuleType):
        version = _version(value.__name__)
        return None if version is None else f"{value.__name__} {version}"
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module not in sys.modules:
        return None
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    version = _version(module) if found is value else None
    return None if version is None else f"{module}:{name} {version}"


@functools.cache
def _version(module: str) -> str | None:
    """Version of the installed package of a module; None if the module is the user's own."""
    package = module.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return __version__
    if package in sys.builtin_module_names:
        return platform.python_version()
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return None
    path = Path(file)
    if {"site-packages", "dist-packages"} & set(path.parts):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
        found = getattr(sys.modules[package], "__version__", None)
        return found if isinstance(found, str) else None
    library = Path(sysconfig.get_paths()["stdlib"])
    return platform.python_version() if library in path.parents else None
