import os
import sqlite3
import time
from contextlib import closing

import pytest

from command.contents import contents


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/espalier/contents.sqlite"


@pytest.fixture
def file(tmp_path):
    """A file that was last changed a while ago."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    time.sleep(2.1)
    return path


class Counted:
    """Counts the files that it examines."""

    def __init__(self):
        self.num = 0

    def __call__(self, data):
        self.num += 1
        return None, data.decode()


def test_a_file_is_examined_once_until_it_changes(cache, file):
    examine = Counted()
    assert [contents([file], examine, "counted")[0].about for _ in range(3)] == ["old"] * 3
    assert examine.num == 1
    status = file.stat()
    file.write_text("new")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents([file], examine, "counted")[0].about == "new"
    assert cache.is_file()


def test_a_file_changed_just_now_is_not_remembered(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    examine = Counted()
    assert [contents([tmp_path / "a.txt"], examine, "counted") for _ in range(2)]
    assert examine.num == 2


def test_a_damaged_cache_is_made_anew(cache, file):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"not a database" * 999)
    contents([file], Counted(), "counted")
    assert sqlite3.connect(cache).execute("SELECT about FROM files").fetchall() == [("old",)]


def test_a_changed_row_is_not_believed(cache, file):
    before = contents([file], Counted(), "counted")
    for column, value in (("sha256", "0"), ("about", None), ("about", b"old"), ("about", "new"), ("seal", 5)):
        with closing(sqlite3.connect(cache)) as memory, memory:
            memory.execute(f"UPDATE files SET {column} = ?", (value,))
        assert contents([file], Counted(), "counted") == before


def test_a_cache_with_a_damaged_table_is_made_anew(cache, file):
    contents([file], Counted(), "counted")
    cache.write_bytes(cache.read_bytes().replace(b"TABLE files", b"T\x80BLE files"))  # quoted by SQLite
    assert contents([file], Counted(), "counted")[0].about == "old"


def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path, monkeypatch, file):
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert contents([file], Counted(), "counted")[0].about == "old"


def test_faults_are_counted_and_the_first_is_named(cache, tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    with pytest.raises(ValueError, match=r"b: odd \(1 more files cannot be used\)"):
        contents(paths, lambda data: (None if data == b"a" else "odd", ""), "odd")


def test_missing_files_and_folders_are_refused(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="x: no such file; expected"):
        contents([tmp_path / "x"], Counted(), "counted")
    with pytest.raises(ValueError, match="not a regular file, got drwx"):
        contents([tmp_path], Counted(), "counted")
