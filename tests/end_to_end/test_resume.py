import json

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def dense_figures(folder):
    row = json.loads((folder / "results.json").read_text())["rows"][0]
    return {key: row[key] for key in ("name", "map", "map50", "map_framework", "top1", "macs", "params")}


def test_a_run_killed_while_training_resumes_to_the_same_result(finished, tiny_run, tmp_path):
    killed, (whole, _) = tmp_path / "killed", finished
    only_dense = "orderings=()"
    first = tiny_run(killed, only_dense, kill_when=(killed, "stages/train_detector-*.partial/checkpoints/epoch_1.pth"))
    assert first.returncode == -9
    assert not (killed / "results.json").exists()
    done = tiny_run(killed, only_dense)
    assert done.returncode == 0, done.stderr
    assert dense_figures(killed) == dense_figures(whole)
    (model,) = killed.glob("stages/train_detector-*/model.safetensors")
    expected = load_file(whole / model.relative_to(killed))
    assert all(tensor.equal(expected[name]) for name, tensor in load_file(model).items())


def test_no_partial_folder_is_left(finished):
    folder, _ = finished
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("checkpoints"))
