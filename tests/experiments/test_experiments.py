"""Experiments in files."""

import inspect
import json
import re
from pathlib import Path

import filelock
import numpy as np
import pytest

import ergodax as ex
from ergodax.cli import main
from ergodax.experiments.build import GAMES, LEARNERS, Builder
from ergodax.experiments.experiment import Experiment
from ergodax.experiments.source import Source
from helpers import interrupt_after

HEAD = """\
seed = 3

[game]
name = "stag_hunt"
memory = 0

[[learners]]
name = "QLearning"
learning_rate = 0.05
exploration = { name = "EpsilonSoftmax", temperature = 0.5 }

"""
SMALL = """\
[simulate]
times = [0, 2.5, 5]
runs = 6
scale = 2

[solve]
times = [0, 2.5, 5]

[until]
max_steps = 40
steps = 10
runs = 6

[sweep]
times = [0, 5]
values = { "learners.exploration.temperature" = [0.4, 0.6], "learners.0.discount" = [0.5] }
"""


def write(folder, text, name="experiment.toml"):
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    path = write(folder, HEAD + SMALL)
    assert main(["run", str(path), "--cache", "off"]) == 0
    return folder / "experiment", path


@pytest.mark.slow
def test_results_are_those_of_the_library(done):
    folder, path = done
    wrapped = ex.WrappedGame(
        ex.games.stag_hunt(memory=0), [ex.QLearning(0.05, 0.9, ex.EpsilonSoftmax(0.5))] * 2
    )
    found = ex.io.load(folder / "solve.nc")
    expected = ex.solve(wrapped, wrapped.init(), [0, 2.5, 5])
    for own, other in zip(found.params, expected.params, strict=True):
        np.testing.assert_array_equal(own, other)
    simulated = ex.io.load(folder / "simulate.nc")
    assert (simulated.runs, simulated.scale) == (6, 2.0)
    assert simulated.key_data.tolist() == [0, 3]
    stopped = ex.io.load(folder / "until.nc")
    assert stopped.reached.shape == (6,)
    assert stopped.steps.max() <= 40
    data = ex.io.load(folder / "sweep.nc")
    assert dict(data.sizes)["learners.exploration.temperature"] == 2
    assert (data.result == 0).all()
    assert not np.array_equal(*(data.parameters[k, 0, -1] for k in (0, 1)))
    assert (folder / "experiment.toml").read_bytes() == path.read_bytes()
    assert json.loads((folder / "record.json").read_text())["key_data"] == [0, 3]
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == [
        *("experiment.toml", "record.json", "simulate.nc", "simulate.png"),
        *("solve.nc", "solve.png", "sweep.nc", "until.nc"),
    ]


@pytest.mark.slow
def test_a_rerun_is_the_same_bit_for_bit(done, tmp_path, capsys):
    folder, path = done
    assert main(["run", str(path), "--out", str(tmp_path), "--cache", "off"]) == 0
    for name in ("simulate.nc", "solve.nc", "sweep.nc"):
        first, second = (ex.io.load(place / name) for place in (folder, tmp_path))
        if name != "sweep.nc":
            first, second = first.to_xarray(), second.to_xarray()
        assert first.equals(second), name
    capsys.readouterr()
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("is done already") == 4


@pytest.mark.slow
def test_a_paper_is_replicated_without_a_game(tmp_path, capsys):
    path = write(tmp_path, '[replicate]\nname = "den-boer"\n')
    assert main(["run", str(path), "--cache", "off"]) == 0
    assert "All " in capsys.readouterr().out
    data = ex.io.load(tmp_path / "experiment" / "replicate.nc")
    np.testing.assert_allclose(data.here, data.published, atol=1e-4)
    path = write(tmp_path, '[replicate]\nname = "den-bor"\n', "wrong.toml")
    assert main(["run", str(path), "--cache", "off"]) == 2
    assert "line 1: replicate: 'den-bor' is not replicated: did you mean den-boer?" in (
        capsys.readouterr().err
    )
    path = write(tmp_path, '[replicate]\nname = "den-boer"\n[solve]\n', "missing.toml")
    assert main(["run", str(path), "--cache", "off"]) == 2
    assert "game: is missing" in capsys.readouterr().err


