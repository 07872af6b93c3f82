import json
import re
import shutil
from pathlib import Path

import mmdet
import numpy as np
import onnx
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from onnx import TensorProto, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from classify.checkpoint import Preprocessing, load_classifier, save_model
from classify.synthetic import SHAPES
from deploy import Detector, ModuleRunner, OnnxRunner, engine_from_onnx, onnx_from_module, writing
from deploy.precision import KEEP_FLOAT
from deploy.writing import Comparison
from detect import DetectorSettings, load_detector, save_detector
from detect.annotations import read_annotations
from detect.data import CocoSet
from detect.fixed_shape import FixedShapeDetector
from detect.foreign import load_foreign
from detect.reference import reference_of
from detect.synthetic import write_scenes
from experiment.cli import app

pytestmark = pytest.mark.slow

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


def shapes_of(description):
    return {name: spec["shape"] for name, spec in description["inputs"].items()}


def evaluated(folder, coco, *arguments):
    result = invoke("deploy", "eval", folder, coco.annotations, coco.images, "--json", *arguments)
    assert result.exit_code == 0
    return json.loads(result.stdout), result.stderr


def calibration(coco, num_images):
    names = {"annotations": coco.annotations, "images": coco.images, "num_images": num_images}
    return sets("precision=int8", *(f"pictures.{name}={value}" for name, value in names.items()))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), 7, SIZE_HW, seed=0)


