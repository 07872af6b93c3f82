import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from command.files import written_atomically
from command.folders import filled_folder


def test_a_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with written_atomically(path) as beside:
        beside.write_text("done")
        assert not path.exists()
    assert path.read_text() == "done"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fail():
        with written_atomically(path) as beside:
            beside.write_text("ne")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail()
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("b.txt", "old")]


def fill(folder, names, error=None):
    with filled_folder(folder) as work:
        for name in names:
            (work / name).write_text("new")
        if error:
            raise error


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path):
    (tmp_path / "out/b").mkdir(parents=True)
    (tmp_path / "out/a").write_text("old")
    with pytest.raises(KeyError, match="stopped"):
        fill(tmp_path / "out", "a", KeyError("stopped"))
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["a", "b"]
    with filled_folder(tmp_path / "out") as work:
        (work / "a").mkdir()  # a folder in a file's place
        (work / "b").write_text("new")  # and a file in a folder's
    assert (tmp_path / "out/a").is_dir()
    assert (tmp_path / "out/b").read_text() == "new"
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_failed_move_restores_what_was_replaced(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    for name in "ab":
        (tmp_path / "out" / name).write_text("old")
    really, num_moved = Path.replace, 0

    def replace(path, target):
        nonlocal num_moved
        if path.parent.name == "new":
            num_moved += 1
            if num_moved == 2:
                raise OSError(28, "No space left on device")
        return really(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "out", "ab")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"a": "old", "b": "old"}


def test_a_folder_behind_a_link_is_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with filled_folder(tmp_path / "link") as work:
        (work / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/a").read_text() == "new"


def test_what_a_killed_process_left_beside_a_file_is_deleted(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = tmp_path / f".a.txt.{platform.node()}-{ended.pid}.tmp"
    others = [tmp_path / f".a.txt.{platform.node()}-{os.getpid()}.tmp", tmp_path / ".a.txt.elsewhere-1.tmp"]
    for path in (left, *others):
        path.touch()
    with written_atomically(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    assert not left.exists()
    assert others[1].exists()


def test_a_file_has_ordinary_permissions_however_it_was_made(tmp_path):
    (tmp_path / "ordinary").touch()
    with written_atomically(tmp_path / "a") as beside:
        beside.unlink()
        os.close(os.open(beside, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_content_is_on_the_disk_before_a_file_gets_its_name(tmp_path, monkeypatch):
    calls, really, sync = [], Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (calls.append("rename"), really(path, to))[1])
    with written_atomically(tmp_path / "a") as beside:
        beside.write_text("new")
    assert calls == ["fsync", "rename", "fsync"]