def test_another_experiment_is_not_overwritten(done, tmp_path, capsys):
    folder, path = done
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    other = write(tmp_path, path.read_text().replace("seed = 3", "seed = 4"))
    assert main(["run", str(other), "--out", str(folder)]) == 2
    assert "another experiment, which differs in seed, key_data" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    write(tmp_path / "full", "", "thesis.tex")
    assert main(["run", str(path), "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed", "sed", "line 1: sed: an experiment has no 'sed'; did you mean seed?"),
        ("seed = 3", "seed = -1", "line 1: seed: input should be greater than or equal to 0"),
        ("stag_hunt", "stag_hnt", "line 4: game.name: 'stag_hnt' is not a game; did you mean stag"),
        ("memory = 0", "memry = 0", "line 5: game.memry: stag_hunt has no 'memry'; did you mean"),
        ("memory = 0", "memory = -1", "line 5: game.memory: memory must be 0 or a positive"),
        ("[game]", "[gme]", "line 3: gme: an experiment has no 'gme'; did you mean game?"),
        ("QLearning", "QLerning", "line 8: learners.0.name: 'QLerning' is not a learner; did you"),
        ("learning_rate", "learnin_rate", "line 9: learners.0.learnin_rate: QLearning has no"),
        ("0.05", "-1.0", "line 9: learners.0.learning_rate: QLearning.learning_rate must be"),
        ("temperature", "temprature", "line 10: learners.0.exploration.temprature: EpsilonSoftmax"),
        ("runs = 6", "runs = 0", "line 14: simulate.runs: input should be greater than or equal"),
        ("runs = 6", "run = 6", "line 14: simulate.run: simulate has no 'run'; did you mean runs?"),
        ("scale = 2", "scale = 'a'", "line 15: simulate.scale: input should be a valid number"),
        ("[0, 2.5, 5]", "[5, 0]", "line 12: simulate: ts must"),
        ("0.discount", "0.discunt", "line 7: learners.0.discunt: QLearning has no 'discunt'; did"),
        ('"learners.0.discount"', '"gamma"', "line 27: sweep.values.gamma: names no setting"),
        ("[[learners]]", "[[learners]]\nname = 'Sarsa'\n[[learners]]\nname = 'Sarsa'\n[[learners]]",
         "line 7: learners: one for all agents or one for each of 2; found 3."),
        ("seed = 3", "seed = = 3", "is no TOML"),
    ],
)  # fmt: skip
def test_messages_name_line_and_key(tmp_path, capsys, old, new, message):
    path = write(tmp_path, (HEAD + SMALL).replace(old, new, 1))
    assert main(["run", str(path), "--cache", "off"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"ergodax: error: {path}")
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_is_interrupted_goes_on(done, tmp_path, capsys, monkeypatch):
    folder, path = done
    run = ["run", str(path), "--out", str(tmp_path), "--cache", "off"]
    with monkeypatch.context() as context:
        interrupt_after(context, 1)
        assert main(run) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "simulate.nc").exists()
    assert (tmp_path / "simulate.unfinished").exists()
    assert main(run) == 0
    first, second = (ex.io.load(place / "simulate.nc") for place in (folder, tmp_path))
    assert first.to_xarray().equals(second.to_xarray())
    assert not (tmp_path / "simulate.unfinished").exists()


