import pytest

from command.files import written_atomically


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
