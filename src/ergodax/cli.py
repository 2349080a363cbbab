"""The command line: simulates an example game, solves its averaged ODE, writes figure and data.

Exit codes: 0 success, 1 the computation failed, 2 bad options or values, 130 interrupted. Errors
are one line on standard error.
"""

import argparse
import contextlib
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .base.version import __version__

if TYPE_CHECKING:
    from .model.wrapped import WrappedGame

_CACHE_BYTES = 2**28
# What a report time takes, with its moments and its place in the picture.
_POINT_BYTES = 2**13
_EXAMPLES = """\
examples:
  ergodax compare prisoners-dilemma
  ergodax compare prisoners-dilemma --runs 4000 --scale 100 --out results
  ergodax compare prisoners-dilemma --temperature 0.5 0.3 --initial-state DD
  ergodax convergence prisoners-dilemma
"""


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
            warnings.showwarning = _show_warning
            return options.command(options, shlex.join(["ergodax", *argv]))
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except RuntimeError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def program() -> NoReturn:
    """Runs the command line as a program of its own."""
    code = main()
    if code == 130:  # threads that still compile would not survive an orderly end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _fail(error: object, code: int) -> int:
    print("ergodax: error:", *str(error).split(), file=sys.stderr)
    return code


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print("ergodax: warning:", *str(message).split(), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="ergodax",
        description="Learning agents in Markov games: simulated, and solved as averaged "
        "differential equations.",
        epilog=_EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ergodax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compare(commands, layout)
    _add_convergence(commands, layout)
    info = commands.add_parser(
        "info",
        help="print versions, devices and precision",
        description="Prints versions, devices, precision and cores: what a report of a problem "
        "should hold.",
        allow_abbrev=False,
    )
    info.set_defaults(command=_info)
    return parser


def _add_compare(commands, layout) -> None:
    compare = commands.add_parser(
        "compare",
        help="simulate an ensemble of learners and compare it with the averaged ODE",
        description="Simulates an ensemble of learners, solves their averaged ODE, prints the gap\n"
        "between the two, and writes OUT/GAME.png and OUT/GAME.nc.",
        epilog=_EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    compare.set_defaults(command=_compare)
    add = _add_option
    group = compare.add_argument_group("comparison")
    add(group, "--runs", _count(1), 1000, "independent runs", metavar="R")
    add(
        group,
        "--scale",
        _positive,
        10.0,
        "updates N times smaller and N times as many",
        metavar="N",
    )
    add(group, "--t1", _positive, 1000.0, "last time, in unscaled steps", metavar="T")
    add(group, "--points", _count(2), 101, "report times, from 0 to T", metavar="K")
    add(group, "--seed", _count(0), 0, "random seed", metavar="SEED")
    precisions = ["float64", "float32"]
    add(group, "--dtype", str, "float64", "precision of the simulation", choices=precisions)
    add(group, "--initial-state", _state, None, "first state, by name or number", metavar="STATE")
    add(group, "--out", Path, Path("out"), "output folder", metavar="OUT")
    _add_cache(group)
    _add_game(compare, learning_rate=0.01)


def _add_convergence(commands, layout) -> None:
    convergence = commands.add_parser(
        "convergence",
        help="measure how fast the learners approach the averaged ODE",
        description="Measures strong and weak errors of the averaged ODE over a range of scales,\n"
        "fits their constants, compares them with the theory's, and writes\n"
        "OUT/GAME-convergence.png and OUT/GAME-convergence.nc.",
        epilog=_EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    convergence.set_defaults(command=_convergence)
    add = _add_option
    group = convergence.add_argument_group("study")
    add(group, "--runs", _count(2), 16384, "independent runs at each scale", metavar="R")
    scales = [64.0, 128.0, 256.0, 512.0, 1024.0]
    add(group, "--scales", _positive, scales, "scales, three or more", metavar="N", nargs="+")
    add(group, "--t1", _positive, 8.0, "horizon, in unscaled steps", metavar="T")
    add(group, "--seed", _count(0), 0, "random seed", metavar="SEED")
    add(group, "--initial-state", _state, 0, "first state, by name or number", metavar="STATE")
    add(group, "--checkpoint", Path, None, "file to continue from, none if not given")
    add(group, "--out", Path, Path("out"), "output folder", metavar="OUT")
    _add_cache(group)
    _add_game(convergence, learning_rate=1.0)


def _add_option(group, name, kind, default, text, **options):
    shown = "drawn" if default is None else default
    if isinstance(default, list):
        shown = " ".join(f"{value:g}" for value in default)
    group.add_argument(
        name, type=kind, default=default, help=f"{text} (default: {shown})", **options
    )


def _add_cache(group) -> None:
    text = "folder for compiled programs, or off (default: ERGODAX_CACHE, or the user's cache)"
    group.add_argument("--cache", default=None, help=text, metavar="CACHE")


def _add_game(command, learning_rate: float) -> None:
    add = _add_option
    command.add_argument("game", metavar="GAME", choices=list(_GAMES), help=", ".join(_GAMES))
    group = command.add_argument_group("game")
    add(group, "--g", float, 1.5, "gain from cooperation", metavar="G")

    group = command.add_argument_group("learners", "one value for all agents, or one for each")
    for name, default, text in (
        ("--learning-rate", learning_rate, "alpha, per unscaled step"),
        ("--discount", 0.9, "gamma"),
        ("--temperature", 0.5, "softmax temperature"),
        ("--epsilon", 0.1, "probability of a uniformly drawn action"),
    ):
        add(group, name, float, default, text, nargs="+", metavar="X")


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number; found {text}")
    return value


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) < 2**63):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}; found {text}")
        return int(text)

    return parse


