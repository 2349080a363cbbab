"""Experiments in several processes: real ones, on one host."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

import ergodax as ex
import ergodax.cli

# One experiment for all counts of processes: its programs are compiled once, and kept.
TEXT = """\
[game]
name = "stag_hunt"
memory = 0

[[learners]]
name = "QLearning"
learning_rate = 0.05
exploration = { name = "EpsilonSoftmax", temperature = 0.5 }

[simulate]
times = [0, 5, 40]
runs = 300
scale = 20
keep_runs = true

[sweep]
times = [0, 5]
values = { "learners.0.discount" = [0.3, 0.6, 0.9] }
simulation = { runs = 20 }
"""


def start(path, out, count, *, cache, extra=()):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = []
    for number in range(count):
        words = [sys.executable, "-m", "ergodax", "run", str(path), "--out", str(out)]
        words += ["--cache", str(cache)]
        if count > 1:
            words += ["--distributed", "--coordinator", address]
            words += ["--processes", str(count), "--process", str(number)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **dict(extra)}
        job.append(
            subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        )
    return job


def end(job):
    printed = [process.communicate(timeout=250) for process in job]
    return [process.returncode for process in job], printed


def assert_same(first, second):
    for name in ("simulate.nc", "sweep.nc"):
        one, other = (ex.io.load(folder / name) for folder in (first, second))
        if name == "simulate.nc":
            for leaf in ("mean", "variance", "values", "rewards", "state_frequency"):
                for a, b in zip(
                    np.atleast_1d(getattr(one, leaf)), np.atleast_1d(getattr(other, leaf)),
                    strict=True,
                ):  # fmt: skip
                    np.testing.assert_array_equal(a, b)
            one, other = one.to_xarray(), other.to_xarray()
        assert one.equals(other), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The experiment in one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "experiment.toml").write_text(TEXT)
    codes, printed = end(start(folder / "experiment.toml", folder / "out", 1, cache=folder / "c"))
    assert codes == [0], printed
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_numbers_are_those_of_one_process(alone, tmp_path, count):
    path = alone / "experiment.toml"
    codes, printed = end(start(path, tmp_path / "out", count, cache=alone / "c"))
    assert codes == [0] * count, printed
    # The first writes and prints.
    assert printed[0][0].count("written:") == 2
    assert not any("written:" in out for out, _ in printed[1:])
    assert_same(alone / "out", tmp_path / "out")


@pytest.mark.slow
def test_a_lost_process_ends_the_job_and_any_number_goes_on(alone, tmp_path):
    out, shares = tmp_path / "out", tmp_path / "out" / "simulate.unfinished"
    # Long enough to be in the middle of it when the first share is saved.
    path = alone / "long.toml"
    path.write_text(TEXT.split("[sweep]")[0].replace("40]", "800]").replace("300", "6000"))
    job = start(path, out, 3, cache=alone / "c")
    until = time.monotonic() + 200
    while len(list(shares.glob("share-*"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    job[2].send_signal(signal.SIGKILL)
    codes, printed = end(job)
    assert codes[2] == -signal.SIGKILL
    assert all(code not in (0, 2) for code in codes[:2]), printed
    assert any("a process of the job was lost" in error for _, error in printed), printed
    assert not (out / "simulate.nc").exists()
    saved = {share.name: share.stat().st_mtime_ns for share in shares.glob("share-*")}
    assert saved
    codes, printed = end(start(path, out, 2, cache=alone / "c"))
    assert codes == [0, 0], printed
    assert not shares.exists()
    whole = tmp_path / "whole"
    assert end(start(path, whole, 1, cache=alone / "c"))[0] == [0]
    found, expected = (ex.io.load(folder / "simulate.nc") for folder in (out, whole))
    assert found.to_xarray().equals(expected.to_xarray())
    assert found.steps_taken < expected.steps_taken  # it went on from what was saved


@pytest.mark.slow
def test_processes_that_disagree_are_refused(alone, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text(TEXT.replace("0.05", "0.06"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    words = [
        sys.executable,
        "-m",
        "ergodax",
        "run",
        "--out",
        str(tmp_path / "out"),
        "--distributed",
    ]
    words += ["--cache", "off", "--coordinator", address, "--processes", "2", "--process"]
    files = (alone / "experiment.toml", other)
    job = [
        subprocess.Popen(
            [*words, str(k), str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for k, path in enumerate(files)
    ]
    codes, printed = end(job)
    assert 2 in codes
    assert any("process 1 differs from process 0 in learners" in error for _, error in printed)
    assert not (tmp_path / "out" / "experiment.toml").exists()


def test_a_job_that_is_not_known(tmp_path, capsys):
    for words, message in (
        ("--coordinator localhost:1", "give --distributed too"),
        ("--distributed --coordinator localhost:1", "give coordinator, processes and process tog"),
    ):
        assert ex.cli.main(["run", str(tmp_path / "a.toml"), *words.split()]) == 2
        assert message in capsys.readouterr().err
