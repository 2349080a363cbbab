import os

import pytest

from ergodax.base.files import prepare_folder, replacing, replacing_folder


@pytest.mark.parametrize("before", [None, "old"])
def test_files_take_their_place_when_complete(tmp_path, before):
    path = tmp_path / "new" / "file"
    if before is not None:
        prepare_folder(path.parent)
        path.write_text(before)
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert path.exists() is (before is not None)
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file"]


def test_files_stay_as_they_were_if_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half of it")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("fails", [False, True])
def test_folders_are_replaced_as_a_whole_or_not(tmp_path, fails):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")

    def write():
        with replacing_folder(path) as temporary:
            temporary.mkdir()
            (temporary / "new").write_text("")
            if fails:
                raise RuntimeError

    if fails:
        with pytest.raises(RuntimeError):
            write()
    else:
        write()
    assert os.listdir(path) == ["old" if fails else "new"]
    assert os.listdir(tmp_path) == ["folder"]


def test_new_folders_need_none_before(tmp_path):
    with replacing_folder(tmp_path / "a" / "b") as temporary:
        temporary.mkdir()
    assert os.listdir(tmp_path / "a") == ["b"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot write in the folder .*file"):
            prepare_folder(folder)
    prepare_folder(tmp_path / "new" / "below")
    assert os.listdir(tmp_path / "new" / "below") == []