def _state(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _prisoners_dilemma(options: argparse.Namespace) -> "WrappedGame":
    """The example of Kerzreho (2025): two Q-learners with memory one and unlike initial values."""
    import jax.numpy as jnp

    from .games import prisoners_dilemma
    from .learners import QLearning
    from .model.exploration import EpsilonSoftmax
    from .model.wrapped import WrappedGame

    rates, discounts, temperatures, epsilons = (
        jnp.asarray(_per_agent(options, name, 2))
        for name in ("learning_rate", "discount", "temperature", "epsilon")
    )
    initial_values = jnp.asarray(30.0), jnp.asarray([22.0, 20.0])
    learners = [
        QLearning(
            learning_rate=rates[agent],
            discount=discounts[agent],
            exploration=EpsilonSoftmax(temperatures[agent], epsilons[agent]),
            initial=initial_values[agent],
        )
        for agent in range(2)
    ]
    return WrappedGame(prisoners_dilemma(options.g), learners)


_GAMES = {"prisoners-dilemma": _prisoners_dilemma}


def _per_agent(options: argparse.Namespace, name: str, agents: int) -> list[float]:
    values = getattr(options, name)
    values = values if isinstance(values, list) else [values]
    if len(values) not in (1, agents):
        option = "--" + name.replace("_", "-")
        raise ValueError(f"argument {option}: expected 1 or {agents} values; found {len(values)}")
    return values * (agents // len(values))


def _start(options: argparse.Namespace) -> "WrappedGame":
    """Turns on float64, cache and all cores, makes the game, tries the folder before any work."""
    import jax

    from .base.devices import use_all_cores
    from .base.files import prepare_folder

    jax.config.update("jax_enable_x64", True)
    _keep_programs(options.cache)
    # JAX runs already where Python calls `main`, or finds no device at all.
    with contextlib.suppress(RuntimeError, AssertionError):
        use_all_cores()
    _devices()
    wrapped = _GAMES[options.game](options)
    prepare_folder(options.out)
    return wrapped


def _keep_programs(given: str | None) -> None:
    """Has JAX keep compiled programs from one run to the next, unless it does so already.

    Args:
        given: the folder, or "off"; by default that of the environment, or the user's own.
    """
    import jax
    import platformdirs

    config: Any = jax.config
    folder = given or os.environ.get("ERGODAX_CACHE")
    if folder == "off" or (folder is None and config.jax_compilation_cache_dir):
        return
    folder = Path(folder or platformdirs.user_cache_path("ergodax") / "programs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _compare(options: argparse.Namespace, command: str) -> int:
    import jax
    import numpy as np

    from . import plot
    from .base.codes import RESULTS
    from .base.memory import check_room
    from .studies.compare import compare

    points = options.points
    check_room(_POINT_BYTES * points, f"a comparison at {points} times", "lower --points")
    wrapped = _start(options)
    comparison = compare(
        wrapped,
        wrapped.init(),
        np.linspace(0.0, options.t1, options.points),
        scale=options.scale,
        runs=options.runs,
        key=jax.random.key(options.seed),
        initial_state=options.initial_state,
        dtype=options.dtype,
        progress=sys.stderr.isatty(),
    )
    _write(comparison, plot.comparison(comparison), options.out / options.game, command)
    if comparison.simulation.result == RESULTS.interrupted:
        return _fail("interrupted: what is written was complete by then", 130)
    return 0 if np.isfinite(comparison.parameter_gap.largest) else 1


def _convergence(options: argparse.Namespace, command: str) -> int:
    import jax
    import numpy as np

    from . import plot
    from .studies.convergence import convergence_study

    wrapped = _start(options)
    study = convergence_study(
        wrapped,
        wrapped.init(),
        options.t1,
        scales=options.scales,
        runs=options.runs,
        key=jax.random.key(options.seed),
        initial_state=options.initial_state,
        checkpoint=options.checkpoint,
        progress=sys.stderr.isatty(),
    )
    stem = options.out / f"{options.game}-convergence"
    _write(study, plot.convergence(study).figure, stem, command)
    return 0 if np.all(np.isfinite(study.weak)) else 1


def _write(result: Any, figure: Any, stem: Path, command: str) -> None:
    """Prints the result, writes figure and data, and says where they are."""
    from . import io
    from .base.files import replacing

    print(result, flush=True)  # first: a disk that is full shall not lose it
    image, data = stem.with_suffix(".png"), stem.with_suffix(".nc")
    io.save(result, data, attributes={"command": command})
    with replacing(image) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    print("\nwritten:", image, data)


def _info(options: argparse.Namespace, command: str) -> int:
    import platform
    from importlib.metadata import version

    import jax

    usable = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1
    lines = {"ergodax": __version__}
    lines |= {name: version(name) for name in ("jax", "jaxlib", "equinox", "diffrax", "numpy")}
    lines["Python"] = platform.python_version()
    lines["platform"] = platform.platform()
    problem = None
    try:
        lines["devices"] = ", ".join(f"{device} ({device.device_kind})" for device in _devices())
    except RuntimeError as error:
        problem, lines["devices"] = error, "none"
    lines["x64"] = "on" if jax.config.read("jax_enable_x64") else "off (float32 by default)"
    lines["cores"] = f"{len(usable(0)) if usable else cores} of {cores} for this process"
    settings = [name for name in _ENVIRONMENT if name in os.environ]
    lines["environment"] = " ".join(f"{name}={os.environ[name]}" for name in settings) or "-"
    for name, value in lines.items():
        print(f"{name:12} {value}")
    return 0 if problem is None else _fail(problem, 1)


def _devices() -> list[Any]:
    """The devices of JAX; raises RuntimeError if it finds none."""
    import os

    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # what JAX raises depends on its version
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise RuntimeError(
            f"JAX finds no device{f' for JAX_PLATFORMS={asked}' if asked else ''}: unset it to use "
            f"the processor; for a GPU, install ergodax[cuda] and see that nvidia-smi lists the "
            f"card. {error}"
        ) from None


# What is known to change devices, precision or the number of threads.
_ENVIRONMENT = (
    *("JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_NUM_CPU_DEVICES"),
    *("JAX_COMPILATION_CACHE_DIR", "ERGODAX_CACHE"),
    *("XLA_FLAGS", "NPROC", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
)
