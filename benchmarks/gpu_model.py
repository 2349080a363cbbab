"""What the compiler for an H100 makes of ergodax' programs, and a model of their speed.

No card is needed, and nothing is measured (`gpu.py` measures). Launches, bytes, registers, spills
are the compiler's word. Steps/s are a model. One kernel for many steps takes its instructions, one
a clock in every lane of the card, or if that is longer, what `gpu.Count` says must be moved. Steps
launched one by one take 2 us a launch, or their bytes at the bandwidth of the card's memory, and
10 us where the host waits for a number.

Usage: python benchmarks/gpu_model.py [--json] [names of programs]
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import cuda_programs
import ergodax as ex
import gpu
from _common import table
from cuda_programs import Program
from ergodax.simulation import block
from ergodax.simulation.inputs import check_inputs
from ergodax.simulation.kernel import NAME
from ergodax.simulation.lanes import is_large
from ergodax.simulation.moments import GROUP
from ergodax.simulation.recorders import Tally
from ergodax.simulation.step import words_of
from ergodax.simulation.steps import UNWATCHED
from ergodax.simulation.streams import run_keys
from ergodax.simulation.until import fitted
from ergodax.studies.sweep import _solve_batch

# Of an H100: bytes/s, instructions/s (132 processors of 128 lanes at 1.755 GHz), seconds.
BANDWIDTH, INSTRUCTIONS, LAUNCH, WAIT = 3.35e12, 132 * 128 * 1.755e9, 2e-6, 10e-6
SETS = 100_000


class Found(NamedTuple):
    """A program that was compiled.

    Attributes:
        program: what the compiler tells.
        count: for how many runs or sets.
        moved: of a simulation, bytes that a step of a run must move to and from memory.
    """

    program: Program
    count: int
    moved: float | None = None

    def told(self) -> dict[str, Any]:
        """All of it, as numbers."""
        kernels = self.program.kernels
        return {
            "loops": [
                loop._asdict() | {"bytes": (loop.read + loop.written) / self.count}
                for loop in self.program.loops
            ],
            "kernels": len(kernels),
            "registers": max(kernel.registers for kernel in kernels),
            "spilled": max(kernel.spilled for kernel in kernels),
            "steps": [kernel._asdict() for kernel in kernels if kernel.name == NAME],
            "temporaries": self.program.temporaries / self.count,
            "moved": self.moved,
            "model": self.steps_per_second(),
        }

    def steps_per_second(self) -> float | None:
        """Of a simulation, the model."""
        if self.moved is None:
            return None
        for kernel in self.program.kernels:
            if kernel.name == NAME:
                taken = max(kernel.looped / INSTRUCTIONS, self.moved / BANDWIDTH)
                return 1 / taken
        loop = next(loop for loop in self.program.loops if loop.depth and (loop.trips or 0) > 1)
        taken = max(loop.launches * LAUNCH, (loop.read + loop.written) / BANDWIDTH)
        return self.count * UNWATCHED / (loop.trips * taken + WAIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=", ".join(PROGRAMS))
    parser.add_argument("--json", action="store_true", help="what was found, for a program to read")
    arguments = parser.parse_args()
    if cuda_programs.REFUSED:
        sys.exit(f"nothing can be compiled: {cuda_programs.REFUSED}")
    names = arguments.programs or list(PROGRAMS)
    found = {name: PROGRAMS[name]().told() for name in names}
    if arguments.json:
        print(json.dumps(found))
        return
    print("Compiled for an H100, nothing measured; steps/s are a model (see the script).\n")
    header = ["program", "kernels", "most registers", "most bytes spilled"]
    header += ["temporary bytes of a run or set", "instructions of a step", "bytes of a step"]
    header += ["steps/s, model"]
    rows = []
    for name, told in found.items():
        rate = f"{told['model']:.1e}" if told["model"] else ""
        steps = ", ".join(str(kernel["looped"]) for kernel in told["steps"])
        rows.append([name, *(str(told[key]) for key in ("kernels", "registers", "spilled"))])
        moved = f"{told['moved']:.0f}" if told["steps"] else ""
        rows[-1] += [f"{told['temporaries']:.0f}", steps, moved, rate]
    print(table(header, rows), "\n")
    header = ["program", "loop or branch", "rounds", "launches", "bytes of a run or set", "waits"]
    rows = []
    for name, told in found.items():
        for loop in told["loops"]:
            rows.append([name, "> " * loop["depth"] + loop["name"], str(loop["trips"] or "?")])
            rows[-1] += [str(loop["launches"]), f"{loop['bytes']:.3g}", str(loop["waits"])]
    print("What one round of every loop does:\n")
    print(table(header, rows))


def simulated(
    wrapped: ex.WrappedGame, count: int, in_kernel: bool = True, until: bool = False
) -> Found:
    """A block of steps in float32, in one kernel or step by step.

    Args:
        wrapped: what is simulated.
        count: number of runs.
        in_kernel: whether the steps are to be one kernel.
        until: whether as `simulate_until` takes them, until strategies rest, or as `simulate`.
    """
    inputs = check_inputs(wrapped, wrapped.init(), None, None, GROUP, "float32")
    rows, _ = inputs.rows(np.arange(GROUP), ())
    resting = fitted(ex.until.greedy_unchanged(100_000), inputs.wrapped, inputs.like)
    recorders = (resting,) if until else (Tally(),)
    setting = block.Setting(
        wrapped=inputs.wrapped,
        scale=jnp.asarray(1.0),
        observe=lambda params: params,
        recorders=recorders,
        compensated=True,
        per_run=False,
        kept=0,
        group=GROUP,
        mesh=Mesh(np.array([cuda_programs.card()]), (block.AXIS,)),
        in_kernel=in_kernel,
    )
    keys = run_keys(jax.random.key(0), jnp.arange(GROUP, dtype=jnp.uint32))
    runs = block.start(setting, keys, rows.params0, rows.law)
    arrays, static = eqx.partition(setting, eqx.is_array)

    def advance(arrays, *others):
        program = block.advance_until if until else block.advance
        return program.__wrapped__(eqx.combine(arrays, static), *others)

    def like(tree, *lead):
        cut = len(lead)
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((*lead, *np.shape(a)[cut:]), a.dtype), tree
        )

    by_run = like((keys, runs, np.ones(GROUP, bool)), count)
    everywhere = like((words_of(0), jnp.array([1000], jnp.int32), jnp.ones(1, bool)))
    if until:
        left = np.zeros(GROUP, np.int32)
        by_run += like(((left.astype(np.uint32),) * 2, left), count)
        everywhere = like((jnp.int32(1000),) * 3)
    program = cuda_programs.compile_for_card(advance, like(arrays), *by_run, *everywhere)
    large = any(is_large(leaf.shape) for leaf in jax.tree.leaves(inputs.like))
    moved = gpu.Count.of(wrapped, np.dtype(np.float32)).in_memory if large else 0.0
    return Found(program, count, moved)


def dilemma(learner: Any) -> ex.WrappedGame:
    """Two such learners in the repeated prisoner's dilemma."""
    return ex.WrappedGame(ex.games.prisoners_dilemma(), [learner, learner])


