from types import SimpleNamespace

import jax
import pytest

from ergodax.simulation.capacity import (
    ACCELERATOR,
    PROCESSOR,
    balanced,
    copies_fit,
    limits_of,
    steps_of_block,
    width_of,
)
from ergodax.simulation.moments import GROUP


def test_limits_are_those_of_the_kind_of_device():
    assert limits_of(jax.devices("cpu")[0]) == PROCESSOR
    for memory, cache in ((2**34, 2**30), (None, ACCELERATOR.cache)):
        found = None if memory is None else {"bytes_limit": memory}
        device = SimpleNamespace(platform="gpu", memory_stats=lambda found=found: found)
        assert limits_of(device) == ACCELERATOR._replace(cache=cache)


@pytest.mark.parametrize(
    ("batch_size", "size", "runs", "devices", "width"),
    [
        (None, 1, 10**6, 1, PROCESSOR.widest),
        (None, PROCESSOR.cache, 10**6, 1, GROUP),  # never fewer than a group
        (None, PROCESSOR.cache // (3 * GROUP), 10**6, 1, 2 * GROUP),
        (None, 1, GROUP + 1, 1, 2 * GROUP),  # no wider than the runs there are
        (None, 1, GROUP + 1, 2, GROUP),
        (1, 1, 10**6, 1, GROUP),
        (GROUP + 1, 1, 10**6, 1, 2 * GROUP),
        (5 * GROUP, 1, 10**6, 1, 8 * GROUP),
    ],
)
def test_widths_are_powers_of_two_of_whole_groups(batch_size, size, runs, devices, width):
    assert width_of(batch_size, size, runs, devices, PROCESSOR) == width


@pytest.mark.parametrize(
    ("size", "width"),
    [
        (64, ACCELERATOR.widest),
        (27_000, 2**14),  # all that is reached quickly
        (2**17, 2**14),  # or else what keeps it busy
        (2**20, 2**12),  # if it fits
    ],
)
def test_accelerators_are_given_what_they_reach_quickly(size, width):
    assert width_of(None, size, 10**6, 1, ACCELERATOR) == width


def test_blocks_are_shorter_the_wider_they_are():
    assert steps_of_block(GROUP, PROCESSOR) == PROCESSOR.block // GROUP
    assert steps_of_block(GROUP, ACCELERATOR) == ACCELERATOR.longest
    assert steps_of_block(2 * PROCESSOR.block, PROCESSOR) == 1


def test_small_batches_may_have_games_of_their_own():
    assert copies_fit(2**21, PROCESSOR)
    assert not copies_fit(2**23, PROCESSOR)
    assert copies_fit(2**23, ACCELERATOR)


@pytest.mark.parametrize(
    ("runs", "devices", "processes", "width"),
    [
        (100_000, 1, 1, 512),  # alone, as it was
        (2**20, 1, 8, 512),
        (1000, 1, 2, 512),  # 512 and 488
        (1000, 1, 3, 128),  # 384, 384 and 232; with 512 one would have nothing to do
        (64, 1, 3, 64),  # one has all there is
        (4096, 4, 2, 512),
        (4096, 4, 3, 128),
    ],
)
def test_processes_have_about_equally_much_to_do(runs, devices, processes, width):
    assert balanced(512, runs, devices, processes) == width
