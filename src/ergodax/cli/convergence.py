"""`ergodax convergence`: how fast learners approach their averaged ODE."""

import argparse
import sys
from pathlib import Path

from .game import add_game
from .options import EXAMPLES, LAYOUT, add_cache, add_option, count, positive, state
from .output import write_result
from .running import start


def add_to(commands) -> None:
    """Adds the command."""
    convergence = commands.add_parser(
        "convergence",
        help="measure how fast the learners approach the averaged ODE",
        description="Measures strong and weak errors of the averaged ODE over a range of scales,\n"
        "fits their constants, compares them with the theory's, and writes\n"
        "OUT/GAME-convergence.png and OUT/GAME-convergence.nc.",
        epilog=EXAMPLES,
        formatter_class=LAYOUT,
        allow_abbrev=False,
    )
    convergence.set_defaults(command=_convergence)
    add = add_option
    group = convergence.add_argument_group("study")
    add(group, "--runs", count(2), 16384, "independent runs at each scale", metavar="R")
    scales = [64.0, 128.0, 256.0, 512.0, 1024.0]
    add(group, "--scales", positive, scales, "scales, three or more", metavar="N", nargs="+")
    add(group, "--t1", positive, 8.0, "horizon, in unscaled steps", metavar="T")
    add(group, "--seed", count(0), 0, "random seed", metavar="SEED")
    text = "first state, by name or number (default: that of the file, or 0)"
    group.add_argument("--initial-state", type=state, default=None, help=text, metavar="STATE")
    add(group, "--checkpoint", Path, None, "file to continue from, none if not given")
    add(group, "--out", Path, Path("out"), "output folder", metavar="OUT")
    add_cache(group)
    add_game(convergence, learning_rate=1.0)


def _convergence(options: argparse.Namespace, command: str) -> int:
    import jax
    import numpy as np

    from .. import plot
    from ..studies.convergence import convergence_study

    chosen = start(options)
    wrapped = chosen.wrapped
    study = convergence_study(
        wrapped,
        wrapped.init(),
        options.t1,
        scales=options.scales,
        runs=options.runs,
        key=jax.random.key(chosen.seed),
        initial_state=0 if chosen.initial_state is None else chosen.initial_state,
        checkpoint=options.checkpoint,
        progress=sys.stderr.isatty(),
    )
    stem = options.out / f"{chosen.name}-convergence"
    write_result(study, plot.convergence(study).figure, stem, command)
    return 0 if np.all(np.isfinite(study.weak)) else 1
