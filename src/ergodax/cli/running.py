"""What comes before a computation: precision, devices and kept programs."""

import argparse
import contextlib
import importlib
import os
import threading
import warnings
from typing import Any

from .game import Chosen, choose_game

# What draws and writes results takes a second to import.
_OUTPUT = ("matplotlib.figure", "matplotlib.backends.backend_agg", "xarray", "h5netcdf")


def start(options: argparse.Namespace) -> Chosen:
    """Prepares JAX, makes the game, and tries the output folder, before any work."""
    from ..base.files import prepare_folder

    prepare(options.cache)
    chosen = choose_game(options)
    prepare_folder(options.out)
    # Python has little else to do while XLA compiles.
    threading.Thread(target=lambda: [*map(importlib.import_module, _OUTPUT)]).start()
    return chosen


def prepare(cache: str | None, job: tuple | None = None) -> None:
    """Turns on float64, the cache of programs and all cores, and looks for devices.

    Args:
        cache: the folder of programs, or "off".
        job: the arguments of `connect`, if this is one of several processes.
    """
    import jax

    from ..base.devices import use_all_cores
    from ..base.processes import connect

    jax.config.update("jax_enable_x64", True)
    keep_programs(cache)
    if job is not None:
        connect(*job)
    # JAX runs already where Python calls `main`, or finds no device at all.
    with contextlib.suppress(RuntimeError, AssertionError):
        use_all_cores()
    find_devices()


def keep_programs(given: str | None) -> None:
    """Has programs kept from one run to the next; warns if they cannot be.

    Args:
        given: the folder, or "off"; by default that of the environment, or the user's own.
    """
    from ..base import programs

    try:
        programs.keep_programs(given)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)


def find_devices() -> list[Any]:
    """The devices of JAX; raises RuntimeError if it finds none."""
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # what JAX raises depends on its version
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise RuntimeError(
            f"JAX finds no device{f' for JAX_PLATFORMS={asked}' if asked else ''}: unset it to use "
            f"the processor; for a GPU, install ergodax[cuda] and see that nvidia-smi lists the "
            f"card. {error}"
        ) from None
