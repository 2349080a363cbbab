"""A file of results as bytes: netCDF, a group with what is not labelled, and a seal at the end.

The group `object` holds the structure of the object as JSON, and the arrays that are not in the
data set, byte by byte. The seal is a digest of all bytes before it, which netCDF's readers pass
over; a file whose seal is broken is not looked into. What is read lies in the file itself and is no
larger than it: links to other files, and sizes that are only declared, are refused.
"""

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    import xarray

# Raised whenever a file of the new layout would mislead an older reader. Layout 1 had no seal.
LAYOUT = 2
_SEAL = b"sealed by ergodax, sha256 "
_SEAL_SIZE = len(_SEAL) + 32
_GROUP = "object"
_PIECE = 1 << 20
_WIDEST = 16  # bytes of a number, or of a text's place in the file


class UnfitError(ValueError):
    """Why a file cannot be loaded."""


def pack(data: "xarray.Dataset", structure: Any, arrays: Sequence[bytes]) -> list[Any]:
    """The bytes of a file, in parts.

    Args:
        data: the labelled data set.
        structure: what JSON can hold.
        arrays: bytes to which the structure refers.
    """
    import h5netcdf

    checked = {
        name: {"fletcher32": True}
        for name, variable in data.variables.items()
        if variable.dtype.kind in "biuf" and variable.ndim and variable.size
    }
    # Not to the disk: HDF5 does not survive that it is full.
    file = io.BytesIO()
    data.to_netcdf(file, engine="h5netcdf", encoding=checked)
    with h5netcdf.File(file, "a") as labelled:
        group = labelled.create_group(_GROUP)
        group.attrs["layout"] = LAYOUT
        text = json.dumps(structure).encode()
        for name, content in (("structure", text), ("arrays", b"".join(arrays))):
            if content:
                group.dimensions[name] = len(content)
                values = np.frombuffer(content, np.uint8)
                group.create_variable(name, (name,), data=values, fletcher32=True)
    content = file.getbuffer()
    return [content, _SEAL, hashlib.sha256(content).digest()]


