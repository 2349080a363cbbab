"""Results in files, and unfinished work.

`save` writes labelled netCDF that any tool reads, `load` turns it back into the same object bit by
bit, and `table` makes a tidy pandas table.
"""

from .netcdf import load, save, table

__all__ = ["load", "save", "table"]
