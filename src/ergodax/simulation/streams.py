"""Random streams of the simulator: counter-based, one key per run.

A number is a function of (key of the run, step, draw) alone: Threefry-2x32 with 20 rounds (Salmon,
Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). There is no state to
carry, so a run's numbers do not depend on how runs are batched or where a simulation is cut.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from ..base.checks import is_concrete
from ..base.compiling import quickly_compiled
from ..base.devices import as_array
from .lanes import reused

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_KIND = "threefry2x32"
_Words = UInt32[Array | np.ndarray, "..."]
# Key words of so many runs are made by NumPy: in milliseconds, and nothing is compiled.
_FEW = 2**14


def threefry2x32(
    key: tuple[_Words, _Words], counter: tuple[_Words, _Words]
) -> tuple[_Words, _Words]:
    """Threefry-2x32-20: two random words from two key words and two counter words."""
    words = (*key, key[0] ^ key[1] ^ np.uint32(_PARITY))
    x, y = counter[0] + words[0], counter[1] + words[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = (y << rotation) | (y >> (32 - rotation))
            y = x ^ y
        x = x + words[(block + 1) % 3]
        y = y + words[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def run_keys(key: Array, runs: UInt32[Array, " R"]) -> UInt32[Array, "R 2"]:
    """Key words of the given runs: a function of the user's key and the run's number.

    Those of `jax.random.bits(jax.random.fold_in(key, run), (2,), "uint32")`. What other kinds of
    keys draw for one run may depend on how many are batched; so they draw a Threefry key first.
    """
    if str(jax.random.key_impl(key)) != _KIND:
        key = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl=_KIND)
    words = jax.random.key_data(key)
    if is_concrete(words) and is_concrete(runs) and runs.size <= _FEW:
        return as_array(np.stack(_words_of(np.asarray(words), np.asarray(runs)), axis=1))
    return _of_many(words, runs)


@quickly_compiled
def _of_many(words, runs):
    return jnp.stack(_words_of(words, runs), axis=1)


def _words_of(words, runs) -> list:
    none = 0 * runs
    folded = threefry2x32((words[:1], words[1:]), (none, runs))
    pairs = [threefry2x32(folded, (none, none + np.uint32(word))) for word in (0, 1)]
    return [x ^ y for x, y in pairs]


def uniforms(
    key: UInt32[Array, " 2"],
    step: tuple[UInt32[Array, ""], UInt32[Array, ""]],
    count: int,
    dtype,
) -> list[Float[Array, ""]]:
    """Uniform random numbers of one run at one step.

    Args:
        key: key words of the run.
        step: low and high word of the step (the high word below 2^24).
        count: how many numbers, at most 512.
        dtype: float32 or float64.

    Returns:
        `count` numbers in the open interval (0, 1): midpoints of 2^23 equal cells, the same in
        either precision.
    """
    numbers = []
    for pair in range((count + 1) // 2):
        counter = (step[0], (step[1] << 8) | jnp.uint32(pair))
        words = threefry2x32((key[0], key[1]), counter)
        if dtype == jnp.float64:  # where there are 64-bit integers, both words are computed at once
            both = reused((words[0].astype(jnp.uint64) << 32) | words[1].astype(jnp.uint64))
            words = (both >> 32).astype(jnp.uint32), both.astype(jnp.uint32)
        numbers.extend((w >> 9).astype(dtype) * 2**-23 + 2**-24 for w in words)
    return numbers[:count]
