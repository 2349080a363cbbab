"""`ergodax run` and `ergodax init`: experiments in files."""

import argparse
import sys
from importlib import resources
from pathlib import Path

from .options import EXAMPLES, LAYOUT, add_cache, count
from .running import prepare


def add_to(commands) -> None:
    """Adds the commands."""
    run = commands.add_parser(
        "run",
        help="carry out an experiment in a file",
        description="Does what a file asks for, and keeps the file, versions, results "
        "and\nfigures in a folder. What is there already is not done again; what was interrupted\n"
        "goes on.",
        epilog=EXAMPLES,
        formatter_class=LAYOUT,
        allow_abbrev=False,
    )
    run.set_defaults(command=_run)
    run.add_argument("file", metavar="FILE", type=Path, help="the experiment, in TOML")
    text = "output folder (default: the file's name without its ending)"
    run.add_argument("--out", type=Path, default=None, help=text, metavar="OUT")
    add_cache(run)
    group = run.add_argument_group("array jobs", "that know nothing of each other, in one folder")
    text = "do the K-th of N parts of the sweep, and nothing else"
    group.add_argument("--part", type=_part, default=None, help=text, metavar="K/N")
    text = "write the result of all parts; each set must be there once"
    group.add_argument("--join", dest="part", action="store_const", const="join", help=text)
    group = run.add_argument_group(
        "several processes", "all of them run this command and share the work"
    )
    text = "take part in a job of several processes, known by itself under srun or mpirun"
    group.add_argument("--distributed", action="store_true", help=text)
    text = "elsewhere: address and port of process 0, such as node1:1234"
    group.add_argument("--coordinator", default=None, help=text, metavar="ADDRESS")
    group.add_argument("--processes", type=count(1), default=None, help="how many", metavar="P")
    text = "the number of this one, from 0"
    group.add_argument("--process", type=count(0), default=None, help=text, metavar="K")
    init = commands.add_parser(
        "init",
        help="write a commented example of an experiment",
        description="Writes an experiment to start from, with comments.",
        allow_abbrev=False,
    )
    init.set_defaults(command=_init)
    text = "the file to write (default: experiment.toml)"
    init.add_argument("file", metavar="FILE", nargs="?", type=Path, help=text)
    init.set_defaults(file=Path("experiment.toml"))


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be K/N, with K from 1 to N; found {text}")
    return int(number), int(count)


def _run(options: argparse.Namespace, command: str) -> int:
    from ..experiments.experiment import Experiment
    from ..experiments.run import carry_out

    job = options.coordinator, options.processes, options.process
    if not options.distributed and any(value is not None for value in job):
        raise ValueError("argument --coordinator, --processes, --process: give --distributed too")
    prepare(options.cache, job if options.distributed else None)
    experiment = Experiment(options.file)
    out = options.file.with_suffix("") if options.out is None else options.out
    shown = sys.stderr.isatty()
    for name, result, files in carry_out(experiment, out, part=options.part, progress=shown):
        if result is None:
            print(f"[{name}] is done already")
        elif isinstance(options.part, tuple):
            print(f"[{name}] part {options.part[0]} of {options.part[1]} is done")
        elif files:  # in one of the processes
            print(f"[{name}]\n{result}\nwritten:", *files, flush=True)
    return 0


def _init(options: argparse.Namespace, command: str) -> int:
    if options.file.exists():
        raise ValueError(f"{str(options.file)!r} is there already: name another file.")
    example = resources.files("ergodax.experiments") / "example.toml"
    options.file.write_text(example.read_text())
    print("written:", options.file)
    return 0
