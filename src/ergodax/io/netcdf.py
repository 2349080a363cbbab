"""Results in files: labelled netCDF that any tool reads and `load` turns back into the same object.

The root of a file is the labelled data set. Its group `object` holds what else is needed to build
the object again: its structure as JSON, and the arrays that are not in the data set, byte by byte.
No code is stored and none is run. Numbers carry checksums (HDF5's Fletcher-32).
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

from ..base.files import replacing, replacing_folder
from .structure import put_together, take_apart

if TYPE_CHECKING:
    import pandas
    import xarray

# Raised whenever a file of the new layout would mislead an older reader.
_LAYOUT = 1
_GROUP = "object"
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
        result: any result of this package, a tuple of results of one kind (as `rest_points` returns
            them), or an `xarray.Dataset` (as `sweep` does).
        path: the netCDF file; an existing one is replaced once the new one is complete. A data set
            becomes a zarr store if the name ends in `.zarr`; that needs `ergodax[zarr]`.
        attributes: further attributes of the data set.

    Raises:
        ValueError: if the result holds something that cannot be stored (a learner whose class is
            defined inside a function, say), naming it.
        OSError: if the file's folder cannot be made or written.
    """
    path = Path(path)
    data = _labelled(result)
    is_data_set = result is data
    data = data.assign_attrs(attributes or {})
    if path.suffix == ".zarr":
        if not is_data_set:
            raise ValueError(
                "a zarr store holds a data set alone: save result.to_xarray(), or name a .nc file."
            )
        _save_zarr(data, path)
        return
    arrays = _Arrays(data)
    structure = None if is_data_set else take_apart(result, arrays.store)
    text = json.dumps({"is_data_set": is_data_set, "structure": structure}).encode()
    checked = {
        name: {"fletcher32": True}
        for name, variable in data.variables.items()
        if variable.dtype.kind in "biuf" and variable.ndim and variable.size
    }
    with replacing(path) as temporary:
        data.to_netcdf(temporary, engine="h5netcdf", encoding=checked)
        _append(temporary, text, b"".join(arrays.stored))


def load(path: str | os.PathLike[str]) -> Any:
    """The object that was saved: the same classes, and arrays that are the same bit by bit.

    Classes of learners that are not this package's must be imported (or defined again) beforehand.

    Args:
        path: what `save` wrote. Of a zarr store, arrays are read when they are used.

    Returns:
        The result, tuple of results or data set.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is foreign, damaged or of a newer version; if it needs a class that
            is not imported; if it holds float64 arrays of JAX and JAX computes in float32.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    if path.suffix == ".zarr":
        return _load_zarr(path)
    import h5py
    import xarray

    try:
        with h5py.File(path) as file:
            layout = _layout(file, path)
            if layout > _LAYOUT:
                raise ValueError(
                    f"{str(path)!r} was written by a newer version of ergodax (layout {layout}; "
                    f"this one reads {_LAYOUT})."
                )
            text: Any = file[f"{_GROUP}/structure"]
            described = json.loads(text[()].tobytes())
            if not described["is_data_set"]:
                return _rebuild(described["structure"], file, path)
        return xarray.load_dataset(path, engine="h5netcdf")
    except (
        OSError,
        KeyError,
        RuntimeError,
        TypeError,
        UnicodeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(
            f"{str(path)!r} is damaged, cut short or no netCDF-4 file; it was left as it is "
            f"({error})."
        ) from error


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
        raise ValueError("it holds no quantity per state and action.")
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
    if isinstance(result, tuple | list) and result and hasattr(result[0], "to_xarray"):
        members: Any = xarray.concat(
            [one.to_xarray() for one in result],
            "member",
            data_vars="all",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
        return members
    raise ValueError(
        f"a result, a tuple of results or a data set is needed; found {type(result).__name__}."
    )


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


def _append(path: Path, structure: bytes, arrays: bytes) -> None:
    """Adds the group of what is not labelled."""
    import h5netcdf

    with h5netcdf.File(path, "a") as file:
        group = file.create_group(_GROUP)
        group.attrs["layout"] = _LAYOUT
        for name, content in (("structure", structure), ("arrays", arrays)):
            if content:
                group.dimensions[name] = len(content)
                values = np.frombuffer(content, np.uint8)
                group.create_variable(name, (name,), data=values, fletcher32=True)


def _layout(file: Any, path: Path) -> int:
    if _GROUP not in file or "layout" not in file[_GROUP].attrs:
        raise ValueError(f"{str(path)!r} was not written by ergodax.io.save.")
    return int(np.ravel(file[_GROUP].attrs["layout"])[0])


def _rebuild(structure: Any, file: Any, path: Path) -> Any:
    stored = file[_GROUP]["arrays"][()].tobytes() if "arrays" in file[_GROUP] else b""
    labelled: dict[str, tuple[np.ndarray, Sequence[str]]] = {}

    def fetch(place) -> np.ndarray:
        if "offset" in place:
            dtype = np.dtype(place["dtype"])
            count = int(np.prod(place["shape"], dtype=int))
            flat = np.frombuffer(stored, dtype, count, place["offset"])
            return flat.reshape(place["shape"]).copy()
        name = place["variable"]
        if name not in labelled:
            labelled[name] = file[name][()], _dimensions(file[name])
        values, dims = labelled[name]
        return values[tuple(place["index"].get(dim, slice(None)) for dim in dims)].copy()

    try:
        return put_together(structure, fetch)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} cannot be loaded: {error}.") from error


def _dimensions(variable: Any) -> list[str]:
    """Names of a variable's dimensions."""
    if "DIMENSION_LIST" not in variable.attrs:
        return [variable.name.rsplit("/", 1)[-1]]  # a coordinate
    return [
        variable.file[scale[0]].name.rsplit("/", 1)[-1]
        for scale in variable.attrs["DIMENSION_LIST"]
    ]


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
