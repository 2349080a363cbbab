"""Files that are damaged, hostile, old, or not files at all."""

import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import comparisons
import ergodax as ex
from ergodax import io
from ergodax.io.container import _SEAL, _SEAL_SIZE
from results_of_each_kind import build, result

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file of some tens of kilobytes."""
    path = tmp_path_factory.mktemp("files") / "saved.nc"
    io.save(result("batched solutions"), path)
    return path.read_bytes()


def forge(path, content, edit):
    """Changes a file as somebody would who can seal it again."""
    path.write_bytes(content[:-_SEAL_SIZE])
    with h5py.File(path, "a") as file:
        edit(file)
    forged = path.read_bytes()
    path.write_bytes(forged + _SEAL + hashlib.sha256(forged).digest())
    return path


def rewrite(change):
    """An edit of the structure by a function of its text."""

    def edit(file):
        text = change(file["object/structure"][()].tobytes().decode())
        del file["object/structure"]
        file["object/structure"] = np.frombuffer(text.encode(), np.uint8)

    return edit


@pytest.mark.slow
def test_every_flipped_bit_is_found(tmp_path, saved):
    """Also those in what HDF5 keeps for itself, and in the seal."""
    path = tmp_path / "a.nc"
    places = np.random.default_rng(0).integers(len(saved), size=200)
    for place in [*places, *range(len(saved) - _SEAL_SIZE, len(saved), 4)]:
        content = bytearray(saved)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nc' cannot be loaded: it was"):
            io.load(path)


@pytest.mark.slow
def test_every_missing_end_is_found(tmp_path, saved):
    path = tmp_path / "a.nc"
    for left in [*np.random.default_rng(0).integers(len(saved), size=50), len(saved) - 1]:
        path.write_bytes(saved[:left])
        with pytest.raises(ValueError, match=r"a\.nc' .*(cut short|was not written)"):
            io.load(path)


def test_other_programs_read_sealed_files_and_what_they_change_is_not_loaded(tmp_path, saved):
    path = tmp_path / "a.nc"
    path.write_bytes(saved)
    with h5py.File(path, "a") as file:
        file.attrs["note"] = "from elsewhere"
    with pytest.raises(ValueError, match="cut short, or changed by another program"):
        io.load(path)


class Partial(NamedTuple):
    """Stands for code of another package."""

    values: object


@pytest.mark.parametrize(
    "structure",
    [
        {"name": "os:system"},
        {"name": "builtins:__import__"},
        {"class": "equinox:Partial", "fields": {"func": {"name": "builtins:min"}}},
        {"class": "subprocess:Popen", "fields": {"args": "true"}},
        {"class": "ergodax:simulate", "fields": {}},
        {"class": f"{__name__}:Partial", "fields": {"values": 1}},
        {"class": "ergodax:plot.style.look", "fields": {}},
    ],
)
def test_files_run_nothing(tmp_path, saved, structure):
    def within(text):
        described = json.loads(text)
        learner = described["structure"]["fields"]["wrapped"]["fields"]["learners"]["tuple"][0]
        learner["fields"]["exploration"] = structure
        return json.dumps(described)

    def alone(text):
        return json.dumps({"is_data_set": False, "structure": structure})

    for change in (within, alone):
        path = forge(tmp_path / "a.nc", saved, rewrite(change))
        with pytest.raises(ValueError, match=r"cannot be loaded: (it needs|nothing is written as)"):
            io.load(path)
        path.unlink()


def place(**changes):
    """The structure of an array alone, at a wrong place."""
    where = {"offset": 0, "dtype": "float64", "shape": [1]} | changes
    return lambda text: json.dumps({"is_data_set": False, "structure": {"numpy": where}})


def link_outside(file):
    file.move("parameters", "moved")
    file["parameters"] = h5py.ExternalLink("/dev/null", "/parameters")


def link_group_outside(file):
    file.move("object", "moved")
    file["object"] = h5py.ExternalLink("/dev/null", "/object")


def numbers_outside(file):
    shape = file["parameters"].shape
    del file["parameters"]
    file.create_dataset("parameters", shape, "f8", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


def virtual(file):
    layout = h5py.VirtualLayout(file["parameters"].shape, "f8")
    layout[...] = h5py.VirtualSource("/dev/zero", "x", file["parameters"].shape)
    del file["parameters"]
    file.create_virtual_dataset("parameters", layout)


def declare_huge(name):
    def edit(file):
        del file[name]
        file.create_dataset(name, (10**12,), "f8" if name == "parameters" else "u1", chunks=(1024,))

    return edit


def set_layout(value):
    return lambda file: file["object"].attrs.__setitem__("layout", value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rewrite(place(shape=[-1])), "impossible type or shape"),
        (rewrite(place(shape=[-1, -1])), "impossible type or shape"),
        (rewrite(place(offset=-8)), "impossible type or shape"),
        (rewrite(place(dtype="O")), "impossible type or shape"),
        (rewrite(place(shape=[10**12])), "ends beyond the file"),
        (rewrite(place(shape=[10**9] * 5)), "ends beyond the file"),
        (rewrite(place(dtype="no type")), "is damaged"),
        (rewrite(place(shape="text")), "is damaged"),
        (rewrite(lambda text: text.replace(": 0", ": 1" + "0" * 100_000, 1)), "is damaged"),
        (rewrite(lambda text: "[" * 100_000), "is damaged"),
        (rewrite(lambda text: "{}"), "is damaged"),
        (rewrite(lambda text: text.replace('"messages": [[', '"messages": [[9')), "no result is"),
        (rewrite(lambda text: text.replace('"variable": "', '"variable": "/object/')), "is a link"),
        (link_outside, "parameters in it is a link, which is not followed"),
        (link_group_outside, "is a link|was not written|is damaged"),
        (numbers_outside, "the numbers of parameters lie in another file"),
        (virtual, "the numbers of parameters lie in another file"),
        (declare_huge("parameters"), "declared to be larger than the file"),
        (declare_huge("object/structure"), "declared to be larger than the file"),
        (set_layout(0), "there is no layout 0"),
        (set_layout(-3), "there is no layout -3"),
        (set_layout([1, 2]), "was not written by ergodax.io.save"),
        (set_layout("1"), "was not written by ergodax.io.save"),
        (set_layout(3), "newer version"),
    ],
)
def test_forged_files_are_refused(tmp_path, saved, edit, message):
    path = forge(tmp_path / "a.nc", saved, edit)
    with pytest.raises(ValueError, match=rf"a\.nc' .*({message})"):
        io.load(path)


@pytest.mark.parametrize("edit", [link_outside, numbers_outside, declare_huge("parameters")])
def test_forged_data_sets_are_refused(tmp_path, edit):
    path = tmp_path / "a.nc"
    io.save(result("batched solutions").to_xarray(), path)
    with pytest.raises(ValueError, match=r"is a link|lie in another file|larger than the file"):
        io.load(forge(path, path.read_bytes(), edit))


@pytest.mark.slow
def test_files_of_the_layout_before_are_loaded():
    points = io.load(DATA / "results-layout-1.nc")
    found = result("rest points")
    assert [p.stability for p in points] == [p.stability for p in found]
    for old, new in zip(points, found, strict=True):
        np.testing.assert_allclose(old.params[0], new.params[0], atol=1e-9)


class Own(NamedTuple):
    values: object


class Two(ex.AbstractLearner):
    """A learner with parameters of a class of their own."""

    def init(self, game, agent, *, key):
        return Own(jnp.zeros((game.num_states, game.num_actions[agent])))

    def policy(self, x, state):
        return jnp.full(x.values.shape[1], 0.5)

    def update(self, x, t, game, agent):
        return Own(0.1 * (t.reward - x.values))


def test_classes_of_users_are_named_unless_they_derive_from_ours(tmp_path):
    wrapped = ex.WrappedGame(build({"tau": 1.0, "eps": [0.1, 0.1]})[0].game, [Two(), Two()])
    io.save(wrapped, tmp_path / "a.nc")
    assert isinstance(io.load(tmp_path / "a.nc").learners[0], Two)
    io.save(ex.solve(wrapped, wrapped.init(), [0.0, 1.0]), tmp_path / "b.nc")
    with pytest.raises(ValueError, match=r"needs the class Own of test_container: .*classes=\[Own"):
        io.load(tmp_path / "b.nc")
    assert isinstance(io.load(tmp_path / "b.nc", classes=[Own]).params[0], Own)
    with pytest.raises(TypeError, match="classes must be dataclasses or named tuples"):
        io.load(tmp_path / "b.nc", classes=[int])


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a file"):
        io.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(ValueError, match="is a device or pipe, not a file"):
        io.load(tmp_path / "pipe.nc")


def test_locked_files_are_read(tmp_path, saved):
    path = tmp_path / "a.nc"
    path.write_bytes(saved)
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert io.load(path).params[0].shape == result("batched solutions").params[0].shape


_FULL = """
import resource, sys
import xarray, numpy as np
from ergodax import io
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
data = xarray.Dataset({"x": ("k", np.arange(10_000.0))})
for _ in range(2):
    try:
        io.save(data, sys.argv[1])
    except OSError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
"""


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_process_goes_on(tmp_path):
    """As a limit of the size of files, which HDF5 does not survive either."""
    assert resource.RLIMIT_FSIZE is not None
    (tmp_path / "a.nc").write_bytes(b"precious")
    command = [sys.executable, "-c", _FULL, str(tmp_path / "a.nc")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.count("File too large")) == (0, 2), done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a.nc": b"precious"}


@pytest.mark.slow
def test_comparisons_are_sealed_too(tmp_path):
    io.save(comparisons.market(), tmp_path / "a.nc")
    assert (tmp_path / "a.nc").read_bytes()[-_SEAL_SIZE:].startswith(_SEAL)
