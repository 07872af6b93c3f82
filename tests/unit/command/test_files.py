import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from command.files import existing_file, shown, write_json, written_atomically
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


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe", "link to a device"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, kind):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    if "device" in kind:
        path = Path("/dev/null")
    if "link" in kind:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    before = path.lstat().st_mode
    with pytest.raises(ValueError, match=f"^{path}: not a regular file, got [pc]rw.*; expected a file, or a new name$"):
        write_json(path, {})
    assert path.lstat().st_mode == before


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(ValueError, match="link: a link to itself; expected a file, or a new name"):
        write_json(tmp_path / "link", {})


@pytest.mark.parametrize("exists", [True, False])
def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path, exists):
    (tmp_path / "real").mkdir()
    target, link, chained = tmp_path / "real/a", tmp_path / "link", tmp_path / "chained"
    if exists:
        target.write_text("old")
    link.symlink_to("real/a")
    chained.symlink_to(link)
    write_json(chained, [1])
    assert link.is_symlink()
    assert chained.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == link.read_text() == "[\n 1\n]\n"
    assert len(list(tmp_path.iterdir())) == 3
    assert len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize("path", [None, 5, b"a", "a\0b", "a\0/b", "\ud800", "n" * 256, "n" * 256 + "/a"])
def test_what_is_no_path_is_told_in_one_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: write_json(path, {}), lambda: existing_file(path, "expected a file")):
        with pytest.raises(ValueError, match=r"^[ -~]{,400}; expected [ -~]{,60}$"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_file_is_shown_in_one_short_line():
    assert shown("layer1.0.conv1") == "layer1.0.conv1"
    assert shown("a\nb\x1b[31m\u202e\ud800") == r"a\nb\x1b[31m\u202e\ud800"
    assert shown("ä" * 300) == "ä" * 300
    assert shown("n" * 100_000) == "n" * 150 + " ... " + "n" * 150