@contextlib.contextmanager
def opened(path: Path) -> Iterator["Container"]:
    """A file of results to read from.

    Raises:
        FileNotFoundError: if there is no such file; another OSError if it may not be read.
        ValueError: if it is foreign, damaged or of a newer version, or if what is read in the block
            is.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}.")
    if not path.is_file():
        kind = "folder" if path.is_dir() else "device or pipe"
        raise ValueError(f"{str(path)!r} is a {kind}, not a file.")
    with open(path, "rb") as file:
        try:
            with _container(file) as container:
                yield container
        except UnfitError as error:
            raise ValueError(f"{str(path)!r} cannot be loaded: {error}.") from error
        except Exception as error:  # a library may raise anything about what it cannot read
            raise ValueError(
                f"{str(path)!r} is damaged, cut short or no netCDF-4 file; it was left as it is "
                f"({type(error).__name__}: {str(error)[:200]})."
            ) from error


@contextlib.contextmanager
def _container(file: BinaryIO) -> Iterator["Container"]:
    import h5py

    sealed = _check_seal(file)
    with h5py.File(file, "r") as content:
        yield Container(content, file, sealed)


def _check_seal(file: BinaryIO) -> bool:
    """Whether a file has a seal; raises UnfitError if that is broken."""
    left = file.seek(0, os.SEEK_END) - _SEAL_SIZE
    file.seek(max(left, 0))
    seal, digest = file.read(_SEAL_SIZE), hashlib.sha256()
    file.seek(0)
    if not seal.startswith(_SEAL):
        return False
    while left > 0:
        piece = file.read(min(left, _PIECE))
        if not piece:
            break
        digest.update(piece)
        left -= len(piece)
    file.seek(0)
    if digest.digest() != seal[len(_SEAL) :]:
        raise UnfitError("it was damaged, or changed by another program, after it was saved")
    return True


class Container:
    """What an open file holds."""

    def __init__(self, content: Any, file: BinaryIO, sealed: bool):
        """Checks that the file is of a layout that can be read.

        Args:
            content: the same file, opened by h5py.
            file: the file.
            sealed: whether it has a seal.

        Raises:
            UnfitError: if it is not.
        """
        self._content, self._file = content, file
        self._size = os.fstat(file.fileno()).st_size
        if _GROUP not in content:
            raise UnfitError("it was not written by ergodax.io.save")
        self._group = self._item(content, _GROUP)
        layout = self._group.attrs.get("layout")
        if np.size(layout) != 1 or np.asarray(layout).dtype.kind not in "iu":
            raise UnfitError("it was not written by ergodax.io.save")
        layout = int(np.ravel(layout)[0])
        if layout > LAYOUT:
            raise UnfitError(
                f"it was written by a newer version of ergodax (layout {layout}; this one reads "
                f"{LAYOUT})"
            )
        if layout < 1:
            raise UnfitError(f"there is no layout {layout}")
        if layout > 1 and not sealed:
            raise UnfitError("it was cut short, or changed by another program, after it was saved")
        self.structure: Any = json.loads(self._array(self._group, "structure").tobytes())
        self._stored = b""
        if "arrays" in self._group:
            self._stored = self._array(self._group, "arrays").tobytes()
        self._labelled: dict[str, tuple[np.ndarray, Sequence[str]]] = {}

    def data_set(self) -> "xarray.Dataset":
        """The labelled data set."""
        import h5py
        import xarray

        for name in self._content:
            if name != _GROUP and isinstance(self._item(self._content, name), h5py.Dataset):
                self._check(self._content[name], name)
        self._file.seek(0)
        return xarray.load_dataset(self._file, engine="h5netcdf")

    def fetch(self, place: dict[str, Any]) -> np.ndarray:
        """The array at a place: among the stored bytes, or in the data set."""
        if "offset" in place:
            dtype, shape, start = np.dtype(place["dtype"]), place["shape"], place["offset"]
            if dtype.hasobject or min([0, start, *shape]) < 0:
                raise UnfitError("an array in it has an impossible type or shape")
            if start + dtype.itemsize * math.prod(shape) > len(self._stored):
                raise UnfitError("an array in it ends beyond the file")
            return np.ndarray(shape, dtype, self._stored, start).copy()
        name = place["variable"]
        if name not in self._labelled:
            values = self._array(self._content, name)
            self._labelled[name] = values, _dimensions(self._content[name])
        values, dims = self._labelled[name]
        return np.array(values[tuple(place["index"].get(dim, slice(None)) for dim in dims)])

    def _array(self, group: Any, name: str) -> np.ndarray:
        found = self._item(group, name)
        self._check(found, name)
        return np.asarray(found[()])

    def _item(self, group: Any, name: str) -> Any:
        """A group or variable; raises UnfitError if it lies in another file."""
        import h5py

        if "/" in name or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UnfitError(f"{name} in it is a link, which is not followed")
        return group[name]

    def _check(self, variable: Any, name: str) -> None:
        """Raises UnfitError unless the numbers of a variable can lie in the file."""
        if variable.external or variable.is_virtual:
            raise UnfitError(f"the numbers of {name} lie in another file, which is not read")
        is_dimension = b"not a netCDF variable" in np.bytes_(variable.attrs.get("NAME", b""))
        if not is_dimension and variable.nbytes > _WIDEST * self._size:
            raise UnfitError(f"{name} in it is declared to be larger than the file")


def _dimensions(variable: Any) -> list[str]:
    """Names of a variable's dimensions."""
    if "DIMENSION_LIST" not in variable.attrs:
        return [variable.name.rsplit("/", 1)[-1]]  # a coordinate
    return [
        variable.file[scale[0]].name.rsplit("/", 1)[-1]
        for scale in variable.attrs["DIMENSION_LIST"]
    ]
