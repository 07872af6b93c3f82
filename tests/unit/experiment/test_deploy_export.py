import json
import sys
from pathlib import Path

import mmdet
import numpy as np
import onnx
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from onnx import TensorProto
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, load_classifier, save_model
from classify.data import MEAN, STD
from classify.synthetic import SHAPES
from classify.train import Schedule
from deploy import ModuleRunner, OnnxRunner, engine_from_onnx, random_inputs
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.fixed_shape import FixedShapeDetector
from detect.foreign import load_foreign
from detect.synthetic import write_scenes
from detect.train import train_detector
from experiment import deployment
from experiment.cli import app, main

CONFIGS = Path(__file__).parents[3] / "configs/deploy"
SIZE_HW = (96, 128)
SETTINGS = DetectorSettings(
    SIZE_HW, fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16, anchor_scale=4
)
FOREIGN = f"""
_base_ = "{Path(mmdet.__file__).parent}/.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes={len(SHAPES)}),
    ),
)
"""


def sets(*overrides):
    return [part for text in overrides for part in ("--set", text)]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def exported(model, out, *arguments):
    """Return the description of what `deploy export` writes, and its lines."""
    result = invoke("deploy", "export", model, "--out", out, *arguments)
    assert result.exit_code == 0
    return json.loads((out / "deploy.json").read_text()), result.stderr


def evaluated(folder, coco, *arguments):
    result = invoke("deploy", "eval", folder, coco.annotations, coco.images, "--json", *arguments)
    assert result.exit_code == 0
    return json.loads(result.stdout), result.stderr


def calibration(coco, num_images):
    names = {"annotations": coco.annotations, "images": coco.images, "num_images": num_images}
    return sets("precision=int8", *(f"calibration.{name}={value}" for name, value in names.items()))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `main` as the shell would; return exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["espalier", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), 7, SIZE_HW, seed=0)


@pytest.fixture(scope="module")
def model(scenes, tmp_path_factory):
    """The file of a detector that has seen these scenes often enough to find something in them."""
    folder = tmp_path_factory.mktemp("model")
    net, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=0)
    train_detector(net, card, scenes, Schedule(epochs=40, batch_size=4, lr=1e-3, warmup_iters=5), folder / "work", 0)
    save_detector(folder / "det.safetensors", net, card)
    return folder / "det.safetensors"


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    arch = Architecture("resnet18", 3, 8)
    card = ModelCard("classifier", arch.to_dict(), ("a", "b", "c"), {"image_size": 32})
    save_model(tmp_path / "net.safetensors", build_classifier(arch), card)
    return tmp_path / "net.safetensors"


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """The folder, the description and the lines of an export without a word about it."""
    folder = tmp_path_factory.mktemp("plain") / "d"
    return folder, *exported(model, folder)


def operators(folder):
    return {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}


def test_without_a_word_the_file_is_float32_and_for_every_engine(plain):
    folder, told, err = plain
    assert told["precision"] == "float32"
    assert told["inputs"] == {"image": [1, 3, 96, 128], "image_hw": [1, 2]}
    assert told["compared_on"] == "4 random images"
    assert told["config"] == {
        "batch": 1,
        "precision": "fp32",
        "image": "float32",
        "runs_on": "any",
        "size_hw": None,
        "nms_rounds": 24,
        "debug": False,
        "calibration": None,
    }
    assert "NonMaxSuppression" not in operators(folder)
    agreed, found = told["parity"]["num_agreed"], told["parity"]["num_detections"]
    assert agreed == found > 0
    compared = f"fp32; {agreed} of {found} detections agree with PyTorch's in 4 random images"
    onnx_file = folder / "model.onnx"
    assert err == f"wrote {onnx_file}, {compared}\nnext: espalier deploy bench {onnx_file}\n"


def test_a_file_of_half_precision_and_bytes_is_worth_nearly_what_its_model_is(model, scenes, tmp_path):
    overrides = sets("image=uint8", "batch=2")
    told, _ = exported(model, tmp_path / "d", "--config", CONFIGS / "fp16.py", *overrides)
    assert (told["precision"], told["config"]["precision"]) == ("float16", "fp16")
    assert told["inputs"]["image"] == [2, 3, 96, 128]
    assert OnnxRunner(tmp_path / "d/model.onnx").inputs["image"].dtype == "uint8"
    readers = [node for node in onnx.load(tmp_path / "d/model.onnx").graph.node if "image" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]  # the only thing that TensorRT does with bytes
    assert told["parity"]["num_agreed"] > 0
    figures, _ = evaluated(tmp_path / "d", scenes, "--model", model)
    assert figures["precision"] == "float16"
    assert figures["framework_map"] > 0.02
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=0.01)