@pytest.fixture(scope="module")
def model(model, tmp_path_factory):
    """A copy of the detector's file; the exports of this module are written beside it."""
    return Path(shutil.copy(model, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """The folder, description and printed lines of an export with default settings."""
    folder = tmp_path_factory.mktemp("plain") / "d"
    return folder, *exported(model, folder)


def operators(folder):
    return {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}


def test_by_default_the_file_is_fp32_and_for_every_engine(plain):
    folder, description, err = plain
    assert description["precision"] == "fp32"
    assert shapes_of(description) == {"image": [1, 3, 96, 128], "image_hw": [1, 2]}
    assert description["compared_on"] == "4 random images"
    assert description["config"] == {
        "batch": 1,
        "precision": "fp32",
        "image": "float32",
        "runtime": "any",
        "size_hw": None,
        "input_hw": None,
        "nms_iterations": None,
        "debug": False,
        "pictures": None,
        "int8": {"method": "minmax", "keep_float": list(KEEP_FLOAT)},
    }
    assert "NonMaxSuppression" not in operators(folder)
    agreed, found = description["parity"]["num_agreed"], description["parity"]["num_detections"]
    assert agreed == found > 0
    compared = f"fp32; {agreed} of {found} detections agree with PyTorch's in 4 random images"
    onnx_file = folder / "model.onnx"
    assert err == f"wrote {onnx_file}, {compared}\nnext: espalier deploy bench {onnx_file}\n"


def test_an_fp16_file_of_bytes_scores_nearly_as_its_model(model, scenes, tmp_path):
    overrides = sets("image=uint8", "batch=2")
    description, _ = exported(model, tmp_path / "d", "--config", CONFIGS / "fp16.py", *overrides)
    assert (description["precision"], description["config"]["precision"]) == ("fp16", "fp16")
    assert shapes_of(description)["image"] == [2, 3, 96, 128]
    assert OnnxRunner(tmp_path / "d/model.onnx").inputs["image"].dtype == "uint8"
    readers = [node for node in onnx.load(tmp_path / "d/model.onnx").graph.node if "image" in node.input]
    assert [node.op_type for node in readers] == ["Cast"]  # the only thing that TensorRT does with bytes
    assert description["parity"]["num_agreed"] > 0
    figures, err = evaluated(tmp_path / "d", scenes, "--model", model)
    assert "note: onnxruntime has fp16 weights but computes in fp32 on a CPU; a GPU rounds more" in err
    assert figures["precision"] == "fp16"
    assert figures["framework_map"] > 0.02
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=0.01)


@pytest.fixture(scope="module")
def in_bf16(model, scenes, tmp_path_factory):
    """The folder, description and printed lines of an export in bf16, with pictures of which one has 101 more boxes."""
    folder = tmp_path_factory.mktemp("bf16") / "d"
    data = json.loads(scenes.annotations.read_text())
    row = data["annotations"][0]
    data["annotations"] += [{**row, "id": 10_000 + i} for i in range(101)]
    many = folder.with_name("many.json")
    many.write_text(json.dumps(data))
    pictures = (f"pictures.annotations={many}", f"pictures.images={scenes.images}")
    return folder, *exported(model, folder, *sets("precision=bf16", *pictures))


def test_bf16_is_not_compared_but_builds(in_bf16, tmp_path):
    folder, description, err = in_bf16
    file = folder / "model.onnx"
    assert (description["precision"], description["parity"]) == ("bf16", None)
    assert "bf16; not compared with PyTorch: ONNX Runtime has no bf16 convolution on a CPU\n" in err
    assert err.endswith(f"next: espalier deploy build {file}\n")
    onnx.checker.check_model(str(file), full_check=True)
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: nothing to build engines with")
    assert engine_from_onnx(file, tmp_path / "d.engine").precision == "bf16"


def test_pictures_with_more_objects_than_are_kept_are_told(in_bf16, scenes):
    first = json.loads(scenes.annotations.read_text())["annotations"][0]["image_id"]
    assert f"note: 1 images have more than 100 objects, first image {first} with" in in_bf16[2]


@pytest.mark.parametrize(
    ("runtime", "zero_points", "num_images", "compared_on"),
    [
        ("any", TensorProto.INT8, 4, "3 images of instances.json not used for calibration"),  # of seven
        ("onnxruntime", TensorProto.UINT8, 64, "7 calibration images of instances.json"),
    ],
)
def test_int8_has_the_form_for_its_runtime(model, scenes, tmp_path, runtime, zero_points, num_images, compared_on):
    options = (*calibration(scenes, num_images), *sets(f"runtime={runtime}", "batch=2"))
    description, err = exported(model, tmp_path / "d", *options)
    graph = onnx.load(tmp_path / "d/model.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {types[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"} == {zero_points}
    assert ("NonMaxSuppression" in operators(tmp_path / "d")) == (runtime == "onnxruntime")
    assert description["precision"] == "int8"
    assert description["config"]["pictures"]["num_images"] == num_images
    assert description["compared_on"] == compared_on
    assert f"detections agree with PyTorch's in {compared_on}\n" in err
    figures, _ = evaluated(tmp_path / "d", scenes, "--model", model)
    assert figures["precision"] == "int8"
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=0.05)


def test_bytes_and_floats_give_the_same_outputs(model):
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


def test_a_portrait_shape_finds_what_mmdet_finds(model, scenes, tmp_path):
    exported(model, tmp_path / "d", *sets("size_hw=[128,96]", "debug=True", "nms_iterations=30"))
    runner = OnnxRunner(tmp_path / "d/model.onnx")
    assert list(runner.outputs) == ["boxes_xyxy", "scores", "labels", "nms_converged"]
    assert assert_finds_what_mmdet_finds(runner, model, (128, 96))["nms_converged"].tolist() == [True]
    assert evaluated(tmp_path / "d", scenes)[0]["num_images"] == 7


def doubled(coco, folder):
    """Return the set with every pixel twice in either direction: scaled to half, they are the same pictures."""
    data = read_annotations(coco.annotations)
    folder.mkdir()
    for image in data["images"]:
        pixels = np.asarray(Image.open(coco.images / image["file_name"]))
        Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(folder / image["file_name"])
        image |= {"height": 2 * image["height"], "width": 2 * image["width"]}
    for row in data["annotations"]:
        row |= {"bbox": [2 * value for value in row["bbox"]], "area": 4 * row["area"]}
    (folder / "instances.json").write_text(json.dumps(data))
    return CocoSet(folder / "instances.json", folder)


