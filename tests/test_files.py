"""Results are replaced whole: what a failure or a kill in the midst leaves is the old or the new, and nothing else."""

import os
import shutil
import threading
from contextlib import contextmanager

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from emg_gpt2.base import files
from emg_gpt2.base.files import (
    new_files,
    recover_folder,
    remove_folder,
    remove_lock,
    replace_file,
    replace_folder,
    write_json,
)

on_posix = pytest.mark.skipif(os.name != "posix", reason="modes of files as POSIX has them")


def full_disk(path):
    path.write_text("half")
    raise OSError(28, "No space left on device")


def killed(*_, **__):
    raise KeyboardInterrupt


def test_a_file_that_cannot_be_written_leaves_the_old_one_alone(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError, match="No space left") as found:
        replace_file(tmp_path / "a.json", full_disk)
    assert found.value.filename == str(tmp_path / "a.json"), "the sentence says where"
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".a.new.json").write_text("half of a longer one " * 9)
    replace_file(tmp_path / "a.json", lambda path: write_json(path, {"a": 1}))
    assert (tmp_path / "a.json").read_text() == '{\n "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda number: order.append("fsync"))
    really = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: (order.append("replace"), really(*paths)))
    replace_file(tmp_path / "a", lambda path: path.write_text("a"))
    replace_folder(tmp_path / "b", lambda folder: (folder / "c").write_text("c"))
    assert order == ["fsync", "replace"] * 2


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@on_posix
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_way_of_writing_follows_the_umask(tmp_path, mask):
    """safetensors, like everything from tempfile, makes files that their owner alone can read."""

    def write(path):
        save_file({"a": torch.ones(2)}, path)
        assert path.stat().st_mode & 0o777 == 0o600

    with umask(mask):
        replace_file(tmp_path / "file", write)
        replace_folder(tmp_path / "folder", lambda folder: write(folder / "file"))
        with new_files(tmp_path) as new:
            write(new / "one of several")
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(["file", "one of several"], 0o666 & ~mask)


def write_two(folder):
    with new_files(folder) as new:
        (new / "a").write_text("new")
        full_disk(new / "b")


def test_of_several_files_none_is_replaced_where_one_cannot_be_written(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "left").write_text("by a killed process")
    with pytest.raises(OSError, match="No space left"):
        write_two(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}
    with new_files(tmp_path) as new:
        (new / "a").write_text("new")
        (new / "b").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


@pytest.mark.parametrize("moment", range(3))
def test_a_folder_that_is_being_replaced_is_the_old_or_the_new_one(tmp_path, monkeypatch, moment):
    """A kill before the first rename, between the two, and after them; then the next start."""
    folder, really, count = tmp_path / "last", os.replace, iter(range(9))
    replace_folder(folder, lambda new: (new / "a").write_text("old"))
    tidies, idle = files.recover_folder, iter([False, True])  # before the work; a kill tidies up nothing
    monkeypatch.setattr(files, "recover_folder", lambda folder: None if next(idle) else tidies(folder))
    monkeypatch.setattr(files.os, "replace", lambda *two: killed() if next(count) == moment else really(*two))
    if moment == 2:
        monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: killed() if path.exists() else None)
    try:
        replace_folder(folder, lambda new: (new / "a").write_text("new"))
    except KeyboardInterrupt:
        monkeypatch.undo()
        recover_folder(folder)
    assert (folder / "a").read_text() == ("new" if moment == 2 else "old")
    assert os.listdir(tmp_path) == ["last"]


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    replace_folder(tmp_path / "last", lambda new: (new / "a").write_text("old"))
    with pytest.raises(OSError, match="No space left"):
        replace_folder(tmp_path / "last", lambda new: full_disk(new / "a"))
    assert (tmp_path / "last" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["last"]


def test_half_of_a_removed_folder_never_has_its_name(tmp_path, monkeypatch):
    """evaluate and a resumed run would take it for a model."""
    folder, really = tmp_path / "best_model", shutil.rmtree
    folder.mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: killed() if path.exists() else None)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    monkeypatch.setattr(files.shutil, "rmtree", really)
    assert not folder.exists()
    recover_folder(folder)
    assert os.listdir(tmp_path) == []


def test_a_lock_file_goes_and_the_lock_still_excludes(tmp_path):
    """One process waits for the lock of another, which takes the file away: two must not hold it afterwards."""
    first, waiting, third = (FileLock(tmp_path / "lock", thread_local=False) for _ in range(3))
    first.acquire()
    waits = threading.Thread(target=waiting.acquire)
    waits.start()
    remove_lock(first)
    waits.join(20)
    assert waiting.is_locked
    with pytest.raises(Timeout):
        third.acquire(timeout=0.2)
    remove_lock(waiting)
    assert os.listdir(tmp_path) == []
