"""A GPU against the processor and against its own limits: all that is to be known of a card.

In this order, as long as there is time: the tests that need a GPU; how operations of the card
round, and runs on the card and on the processor (`gpu_numbers`); what the card copies and
multiplies per second, measured; what one step of one run needs of that, counted (`Count`); what
`simulate`, `simulate_until` and the averaged side really do. Games: the paper's example, and one of
the size of pricing games, two agents with 15 actions each who remember one round (225 states).
Learners: Q-learning.

On a machine without a GPU the same runs on the processor, which the first line names, and nothing
is learnt from it. With --dry-run kernels are interpreted there and everything is small: to see that
all of it works.

Usage: python benchmarks/gpu.py [--quick | --dry-run] [--seconds 540]
"""

import argparse
import functools
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import ergodax as ex
from _common import best_of, golden, machine, q_learners, q_learners_at, table
from ergodax.simulation.lanes import is_large
from ergodax.studies.sweep import _solve_batch
from gpu_numbers import compared, interpret_kernels, rounding

CHAIN = 512
# Bytes that device memory moves at least for a number somewhere in a table: one sector.
SECTOR = 32
TOLERANCE = 1e-6
SOLVER = {"rtol": TOLERANCE, "atol": TOLERANCE, "max_steps": 4096}
TIMES = (500.0, 1000.0)
# Of a solution that is differentiated: its path is stored at up to this many steps; it takes 35.
STORED = 64
# Before the first array.
jax.config.update("jax_enable_x64", True)
PAPER = q_learners(golden("pd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, for a processor too")
    parser.add_argument("--dry-run", action="store_true", help="smaller, kernels interpreted")
    parser.add_argument("--seconds", type=float, default=540, help="begin nothing after so many")
    given = parser.parse_args()
    dry, quick, clock = given.dry_run, given.quick or given.dry_run, Clock(given.seconds)
    print("Tests that need a GPU:\n")
    print(tests(dry), "\n", flush=True)
    device = jax.devices()[0]
    kind = "a processor, not a GPU" if device.platform == "cpu" else "an accelerator"
    print(f"Device: {device.device_kind}, {kind}.\n{machine()}\n")
    if dry:
        interpret_kernels()

    print("How operations round, on 2^20 numbers:\n")
    header = ["operation", "precision", "by", "largest error, units in the last place"]
    show([*header, "not the nearest number", "unlike the processor's XLA"], rounding(dry), clock)

    print("Runs on the device and on the processor:\n")
    header = ["learner, game", "precision", "steps", "states alike", "parameters alike bit by bit"]
    games = {"paper's example": PAPER, "225 states x 15 actions": pricing_size()}
    show([*header, "largest difference", "compiled by"], compared(games, device, dry), clock)

    limits = Limits.measure(quick)
    print("What the device can do, measured:\n")
    print(limits.table(), "\n", flush=True)

    dtypes = ("float32", "float64")
    counts = {(name, d): Count.of(w, np.dtype(d)) for name, w in games.items() for d in dtypes}
    print("What one step of one run needs, counted, and the most steps/s that this allows:\n")
    header = ["game", "dtype", "bytes, tables in memory", "bytes, tables on chip", "operations"]
    header += ["floor, in memory: steps/s", "floor, on chip: steps/s"]
    rows = [
        [*case, f"{count.in_memory:.0f}", "0", f"{count.floats + count.integers:.0f}"]
        + [f"{limits.steps(count, case[1], on_chip):.3g}" for on_chip in (False, True)]
        for case, count in counts.items()
    ]
    print(table(header, rows), "\n", flush=True)

    def simulations():
        for case, count in counts.items():
            if case == ("225 states x 15 actions", "float64"):
                continue
            widths = [(2**6, 2**6)] if dry else [(runs, runs) for runs in (2**10, 2**13)]
            if not quick and games[case[0]] is PAPER:
                widths = [(2**power, 2**power) for power in (17, 14, 20, 10)]
            elif not quick:  # runs so large that by default no batch is wide
                widths = [(2**17, None), *((2**power, 2**power) for power in (14, 15, 16, 17, 10))]
            for runs, batch in widths:
                wide = "default" if batch is None else str(batch)
                found = simulation(games[case[0]], case[1], runs, batch, quick)
                row = [*case, str(runs), wide, *found]
                if not row[4].startswith("needs"):
                    rate = float(row[4])
                    gaps = [limits.steps(count, case[1], chip) / rate for chip in (False, True)]
                    row[6:6] = [f"{gap:.3g}" for gap in gaps]
                yield row

    print("Simulation:\n")
    header = ["game", "dtype", "runs", "batch", "steps/s", "us per step of all runs"]
    header += ["gap to the floor", "gap to the floor on chip", "ends s", "compile s", "by"]
    show(header, simulations(), clock)

    print("Simulation until strategies rest, 225 states x 15 actions, float32:\n")
    widths = (2**6,) if dry else (2**10,) if quick else (2**14, 2**10)
    header = ["runs", "steps/s", "compile s", "by"]
    show(header, (until(runs, dry) for runs in widths), clock)

    print(f"Averaged ODE to t = {TIMES[-1]:g} at rtol = atol = {TOLERANCE:g}, float64:\n")
    header = ["parameter sets in one batch", "", "us per set", "compile s"]
    header += [f"us per set on {os.cpu_count()} processor cores", "ratio"]
    counts_of_sets = (8,) if dry else (128,) if quick else (100_000, 10_000)
    show(header, (row for sets in counts_of_sets for row in averaged(sets, device)), clock)
    print(f"All of it took {clock.passed:.0f} s.")


class Clock:
    """Whether there is time for more.

    Attributes:
        seconds: nothing begins after so many.
    """

    def __init__(self, seconds: float):
        self.seconds, self._began = seconds, time.perf_counter()

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._began


def show(header: list[str], rows: Iterable[list[str]], clock: Clock) -> None:
    """Prints a Markdown table row by row, so that what is known stays known."""
    print(table(header, []), flush=True)
    rows = iter(rows)
    while clock.passed < clock.seconds:
        row = next(rows, None)
        if row is None:
            break
        print(table(row, []).splitlines()[0], flush=True)
    else:
        print("(no time for the rest)")
    print()


def tests(dry: bool) -> str:
    """The last lines of the tests that need a GPU; of a dry run, of their collection alone."""
    root = Path(__file__).parent.parent
    # Without the options of all tests, some of which need what a card's machine may not have.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "gpu", "-q"]
    command += ["-p", "no:benchmark", "-n", str(min(8, os.cpu_count() or 1)), "tests/test_gpu.py"]
    command += ["--collect-only"] * dry
    # This process has taken most of the card's memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    options = {"cwd": root, "env": environment, "timeout": 240}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired:
        return "stopped after 240 s"
    lines = [line for line in ended.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return "\n".join([*failed[:20], *lines[-1:]])


def until(runs: int, dry: bool) -> list[str]:
    """A row of the table."""
    wrapped, most = pricing_size(), 50 if dry else 1_000_000
    criterion = ex.until.greedy_unchanged(most)
    options = {"max_steps": most, "runs": runs, "dtype": "float32", "batch_size": runs}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*did not meet the criterion")
        ran = ex.simulate_until(
            wrapped, wrapped.init(), criterion, key=jax.random.key(0), **options
        )
    rate = ran.steps_taken / ran.run_seconds
    return [str(runs), f"{rate:.3g}", f"{ran.compile_seconds:.1f}", ran.compiler]


class Limits(NamedTuple):
    """What a device can do.

    Attributes:
        bandwidth: bytes read and written per second.
        rates: multiply-adds per second, by precision.
    """

    bandwidth: float
    rates: dict[str, float]

    @classmethod
    def measure(cls, quick: bool) -> "Limits":
        """Copies a large array, and runs chains of multiply-adds on many numbers at once."""
        x = jnp.zeros(2**24 if quick else 2**28, jnp.float32)
        copy = jax.jit(lambda x: x + 1)
        copy(x).block_until_ready()
        bandwidth = 2 * x.nbytes / best_of(10, lambda: copy(x))
        rates = {}
        for dtype in ("float32", "float64"):
            x = jnp.ones(2**16 if quick else 2**24, dtype)
            chained(x).block_until_ready()
            rates[dtype] = CHAIN * x.size / best_of(10, lambda x=x: chained(x))
        return cls(bandwidth, rates)

    def steps(self, count: "Count", dtype: str, on_chip: bool) -> float:
        """Steps per second if either memory or arithmetic is busy all the time."""
        arithmetic = count.floats / self.rates[dtype] + count.integers / self.rates["float32"]
        memory = 0.0 if on_chip else count.in_memory / self.bandwidth
        return 1 / max(arithmetic, memory)

    def table(self) -> str:
        """Returns a Markdown table."""
        rows = [["copy, GB/s read and written", f"{self.bandwidth / 1e9:.4g}"]]
        rows += [
            [f"{dtype} multiply-adds, 10^9/s", f"{rate / 1e9:.4g}"]
            for dtype, rate in self.rates.items()
        ]
        return table(["", "measured"], rows)


@jax.jit
def chained(x):
    """Many multiply-adds, one after the other, on every number; in one kernel, as XLA fuses."""
    for _ in range(CHAIN):
        x = x * 0.999 + 0.001
    return x


class Count(NamedTuple):
    """What one step of one run of two tabular Q-learners with softmax policies needs.

    S states, A actions, n = 2 agents, w bytes per number, c = 2 tables per agent in float32 (the
    values and what their sums have lost to rounding) and c = 1 in float64.

    Bytes, if the loop over steps keeps all that changes in device memory:

    - key: 8 read; state: 4 read, 4 written; summed rewards, float64: 8 n read and written;
    - small tables (at most 16 entries) are read and rewritten whole: 2 c n S A w, and so are the
      visit counts of up to 64 states: 8 S;
    - of large tables, per agent: the row of s' (that of s is kept from the step before; one read
      serves the draw and the maximum), and one entry of each of the c tables read and written; of
      the visits one entry. What stands at a random place takes whole sectors of 32 bytes: b bytes
      aligned to w take b + 32 - w on the average.

    The game's own tables are the same for all runs and stay in the cache. If a run's tables stay on
    chip over many steps, next to nothing moves. That floor is out of reach where few runs fit on
    a multiprocessor: one of 225 states takes 54 kB in float32.

    Operations, each counted as one multiply-add of the device (integers at the float32 rate; an
    exponential or a division as 8, the share of special function units on current cards):

    - random numbers: one Threefry call per two of n + 1 numbers, 20 rounds of add, rotate, xor, and
      19 additions of keys; 3 to make a number of a word;
    - per agent, a softmax: maximum, difference, scaling, exponential, sum, normalisation, mixing
      with epsilon for A actions, one division; its inverse: 3 for each of A - 1 boundaries;
    - per agent, what is learnt: a maximum over A, 5 for the temporal difference and its scaling,
      and an addition: 4 operations where it is compensated, else 1; 1 for the summed rewards;
    - 2 n for the index of the outcome, 2 for the counts.

    Attributes:
        in_memory: bytes moved.
        floats: operations in the precision of the parameters.
        integers: operations on integers.
    """

    in_memory: float
    floats: float
    integers: float

    @classmethod
    def of(cls, wrapped: ex.WrappedGame, dtype: np.dtype) -> "Count":
        """Counts for one game and precision."""
        n, states, width = 2, wrapped.game.num_states, dtype.itemsize
        actions = wrapped.game.num_actions[0]
        compensated = dtype == np.float32
        tables = 2 if compensated else 1

        def sectors(size):
            return size + SECTOR - width

        moved = 8 + 8 + 16 * n
        if is_large((states, actions)):
            row, entries = sectors(actions * width), 2 * tables * sectors(width)
            moved += n * (row + entries)
        else:
            moved += 2 * tables * n * states * actions * width
        moved += 8 * states if states <= 64 else 2 * SECTOR

        calls = (n + 2) // 2
        integers = calls * (20 * 3 + 19) + 2 * n + 2
        softmax = actions * (6 + 8) + 8 + 3 * (actions - 1)
        learnt = actions - 1 + 5 + (4 if compensated else 1) + 1
        return cls(moved, 3 * (n + 1) + n * (softmax + learnt), integers)


def pricing_size() -> ex.WrappedGame:
    """Two Q-learners with 15 actions each who remember one round."""
    payoffs = np.random.default_rng(0).uniform(size=(15, 15, 2))
    learner = ex.QLearning(0.1, 0.95, ex.EpsilonSoftmax(0.05, 0.01), 10.0)
    return ex.WrappedGame(ex.games.repeated(payoffs), [learner, learner])


def simulation(wrapped, dtype: str, runs: int, batch: int | None, quick: bool) -> list[str]:
    """Steps/s, microseconds per step of all runs, seconds for the ends, seconds to compile.

    Steps are timed by the difference between a long simulation and a short one; what both take
    besides, to begin, to report and to bring all tables back, are the ends.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(wrapped.init())) * np.dtype(dtype).itemsize
    needed, available = 8 * size * runs, memory()
    if needed > available / 2:
        return [f"needs {needed / 2**30:.0f} GiB", "", "", "", "", "", ""]

    def run(steps):
        return ex.simulate(
            wrapped,
            wrapped.init(),
            [steps],
            runs=runs,
            key=jax.random.key(0),
            dtype=dtype,
            batch_size=batch,
        )

    first = short = run(64)
    while True:
        steps = int(short.steps[-1])
        long = run(4 * steps)
        taken = long.run_seconds - short.run_seconds
        # What is subtracted varies by itself.
        if taken > max(0.5 if quick else 1.5, short.run_seconds / 2):
            break
        short = long
    per_step = taken / (3 * steps)
    ends = max(long.run_seconds - 4 * steps * per_step, 0.0)
    return [
        f"{runs / per_step:.3g}",
        f"{per_step * 1e6:.3g}",
        f"{ends:.2f}",
        f"{first.compile_seconds:.1f}",
        first.compiler,
    ]


def memory() -> float:
    """Bytes of memory of the device, and of the machine if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, (jax.devices()[0].memory_stats() or {}).get("bytes_limit", machine))


def build(theta):
    """The paper's example at other hyper-parameters."""
    return q_learners_at(PAPER, theta)


NAMES = ("alpha", "gamma", "tau")


def solved(values, device):
    """The inner solver of `sweep`, on all sets in one batch."""
    mesh = Mesh(np.array([device]), ("sets",))
    outcome, _ = _solve_batch(build, NAMES, jnp.asarray(values), np.array(TIMES), SOLVER, mesh)
    return outcome["parameters"]


@jax.jit
def gradients(values):
    """Derivatives of the sum of all agents' last values by the three quantities, set by set."""

    def last(values):
        solution = ex.solve(
            *build(dict(zip(NAMES, values, strict=True))),
            jnp.asarray(TIMES),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=STORED,
        )
        return sum(leaf[-1].sum() for leaf in solution.params)

    return jax.vmap(jax.grad(last))(values)


def averaged(count: int, device) -> list[list[str]]:
    """Rows of the table, without and with gradients."""
    rng = np.random.default_rng(0)
    low, high = np.array([[0.005, 0.8, 0.3], [0.02, 0.95, 1.0]])
    sets = rng.uniform(low, high, (count, len(NAMES)))
    processor = jax.devices("cpu")[0]
    rows = []
    names = ["solution", "solution and gradient by 3 quantities"]
    # Paths of values, velocities and accelerations, a few times over.
    if 8 * 3 * 16 * 4 * STORED * count > memory():
        names.pop()
    for name in names:
        call = gradients if name != "solution" else functools.partial(solved, device=device)
        taken, compiled = timed(call, sets, device)
        row = [str(count), name, f"{taken / count * 1e6:.4g}", f"{compiled:.1f}", "", ""]
        if device.platform != "cpu":
            # As `sweep` does it there: batches of 128.
            if name == "solution":
                call = functools.partial(solved, device=processor)
            slow = timed(call, sets[:128], processor)[0] / 128
            row[4:] = [f"{slow * 1e6:.4g}", f"{slow * count / taken:.3g}"]
        rows.append(row)
    return rows


def timed(call, values, device) -> tuple[float, float]:
    """Shortest time of a call and time to compile, in seconds, on a device."""
    with jax.default_device(device):
        values = jnp.asarray(values)
        start = time.perf_counter()
        found = jax.block_until_ready(call(values))
        first = time.perf_counter() - start
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        taken = best_of(3, lambda: call(values))
    return taken, max(first - taken, 0.0)


if __name__ == "__main__":
    main()
