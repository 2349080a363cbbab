"""Unfinished work in files: whole, of this work, or refused with a clear message."""

import hashlib
import json
import os
import re

import numpy as np
import pytest

from ergodax.io import store
from ergodax.io.store import Folder, Store

ARRAYS = {
    "table": np.arange(6.0).reshape(2, 3),
    "count": np.array(3),
    "texts": np.array(["whole", ""]),
    "nothing": np.empty((0, 4), np.float32),
}


def make(path, **changed):
    return Store(path, "study", {"scale": 2.0, "key": np.arange(2)} | changed)


@pytest.fixture
def saved(tmp_path):
    """A file that was saved."""
    path = tmp_path / "new" / "unfinished"
    made = make(path)
    assert made.load() is None
    made.save(lambda: ARRAYS)
    return path


def forge(path, **changed):
    """Replaces the file's table, with a digest that is right."""
    content = path.read_bytes()
    header, end, rest = content.partition(b"\n")
    size = int.from_bytes(rest[32:40], "little")
    table = json.loads(rest[40 : 40 + size]) | changed
    text = json.dumps(table).encode()
    rest = changed.get("size", len(text)).to_bytes(8, "little") + text + rest[40 + size :]
    path.write_bytes(header + end + hashlib.sha256(rest).digest() + rest)


def test_arrays_come_back_bit_by_bit(saved):
    found = make(saved).load()
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = found[name]  # it can be written to
    assert [path.name for path in saved.parent.iterdir()] == ["unfinished"]


def test_other_work_says_what_differs(saved, monkeypatch):
    with pytest.raises(ValueError, match=r"another study, which differs in scale; give the same"):
        make(saved, scale=3.0).load()
    with pytest.raises(ValueError, match=r"another study, which differs in work, scale, key; give"):
        Store(saved, "sweep", {}).load()
    monkeypatch.setattr(store, "versions", lambda: {"ergodax": "0.0.1"})
    with pytest.raises(ValueError, match=r"another study, which differs in versions; give"):
        make(saved).load()


def test_every_bit_counts(saved):
    content = saved.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(120), *rng.integers(0, len(content), 60)]:
        flipped = content[place] ^ (1 << rng.integers(8))
        saved.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        with pytest.raises(ValueError, match="it was left as it is"):
            make(saved).load()
    for length in range(0, len(content), 17):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut short|no unfinished work|another version"):
            make(saved).load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no unfinished work of ergodax"),
        (b"PK\x03\x04", "holds no unfinished work of ergodax"),
        (store._FORMAT + b"1\n" + bytes(100), "was written by another version of ergodax"),
        (store._FORMAT + store._VERSION, "is damaged or cut short"),
    ],
)
def test_foreign_files_are_refused(saved, content, message):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(saved).load()
    assert saved.read_bytes() == content


@pytest.mark.parametrize(
    "table",
    [
        {"arrays": {"table": ["<f8", [10**12]]}},
        {"arrays": {"table": ["<f8", [2**70, 0]]}},
        {"arrays": {"table": ["<f8", [-1]]}},
        {"arrays": {"table": ["<f8", [1.5]]}},
        {"arrays": {"table": ["|O", [1]]}},
        {"arrays": {"table": ["nothing", [1]]}},
        {"arrays": {"table": ["<f8"]}},
        {"arrays": {}},
        {"arrays": None},
        {"arrays": []},
        {"identity": None},
        {"size": 2**60},
        {"size": 0},
    ],
)
def test_forged_tables_are_refused(saved, table):
    forge(saved)
    assert make(saved).load() is not None
    forge(saved, **table)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        make(saved).load()


def test_places_that_are_no_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ValueError, match="is no file; it was left as it is"):
            make(path).load()
    (tmp_path / "text").write_text("mine")
    with pytest.raises(OSError, match="cannot write in the folder"):
        make(tmp_path / "text" / "unfinished")
    with pytest.raises(OSError, match="cannot write in the folder"):
        make("/proc/unfinished")


def test_a_failing_save_warns_and_keeps_what_was(saved, monkeypatch):
    before = saved.read_bytes()
    made = make(saved)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"No space left on device.*the study goes on"):
        made.save(lambda: {"table": np.ones(3)})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["unfinished"]


def test_saving_takes_a_small_share_of_the_time(saved):
    made, calls = make(saved), []

    def arrays():
        calls.append(1)
        return ARRAYS

    for _ in range(50):
        made.save(arrays)
    assert len(calls) == 1
    made.save(arrays, now=True)
    assert len(calls) == 2


def test_nothing_is_saved_or_identified_without_a_path():
    made = Store(None, "study", {"lines": (k for k in range(3))})
    made.save(lambda: pytest.fail("saved"), now=True)
    assert made.load() is None


# Folders


def test_a_folder_holds_pieces(tmp_path):
    path = tmp_path / "pieces"
    made = Folder(path, "sweep", {"scale": 1})
    assert made.load() == []
    made.prepare()
    for number in (12, 3):
        made.add(number, {"number": np.array(number)})
    (path / ".piece-00000005.0123.tmp").write_bytes(b"cut off")
    found = Folder(path, "sweep", {"scale": 1}).load()
    assert [piece["number"] for piece in found] == [3, 12]
    with pytest.raises(ValueError, match="another sweep, which differs in scale"):
        Folder(path, "sweep", {"scale": 2}).load()
    piece = path / "piece-00000003"
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(ValueError, match=re.escape(f"{str(piece)!r} is damaged or cut short")):
        made.load()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no unfinished work"):
        Folder(tmp_path, "sweep", {}).load()
    with pytest.raises(ValueError, match="is no folder"):
        Folder(tmp_path / "notes.txt", "sweep", {}).load()
