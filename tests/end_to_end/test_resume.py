import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def dense_figures(folder):
    row = json.loads((folder / "results.json").read_text())["rows"][0]
    return {key: row[key] for key in ("name", "map", "map50", "map_framework", "top1", "macs", "params")}


def test_a_run_killed_while_training_resumes_to_the_same_result(finished, tiny_run, tmp_path):
    killed, (whole, _) = tmp_path / "killed", finished
    only_dense = ("orderings=()", "controls=()")
    first = tiny_run(killed, *only_dense, kill_when=(killed, "stages/train_detector-*.partial/checkpoints/epoch_1.pth"))
    assert first.returncode == -9
    assert not (killed / "results.json").exists()
    done = tiny_run(killed, *only_dense)
    assert done.returncode == 0, done.stderr
    assert dense_figures(killed) == dense_figures(whole)
    (model,) = killed.glob("stages/train_detector-*/model.safetensors")
    expected = load_file(whole / model.relative_to(killed))
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(model).items())
    curve = model.with_name("curve.json")
    assert curve.read_bytes() == (whole / curve.relative_to(killed)).read_bytes()


def test_no_partial_folder_is_left(finished):
    folder, _ = finished
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("checkpoints"))


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished[0], tmp_path / "run")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def edit(path):
    path.write_text(path.read_text().replace('"map"', '"map50"', 1))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_detector-*/model.safetensors", truncate),
        ("export-*/model.onnx", Path.unlink),
        ("evaluate_detector-*/stage.json", edit),
    ],
)
def test_a_damaged_stage_is_named_and_nothing_is_done(copied, command, tiny_arguments, file, damage):
    path = next(copied.glob(f"stages/{file}"))
    damage(path)
    before = times(copied / "stages")
    code, _, err = command(*tiny_arguments(copied))
    assert code == 2, err
    assert f"{path}: " in err.splitlines()[-1]
    assert f"delete {path.parent} and give the same command again" in err.splitlines()[-1]
    assert times(copied / "stages") == before
    shutil.rmtree(path.parent)
    code, _, err = command(*tiny_arguments(copied))
    assert code == 0, err


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"command": 3}', b"\xff"])
def test_damaged_results_of_a_finished_run_are_written_anew(copied, command, tiny_arguments, finished, content):
    (copied / "results.json").write_bytes(content)
    code, _, err = command(*tiny_arguments(copied), "--quick")
    assert code == 0, err
    again = json.loads((copied / "results.json").read_text())
    assert {**again, "command": ""} == {**finished[1], "command": ""}
