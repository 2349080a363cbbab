"""The game of a command and its learners: by name with options, or from an experiment's file."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .options import add_option

if TYPE_CHECKING:
    from ..model.wrapped import WrappedGame

_DILEMMA = "prisoners-dilemma"
_LEARNERS = ("learning_rate", "discount", "temperature", "epsilon")


class Chosen(NamedTuple):
    """What a command is about.

    Attributes:
        wrapped: the game and its learners.
        name: what files are called after it.
        seed: the random seed.
        initial_state: the first state, None if nobody says.
    """

    wrapped: "WrappedGame"
    name: str
    seed: int
    initial_state: int | str | None


def add_game(command, learning_rate: float) -> None:
    """Adds the game and the options of its learners."""
    add = add_option
    text = f"a game of ergodax.games, such as {_DILEMMA}, or the file of an experiment"
    command.add_argument("game", metavar="GAME", help=text)
    group = command.add_argument_group("game")
    add(group, "--g", float, 1.5, f"gain from cooperation in {_DILEMMA}", metavar="G")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the game, such as memory=0 or 'payoffs=[[1, 0], [0, 1]]'; repeatable",
    )
    title = "learners", "Q-learners; one value for all agents, or one for each"
    group = command.add_argument_group(*title)
    for name, default, text in (
        ("--learning-rate", learning_rate, "alpha, per unscaled step"),
        ("--discount", 0.9, "gamma"),
        ("--temperature", 0.5, "softmax temperature"),
        ("--epsilon", 0.1, "probability of a uniformly drawn action"),
    ):
        add(group, name, float, default, text, nargs="+", metavar="X")
    # Whether an option was given is seen by its value: those of a file are not to be mixed up.
    names = ("g", "seed", *_LEARNERS)
    defaults = {name: command.get_default(name) for name in names}
    command.set_defaults(defaults=defaults, **dict.fromkeys(names))


def choose_game(options: argparse.Namespace) -> Chosen:
    """Makes what a command is about.

    Raises:
        ValueError: if an option or something in the file does not fit.
    """
    if options.game.endswith(".toml"):
        return _of_file(options)
    if options.g is not None and options.game != _DILEMMA:
        raise ValueError(f"argument --g: only for {_DILEMMA}; write --set g={options.g:g}")
    seed = options.defaults["seed"] if options.seed is None else options.seed
    return Chosen(_named(options), options.game, seed, options.initial_state)


def _of_file(options: argparse.Namespace) -> Chosen:
    from ..experiments.experiment import Experiment

    given = [name for name in ("g", "set", *_LEARNERS) if getattr(options, name)]
    if given:
        option = "--" + given[0].replace("_", "-")
        raise ValueError(f"argument {option}: game and learners are those of {options.game}")
    experiment = Experiment(Path(options.game))
    keys = experiment.keys
    return Chosen(
        experiment.setup(progress=False).wrapped,
        Path(options.game).stem,
        keys.seed if options.seed is None else options.seed,
        keys.initial_state if options.initial_state is None else options.initial_state,
    )


def _named(options: argparse.Namespace) -> "WrappedGame":
    """A game by name with Q-learners; in the prisoner's dilemma those of Kerzreho (2025)."""
    from ..experiments.build import GAMES, Builder
    from ..experiments.source import Source, nearest

    known = [name.replace("_", "-") for name in GAMES]
    if options.game.replace("_", "-") not in known:
        hint = nearest(options.game, known)
        raise ValueError(f"argument GAME: {options.game!r} is not a game{hint}")
    lines = [f'name = "{options.game}"', *options.set]
    source = Source(Path("argument --set"), "\n".join(lines).encode())
    game: dict[str, Any] = dict(source.table)
    if options.game == _DILEMMA:
        game.setdefault("g", options.defaults["g"] if options.g is None else options.g)
    builder = Builder(source)
    agents = builder.game(game)[0].num_agents
    values = {name: _per_agent(options, name, agents) for name in _LEARNERS}
    initial = [30.0, [22.0, 20.0]] if options.game == _DILEMMA else [0.0] * agents
    learners = [
        {
            "name": "QLearning",
            "learning_rate": values["learning_rate"][agent],
            "discount": values["discount"][agent],
            "initial": initial[agent],
            "exploration": {
                "name": "EpsilonSoftmax",
                "temperature": values["temperature"][agent],
                "epsilon": values["epsilon"][agent],
            },
        }
        for agent in range(agents)
    ]
    return builder.wrapped({"game": game, "learners": learners})


def _per_agent(options: argparse.Namespace, name: str, agents: int) -> list[float]:
    values = getattr(options, name)
    values = options.defaults[name] if values is None else values
    values = values if isinstance(values, list) else [values]
    if len(values) not in (1, agents):
        option = "--" + name.replace("_", "-")
        raise ValueError(f"argument {option}: expected 1 or {agents} values; found {len(values)}")
    return values * (agents // len(values))
