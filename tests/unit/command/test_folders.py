from pathlib import Path

import pytest

from command.folders import filled_folder, generated, locked, training_folder


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass  # free again


def test_a_folder_is_filled_by_one_process_at_a_time(tmp_path):
    refused = pytest.raises(ValueError, match="in use by another run")
    with filled_folder(tmp_path / "out"), refused, filled_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_in_a_folder_is_deleted(tmp_path):
    (tmp_path / "out/.partial/new").mkdir(parents=True)
    (tmp_path / "out/.partial/new/model.onnx").touch()
    with filled_folder(tmp_path / "out") as work:
        assert list(work.iterdir()) == []
        (work / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_failure_leaves_no_folders_that_were_not_there(tmp_path):
    with pytest.raises(FileNotFoundError), filled_folder(tmp_path / "a/b") as work:
        (work / "c/d").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_generated_folder_is_made_once_and_holds_nothing_else(tmp_path):
    (tmp_path / "data.partial/old").mkdir(parents=True)
    num_made = []

    def write(folder):
        num_made.append((folder / "new").write_text("1"))

    for _ in range(2):
        folder = generated(tmp_path / "data", write)
    assert num_made == [1]
    assert {path.name for path in folder.iterdir()} == {"new", ".sha256"}


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_a_folder_s_place_is_refused(tmp_path, name):
    (tmp_path / "file").touch()
    for opened in (filled_folder, locked):
        with pytest.raises(ValueError, match="file: is a file; expected a folder"), opened(tmp_path / name):
            pass


class StoppedError(BaseException):
    """A signal's exception."""


def test_an_interrupted_move_restores_what_was_replaced(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    for name in "abc":
        (tmp_path / "out" / name).write_text("old")
    really, num_moved = Path.replace, []

    def replace(path, target):
        num_moved.append(path)
        if len(num_moved) == 4:
            raise StoppedError
        return really(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(StoppedError), filled_folder(tmp_path / "out") as work:
        [(work / name).write_text("new") for name in "abc"]
    monkeypatch.undo()
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == dict.fromkeys("abc", "old")


def test_what_a_killed_process_had_replaced_comes_back(tmp_path):
    (tmp_path / "out/.partial").mkdir(parents=True)
    (tmp_path / "out/.partial/old-a").write_text("old")
    with pytest.raises(FileNotFoundError), filled_folder(tmp_path / "out") as work:
        (work / "b/c").touch()
    assert (tmp_path / "out/a").read_text() == "old"


def test_a_changed_generated_folder_is_not_used(tmp_path):
    generated(tmp_path / "data", lambda folder: (folder / "a").write_text("1"))
    (tmp_path / "data/a").write_text("2")
    with pytest.raises(ValueError, match="data: changed since it was generated; delete it"):
        generated(tmp_path / "data", Path.touch)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]"])
def test_a_damaged_description_counts_as_another_training(tmp_path, content):
    (tmp_path / "net.training").mkdir()
    (tmp_path / "net.training/config.json").write_bytes(content)
    refused = pytest.raises(ValueError, match="left by a training with another config")
    with refused, training_folder(tmp_path / "net.safetensors", {"lr": 1}, False):
        pass
    with training_folder(tmp_path / "net.safetensors", {"lr": 1}, True) as folder:
        assert folder.is_dir()


def test_checkpoints_without_a_description_count_as_another_training(tmp_path):
    (tmp_path / "net.training").mkdir()
    (tmp_path / "net.training/epoch_1.pth").touch()
    refused = pytest.raises(ValueError, match="left by a training with another config")
    with refused, training_folder(tmp_path / "net.safetensors", {"lr": 1}, False):
        pass
