"""How a simulation is carried out: on which devices, how much at a time, saved and shown or not."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ..base.checks import describe
from ..base.devices import default_devices
from ..base.processes import ALONE, Team, find_team
from .block import AXIS
from .capacity import balanced, limits_of, steps_of_block, width_of


class Execution(NamedTuple):
    """How a simulation is carried out; its numbers do not depend on it.

    Attributes:
        devices: the devices.
        width: runs of a batch on each device.
        progress: whether a progress bar is shown.
        team: the processes that share it.
    """

    devices: Sequence[Any]
    width: int
    progress: bool = False
    team: Team = ALONE

    @property
    def mesh(self) -> Mesh:
        """The devices as a mesh along the axis of runs."""
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def block_steps(self) -> int:
        """Steps of a block, at most."""
        return steps_of_block(self.width, limits_of(self.devices[0]))

    def bar(self, total: int, done: int = 0, unit: str = "step") -> tqdm:
        """A progress bar, in steps of all runs together or another unit."""
        shown = self.progress and self.team.index == 0
        return tqdm(total=total, initial=done, unit=unit, unit_scale=True, disable=not shown)


def carry_out(work: Any, save: Callable[..., None], bar: tqdm) -> bool:
    """Does a work, and shows and saves how far it has come.

    Args:
        work: its method `run` yields after every block how much was done, and what `state` returns
            is saved.
        save: like `Store.save`.
        bar: the progress bar, in what the work yields.

    Returns:
        Whether all of it was done: False after Ctrl-C.
    """
    try:
        for done in work.run():
            bar.update(done)
            save(work.state)
    except KeyboardInterrupt:
        return False
    finally:
        save(work.state, now=True)
    return True


def plan_execution(
    size: int,
    runs: int,
    devices: Sequence[Any] | None = None,
    batch_size: Any = None,
    *,
    progress: bool = False,
    shared: bool = False,
) -> Execution:
    """Decides how many runs are simulated together.

    Args:
        size: bytes that each run has for itself.
        runs: number of all runs.
        devices: the devices; JAX's default by default.
        batch_size: about how many runs of a batch each device has; by default as many as suit it.
        progress: whether to show a progress bar.
        shared: whether all processes of the job take part, unless devices are given.

    Raises:
        ValueError: if `batch_size` is not a positive integer, or devices do not fit.
    """
    team = find_team() if shared and devices is None else ALONE
    if devices is None:
        devices = default_devices()
    if not isinstance(devices, Sequence | np.ndarray) or not all(
        isinstance(device, jax.Device) for device in devices
    ):
        raise ValueError(f"devices must be a list of JAX devices; found {describe(devices)}.")
    devices = list(devices)
    if not devices:
        raise ValueError("devices must hold at least one device; found none.")
    own = -(-runs // team.count)
    width = width_of(batch_size, size, own, len(devices), limits_of(devices[0]))
    width = balanced(width, runs, len(devices), team.count)
    return Execution(devices, width, progress, team)
