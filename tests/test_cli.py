import contextlib
import importlib
import io as text
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

import comparisons
import ergodax as ex
from ergodax import cli
from ergodax.base import programs
from ergodax.cli import main, output, running
from helpers import interrupt_after

SMALL = ["--runs", "64", "--t1", "20", "--points", "5"]


def compare(*options):
    return main(["compare", "prisoners-dilemma", *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The command once: exit code, output folder, and what it printed."""
    folder = tmp_path_factory.mktemp("out") / "results"
    output = text.StringIO()
    with contextlib.redirect_stdout(output):
        code = compare(*SMALL, "--out", str(folder))
    return code, folder, output.getvalue()


def test_files(done):
    code, folder, output = done
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "prisoners-dilemma.nc",
        "prisoners-dilemma.png",
    ]
    for path in folder.iterdir():
        assert str(path) in output.splitlines()[-1]
    assert (folder / "prisoners-dilemma.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_data_are_those_of_the_library(done):
    _, folder, _ = done
    with xarray.open_dataset(folder / "prisoners-dilemma.nc") as data:
        command = data.attrs.pop("command")
        xarray.testing.assert_identical(data.load(), comparisons.dilemma().to_xarray())
    assert command.startswith("ergodax compare prisoners-dilemma --runs 64 --t1 20 --points 5")


@pytest.mark.parametrize(("row", "quantity"), [("Q-values", "parameters"), ("policies", "policy")])
def test_table_agrees_with_the_file(done, row, quantity):
    _, folder, output = done
    (line,) = (line for line in output.splitlines() if line.startswith(row))
    with xarray.open_dataset(folder / "prisoners-dilemma.nc") as data:
        gap = np.abs(data[f"ensemble_{quantity}"] - data[f"ode_{quantity}"]).load()
        error = np.sqrt(data[f"ensemble_{quantity}_variance"] / 64).load()
    place = gap.argmax(...)
    largest = gap[place]
    numbers = (
        largest,
        error[place],
        np.sqrt(np.mean(gap.values**2)),
        np.sqrt(np.mean(error.values**2)),
    )
    assert largest > 0
    assert line.split()[1:5] == [f"{float(number):.4g}" for number in numbers]
    assert line.endswith(
        f"agent {int(largest.agent)}, state {largest.state.item()}, "
        f"action {largest.action.item()}, t = {float(largest.time):g}"
    )


def test_table_has_speed_and_times(done):
    output = done[2]
    for words in ("million steps/s", "compile", "run", "ODE", "solver steps", "time scales"):
        assert words in output


def settings(folder):
    with xarray.open_dataset(folder / "prisoners-dilemma.nc") as data:
        return json.loads(data.attrs["settings"]), data.load()


@pytest.mark.slow
def test_options_reach_the_computation(tmp_path, capsys):
    words = "--scale 20 --dtype float32 --seed 7 --initial-state DC --g 1.2 --discount .5 .6"
    words += " --temperature 0.7 0.4 --epsilon 0.2 0.3 --learning-rate 0.05"
    assert compare(*SMALL, "--out", str(tmp_path), *words.split()) == 0
    found, data = settings(tmp_path)
    assert (found["scale"], found["runs"], found["dtype"]) == (20.0, 64, "float32")
    assert (found["initial_state"], found["key_data"]) == ("DC", [0, 7])
    for learner, discount, temperature, epsilon in zip(
        found["learners"], (0.5, 0.6), (0.7, 0.4), (0.2, 0.3), strict=True
    ):
        assert learner["learning_rate"] == 0.05
        assert learner["discount"] == discount
        assert learner["exploration"]["temperature"] == temperature
        assert learner["exploration"]["epsilon"] == epsilon
    # g: the expected rewards at the start, from the policies at the start.
    first, second = (data.ode_policy.sel(time=0.0, agent=k, state="CC") for k in (0, 1))
    both = np.outer(first, second)
    payoff = np.array([[2.4, 1.2], [3.2, 2.0]])
    np.testing.assert_allclose(data.ode_rewards[0, 0], (both * payoff).sum(), rtol=1e-12)
    # The files are there, and said to be.
    assert str(tmp_path / "prisoners-dilemma.png") in capsys.readouterr().out


def test_default_learners_are_the_papers(done):
    found, data = settings(done[1])
    assert found["learners"][0]["initial"] == 30.0
    assert found["learners"][1]["initial"] == [22.0, 20.0]
    np.testing.assert_array_equal(data.ode_parameters[0, 0], np.full((4, 2), 30.0))
    np.testing.assert_array_equal(data.ode_parameters[0, 1], np.tile([22.0, 20.0], (4, 1)))
    for learner in found["learners"]:
        assert (learner["learning_rate"], learner["discount"]) == (0.01, 0.9)
        assert learner["exploration"] == {
            "type": "EpsilonSoftmax",
            "temperature": 0.5,
            "epsilon": 0.1,
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temperature 0", "EpsilonSoftmax.temperature must be finite and in (0, inf)"),
        ("--temperature 1 2 3", "--temperature: expected 1 or 2 values; found 3"),
        ("--temperature hot", "--temperature: invalid float value: 'hot'"),
        ("--epsilon 2", "EpsilonSoftmax.epsilon must be finite and in [0, 1]"),
        ("--learning-rate -1", "QLearning.learning_rate must be finite"),
        ("--discount 1.5", "QLearning.discount must be finite"),
        ("--runs 0", "--runs: must be a whole number from 1; found 0"),
        ("--runs 1.5", "--runs: must be a whole number from 1; found 1.5"),
        ("--points 1", "--points: must be a whole number from 2; found 1"),
        ("--seed -1", "--seed: must be a whole number from 0; found -1"),
        ("--t1 -1", "--t1: must be a positive number; found -1"),
        ("--t1 inf", "--t1: must be a positive number; found inf"),
        ("--scale 0", "--scale: must be a positive number; found 0"),
        ("--g nan", "g must be a finite number; found nan"),
        ("--dtype float16", "--dtype: invalid choice: 'float16'"),
        ("--initial-state XY", "'XY' is not a state; the states are CC, CD, DC, DD"),
        ("--initial-state 4", "initial_state must be a state, 0 to 3; found 4"),
        ("--points 300", "the same step at scale 10"),
        ("--run 5", "unrecognized arguments: --run 5"),
        ("--out", "--out: expected one argument"),
    ],
)
def test_bad_values(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert compare(*SMALL, *options.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ergodax: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare chess", "prisoners-dilemma"),
        ("compare", "required: GAME"),
        ("", "required: COMMAND"),
        ("solve", "invalid choice: 'solve'"),
    ],
)
def test_bad_commands(capsys, words, message):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("ergodax: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_folder_is_tried_before_anything_is_computed(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    # The first thing to be computed, the times, would be refused too.
    assert compare(*SMALL, "--points", "300", "--out", str(tmp_path / "file")) == 2
    assert f"cannot write in the folder '{tmp_path / 'file'}'" in capsys.readouterr().err


class Terminal(text.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
@pytest.mark.parametrize("stream", [Terminal, text.StringIO])
def test_progress_is_shown_on_terminals(tmp_path, stream):
    with contextlib.redirect_stderr(stream()) as error:
        assert compare(*SMALL, "--out", str(tmp_path)) == 0
    assert ("12.8k/12.8k" in error.getvalue()) is (stream is Terminal)


def test_an_ode_that_cannot_be_solved_is_a_failure(tmp_path, capsys):
    assert compare(*SMALL, "--learning-rate", "1e9", "--out", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("ergodax: error: ")
    assert "t = " in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_one_line(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ergodax.studies.compare.compare", interrupt)
    assert compare("--out", str(tmp_path)) == 130
    assert capsys.readouterr().err == "ergodax: error: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_comparison_cut_short_is_written_and_exits_as_interrupted(tmp_path, capsys, monkeypatch):
    capacity = importlib.import_module("ergodax.simulation.capacity")
    interrupt_after(monkeypatch, 1)
    monkeypatch.setattr(capacity, "PROCESSOR", capacity.PROCESSOR._replace(cache=1))
    assert compare(*SMALL, "--runs", "300", "--out", str(tmp_path)) == 130
    assert "interrupted: what is written was complete by then" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2


def test_more_times_than_memory_holds_are_refused(tmp_path, capsys):
    assert compare("--points", "1000000000", "--out", str(tmp_path)) == 2
    assert "lower --points" in capsys.readouterr().err


def test_an_interrupted_program_ends_at_once(monkeypatch):
    def end(code):
        raise RuntimeError(f"ended by {code}")

    monkeypatch.setattr(cli.os, "_exit", end)
    monkeypatch.setattr(cli, "main", lambda: 130)
    with pytest.raises(RuntimeError, match="ended by 130"):
        cli.program()
    monkeypatch.setattr(cli, "main", lambda: 2)
    with pytest.raises(SystemExit, match="2"):
        cli.program()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_lost_ensemble_is_a_failure_and_its_warning_one_line(tmp_path, capsys):
    """Rewards of 1e39 overflow in float32, in which runs are simulated; the ODE is in float64."""
    words = ["--dtype", "float32", "--g", "1e39", "--out", str(tmp_path)]
    assert compare(*SMALL, *words) == 1
    printed = capsys.readouterr()
    assert "nan" in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("ergodax: warning: 64 of 64 runs became infinite or NaN")


def test_help_and_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ergodax {ex.__version__}\n"
    assert main(["--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert main(["compare", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "examples:" in printed
    assert "--initial-state" in printed


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["info"]) == 0
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert found["ergodax"] == ex.__version__
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert found["Python"] == sys.version.split()[0]
    assert found["devices"].count(",") == len(jax.devices()) - 1
    assert str(jax.devices()[0]) in found["devices"]
    assert found["x64"] == "on"
    cores, _, total = found["cores"].split()[:3]
    assert 1 <= int(cores) <= int(total)
    assert "JAX_PLATFORMS=cpu" in found["environment"]
    assert "OMP_NUM_THREADS=3" in found["environment"]
    assert {"jaxlib", "equinox", "diffrax", "platform"} < set(found)
    assert main(["info", "now"]) == 2


def run(*words, cwd):
    command = [sys.executable, "-m", "ergodax", *words]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.slow
def test_as_a_program(tmp_path, done):
    finished = run("compare", "prisoners-dilemma", *SMALL, cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    # Another process, the same numbers.
    assert finished.stdout.splitlines()[:3] == done[2].splitlines()[:3]
    _, data = settings(tmp_path / "out")
    xarray.testing.assert_allclose(data, comparisons.dilemma().to_xarray(), rtol=1e-12)


@pytest.mark.slow
def test_as_a_program_with_a_bad_value(tmp_path):
    failed = run("compare", "prisoners-dilemma", "--runs", "0", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("ergodax: error: argument --runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_convergence(tmp_path, capsys):
    """Prints table and constants, writes figure and data."""
    options = ["--scales", "256", "512", "1024", "--runs", "32", "--out", str(tmp_path)]
    assert main(["convergence", "prisoners-dilemma", *options]) == 0
    output = capsys.readouterr().out
    for words in ("sqrt(N) strong", "N weak", "theory", "2.6776"):
        assert words in output
    with xarray.open_dataset(tmp_path / "prisoners-dilemma-convergence.nc") as data:
        np.testing.assert_allclose(data.attrs["weak_theory"], 2.6776, atol=5e-5)
        np.testing.assert_array_equal(data.scale, [256, 512, 1024])
        assert data.attrs["command"].startswith("ergodax convergence prisoners-dilemma")
    image = tmp_path / "prisoners-dilemma-convergence.png"
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_missing_card_is_diagnosed(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for words in (["info"], ["compare", "prisoners-dilemma"]):
        finished = run(*words, cwd=tmp_path)
        assert finished.returncode == 1
        (line,) = finished.stderr.splitlines()[-1:]
        assert line.startswith("ergodax: error: JAX finds no device for JAX_PLATFORMS=cuda: unset")
        assert "Traceback" not in finished.stderr
        if words == ["info"]:
            assert re.search(r"^devices +none$", finished.stdout, flags=re.MULTILINE)
            assert re.search(r"^environment +.*JAX_PLATFORMS=cuda", finished.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_lose_the_result(tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(ex.io, "save", full)
    with contextlib.suppress(OSError):
        output.write_result("the result", None, tmp_path / "a", "command")
    assert capsys.readouterr().out.startswith("the result")


@pytest.mark.slow
def test_info_as_a_program(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    finished = run("info", cwd=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert re.search(r"^x64 +off", finished.stdout, flags=re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


CACHE = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")


@pytest.fixture
def cache(monkeypatch):
    """Folder and size of the cache after a start of the command line with some option."""
    held = [*CACHE, "jax_persistent_cache_min_compile_time_secs"]
    before = {name: getattr(jax.config, name) for name in held}
    monkeypatch.delenv("ERGODAX_CACHE", raising=False)
    monkeypatch.setattr(programs._Kept, "folder", None)

    def start(given=None, folder=None):
        jax.config.update("jax_compilation_cache_dir", folder)
        running.keep_programs(given)
        return tuple(getattr(jax.config, name) for name in CACHE)

    yield start
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_where_the_user_wants(cache, monkeypatch, tmp_path):
    assert cache("off")[0] is None
    assert not programs.are_kept()
    assert cache(folder="own")[0] == "own"  # JAX keeps them already
    assert programs.are_kept()
    for given in ("off", None):
        assert cache(given, folder="gs://own")[0] == "gs://own"
        assert not programs.are_kept()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    folder, size = cache()
    assert Path(folder).is_dir()
    assert "ergodax" in folder
    assert size == -1  # of JAX; it is bounded at every start
    monkeypatch.setenv("ERGODAX_CACHE", str(tmp_path / "moved"))
    assert cache(folder="own")[0] == str(tmp_path / "moved")
    assert cache(str(tmp_path / "option"))[0] == str(tmp_path / "option")
    monkeypatch.setenv("ERGODAX_CACHE", "off")
    assert cache()[0] is None
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="compiled programs are not kept"):
        assert cache(str(tmp_path / "file" / "folder"))[0] is None


def test_an_interruption_during_import_is_told_in_one_line():
    code = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "ergodax.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
import ergodax_command
ergodax_command.program()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130
    assert ended.stderr == "ergodax: error: interrupted\n"