def test_a_cameras_frames_are_scaled_inside_the_graph(model, plain, scenes, tmp_path):
    frames = doubled(scenes, tmp_path / "frames")
    pictures = sets(f"pictures.annotations={frames.annotations}", f"pictures.images={frames.images}")
    options = (*sets("input_hw=[192,256]"), *pictures)
    description, _ = exported(model, tmp_path / "d", "--config", CONFIGS / "camera.py", *options)
    assert (shapes_of(description)["image"], description["network_hw"]) == ([1, 3, 192, 256], [96, 128])
    assert description["parity"]["num_agreed"] == description["parity"]["num_detections"] > 0
    figures, _ = evaluated(tmp_path / "d", frames, "--model", model)
    assert figures["framework_map"] > 0.02
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=1e-4)
    half, whole = Detector.load(tmp_path / "d"), Detector.load(plain[0])
    pictures = sorted(frames.images.glob("*.png"))
    expected = [thing.box_xyxy for things in whole(pictures, 0.1) for thing in things]
    assert len(expected) > 3
    np.testing.assert_allclose([t.box_xyxy for things in half(pictures, 0.1) for t in things], expected, atol=0.01)
    pytest.importorskip("tensorrt_rtx")
    assert engine_from_onnx(tmp_path / "d/model.onnx", tmp_path / "d/model.engine").inputs["image"].dtype == "uint8"


@pytest.mark.parametrize("size_hw", [(128, 128), (192, 256)], ids=["square", "larger"])
def test_any_shape_finds_what_mmdet_finds_at_it(model, size_hw):
    module = FixedShapeDetector(load_detector(model)[0], size_hw, nms_iterations=30)
    assert_finds_what_mmdet_finds(ModuleRunner(module, module.output_names), model, size_hw)


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
    description, err = exported(checkpoint, folder, "--mmdet", config, *sets("size_hw=[96,128]"))
    assert description["classes"] == list(SHAPES)
    assert (description["model"], description["mmdet"]) == ("net.pth", "stock.py")
    assert shapes_of(description)["image"] == [1, 3, 96, 128]
    assert "note: RoIAlign samples adaptively (sampling_ratio=0), which has no fixed shape; exported with " in err
    figures, err = evaluated(folder, scenes)
    assert figures["framework_map"] is None
    assert "to compare, add --model net.pth --mmdet stock.py\n" in err
    figures, _ = evaluated(folder, scenes, "--mmdet", config)
    assert figures["framework_map"] is not None
    invoke("deploy", "bench", folder / "model.onnx", "--rounds", 1, "--warmup", 0, "--out", tmp_path / "bench.json")
    assert (tmp_path / "bench.json").is_file()


def test_a_foreign_detector_takes_mmdets_usual_shape(foreign):
    assert load_foreign(*foreign)[1].preprocessing == Preprocessing((800, 1344))


def test_a_file_that_finds_something_else_is_refused_but_in_int8(model, plain):
    other = load_detector(model)[0]
    torch.nn.init.normal_(other.roi_head.bbox_head.fc_reg.weight)
    graph = FixedShapeDetector(other, SIZE_HW)
    examples = [dict(zip(graph.input_names, graph.example_inputs(), strict=True))]
    comparison = Comparison(examples, "random images", expected=reference_of(other, SIZE_HW, examples).outputs)
    with pytest.raises(
        RuntimeError, match=r"^model\.onnx: differs from PyTorch, got \d+ of \d+ detections that agree; expected 95%"
    ):
        writing._agreement(comparison, plain[0] / "model.onnx", "fp32")
    assert writing._agreement(comparison, plain[0] / "model.onnx", "int8")["num_detections"] > 0


