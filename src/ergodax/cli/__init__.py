"""The command line: simulates games, solves averaged ODEs, writes figures and data.

Exit codes: 0 success, 1 the computation failed, 2 bad options or values, 130 interrupted. Errors
are one line on standard error.
"""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ..base.version import __version__
from . import compare, convergence, info, replicate, run
from .options import EXAMPLES, LAYOUT
from .output import fail, show_warning

_COMMANDS = (compare, convergence, run, replicate, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        options = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return options.command(options, shlex.join(["ergodax", *argv]))
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except RuntimeError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def program() -> NoReturn:
    """Runs the command line as a program of its own."""
    code = main()
    jax = sys.modules.get("jax")  # absent where it was not needed
    # Threads that still compile would not survive an orderly end, and the other processes of a job
    # would wait for it.
    if code == 130 or (code and jax and jax.distributed.is_initialized()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ergodax",
        description="Learning agents in Markov games: simulated, and solved as averaged "
        "differential equations.",
        epilog=EXAMPLES,
        formatter_class=LAYOUT,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ergodax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
