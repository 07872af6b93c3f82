import json
import shutil

import onnx
import pytest
import torch

from classify.checkpoint import read_card
from deploy import OnnxRunner, engine_from_onnx
from deploy.agreement import agreement
from detect import load_detector
from detect.fixed_shape import FixedShapeDetector

pytestmark = pytest.mark.slow

NAMES = [
    "dense",
    "dense_longer",
    "prune_transfer-finetune",
    "transfer_prune-finetune",
    "scratch_transfer-scratch_e",
    "scratch_transfer-scratch_b",
]
SLIM = NAMES[2:]


def row(results, name):
    return next(row for row in results["rows"] if row["name"] == name)


def test_a_run_has_one_row_per_ordering_and_budget_dense_first(finished):
    assert [row["name"] for row in finished[1]["rows"]] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_figures_and_files(finished, name):
    folder, results = finished
    figures = row(results, name)
    assert 0 <= figures["map"] <= figures["map50"] <= 1
    assert figures["macs"] > 0
    assert figures["latency_ms"] > 0
    assert (folder / figures["model"]).is_file()
    assert (folder / figures["onnx"]).is_file()


@pytest.mark.parametrize("name", SLIM)
def test_slim_rows_have_half_the_channels_hence_fewer_macs_and_params(finished, name):
    _, results = finished
    dense, slim = row(results, "dense"), row(results, name)
    assert slim["macs"] < dense["macs"]
    assert slim["params"] < dense["params"]
    assert slim["mac_reduction"] == pytest.approx(dense["macs"] / slim["macs"])
    assert slim["speedup_low"] <= slim["speedup"] <= slim["speedup_high"]


@pytest.mark.parametrize("name", SLIM)
def test_the_slim_backbone_keeps_eight_of_sixteen_channels_in_the_stem(finished, name):
    folder, results = finished
    widths = read_card(folder / row(results, name)["model"]).backbone.widths
    assert tuple(widths["conv1"]) == (3, 8)


def test_the_longer_control_is_dense_after_one_longer_training(finished):
    folder, results = finished
    dense, longer = row(results, "dense"), row(results, "dense_longer")
    assert longer["train_epochs"] == dense["train_epochs"] | {"train_detector": 2 + 1}
    assert [longer[key] for key in ("method", "budget", "macs", "params", "top1")] == [
        dense[key] for key in ("method", "budget", "macs", "params", "top1")
    ]
    assert (dense["speedup"], dense["speedup_low"], longer["mac_reduction"]) == (1, None, 1)
    assert longer["speedup_low"] <= longer["speedup"] <= longer["speedup_high"]
    assert (folder / longer["model"]).read_bytes() != (folder / dense["model"]).read_bytes()


def test_training_macs_are_those_of_the_trainings_of_a_row_s_weights(finished):
    folder, results = finished
    classifier = {  # name of a stage -> MACs of its network, by the hash that is in the model's path
        stage["name"]: stage["figures"]["macs"]
        for stage in map(json.loads, (file.read_text() for file in folder.glob("stages/*_classifier-*/stage.json")))
        if "macs" in stage["figures"]
    }
    images, scenes = 60, 16
    dense, slim = row(results, "dense"), row(results, "prune_transfer-finetune")
    of_classifier, of_slim = classifier["train_classifier"], classifier["finetune_classifier"]
    assert dense["train_macs"] == 3 * (of_classifier * images * 2 + dense["macs"] * scenes * 2)
    before = of_classifier * images * 2 + of_slim * images * 1
    assert slim["train_macs"] == 3 * (before + slim["macs"] * scenes * 2)
    scratch = row(results, "scratch_transfer-scratch_e")  # not the dense training, which told its widths alone
    assert scratch["train_macs"] == 3 * (of_slim * images * 2 + slim["macs"] * scenes * 2)
    late = row(results, "transfer_prune-finetune")
    assert late["train_macs"] == dense["train_macs"] + 3 * late["macs"] * scenes * 1


def test_scratch_b_trains_longer_than_scratch_e(finished):
    _, results = finished
    epochs = [row(results, f"scratch_transfer-{budget}")["train_epochs"] for budget in ("scratch_e", "scratch_b")]
    assert epochs[0]["scratch_classifier"] == 2
    assert epochs[1]["scratch_classifier"] == 4  # twice, the cap: half the channels are a quarter of the MACs