def solved(values: Any) -> Any:
    """The inner solver of `sweep`."""
    mesh = Mesh(np.array([cuda_programs.card()]), ("sets",))
    options = np.array(gpu.TIMES), gpu.SOLVER, mesh
    return _solve_batch.__wrapped__(gpu.build, gpu.NAMES, values, *options)


def of_sets(function: Callable) -> Found:
    """The averaged side, for many sets at once."""
    values = jax.ShapeDtypeStruct((SETS, len(gpu.NAMES)), jnp.float64)
    return Found(cuda_programs.compile_for_card(function, values), SETS)


SOFT = ex.EpsilonSoftmax(0.5, 0.01)
PROGRAMS: dict[str, Callable[[], Found]] = {
    "paper's example": lambda: simulated(gpu.PAPER, 2**17),
    "225 states x 15 actions": lambda: simulated(gpu.pricing_size(), 2**15),
    "Sarsa": lambda: simulated(dilemma(ex.Sarsa(0.1, 0.8, SOFT, 10.0)), 2**17),
    "actor-critic": lambda: simulated(dilemma(ex.ActorCritic(0.05, 0.1, 0.7, SOFT)), 2**17),
    "paper's example, step by step": lambda: simulated(gpu.PAPER, 2**17, False),
    "225 states x 15 actions, until at rest": lambda: simulated(
        gpu.pricing_size(), 2**15, until=True
    ),
    "paper's example, until at rest, step by step": lambda: simulated(
        gpu.PAPER, 2**17, False, True
    ),
    "225 states x 15 actions, step by step": lambda: simulated(gpu.pricing_size(), 2**15, False),
    "solutions": lambda: of_sets(lambda values: solved(values)[0]["parameters"]),
    "gradients": lambda: of_sets(gpu.gradients.__wrapped__),
}

if __name__ == "__main__":
    main()
