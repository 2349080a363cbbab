"""Writes the simulator's raw random words to standard output, for a test suite such as dieharder.

`steps`: one run's words, step after step. `runs`: the words of step 1 and so on for all runs, run
after run: what different runs draw at the same time.

Usage: python benchmarks/streams.py steps | dieharder -g 200 -a
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ergodax.simulation.streams import run_keys, threefry2x32

WIDTH = 2**18


@jax.jit
def words(keys, low, pair):
    """Two words for each of many runs or steps."""
    return jnp.stack(threefry2x32((keys[..., 0], keys[..., 1]), (low, pair)), axis=-1)


def main() -> None:
    """Writes words until nobody reads them any more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("order", choices=("steps", "runs"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    every = jnp.arange(WIDTH, dtype=jnp.uint32)
    keys = run_keys(jax.random.key(options.seed), every)
    block = 0
    try:
        while True:
            if options.order == "steps":
                found = words(keys[:1], every + jnp.uint32(block * WIDTH), jnp.uint32(0))
            else:
                found = words(keys, jnp.uint32(block + 1), jnp.uint32(0))
            sys.stdout.buffer.write(np.asarray(found, dtype="<u4").tobytes())
            block += 1
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
