"""Programs compiled for a card that need not be there, and what the compiler tells of them.

XLA compiles for a described card on any machine: it needs neither the card nor its driver, only the
wheels of the extra `cuda-compile`. The compiled program says what every loop launches and moves;
`ptxas` says what registers every kernel needs. None of it is a measurement.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

CARD = Path(__file__).parents[1] / "tests" / "data" / "h100.txtpb"
# Beside the environment's packages, for JAX says at every start that such a plugin finds no card.
WHEELS = Path(sys.prefix) / "cuda"
_PLUGIN = "jax_plugins.xla_cuda13"
# Instructions that launch nothing.
_FREE = frozenset(
    """
    after-all bitcast constant get-tuple-element opt-barrier parameter partition-id replica-id tuple
    """.split()  # noqa: SIM905
)
# Bytes that device memory moves at least for a number somewhere in a table: one sector.
_SECTOR = 32


def _find_wheels() -> str | None:
    """Makes the compiler for cards importable; returns why it cannot be, or None."""
    if importlib.util.find_spec("jax_plugins") is None or not importlib.util.find_spec(_PLUGIN):
        if not (WHEELS / "jax_plugins").exists():
            return "the extra ergodax[cuda-compile] is not installed"
        sys.path.append(str(WHEELS))
    if ptxas() is None:
        return "there is no ptxas: neither a CUDA toolkit nor the wheel nvidia-cuda-nvcc"
    jax.config.update("jax_platforms", "cpu")  # the plugin would look for a card
    return None


def ptxas() -> str | None:
    """The assembler of a CUDA toolkit, or that of the wheel."""
    folders = [Path(folder) for folder in sys.path]
    wheels = [str(path) for folder in folders for path in folder.glob("nvidia/cu*/bin/ptxas")]
    return next(iter(wheels), None) or shutil.which("ptxas")


# At once, for JAX looks for plugins only before its first computation.
REFUSED = _find_wheels()


@functools.cache
def card() -> Any:
    """The device that is compiled for."""
    found = topologies.get_topology_desc(
        "", "cuda", target_config=CARD.read_text(), topology="1x1x1"
    )
    return found.devices[0]


class Loop(NamedTuple):
    """What one iteration of a loop does itself, without loops and branches inside.

    Attributes:
        name: its name in the program.
        depth: the number of loops and branches that it is in.
        trips: how often it goes round, if the compiler knows. If not, the host waits for the
            condition of every iteration.
        launches: kernels and copies.
        read: bytes read from the card's memory, if its caches hold nothing.
        written: bytes written.
        waits: how often the host waits for a number from the card.
    """

    name: str
    depth: int
    trips: int | None
    launches: int
    read: float
    written: float
    waits: int


class Kernel(NamedTuple):
    """One kernel.

    Attributes:
        name: its name.
        registers: registers of a thread.
        spilled: bytes of registers that are put into memory.
        looped: instructions of its longest loop, in the assembler's language.
    """

    name: str
    registers: int
    spilled: int
    looped: int


class Program(NamedTuple):
    """What the compiler tells of a program.

    Attributes:
        loops: the program itself and all loops and branches in it, outer ones first.
        kernels: what the assembler says of them.
        temporaries: bytes of memory besides arguments and results.
    """

    loops: list[Loop]
    kernels: list[Kernel]
    temporaries: int


def compile_for_card(function: Callable, *arguments: Any) -> Program:
    """Compiles a function of arrays for the card.

    Args:
        function: a function of pytrees of arrays, or of their shapes and dtypes.
        *arguments: those.
    """
    everywhere = NamedSharding(Mesh(np.array([card()]), ("one",)), PartitionSpec())
    jitted = jax.jit(function, in_shardings=everywhere, out_shardings=everywhere)
    lowered = jitted.trace(*arguments).lower(lowering_platforms=("cuda",))
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        kernels = list(_assembled(Path(folder)))
    return Program(
        list(_loops(*_parsed(compiled.as_text()))),
        kernels,
        compiled.memory_analysis().temp_size_in_bytes,
    )


def _assembled(folder: Path) -> Iterator[Kernel]:
    """Kernels of a dumped program, as the assembler sees them."""
    for path in sorted(folder.glob("*.ptx")):
        if not path.stat().st_size:
            continue
        command = [ptxas(), "-v", "-arch=sm_90a", str(path), "-o", "/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        for of_kernel in told.split("Compiling entry function ")[1:]:
            name = _found(r"'(\w+)'", of_kernel)
            stored = _found(r"(\d+) bytes spill stores", of_kernel)
            loaded = _found(r"(\d+) bytes spill loads", of_kernel)
            registers = _found(r"Used (\d+) registers", of_kernel)
            spilled, looped = max(int(stored), int(loaded)), _longest_loop(path.read_text(), name)
            yield Kernel(name, int(registers), spilled, looped)


def _longest_loop(text: str, name: str) -> int:
    """Instructions between a label and the last jump back to it."""
    lines = re.split(rf"\.entry {name}\b", text)[1].split("\n.visible")[0].splitlines()
    labels, instructions, longest = {}, 0, 0
    for line in map(str.strip, lines):
        if label := re.match(r"(\$\w+):", line):
            labels[label.group(1)] = instructions
        elif line.endswith(";") and not line.startswith("."):
            instructions += 1
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$\w+);", line)
            if jump and jump.group(1) in labels:
                longest = max(longest, instructions - labels[jump.group(1)])
    return longest


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"nothing like {pattern} in: {text[:300]}")
    return match.group(1)


class _Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    operation: str
    operands: list[str]
    rest: str
    is_root: bool
    trips: int | None


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Computations of a program, by name, and the name of the first."""
    computations: dict[str, list[_Instruction]] = {}
    current, entry = [], ""
    for line in text.splitlines():
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
        line = re.sub(r", (metadata|backend_config|frontend_attributes)=\{.*$", "", line)
        line = re.sub(r"/\*index=\d+\*/", "", line)
        head = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
            continue
        found = re.match(r"\s+(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", line)
        if found is None:
            continue
        root, name, shape, operation, rest = found.groups()
        depth, end = 1, 0
        while depth and end < len(rest):
            depth += (rest[end] == "(") - (rest[end] == ")")
            end += 1
        operands = re.findall(r"%([\w.\-]+)", rest[: end - 1])
        known = int(trips.group(1)) if trips else None
        current.append(
            _Instruction(name, shape, operation, operands, rest[end:], bool(root), known)
        )
    return computations, entry


