"""Many steps of all runs: in a loop, or on a GPU in one kernel where there can be one.

If a GPU's compiler cannot make the kernel, steps are launched one by one.
"""

import dataclasses
import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from .kernel import take_steps
from .lanes import Lanes, from_lanes, in_loop, over_lanes, to_lanes
from .tables import Refused

logger = logging.getLogger(__name__)

# Steps that a GPU takes without asking the host.
UNWATCHED = 64


def advanced(step: Callable, count: Any, shared: Any, own: Any, run: Any, setting: Any) -> Any:
    """All runs after so many steps.

    Args:
        step: a function of the steps taken, what all runs share, what one has for itself, and it.
        count: how many.
        shared: a pytree of arrays.
        own: a pytree of `Lanes`.
        run: the runs, as `Lanes`.
        setting: the devices, and whether the steps are to be one kernel.

    Raises:
        Refused: if there is no such kernel.
    """
    if setting.in_kernel:
        return to_lanes(take_steps(step, count, shared, *from_lanes((own, run))))

    if not is_gpu(setting.mesh):

        def one_of_all(taken, run):
            return over_lanes(functools.partial(step, taken, shared), own, run, like=run)

        return jax.lax.fori_loop(0, count, one_of_all, run)

    first = Lanes(jnp.asarray(count, jnp.int32), None)
    prepared = in_loop(lambda shared, taken, *a: step(taken, shared, *a), shared, first, own, run)

    def one(taken, run):
        return prepared(Lanes(jnp.asarray(taken, jnp.int32), None), own, run)

    def several(k, run):
        first = k * UNWATCHED
        return jax.lax.fori_loop(0, UNWATCHED, lambda i, run: one(first + i, run), run, unroll=2)

    # The host waits for the condition of every loop that it cannot count.
    run = jax.lax.fori_loop(0, count // UNWATCHED, several, run)
    return jax.lax.fori_loop(count - count % UNWATCHED, count, one, run)


def is_gpu(mesh: Mesh) -> bool:
    """Whether the devices are GPUs."""
    return mesh.devices.flat[0].platform == "gpu"


def compiler_of(setting: Any) -> str:
    """What compiles the steps: "Triton" makes one kernel of many, "XLA" all else."""
    return "Triton" if setting.in_kernel else "XLA"


def in_kernel_or_loop(program: Callable, setting: Any, *arguments: Any) -> tuple[Any, Any]:
    """Calls a program that takes steps, in a loop if they cannot be one kernel.

    Args:
        program: a function of the setting and the arguments.
        setting: what is simulated.
        *arguments: all else.

    Returns:
        The setting that served, and what the program returned.

    Warns:
        UserWarning: if there should be a kernel, but the compiler or the card failed at it.
    """
    if not setting.in_kernel:
        return setting, program(setting, *arguments)
    failed = None
    try:
        with warnings.catch_warnings():
            # JAX says so from 0.11 on; should Triton be gone, steps are launched one by one.
            warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
            return setting, jax.block_until_ready(program(setting, *arguments))
    except Refused as reason:
        logger.info("every step is launched by itself, not many in one kernel: %s", reason)
    except Exception as error:  # of any type
        failed = error
    setting = dataclasses.replace(setting, in_kernel=False)
    found = jax.block_until_ready(program(setting, *arguments))
    if failed is not None:
        told = str(failed).strip().splitlines() or [""]
        warnings.warn(
            "the kernel for this simulation's steps failed, and every step is launched by itself, "
            f"which takes longer ({type(failed).__name__}: {told[0][:200]})",
            stacklevel=2,
        )
    return setting, found