def test_a_file_that_gives_nan_is_refused_even_without_detections(model, plain, tmp_path):
    graph = onnx.load(plain[0] / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.dims and tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    onnx.save(graph, tmp_path / "model.onnx")
    detector = load_detector(model)[0]
    detector.roi_head.test_cfg.score_thr = 1.0
    examples = [
        dict(
            zip(
                FixedShapeDetector.input_names,
                (torch.zeros(1, 3, *SIZE_HW), torch.tensor([SIZE_HW]).float()),
                strict=True,
            )
        )
    ]
    comparison = Comparison(examples, "a black image", expected=reference_of(detector, SIZE_HW, examples).outputs)
    assert (comparison.expected[0]["labels"] == -1).all()
    with pytest.raises(RuntimeError, match="outputs are not finite, got NaN or infinity"):
        writing._agreement(comparison, tmp_path / "model.onnx", "fp32")


def test_too_few_rounds_for_the_compared_pictures_are_refused(model, scenes, tmp_path, command):
    """Greedy NMS by torchvision is the reference, so too few rounds would find other boxes."""
    few = (*sets(f"pictures.annotations={scenes.annotations}", f"pictures.images={scenes.images}", "nms_iterations=1"),)
    code, out, err = command("deploy", "export", model, "--out", tmp_path / "d", *few)
    assert (code, out, err.count("\n")) == (2, "", 1)
    least = int(re.search(r"nms_iterations: too few for .*, got 1; expected at least (\d+)\n", err)[1])
    assert least > 1
    description, err = exported(model, tmp_path / "d", *few[:-1], f"nms_iterations={least}", "--set", "debug=True")
    assert (description["parity"]["num_agreed"], "warning:" in err) == (description["parity"]["num_detections"], False)
    figures, err = evaluated(tmp_path / "d", scenes, "--model", model)
    assert figures["num_unsettled"] == 0


def test_a_file_with_too_few_rounds_gives_a_warning_when_scored(model, plain, scenes, tmp_path):
    graph = FixedShapeDetector(load_detector(model)[0], SIZE_HW, nms_iterations=1, debug=True)
    shutil.copytree(plain[0], tmp_path / "d")
    examples = dict(zip(graph.input_names, graph.example_inputs(), strict=True))
    onnx_from_module(graph, examples, tmp_path / "d/model.onnx", graph.output_names, tolerance=None)
    described = json.loads((tmp_path / "d/deploy.json").read_text())
    described["outputs"]["nms_converged"] = {"shape": [1], "dtype": "bool"}
    (tmp_path / "d/deploy.json").write_text(json.dumps(described))
    figures, err = evaluated(tmp_path / "d", scenes, "--model", model)
    assert figures["num_unsettled"] > 0
    assert f"warning: NMS did not converge in {figures['num_unsettled']} of 7 images" in err


def test_a_trained_detector_that_finds_nothing_gives_a_note(model, tmp_path):
    detector, card = load_detector(model)
    detector.roi_head.bbox_head.fc_cls.bias.data[-1] = 1e3  # background, whatever is there
    save_detector(tmp_path / "blind.safetensors", detector, card)
    _, err = exported(tmp_path / "blind.safetensors", tmp_path / "d")
    assert (
        "note: no boxes were compared, none were found in 4 random images; to compare on real images, add --set" in err
    )


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_activations_beyond_the_range_of_fp16_are_refused(model, classifier, tmp_path, command, kind):
    """Weights of a thousand fit, their activations do not, and a CPU would not notice."""
    if kind == "detector":
        net, card = load_detector(model)
        net.neck.lateral_convs[0].conv.weight.data.fill_(1e4)  # the sum passes 65504 whatever follows
        save_detector(tmp_path / "big.safetensors", net, card)
        layer = "neck."
    else:
        net, card = load_classifier(classifier)
        list(net.modules())[-1].weight.data.fill_(6e4)
        save_model(tmp_path / "big.safetensors", net, card)
        layer = "net."
    code, out, err = command(
        "deploy", "export", tmp_path / "big.safetensors", "--out", tmp_path / "d", *sets("precision=fp16")
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"in fp16: layer {layer}" in err
    assert "exceeds the range of fp16, got " in err
    assert err.endswith("; expected at most 65504, use bf16 or fp32\n")
    assert not (tmp_path / "d").exists()
