"""`ergodax compare`: an ensemble of learners beside its averaged ODE."""

import argparse
import sys
from pathlib import Path

from .game import add_game
from .options import EXAMPLES, LAYOUT, add_cache, add_option, count, positive, state
from .output import fail, write_result
from .running import start

# What a report time takes, with its moments and its place in the picture.
_POINT_BYTES = 2**13


def add_to(commands) -> None:
    """Adds the command."""
    compare = commands.add_parser(
        "compare",
        help="simulate an ensemble of learners and compare it with the averaged ODE",
        description="Simulates an ensemble of learners, solves their averaged ODE, prints the gap\n"
        "between the two, and writes OUT/GAME.png and OUT/GAME.nc.",
        epilog=EXAMPLES,
        formatter_class=LAYOUT,
        allow_abbrev=False,
    )
    compare.set_defaults(command=_compare)
    add = add_option
    group = compare.add_argument_group("comparison")
    add(group, "--runs", count(1), 1000, "independent runs", metavar="R")
    add(
        group,
        "--scale",
        positive,
        10.0,
        "updates N times smaller and N times as many",
        metavar="N",
    )
    add(group, "--t1", positive, 1000.0, "last time, in unscaled steps", metavar="T")
    add(group, "--points", count(2), 101, "report times, from 0 to T", metavar="K")
    add(group, "--seed", count(0), 0, "random seed", metavar="SEED")
    precisions = ["float64", "float32"]
    add(group, "--dtype", str, "float64", "precision of the simulation", choices=precisions)
    add(group, "--initial-state", state, None, "first state, by name or number", metavar="STATE")
    add(group, "--out", Path, Path("out"), "output folder", metavar="OUT")
    add_cache(group)
    add_game(compare, learning_rate=0.01)


def _compare(options: argparse.Namespace, command: str) -> int:
    import jax
    import numpy as np

    from .. import plot
    from ..base.codes import RESULTS
    from ..base.memory import check_room
    from ..studies.compare import compare

    points = options.points
    check_room(_POINT_BYTES * points, f"a comparison at {points} times", "lower --points")
    chosen = start(options)
    wrapped = chosen.wrapped
    comparison = compare(
        wrapped,
        wrapped.init(),
        np.linspace(0.0, options.t1, options.points),
        scale=options.scale,
        runs=options.runs,
        key=jax.random.key(chosen.seed),
        initial_state=chosen.initial_state,
        dtype=options.dtype,
        progress=sys.stderr.isatty(),
    )
    write_result(comparison, plot.comparison(comparison), options.out / chosen.name, command)
    if comparison.simulation.result == RESULTS.interrupted:
        return fail("interrupted: what is written was complete by then", 130)
    return 0 if np.isfinite(comparison.parameter_gap.largest) else 1
