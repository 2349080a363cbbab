"""Objects taken apart into plain structure (JSON) and arrays, and put together again, bit by bit.

No code is stored and none is run: an object is its fields, and its class goes by module and name.
Objects are made of classes that are known beforehand, never of what a name in a file leads to.
"""

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
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


def take_apart(
    value: Any, store: Store, path: str = "", known: Mapping[str, type] | None = None
) -> Any:
    """The structure of an object, as JSON has it.

    Args:
        value: made of dataclasses (equinox modules among them), named and plain tuples, lists,
            dictionaries, arrays, numbers, texts and None.
        store: stores an array and returns its place.
        path: where in the whole object the value stands, for messages.
        known: classes that are found by their names; those that are imported, by default.

    Raises:
        ValueError: if it holds anything else, such as a function, or an object whose class cannot
            be found by its name, naming the place.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    known = _imported_classes() if known is None else known
    go_on = functools.partial(take_apart, store=store, known=known)
    if isinstance(value, _RESULT):
        leaf = jax.tree.leaves(value)[0]
        messages = {int(code): RESULTS[_result(np.asarray(code))] for code in np.unique(leaf)}
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
    elif code := getattr(value, "__qualname__", None):
        raise ValueError(
            f"{path or 'this'} cannot be saved: {code} is code, which no file holds; "
            "hold an object of a dataclass instead."
        )
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: getattr(value, name) for name in names if hasattr(value, name)}
    else:
        raise ValueError(f"{path or 'this'} cannot be saved: {_kind(value)}.")
    return {
        "class": _checked_name(type(value), path, known),
        "fields": {name: go_on(item, path=f"{path}.{name}") for name, item in fields.items()},
    }


def put_together(structure: Any, fetch: Fetch, classes: Mapping[str, type]) -> Any:
    """The object that was taken apart.

    Args:
        structure: what `take_apart` returned.
        fetch: returns the array at a place.
        classes: those of which objects may be made, by name, as `known_classes` returns them.

    Raises:
        ValueError: if the structure is damaged, needs another class, or has float64 arrays of JAX
            while JAX computes in float32.
    """
    go_on = functools.partial(put_together, fetch=fetch, classes=classes)
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
        case {"jax": place}:
            return _as_jax(fetch(place))
        case {"numpy": place}:
            return fetch(place)
        case {"scalar": place}:
            return fetch(place)[()]
        case {"result": leaf, "messages": list(messages)}:
            return _result(_translate(go_on(leaf), dict(messages)))
        case {"class": str(name), "fields": dict(fields)}:
            kind = _look_up(name, classes)
            return _make(kind, {name: go_on(item) for name, item in fields.items()})
    raise ValueError(f"nothing is written as {str(structure)[:80]}")


def known_classes(named: Iterable[Any] = ()) -> dict[str, type]:
    """Dataclasses and named tuples of which a file may hold objects, by module and name.

    Those are this package's, those derived from them, which every learner of a user is, and the
    named ones. What is this package's own goes by the package alone: files outlive its folders.
    """
    # Some of its modules may not have been needed yet.
    package: Any = importlib.import_module(__name__.partition(".")[0])
    for name in package.__all__:
        getattr(package, name)
    return _imported_classes(named)


def _imported_classes(named: Iterable[Any] = ()) -> dict[str, type]:
    own = [
        item
        for name, module in sorted(sys.modules.items(), reverse=True)
        if is_own(name)
        for item in vars(module).values()
        if _has_fields(item) and is_own(item.__module__)
    ]
    left, derived = list(own), []
    while left:
        below = [kind for kind in left.pop().__subclasses__() if not is_own(kind.__module__)]
        derived += below
        left += below
    for kind in named:
        if not _has_fields(kind):
            raise TypeError(f"classes must be dataclasses or named tuples; found {kind!r}.")
    # Of several with one name the one counts that it leads to: a class may have been defined anew.
    found = [kind for kind in derived if _is_at_its_name(kind)]
    return {_name(kind): kind for kind in (*derived, *found, *own, *named)}


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
    return jax.tree.map(lambda _: codes, RESULTS.successful)


def _translate(codes: Any, messages: dict[int, str]) -> Any:
    """Result codes by their messages: the numbers may have been others when they were saved."""
    known = {RESULTS[_result(np.asarray(k))]: k for k in range(len(RESULTS))}
    present = np.unique(np.asarray(codes)).tolist()
    for code in present:
        if messages.get(code) not in known:
            raise ValueError(f"no result is known with code {code} and text {messages.get(code)!r}")
    numbers = {code: known[messages[code]] for code in present}
    if all(code == number for code, number in numbers.items()):
        return codes
    translated = np.vectorize(numbers.__getitem__, otypes=[np.int32])(np.asarray(codes))
    return jnp.asarray(translated) if isinstance(codes, jax.Array) else translated


def _make(kind: type, fields: dict[str, Any]) -> Any:
    """An object by its fields alone, as it was after its construction; nothing of it is called."""
    named: Any = kind
    names = named._fields if issubclass(kind, tuple) else _fields(kind)
    if missing := set(fields) ^ set(names):
        raise ValueError(
            f"{kind.__name__} has other fields than when it was saved: {', '.join(sorted(missing))}"
        )
    if issubclass(kind, tuple):
        return tuple.__new__(kind, [fields[name] for name in names])
    made = object.__new__(kind)
    for name, item in fields.items():
        object.__setattr__(made, name, item)
    return made


def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _has_fields(kind: Any) -> bool:
    """Whether it is a dataclass or a named tuple."""
    if not isinstance(kind, type):
        return False
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _name(kind: type) -> str:
    module = "ergodax" if is_own(kind.__module__) else kind.__module__
    return f"{module}:{kind.__qualname__}"


def _checked_name(kind: type, path: str, known: Mapping[str, type]) -> str:
    """The name of a class, after a check that it can be found by it."""
    own = is_own(kind.__module__)
    if not (known.get(_name(kind)) is kind if own else _is_at_its_name(kind)):
        raise ValueError(
            f"{path or 'this'} cannot be saved: {kind.__qualname__} cannot be found by its name; "
            "define it at the top level of a module."
        )
    return _name(kind)


def _is_at_its_name(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def is_own(module: str) -> bool:
    """Whether a module is this package's."""
    return module.partition(".")[0] == __name__.partition(".")[0]


def _look_up(name: str, classes: Mapping[str, type]) -> type:
    if name in classes:
        return classes[name]
    module, _, qualified = name.partition(":")
    if is_own(module):
        raise ValueError(f"it needs {qualified} of {module}, which this version does not have")
    raise ValueError(
        f"it needs the class {qualified} of {module}: import or define it first, and unless it is "
        f"a learner or another class derived from ergodax's, load with classes=[{qualified}]"
    )


def _kind(value: Any) -> str:
    return f"{type(value).__name__} objects have no form that can be stored"