def _loops(
    computations, name: str, label: str = "", depth: int = 0, trips: int | None = 1
) -> Iterator[Loop]:
    """A computation as a loop, and the loops in it."""
    instructions = computations[name]
    shapes = {i.name: i.shape for i in instructions}
    launches, read, written, waits, inner = 0, 0.0, 0.0, 0, []
    for i in instructions:
        if i.operation in _FREE:
            continue
        if i.operation == "while":
            body = _found(r"body=%([\w.\-]+)", i.rest)
            inner += list(_loops(computations, body, i.name, depth + 1, i.trips))
            continue
        if i.operation == "conditional":
            waits += 1
            for branch in re.findall(r"%([\w.\-]+)", i.rest):
                if branch in computations:
                    inner += list(_loops(computations, branch, i.name, depth + 1))
            continue
        launches += 1
        if i.operation == "fusion":
            gone, come = _moved(computations[_found(r"calls=%([\w.\-]+)", i.rest)])
        else:
            gone, come = sum(_bytes(shapes[o]) for o in i.operands), _bytes(i.shape)
        read, written = read + gone, written + come
        waits += "callback" in i.rest or i.operation in ("infeed", "outfeed", "send", "recv")
    yield Loop(label or name, depth, trips, launches, read, written, waits + (trips is None))
    yield from inner


def _moved(computation: list[_Instruction]) -> tuple[float, float]:
    """Bytes that a fused computation reads and writes; tables by what is touched of them."""
    by_name = {i.name: i for i in computation}
    users: dict[str, list] = {}
    for i in computation:
        for k, operand in enumerate(i.operands):
            users.setdefault(operand, []).append((i, k))

    def through(name):
        for i, k in users.get(name, []):
            if i.operation in ("bitcast", "reshape"):
                yield from through(i.name)
            else:
                yield i, k

    def touched(i, k):
        if k == 0 and i.operation == "gather":
            pieces = _found(r"slice_sizes=\{([\d,]*)\}", i.rest)
            piece = int(np.prod([int(n) for n in pieces.split(",") if n])) * _width(i.shape)
            return _bytes(i.shape) / piece * (piece + _SECTOR - _width(i.shape))
        if k == 0 and i.operation == "dynamic-slice":
            return _bytes(i.shape)
        if k == 0 and i.operation in ("scatter", "dynamic-update-slice"):
            return 0
        return None

    read = 0.0
    for i in computation:
        if i.operation == "parameter":
            parts, whole = [touched(*use) for use in through(i.name)], _bytes(i.shape)
            few = parts and None not in parts
            read += min(sum(filter(None, parts)), whole) if few else whole
    root = next(i for i in computation if i.is_root)
    roots = [by_name[o] for o in root.operands] if root.operation == "tuple" else [root]
    written = 0.0
    for i in roots:
        while i.operation in ("bitcast", "reshape", "convert") and i.operands:
            i = by_name[i.operands[0]]
        if i.operation == "scatter":  # of every number a sector is read and written
            update = by_name[i.operands[2]].shape
            written += 2 * _SECTOR * _bytes(update) / _width(update)
        elif i.operation == "dynamic-update-slice":
            written += _bytes(by_name[i.operands[1]].shape)
        else:
            written += _bytes(i.shape)
    return read, written


def _arrays(shape: str) -> Iterator[tuple[int, int]]:
    """Width of a number and count of them, of every array of a shape."""
    for kind, lengths in re.findall(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]", shape):
        width = 1 if kind == "pred" else int(re.sub(r"\D", "", kind)) // 8
        yield width, int(np.prod([int(n) for n in lengths.split(",") if n]))


def _bytes(shape: str) -> int:
    return sum(width * count for width, count in _arrays(shape))


def _width(shape: str) -> int:
    return next(iter(_arrays(shape)))[0]
