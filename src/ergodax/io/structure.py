"""Objects taken apart into plain structure (JSON) and arrays, and put together again, bit by bit.

No code is stored and none is run: an object is its fields. Classes and functions go by module and
name, and are looked up only in modules that are already imported.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base.checks import is_concrete
from ..base.codes import RESULTS

# How an array is stored: its place, by whatever means the store has.
Store = Callable[[np.ndarray], Any]
Fetch = Callable[[Any], np.ndarray]

_RESULT = type(RESULTS.successful)


def take_apart(value: Any, store: Store, path: str = "") -> Any:
    """The structure of an object, as JSON has it.

    Args:
        value: made of dataclasses (equinox modules among them), named and plain tuples, lists,
            dictionaries, arrays, numbers, texts, None, classes and functions.
        store: stores an array and returns its place.
        path: where in the whole object the value stands, for messages.

    Raises:
        ValueError: if it holds anything else, or a class or function that cannot be found by its
            name, naming the place.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    go_on = functools.partial(take_apart, store=store)
    if isinstance(value, _RESULT):
        leaf = jax.tree.leaves(value)[0]
        messages = {int(code): RESULTS[_result(code)] for code in np.unique(leaf)}
        return {"result": go_on(leaf, path=path), "messages": list(messages.items())}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _take_apart_array(value, store, path)
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named: Any = value
        names = named._fields
        fields = {name: getattr(value, name) for name in names}
    elif type(value) in (tuple, list):
        items = [go_on(item, path=f"{path}[{k}]") for k, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    elif type(value) is dict:
        pairs = [
            [go_on(key, path=path), go_on(item, path=f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
        return {"dict": pairs}
    elif inspect.isclass(value) or (callable(value) and hasattr(value, "__qualname__")):
        return {"name": _name(value, path)}
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
    else:
        raise ValueError(f"{path or 'this'} cannot be saved: {_kind(value)}.")
    return {
        "class": _name(type(value), path),
        "fields": {name: go_on(item, path=f"{path}.{name}") for name, item in fields.items()},
    }


def put_together(structure: Any, fetch: Fetch) -> Any:
    """The object that was taken apart.

    Args:
        structure: what `take_apart` returned.
        fetch: returns the array at a place.

    Raises:
        ValueError: if the structure is damaged, names what cannot be found, or has float64 arrays
            of JAX while JAX computes in float32.
    """
    go_on = functools.partial(put_together, fetch=fetch)
    match structure:
        case None | bool() | int() | float() | str():
            return structure
        case list():
            return [go_on(item) for item in structure]
        case {"tuple": list(items)}:
            return tuple(go_on(item) for item in items)
        case {"dict": list(pairs)}:
            return {go_on(key): go_on(item) for key, item in pairs}
        case {"dtype": str(name)}:
            return np.dtype(name)
        case {"name": str(name)}:
            return _look_up(name)
        case {"jax": place}:
            return _as_jax(fetch(place))
        case {"numpy": place}:
            return fetch(place)
        case {"scalar": place}:
            return fetch(place)[()]
        case {"result": leaf, "messages": list(messages)}:
            codes = _translate(go_on(leaf), dict(messages))
            return jax.tree.map(lambda _: codes, RESULTS.successful)
        case {"class": str(name), "fields": dict(fields)}:
            return _make(_look_up(name), {name: go_on(item) for name, item in fields.items()})
    raise ValueError(f"nothing is written as {str(structure)[:80]}")


def _take_apart_array(value: Any, store: Store, path: str) -> dict[str, Any]:
    if not is_concrete(value):
        raise ValueError(f"{path or 'this'} cannot be saved inside a JAX transformation.")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{path or 'this'} cannot be saved: keep jax.random.key_data of a key.")
    host = np.asarray(value)
    if host.dtype.hasobject:
        raise ValueError(f"{path or 'this'} cannot be saved: an array of Python objects.")
    kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
    return {"jax" if isinstance(value, jax.Array) else kind: store(host)}


def _as_jax(array: np.ndarray) -> jax.Array:
    found = jnp.asarray(array)
    if found.dtype != array.dtype:
        raise ValueError(
            f"it holds arrays in {array.dtype}, which JAX has only with "
            'jax.config.update("jax_enable_x64", True): call that first'
        )
    return found


def _result(codes: Any) -> Any:
    return jax.tree.map(lambda _: np.asarray(codes), RESULTS.successful)


def _translate(codes: Any, messages: dict[int, str]) -> Any:
    """Result codes by their messages: the numbers may have been others when they were saved."""
    known = [RESULTS[_result(k)] for k in range(len(RESULTS))]
    numbers = {
        code: code
        if message not in known or known[code : code + 1] == [message]
        else known.index(message)
        for code, message in messages.items()
    }
    if all(code == number for code, number in numbers.items()):
        return codes
    translated = np.vectorize(numbers.__getitem__, otypes=[np.int32])(np.asarray(codes))
    return jnp.asarray(translated) if isinstance(codes, jax.Array) else translated


def _make(kind: Any, fields: dict[str, Any]) -> Any:
    """An object by its fields alone, as it was after its construction."""
    if inspect.isclass(kind) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        named: Any = kind
        expected: tuple[str, ...] = named._fields
    elif inspect.isclass(kind) and dataclasses.is_dataclass(kind):
        expected = tuple(field.name for field in dataclasses.fields(kind))
    else:
        raise ValueError(f"{kind!r} is neither a dataclass nor a named tuple")
    if missing := set(fields) ^ set(expected):
        raise ValueError(
            f"{kind.__name__} has other fields than when it was saved: {', '.join(sorted(missing))}"
        )
    if issubclass(kind, tuple):
        return kind(**fields)
    made = object.__new__(kind)
    for name, item in fields.items():
        object.__setattr__(made, name, item)
    return made


def _name(value: Any, path: str) -> str:
    """Module and name of a class or function, after a check that it can be found by them.

    What is this package's own goes by the package alone: files outlive its folders.
    """
    module = "ergodax" if _is_own(value.__module__) else value.__module__
    name = f"{module}:{value.__qualname__}"
    try:
        found = _look_up(name)
    except ValueError:
        found = None
    if found is not value:
        raise ValueError(
            f"{path or 'this'} cannot be saved: {value.__qualname__} cannot be found by its name; "
            "define it at the top level of a module."
        )
    return name


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _look_up(name: str) -> Any:
    module, _, qualified = name.partition(":")
    places = [known for own, known in sorted(sys.modules.items()) if _is_own(own)]
    if not _is_own(module):
        if module not in sys.modules:
            raise ValueError(f"it needs {qualified} of {module}: import {module} first")
        places = [sys.modules[module]]
    found: Any = None
    for place in places:
        at: Any = place
        for part in qualified.split("."):
            at = getattr(at, part, None)
        if callable(at):
            return at
        found = at if found is None else found
    if found is None:
        raise ValueError(f"it needs {qualified} of {module}, which is not there: define it first")
    raise ValueError(f"{qualified} of {module} is neither a class nor a function")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} objects have no form that can be stored"