def test_bfloat16_is_not_compared_but_builds(model, tmp_path):
    told, err = exported(model, tmp_path / "d", *sets("precision=bf16", "nms_rounds=2"))
    file = tmp_path / "d/model.onnx"
    assert (told["precision"], told["parity"]) == ("bfloat16", None)
    assert "bf16; not compared with PyTorch: ONNX Runtime has no bfloat16 convolution on a CPU\n" in err
    assert err.endswith(f"next: espalier deploy build {file}\n")
    onnx.checker.check_model(str(file), full_check=True)
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: nothing to build engines with")
    assert engine_from_onnx(file, tmp_path / "d.engine").precision == "bfloat16"


@pytest.mark.parametrize(
    ("runs_on", "zero_points", "num_images", "compared_on"),
    [
        ("any", TensorProto.INT8, 4, "3 pictures, others of instances.json"),  # of seven
        ("onnxruntime", TensorProto.UINT8, 64, "7 pictures, some that it was calibrated on, of instances.json"),
    ],
)
def test_int8_has_the_form_of_what_runs_it(model, scenes, tmp_path, runs_on, zero_points, num_images, compared_on):
    asked = (*calibration(scenes, num_images), *sets(f"runs_on={runs_on}", "batch=2"))
    told, err = exported(model, tmp_path / "d", *asked)
    graph = onnx.load(tmp_path / "d/model.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"} == {zero_points}
    assert ("NonMaxSuppression" in operators(tmp_path / "d")) == (runs_on == "onnxruntime")
    assert told["precision"] == "int8"
    assert told["config"]["calibration"]["num_images"] == num_images
    assert told["compared_on"] == compared_on
    assert f"detections agree with PyTorch's in {compared_on}\n" in err
    figures, _ = evaluated(tmp_path / "d", scenes, "--model", model)
    assert figures["precision"] == "int8"
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=0.05)


def test_bytes_are_what_floats_are(model):
    image = torch.randint(0, 256, (1, 3, *SIZE_HW), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    module, image_hw = FixedShapeDetector(load_detector(model)[0], SIZE_HW), torch.tensor([SIZE_HW]).float()
    for found, expected in zip(module(image, image_hw), module(image.float(), image_hw), strict=True):
        assert torch.equal(found, expected)


def assert_finds_what_mmdet_finds(runner, model, size_hw):
    """Compare with mmdet's own prediction for a picture of that shape; return all that the runner gave."""
    image = torch.rand(3, *size_hw, generator=torch.Generator().manual_seed(2)) * 255
    found = runner.run({"image": image[None].numpy(), "image_hw": np.array([size_hw], np.float32)})
    detector = load_detector(model)[0]
    data = {"inputs": [image.flip(0)], "data_samples": [DetDataSample(metainfo={"img_shape": size_hw})]}
    with torch.no_grad():
        data = detector.data_preprocessor(data)
        expected = detector.predict(data["inputs"], data["data_samples"], rescale=False)[0].pred_instances
    count = len(expected)
    assert count > 0
    assert found["labels"][0].tolist() == [*expected.labels.tolist(), *[-1] * (found["labels"].shape[1] - count)]
    np.testing.assert_allclose(found["boxes_xyxy"][0, :count], expected.bboxes, atol=1e-3)
    np.testing.assert_allclose(found["scores"][0, :count], expected.scores, atol=1e-4)
    return found


def test_a_standing_shape_finds_what_mmdet_finds_at_it_and_debug_says_whether_the_rounds_sufficed(
    model, scenes, tmp_path
):
    exported(model, tmp_path / "d", *sets("size_hw=[128,96]", "debug=True", "nms_rounds=30"))
    runner = OnnxRunner(tmp_path / "d/model.onnx")
    assert list(runner.outputs) == ["boxes_xyxy", "scores", "labels", "nms_converged"]
    assert assert_finds_what_mmdet_finds(runner, model, (128, 96))["nms_converged"].tolist() == [True]
    assert evaluated(tmp_path / "d", scenes)[0]["num_images"] == 7


@pytest.mark.parametrize("size_hw", [(128, 128), (192, 256)], ids=["square", "larger"])
def test_any_shape_finds_what_mmdet_finds_at_it(model, size_hw):
    module = FixedShapeDetector(load_detector(model)[0], size_hw, nms_rounds=30)
    assert_finds_what_mmdet_finds(ModuleRunner(module, module.output_names), model, size_hw)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.01)])
