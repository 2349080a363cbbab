"""The processes of a job that `jax.distributed` connects, and what they tell each other."""

import pickle
import time
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Bytes that a process sends at once, and seconds of work between two meetings.
_PIECE = 2**26
_BETWEEN = 10.0


@dataclass(frozen=True)
class Team:
    """Processes that share a piece of work.

    Attributes:
        count: how many there are.
        index: the number of this one.
    """

    count: int = 1
    index: int = 0


ALONE = Team()


def connect(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Connects the processes of a job; to be called before JAX computes anything.

    Args:
        coordinator: address and port of process 0; as the others found by JAX under SLURM, Open MPI
            and Kubernetes.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: if they are not found, or only some are given.
        RuntimeError: if the processes do not find each other.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError("give coordinator, processes and process together, or none of them.")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:
        raise ValueError(
            f"the job is not known ({error}): start it by srun or mpirun, or give coordinator, "
            "processes and process."
        ) from None


def find_team() -> Team:
    """All processes of the job, unless `jax.default_device` names a device of this one.

    Raises:
        ValueError: if they have not equally many devices.
    """
    config: Any = jax.config
    if jax.process_count() == 1 or config.jax_default_device is not None:
        return ALONE
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        listed = ", ".join(map(str, devices.values()))
        raise ValueError(f"all processes of a job must have equally many devices; found {listed}.")
    return Team(jax.process_count(), jax.process_index())


def gather(team: Team, value: Any) -> list[Any]:
    """What all processes have, in their order: arrays and what holds them, bit by bit.

    Raises:
        RuntimeError: if a process is no longer there.
    """
    if team.count == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = _exchange(np.array([data.size]).view(np.uint8)).view(int)[:, 0]
    longest = int(sizes.max())
    # Few different lengths, since each is a program of its own.
    length = min(_PIECE, 1 << (longest - 1).bit_length())
    padded = np.zeros(length * -(-longest // length), np.uint8)
    padded[: data.size] = data
    pieces = [_exchange(piece) for piece in padded.reshape(-1, length)]
    rows = np.concatenate(pieces, axis=1)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def agree(team: Team, identity: Mapping[str, str]) -> None:
    """Sees to it that all processes do the same work.

    Args:
        team: the processes.
        identity: digests of what the work depends on, by names.

    Raises:
        ValueError: in all processes, naming what differs and where.
        RuntimeError: if a process is no longer there.
    """
    device = jax.local_devices()[0]
    own = {**identity, "devices": f"{device.platform} {device.device_kind}"}
    first, *others = gather(team, own)
    for number, other in enumerate(others, start=1):
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            raise ValueError(
                f"the processes of the job disagree: process {number} differs from process 0 in "
                f"{', '.join(differing)}."
            )


def in_step(team: Team, work: Generator[int, None, None]) -> Generator[int, None, None]:
    """Does this process's work; now and then it meets the others, so that none is lost unseen.

    Args:
        team: the processes.
        work: yields how much was done, every few seconds or more often.

    Yields:
        What the work yields. It ends when all processes are done.

    Raises:
        RuntimeError: if a process is no longer there.
    """
    working = True
    while working or team.count > 1:
        until = time.monotonic() + _BETWEEN
        while working and time.monotonic() < until:
            taken = next(work, None)
            working = taken is not None
            if taken is not None:
                yield taken
        if team.count > 1 and not any(gather(team, working)):
            return


def _exchange(row: np.ndarray) -> np.ndarray:
    """Rows of bytes of all processes, equally long."""
    try:
        return np.asarray(multihost_utils.process_allgather(row))
    except (RuntimeError, ValueError) as error:  # what JAX raises depends on how they are connected
        raise RuntimeError(
            "a process of the job was lost, and the job ends: start it again, and it goes on from "
            f"what is saved. {str(error).splitlines()[0]}"
        ) from None
