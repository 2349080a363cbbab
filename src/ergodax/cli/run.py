"""`ergodax run` and `ergodax init`: experiments in files."""

import argparse
import sys
from importlib import resources
from pathlib import Path

from .options import EXAMPLES, LAYOUT, add_cache
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


def _run(options: argparse.Namespace, command: str) -> int:
    prepare(options.cache)
    from ..experiments.experiment import Experiment
    from ..experiments.run import carry_out

    experiment = Experiment(options.file)
    out = options.file.with_suffix("") if options.out is None else options.out
    for name, result, files in carry_out(experiment, out, progress=sys.stderr.isatty()):
        if result is None:
            print(f"[{name}] is done already")
        else:
            print(f"[{name}]\n{result}\nwritten:", *files, flush=True)
    return 0


def _init(options: argparse.Namespace, command: str) -> int:
    if options.file.exists():
        raise ValueError(f"{str(options.file)!r} is there already: name another file.")
    example = resources.files("ergodax.experiments") / "example.toml"
    options.file.write_text(example.read_text())
    print("written:", options.file)
    return 0
