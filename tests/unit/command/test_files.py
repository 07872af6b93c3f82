from pathlib import Path

import pytest

from command.files import filled_folder, written_atomically


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
