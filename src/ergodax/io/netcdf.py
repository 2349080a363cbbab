"""Results in files: labelled netCDF that any tool reads and `load` turns back into the same object.

The root of a file is the labelled data set. Its group `object` holds what else is needed to build
the object again. No code is stored and none is run.
"""

import hashlib
import importlib.util
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.checks import check_path, describe
from ..base.files import replacing_folder, target, write
from ..results.result import versions
from .container import UnfitError, opened, pack
from .structure import is_own, known_classes, put_together, take_apart

if TYPE_CHECKING:
    import pandas
    import xarray

# Arrays of fewer bytes are not looked for in the data set.
_SMALL = 64
# Dimensions of the numbers of one agent.
_ENTRY = ("state", "action")


def save(
    result: Any,
    path: str | os.PathLike[str],
    *,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a result or a data set to a file, completely or not at all.

    Args:
        result: any result or other object of this package, a tuple of results of one kind,
            or an `xarray.Dataset` (as `sweep` returns it).
        path: the netCDF file; an existing one is replaced once the new one is complete. A data set
            becomes a zarr store if the name ends in `.zarr`; that needs `ergodax[zarr]`.
        attributes: further attributes of the data set: texts, numbers, or lists of either.

    Raises:
        ValueError: if the result holds something that cannot be stored (a function, or a learner
            whose class is defined inside a function), or an attribute is none, naming it.
        OSError: if the file cannot be written.
    """
    path = target(check_path("path", path))
    data = _labelled(result)
    is_data_set = result is data
    data = data.assign_attrs(_checked({} if attributes is None else attributes))
    if path.suffix == ".zarr":
        if not is_data_set:
            raise ValueError(
                "a zarr store holds a data set alone: save result.to_xarray(), or name a .nc file."
            )
        _save_zarr(data, path)
        return
    arrays = _Arrays(data)
    structure = None if is_data_set else take_apart(result, arrays.store)
    described = {"is_data_set": is_data_set, "structure": structure}
    write(path, pack(data, described, arrays.stored))


def load(path: str | os.PathLike[str], *, classes: Sequence[type] = ()) -> Any:
    """The object that was saved: the same classes, and arrays that are the same bit by bit.

    A file is data: it cannot name code to be run, and leads to no other file. Objects are made of
    this package's classes, of those derived from them, such as your learners, and of `classes`.
    Your own classes must be imported (or defined again) beforehand.

    Args:
        path: what `save` wrote. Of a zarr store, arrays are read when they are used.
        classes: dataclasses and named tuples of your own of which the file may hold objects: the
            parameters of a learner, for instance.

    Returns:
        The result, tuple of results or data set.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is foreign, damaged or of a newer version; if it needs a class that
            is not known; if it holds float64 arrays of JAX and JAX computes in float32.
    """
    path = target(check_path("path", path))
    if path.suffix == ".zarr" and path.exists():
        return _load_zarr(path)
    if not isinstance(classes, Sequence) or not all(isinstance(one, type) for one in classes):
        raise ValueError(f"classes must be a list of classes; found {describe(classes)}.")
    known = known_classes(classes)
    with opened(path) as file:
        if file.structure["is_data_set"]:
            return file.data_set()
        try:
            return put_together(file.structure["structure"], file.fetch, known)
        except ValueError as error:
            raise UnfitError(str(error)) from error


def table(result: Any) -> "pandas.DataFrame":
    """Parameters and policies as a tidy table: one row per time, agent, state and action.

    Args:
        result: a result, a tuple of results, or a data set, as for `save`.

    Returns:
        Columns for the dimensions (of a sweep or batch and for runs too, where there are such),
        coordinates along them such as `step`, and each quantity. An agent has rows for its own
        actions alone. Quantities that are not numbers per state and action, or not along the same
        other dimensions, are left out: they are in `result.to_xarray()`.

    Raises:
        ValueError: if there is no quantity per state and action.
    """
    import pandas

    data = _labelled(result)
    frames = [_rows(data, agent) for agent in range(data.sizes.get("agent", 0))]
    frames = [frame for frame in frames if frame is not None]
    if not frames:
        raise ValueError("result holds no quantity per state and action.")
    frame = pandas.concat(frames, ignore_index=True)
    outer = [name for name in frame.columns if name in data.dims and name not in _ENTRY]
    return frame.sort_values([*outer, "agent"], kind="stable", ignore_index=True)


# Data sets


def _labelled(result: Any) -> "xarray.Dataset":
    import xarray

    if isinstance(result, xarray.Dataset):
        return result
    if hasattr(result, "to_xarray"):
        return result.to_xarray()
    own = is_own(type(result).__module__)
    members = result if isinstance(result, tuple | list) and not own else ()
    if members and all(hasattr(member, "to_xarray") for member in members):
        together: Any = xarray.concat(
            [one.to_xarray() for one in members],
            "member",
            data_vars="all",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
        return together
    if own or (
        isinstance(result, tuple | list) and not result
    ):  # a game, say, or that there are no rest points: nothing to label
        settings = {"result": type(result).__name__} | versions()
        return xarray.Dataset(attrs={"settings": json.dumps(settings)})
    raise ValueError(
        f"a result, a tuple of results or a data set is needed; found {type(result).__name__}."
    )


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as netCDF has them."""
    if not isinstance(given, Mapping):
        raise TypeError(f"attributes must be a dictionary; found {given!r}.")
    for name, value in given.items():
        if not isinstance(name, str) or not name or "/" in name or "\0" in name:
            raise ValueError(f"attributes must have names without '/'; found {name!r}.")
        if name == "settings":
            raise ValueError("attributes: 'settings' says how the result was made; rename yours.")
        if not _is_plain(value):
            raise ValueError(
                f"attributes[{name!r}] must be a text, a number, or a list of either; found "
                f"{value!r}: write str(..), int(..) or json.dumps(..) of it."
            )
    return {k: v if isinstance(v, str | list | tuple) else np.asarray(v) for k, v in given.items()}


def _is_plain(value: Any) -> bool:
    try:
        found = np.asarray(value)
    except ValueError:  # a ragged list
        return False
    return found.dtype.kind in "iufU" and found.ndim < 2 and found.size > 0


def _rows(data: "xarray.Dataset", agent: int) -> "pandas.DataFrame | None":
    """All quantities per state and action of one agent, one row for each of its entries."""
    import xarray

    own, found = f"action_agent{agent}", {}
    for name, variable in data.data_vars.items():
        if "agent" in variable.dims:
            variable = variable.isel(agent=agent, drop=True)
        elif variable.attrs.get("agent") == agent:
            name = variable.attrs["column"]
        else:
            continue
        variable = variable.rename({own: "action"} if own in variable.dims else {})
        if set(_ENTRY) <= set(variable.dims):
            found[name] = variable
    if not found:
        return None
    # The rows are those of the quantity with most dimensions; what varies otherwise is left out.
    dims = max(found.values(), key=lambda variable: variable.ndim).dims
    kept = {
        name: variable
        for name, variable in found.items()
        if set(variable.dims) <= set(dims) and ("time" in variable.dims or "time" not in dims)
    }
    merged = xarray.Dataset(kept)
    outer = [dim for dim in dims if dim not in _ENTRY]
    frame: Any = merged.to_dataframe(dim_order=[*outer, *_ENTRY]).reset_index()
    beside = [name for name in merged.coords if name not in dims]
    frame["agent"] = agent
    return frame[[*outer, *beside, "agent", *_ENTRY, *kept]]


# netCDF


class _Arrays:
    """The arrays of an object: those in the data set by name, all others as bytes."""

    def __init__(self, data: "xarray.Dataset"):
        self.stored: list[bytes] = []
        self._size = 0
        self._places: dict[tuple, dict[str, Any]] = {}
        for name, variable in data.variables.items():
            if variable.dtype.kind not in "iuf":
                continue
            for index in _slices(variable):
                values = np.asarray(variable.isel(index).values)
                if values.nbytes >= _SMALL:
                    self._places.setdefault(_identify(values), {"variable": name, "index": index})

    def store(self, array: np.ndarray) -> dict[str, Any]:
        """The array's place, in the data set or among the stored bytes."""
        identity = _identify(array)
        if identity not in self._places:
            self._places[identity] = {
                "offset": self._size,
                "dtype": _type_name(array),
                "shape": list(array.shape),
            }
            self.stored.append(_bytes(array))
            self._size += array.nbytes
        return self._places[identity]


def _slices(variable: "xarray.Variable") -> list[dict[str, int]]:
    """The whole variable, and its parts at one agent, one member, or both."""
    own = [dim for dim in ("member", "agent") if dim in variable.dims]
    chosen = itertools.chain.from_iterable(
        itertools.combinations(own, count) for count in range(len(own) + 1)
    )
    return [
        dict(zip(dims, index, strict=True))
        for dims in chosen
        for index in np.ndindex(*(variable.sizes[dim] for dim in dims))
    ]


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("="), copy=False).tobytes()


def _type_name(array: np.ndarray) -> str:
    return array.dtype.str if array.dtype.kind in "SU" else array.dtype.name


def _identify(array: np.ndarray) -> tuple:
    return _type_name(array), array.shape, hashlib.blake2b(_bytes(array)).digest()


# zarr


def _save_zarr(data: "xarray.Dataset", path: Path) -> None:
    _need_zarr()
    if path.exists() and not _is_zarr(path):
        raise ValueError(f"{str(path)!r} is no zarr store; it was left as it is.")
    with replacing_folder(path) as temporary:
        # Format 2 has a standard for texts and for all metadata in one place; format 3 not yet.
        data.to_zarr(temporary, mode="w", zarr_format=2, consolidated=True)


def _load_zarr(path: Path) -> "xarray.Dataset":
    _need_zarr()
    import xarray

    if not _is_zarr(path):
        raise ValueError(f"{str(path)!r} is no zarr store.")
    return xarray.open_zarr(path, chunks=None)


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def _need_zarr() -> None:
    if importlib.util.find_spec("zarr") is None:
        raise ImportError("zarr stores need zarr: pip install 'ergodax[zarr]'.")