def test_a_classifier_is_exported_in_a_precision(classifier, tmp_path, precision, tolerance):
    told, err = exported(classifier, tmp_path / "d", *sets(f"precision={precision}", "batch=2", "image=uint8"))
    assert told["precision"] == {"fp32": "float32", "fp16": "float16"}[precision]
    runner = OnnxRunner(tmp_path / "d/model.onnx")
    inputs = random_inputs(runner.inputs)
    assert (inputs["image"].shape, inputs["image"].dtype) == ((2, 3, 32, 32), np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = load_classifier(classifier)[0]((torch.from_numpy(inputs["image"]) - mean) / std).detach()
    np.testing.assert_allclose(runner.run(inputs)["scores"], expected, atol=tolerance * float(expected.abs().max()))
    assert "scores differ from PyTorch's by " in err
    assert "at most on 2 random images\n" in err


def test_no_weight_of_a_half_classifier_stays_float32(classifier, tmp_path):
    exported(classifier, tmp_path / "d", *sets("precision=fp16"))
    graph = onnx.load(tmp_path / "d/model.onnx").graph
    read = {name for node in graph.node if node.op_type in ("Conv", "Gemm") for name in node.input}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in read}
    assert types == {TensorProto.FLOAT16}


def test_a_classifier_is_exported_in_bfloat16(classifier, tmp_path):
    told, _ = exported(classifier, tmp_path / "d", *sets("precision=bf16"))
    assert (told["precision"], told["parity"]) == ("bfloat16", None)
    onnx.checker.check_model(str(tmp_path / "d/model.onnx"), full_check=True)


@pytest.fixture
def foreign(tmp_path):
    """A stock config of mmdet, shrunk, and a checkpoint of it with random heads."""
    (tmp_path / "stock.py").write_text(FOREIGN)
    torch.manual_seed(0)
    config = Config.fromfile(tmp_path / "stock.py").model
    config.backbone.init_cfg = None
    net = MODELS.build({**config, "_scope_": "mmdet"})
    torch.nn.init.normal_(net.roi_head.bbox_head.fc_cls.weight, std=0.5)
    meta = {"dataset_meta": {"classes": SHAPES}}
    torch.save({"state_dict": net.state_dict(), "meta": meta}, tmp_path / "net.pth")
    return tmp_path / "stock.py", tmp_path / "net.pth"


def test_a_foreign_detector_is_exported_scored_and_measured(foreign, scenes, tmp_path):
    config, checkpoint = foreign
    folder = tmp_path / "net.deploy"
    told, err = exported(checkpoint, folder, "--mmdet", config, *sets("size_hw=[96,128]", "nms_rounds=2"))
    assert told["classes"] == list(SHAPES)
    assert (told["model"], told["mmdet"]) == ("net.pth", "stock.py")
    assert told["inputs"]["image"] == [1, 3, 96, 128]
    assert "note: RoIAlign samples adaptively (sampling_ratio=0), which has no fixed shape; exported with " in err
    figures, err = evaluated(folder, scenes)
    assert figures["framework_map"] is None
    assert "--model net.pth --mmdet stock.py compares\n" in err
    figures, _ = evaluated(folder, scenes, "--mmdet", config)
    assert figures["framework_map"] is not None
    invoke("deploy", "bench", folder / "model.onnx", "--rounds", 1, "--warmup", 0, "--out", tmp_path / "bench.json")
    assert (tmp_path / "bench.json").is_file()


def test_a_foreign_detector_takes_mmdets_usual_shape(foreign):
    assert load_foreign(*foreign)[1].preprocessing == {"image_size_hw": [800, 1344]}


def test_a_file_that_differs_from_pytorch_leaves_what_was_there(classifier, tmp_path, command, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/model.onnx").write_text("as before")
    monkeypatch.setattr(deployment, "_TOLERANCES", {"fp32": 0.0})
    code, out, err = command("deploy", "export", classifier, "--out", tmp_path / "d", "--force")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "output 'scores' of ONNX Runtime differs from the module's" in err
    assert {path.name for path in tmp_path.iterdir()} == {"d", classifier.name}
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["model.onnx"]
    assert (tmp_path / "d/model.onnx").read_text() == "as before"


def test_a_file_that_finds_something_else_is_refused_but_in_int8(model, plain):
    detector = load_detector(model)[0]
    torch.nn.init.normal_(detector.roi_head.bbox_head.fc_reg.weight)
    other = FixedShapeDetector(detector, SIZE_HW)
    examples = [dict(zip(other.input_names, other.example_inputs(), strict=True))]
    arguments = (other, examples, other.output_names, plain[0] / "model.onnx")
    with pytest.raises(RuntimeError, match=r"^model\.onnx: agrees with PyTorch on \d+ of \d+ detections; expected 95%"):
        deployment._agreement(*arguments, "fp32")
    assert deployment._agreement(*arguments, "int8")["num_detections"] > 0