def test_rows_and_models_have_the_length_and_rate_of_their_trainings(finished):
    folder, results = finished
    scratch = row(results, "scratch_transfer-scratch_b")
    assert scratch["train_lr"] == {"train_classifier": 4e-3, "scratch_classifier": 4e-3, "train_detector": 2e-3}
    assert row(results, "prune_transfer-finetune")["train_lr"]["finetune_classifier"] == 2e-3
    schedule = read_card(folder / scratch["model"]).provenance["schedule"]
    assert (schedule["epochs"], schedule["lr"]) == (2, 2e-3)
    files = (folder / "stages").glob("scratch_classifier-*/model.safetensors")
    assert sorted(read_card(file).provenance["schedule"]["epochs"] for file in files) == [2, 4]


def test_scratch_starts_from_other_weights_than_pruning(finished):
    folder, results = finished
    weights = [
        load_detector(folder / row(results, name)["model"])[0].state_dict()["backbone.net.conv1.weight"]
        for name in ("prune_transfer-finetune", "scratch_transfer-scratch_e")
    ]
    assert weights[0].shape == weights[1].shape
    assert not torch.allclose(*weights, atol=1e-3)


@pytest.mark.parametrize("name", ["dense", *SLIM[:2]])
def test_the_exported_graph_equals_the_detector(finished, name):
    folder, results = finished
    figures = row(results, name)
    detector, card = load_detector(folder / figures["model"])
    module = FixedShapeDetector(detector, card.preprocessing.image_hw)
    torch.manual_seed(0)
    inputs = dict(zip(module.input_names, module.example_inputs(1), strict=True))
    found = OnnxRunner(folder / figures["onnx"]).run({key: value.numpy() for key, value in inputs.items()})
    expected = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    num_agreed, num_detections = agreement({key: value.numpy() for key, value in expected.items()}, found)
    assert num_agreed >= 0.9 * num_detections > 0  # of two near-equal boxes either may be kept; the export allows 0.95


def test_the_exported_graph_has_standard_operators_only(finished):
    folder, results = finished
    model = onnx.load(folder / row(results, "dense")["onnx"])
    operators = {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero", "Loop", "If"}


@pytest.mark.parametrize("name", ["dense", "transfer_prune-finetune"])
def test_a_tensorrt_rtx_engine_builds_without_a_gpu(finished, name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    folder, results = finished
    info = engine_from_onnx(folder / row(results, name)["onnx"], tmp_path / "e.engine", compute_capabilities=("8.6",))
    assert (tmp_path / "e.engine").stat().st_size > 100_000
    assert set(info.outputs) == {"boxes_xyxy", "scores", "labels"}


def test_a_slim_detector_opens_with_mmdets_own_init_detector(finished):
    from mmdet.apis import inference_detector, init_detector

    folder, results = finished
    path = folder / row(results, "transfer_prune-finetune")["model"]
    detector = init_detector(str(path.with_suffix(".py")), str(path), device="cpu")
    found = inference_detector(detector, str(folder / results["pictures"][0]["file"])).pred_instances
    assert found.bboxes.shape[1] == 4
    assert tuple(detector.dataset_meta["classes"]) == tuple(results["dataset"]["classes"])


def test_results_have_the_channels_and_weights_of_every_row(finished):
    folder, results = finished[0], json.loads((finished[0] / "results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    assert list(results["widths"]) == names
    assert {*results["weights"]} <= {*names}
    dense, *others = (results["widths"][name] for name in names)
    assert all(other.keys() == dense.keys() for other in others)
    assert all(0 < num <= dense[layer] for other in others for layer, num in other.items())
    assert any(other != dense for other in others)
    assert all((folder / "stages" / stage).is_dir() for row in results["rows"] for stage in row["stages"])
    assert (folder / results["latency"]["record"]).is_file()


def test_results_are_also_a_table_and_a_page(finished):
    folder, _ = finished
    assert (folder / "results.csv").read_text().count("\n") == len(NAMES) + 1
    page = (folder / "report.html").read_text()
    assert "not a GPU" in page
    assert all(name in page for name in ("prune_transfer", "transfer_prune", "scratch_transfer"))


def test_what_is_not_pruned_is_listed_with_its_reason(finished):
    assert any("fc, its channels are an output of the model" in note for note in finished[1]["notes"])


def test_a_second_run_does_no_stage_again(finished, forked, tiny_arguments, tmp_path):
    folder, results = shutil.copytree(finished[0], tmp_path / "run"), finished[1]
    again = forked(*tiny_arguments(folder))
    assert again.returncode == 0
    assert "[1/" not in again.stderr
    assert json.loads(again.stdout) == results["rows"]
