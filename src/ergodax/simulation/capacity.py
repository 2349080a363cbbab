"""How much goes into a device at once, runs and steps, and into memory in all."""

import math
from typing import Any, NamedTuple

import jax

from ..base.checks import check_count
from ..base.memory import check_room
from .inputs import Inputs
from .moments import GROUP


class Limits(NamedTuple):
    """What suits a kind of device.

    Attributes:
        widest: runs of a batch on one device, at most.
        cache: bytes of what they alone use, at most.
        near: bytes of it that steps reach quickly.
        busy: runs that keep the device busy, be they near or not.
        block: steps of all of them in one block, at most.
        longest: steps of a block, at most.
    """

    widest: int
    cache: int
    near: int
    busy: int
    block: int
    longest: int


# What a core can hold near it, and a fraction of a second between two looks at the keyboard.
PROCESSOR = Limits(widest=512, cache=2**21, near=2**21, busy=GROUP, block=2**24, longest=2**24)
# A step of few runs takes an accelerator as long as one of many. Of 225 states x 15 actions, 27 kB,
# an H100 takes 0.5e9 steps/s with 2^10 runs, 4.4e9 with 2^14, and only 2.3e9 with 2^15.
ACCELERATOR = Limits(widest=2**20, cache=2**32, near=2**29, busy=2**14, block=2**31, longest=2**13)
# Share of an accelerator's memory for the parameters; all arrays of a block take seven times that.
_SHARE = 1 / 16
# Bytes of the games that runs have for themselves; a block takes some five times that.
_COPIES = 2**28
# How much longer than the others a process may work, for the sake of wider batches.
_UNEVEN = 1.15
# Bytes of a report time by itself, and of what is held of each byte that is reported.
_PER_TIME, _MOMENTS = 512, 12


def limits_of(device: Any) -> Limits:
    """What suits a device."""
    if device.platform == "cpu":
        return PROCESSOR
    memory = (device.memory_stats() or {}).get("bytes_limit", ACCELERATOR.cache / _SHARE)
    return ACCELERATOR._replace(cache=int(_SHARE * memory))


def bytes_of_run(inputs: Inputs, recorded: Any = ()) -> int:
    """Bytes of what a run has for itself: parameters, records, its game if it has one."""
    game = _size(inputs.wrapped) // inputs.runs if inputs.own_game else 0
    return _size((inputs.like, recorded)) + game


def _size(tree: Any) -> int:
    """Bytes of all arrays of a pytree."""
    leaves = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def width_of(batch_size: Any, size: int, runs: int, devices: int, limits: Limits) -> int:
    """Runs of one device at a time: a power of two times `GROUP`.

    Args:
        batch_size: about how many; by default as many as suit the device.
        size: bytes that each has for itself.
        runs: number of all runs.
        devices: number of devices.
        limits: what suits them.

    Raises:
        ValueError: if `batch_size` is not a positive integer.
    """
    if batch_size is None:
        fit, near = (bytes_ // max(size, 1) for bytes_ in (limits.cache, limits.near))
        most = max(GROUP, min(limits.widest, fit, max(near, limits.busy)))
        width = GROUP * 2 ** ((most // GROUP).bit_length() - 1)
    else:
        groups = -(-check_count("batch_size", batch_size) // GROUP)
        width = GROUP * 2 ** (groups - 1).bit_length()
    while width > GROUP and width // 2 * devices >= runs:
        width //= 2
    return width


def balanced(width: int, runs: int, devices: int, processes: int) -> int:
    """The width, or a smaller one with which processes have about equally much to do.

    Args:
        width: runs of one device at a time.
        runs: number of all runs.
        devices: number of devices of each process.
        processes: number of processes, between which whole batches are divided.
    """

    def longest(width: int) -> int:
        """Runs that the device with most of them carries, one batch after the other."""
        return width * -(-runs // (width * devices * processes))

    if processes == 1:
        return width
    widths = [width >> k for k in range((width // GROUP).bit_length())]
    most = min(map(longest, widths)) * _UNEVEN
    return next(width for width in widths if longest(width) <= most)


def steps_of_block(width: int, limits: Limits) -> int:
    """Steps of a block of so many runs, at most."""
    return max(1, min(limits.block // width, limits.longest))


def copies_fit(size: int, limits: Limits) -> bool:
    """Whether every run of a small batch can have so many bytes for itself."""
    return GROUP * size <= max(_COPIES, limits.cache)


def check_result(inputs: Inputs, reported: Any = (), times: int = 1, keep_runs: bool = False):
    """Checks that the results fit into memory.

    Args:
        inputs: what the runs start from.
        reported: shapes and dtypes of what is reported of a run at a report time.
        times: number of these times.
        keep_runs: whether it is kept of every run.

    Raises:
        ValueError: if they do not.
    """
    one = _size(reported)
    # Moments are held in float64, of every block and merged; each time has an entry in the plan.
    check_room(
        times * (_PER_TIME + _MOMENTS * one),
        f"means and variances of {one / 2**20:.3g} MiB at {times} times",
        "report fewer times, or observe less",
    )
    final, values = 2 * _size(inputs.like), times * one if keep_runs else 0
    instead = "simulate fewer runs at once"
    if values > final:
        instead = "report fewer times, observe less, or leave keep_runs out"
    what = f"the values of {inputs.runs} runs" + (f" at {times} times" if values > final else "")
    check_room(inputs.runs * (final + values), what, instead)