@pytest.mark.slow
def test_parts_are_joined_when_all_are_there(done, tmp_path, capsys):
    folder, path = done
    run = ["run", str(path), "--out", str(tmp_path / "out"), "--cache", "off"]
    assert main([*run, "--join"]) == 2
    assert "2 of 2 are missing" in capsys.readouterr().err
    assert main([*run, "--part", "1/2"]) == 0
    assert main([*run, "--part", "1/2"]) == 0  # resubmitted: nothing is left to do
    capsys.readouterr()
    assert main([*run, "--join"]) == 2
    assert "1 of 2 are missing (numbers 1)" in capsys.readouterr().err
    assert main([*run, "--part", "1/1"]) == 2
    assert "has parts of 2; found part 1 of 1" in capsys.readouterr().err
    for part, message in (("3/2", "K from 1 to N; found 3/2"), ("1/9", "n up to 2")):
        assert main([*run, "--part", part]) == 2
        assert message in capsys.readouterr().err
    store = tmp_path / "out" / "sweep.unfinished"
    with filelock.FileLock(store / ".part-2-of-2.lock"):
        assert main([*run, "--part", "2/2"]) == 2
    assert "part 2 of 2 is being done by another process" in capsys.readouterr().err
    assert main([*run, "--part", "2/2"]) == 0
    # A set twice: a piece under another number.
    (store / "piece-00000007").write_bytes((store / "piece-00000001").read_bytes())
    assert main([*run, "--join"]) == 2
    assert "1 of 2 are there twice (numbers 1)" in capsys.readouterr().err
    (store / "piece-00000007").unlink()
    assert main([*run, "--join"]) == 0
    joined, whole = (ex.io.load(place / "sweep.nc") for place in (tmp_path / "out", folder))
    assert joined.equals(whole)
    assert not store.exists()


# Arguments of the games that need some.
TABLE = "[[[3, 3], [0, 5]], [[5, 0], [1, 1]]]"
NEEDED = {
    "bimatrix": "first = [[1, 0], [0, 1]]\nsecond = [[1, 0], [0, 1]]",
    "repeated": f"payoffs = {TABLE}",
    "repeated_lottery": f"payoffs = [{TABLE}]\nprobabilities = [[[1, 1], [1, 1]]]",
    "random_ergodic": "key = 5\nnum_states = 3\nnum_actions = [2, 2]",
    "with_signals": "game = { name = 'stag_hunt', memory = 0 }\n"
    "signals = [[[[1.0]], [[1.0]]], [[[1.0]], [[1.0]]]]",
    "bertrand": "num_prices = 3\nmarket = { name = 'LogitMarket', quality = 1.5 }",
}


def built(folder, game, learners="[[learners]]\nname = 'QLearning'"):
    text = f"[game]\n{game}\n{learners}\n[solve]\n"
    return Experiment(write(folder, text)).setup(progress=False).wrapped


@pytest.mark.parametrize("name", sorted(GAMES))
def test_every_game_has_a_name(tmp_path, name):
    game = built(tmp_path, f"name = '{name.replace('_', '-')}'\n{NEEDED.get(name, '')}").game
    assert game.num_agents >= 2
    if name == "bertrand":
        market = ex.games.LogitMarket(quality=1.5)
        expected = ex.games.bertrand(market, num_prices=3)
        np.testing.assert_array_equal(game.rewards, expected.rewards)


def test_every_learner_has_a_name_and_schedules_and_initial_values():
    inner = {"name": "Sarsa", "learning_rate": {"name": "exponential", "start": 0.2, "rate": 0.1}}
    told = {name: {"name": name} for name in LEARNERS}
    told["Observing"] |= {"learner": inner, "observation": [0]}
    for name, made in LEARNERS.items():
        if name != "Observing" and "learner" in inspect.signature(made).parameters:
            told[name] |= {"learner": {"name": "QLearning"}}
    told["QLearning"] |= {"initial": "optimistic", "discount": 0.5}
    builder = Builder(Source(Path("none"), b""))
    for name, table in told.items():
        game = {"name": "stag_hunt", "memory": 0}
        wrapped = builder.wrapped({"game": game, "learners": [table]})
        made = wrapped.learners[0]
        made = made.learner if name == "Observing" else made  # held with the clock of its schedule
        assert type(made).__name__ == name
        if name == "Observing":
            rate = made.learner.learning_rate
            assert isinstance(rate, ex.schedules.exponential)
        if name == "QLearning":
            best = float(wrapped.game.rewards.max()) / (1 - 0.5)
            np.testing.assert_allclose(wrapped.init()[0], best, rtol=1e-12)


