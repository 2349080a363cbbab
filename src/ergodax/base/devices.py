"""Arrays on devices, which devices work is spread over, and one device for every core."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check_count, is_concrete


def as_array(value: Any, dtype: Any = None) -> jax.Array:
    """What `jnp.asarray` returns, never weakly typed; numbers of the host need no program for it.

    JAX compiles one for every shape, which takes some hundredths of a second.
    """
    if isinstance(value, jax.Array) or not all(map(is_concrete, jax.tree.leaves(value))):
        return jnp.asarray(value, dtype)
    return jax.device_put(np.asarray(value, dtype))


def default_devices() -> list[Any]:
    """The device that `jax.default_device` names, or else all local ones of JAX's default kind."""
    config: Any = jax.config
    chosen = config.jax_default_device
    if chosen is None or isinstance(chosen, str):
        return jax.local_devices(backend=chosen)
    return [chosen]


_MOST_PER_CORE = 4


def use_all_cores(count: int | None = None) -> None:
    """Makes one JAX device of every processor core, over which `simulate` spreads its runs.

    Call it before JAX's first computation; importing ergodax is not one. XLA then leaves the steps
    of one device on one core, instead of cutting each between all: handing over takes longer than
    such small work. What runs on one device, like a single solve, gains nothing.

    Args:
        count: number of devices; by default the number of cores this process may use.

    Raises:
        ValueError: if `count` is not positive.
        RuntimeError: if JAX has already started.
    """
    if count is None:
        usable = getattr(os, "sched_getaffinity", None)
        count = len(usable(0)) if usable else os.cpu_count() or 1
    count, cores = check_count("count", count), os.cpu_count() or 1
    if count > max(_MOST_PER_CORE * cores, 64):
        raise ValueError(f"count must be about the number of cores, {cores}; found {count}.")
    try:
        jax.config.update("jax_num_cpu_devices", count)
        with _one_thread_per_device():
            jax.devices("cpu")
    except RuntimeError:
        raise RuntimeError(
            "JAX has already started and keeps its devices: call ergodax.use_all_cores() before "
            "any computation, first thing in the program."
        ) from None


@contextlib.contextmanager
def _one_thread_per_device() -> Iterator[None]:
    """XLA takes the number of threads from NPROC, once, when it starts."""
    given = os.environ.get("NPROC")
    os.environ["NPROC"] = given or "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ["NPROC"]