def test_games_in_files(tmp_path):
    payoffs = np.array([[[3, 3], [0, 5]], [[5, 0], [1, 1.0]]])
    np.savez(tmp_path / "a.npz", payoffs=payoffs)
    write(tmp_path, "row,col,p,q\nC,C,3,3\nC,D,0,5\nD,C,5,0\nD,D,1,1\n", "a.csv")
    for name in ("a.npz", "a.csv"):
        game = built(tmp_path, f"file = '{name}'\nmemory = 0").game
        np.testing.assert_array_equal(game.rewards[0, ..., 0, :], payoffs)
    game = built(tmp_path, "file = 'a.npz'").game
    fields = ("successors", "probabilities", "rewards")
    np.savez(tmp_path / "b.npz", **{name: getattr(game, name) for name in fields})
    np.testing.assert_array_equal(built(tmp_path, "file = 'b.npz'").game.rewards, game.rewards)
    for text, message in (
        ("file = 'c.csv'", "line 2: game.file: .*No such file"),
        ("file = 'c.txt'", "line 2: game.file: a file .csv, .nfg, .npz; found 'c.txt'"),
        ("file = 'a.npz'\nmemry = 0", "line 3: game.memry: a game in a file has no 'memry'"),
        ("", "line 1: game: a game is a table with a name"),
    ):
        with pytest.raises(ValueError, match=message):
            built(tmp_path, text)


def test_the_example_is_an_experiment(tmp_path, capsys):
    path = tmp_path / "experiment.toml"
    assert main(["init", str(path)]) == 0
    experiment = Experiment(path)
    assert list(experiment.tasks) == ["compare"]
    assert experiment.setup(progress=False).wrapped.learners[0].initial == 30.0
    # What is commented out is right too.
    head, tail = path.read_text().split("# [sweep]")
    head = head.replace("learning_rate = 0.01       # or", "# or").replace("# learning", "learning")
    path.write_text(head + "[sweep]" + tail.replace("\n# ", "\n"))
    experiment = Experiment(path)
    assert list(experiment.tasks) == ["compare", "sweep"]
    assert experiment.setup(progress=False).wrapped.learners[1].learner.learning_rate.end == 0.01
    assert main(["init", str(path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_experiment_of_the_page_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "howto" / "experiments.md").read_text()
    (text,) = re.findall(r"^```text\n(title.*?)^```", page, re.DOTALL | re.MULTILINE)
    experiment = Experiment(write(tmp_path, text))
    assert list(experiment.tasks) == ["compare", "sweep"]
    setup = experiment.setup(progress=False)
    wrapped, _ = setup.build({"game.g": 1.2, "learners.exploration.temperature": 0.3})
    expected = ex.games.prisoners_dilemma(1.2)
    np.testing.assert_array_equal(wrapped.game.rewards, expected.rewards)
    assert [float(one.learner.exploration.temperature) for one in wrapped.learners] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare stag-hunt --g 2", "--g: only for prisoners-dilemma; write --set g=2"),
        ("compare stag-hnt", "'stag-hnt' is not a game; did you mean stag-hunt?"),
        ("compare stag-hunt --set memory=-1", "memory must be 0 or a positive integer"),
        ("compare stag-hunt --set memry=1", "stag_hunt has no 'memry'; did you mean memory?"),
        ("compare FILE --discount 0.5", "--discount: game and learners are those of"),
    ],
)
def test_bad_games_of_commands(done, tmp_path, capsys, words, message):
    words = words.replace("FILE", str(done[1])).split()
    assert main([*words, "--out", str(tmp_path), "--cache", "off"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_commands_take_any_game_and_experiments(done, tmp_path, capsys):
    options = ["--runs", "6", "--t1", "4", "--points", "3", "--cache", "off", "--out"]
    assert main(["compare", str(done[1]), *options, str(tmp_path)]) == 0
    found = ex.io.load(tmp_path / "experiment.nc")
    assert found.simulation.key_data.tolist() == [0, 3]
    assert found.solution.wrapped.learners[0].learning_rate == 0.05
