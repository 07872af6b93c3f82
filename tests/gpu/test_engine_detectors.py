"""Whole detectors, built into engines and run, find what their fp32 file finds in ONNX Runtime."""

from functools import cache

import numpy as np
import pytest
import torch
from rich.console import Console

from classify.backbones import Architecture
from classify.schedule import Schedule
from classify.synthetic import SHAPES
from deploy import EngineRunner, OnnxRunner, engine_from_onnx
from deploy.agreement import agreement
from deploy.explain.explained import explain_deployed
from deploy.fitting import stacked
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.evaluate import fitted_images
from detect.export import export_file
from detect.export_config import ExportConfig
from detect.pruning import prune_detector
from detect.synthetic import write_scenes
from detect.train import train_detector

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs an NVIDIA GPU")

SIZE_HW = (96, 128)
SETTINGS = DetectorSettings(
    SIZE_HW, fpn_channels=32, head_channels=64, num_proposals=50, roi_samples=32, anchor_scale=4
)
NUM_PICTURES = 16
LIMITS = {
    "fp32": (1e-3, 0.1, 0.9),
    "fp16": (0.02, 2.0, 0.9),
    "bf16": (0.05, 2.0, 0.8),
    "int8": (0.05, 4.0, 0.7),
}
"""Tolerances of scores and corners (in pixels), and the least share of detections within them."""


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def backend(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def scenes(folder):
    return write_scenes(folder / "scenes", 64, SIZE_HW, seed=0)


@pytest.fixture(scope="module")
def model(scenes, folder):
    """The file of a detector trained on enough scenes to find shapes in others."""
    net, card = new_detector(Architecture("resnet18", 1, 16), SHAPES, SETTINGS, seed=0)
    train_detector(net, card, scenes, Schedule(epochs=30, batch_size=4, lr=2e-3), folder / "work", seed=0)
    save_detector(folder / "dense.safetensors", net, card)
    return folder / "dense.safetensors"


@pytest.fixture(scope="module")
def batches(folder):
    """Return batches of scenes that the detector was not trained on, in the dtype of the graph's input."""
    coco = write_scenes(folder / "others", NUM_PICTURES, SIZE_HW, seed=1)

    def stack(size, dtype="float32"):
        pictures = [inputs for _, inputs, _ in fitted_images(coco, SIZE_HW, dtype)]
        return [stacked(pictures[i : i + size], size) for i in range(0, NUM_PICTURES, size)]

    return stack


@pytest.fixture(scope="module")
def exported(scenes, folder):
    """Return the ONNX file of a model, written once."""
    pictures = {"annotations": scenes.annotations, "images": scenes.images, "num_images": 32}

    @cache
    def export(model, precision="fp32", batch=1, image="float32"):
        out = folder / f"{model.stem}-{precision}-{batch}-{image}"
        export_file(model, ExportConfig(precision=precision, batch=batch, image=image, pictures=pictures), out)
        return out / "model.onnx"

    return export


def built(onnx_file, backend):
    engine = onnx_file.with_name(f"{backend}.engine")
    return engine, engine_from_onnx(onnx_file, engine, backend=backend)


def share_agreed(expected, found, precision):
    """Return the share of detections that agree; there must be more than 20 of good score."""
    assert sum(int((outputs["scores"] > 0.3).sum()) for outputs in expected) > 20
    *tolerances, _ = LIMITS[precision]
    counts = [agreement(outputs, others, *tolerances) for outputs, others in zip(expected, found, strict=True)]
    num_agreed, num_detections = np.sum(counts, axis=0)
    return num_agreed / num_detections


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("precision", LIMITS)
def test_an_engine_finds_what_the_fp32_file_finds(exported, model, batches, backend, precision, batch):
    session = OnnxRunner(exported(model, "fp32", batch))
    path, info = built(exported(model, precision, batch), backend)
    engine = EngineRunner(path)
    expected = [session.run(inputs) for inputs in batches(batch)]
    found = [engine.run(inputs) for inputs in batches(batch)]
    assert (info.precision, info.inputs["image"].shape) == (precision, (batch, 3, *SIZE_HW))
    assert share_agreed(expected, found, precision) >= LIMITS[precision][-1]


def test_results_depend_only_on_the_images(exported, model, batches, backend):
    engine = EngineRunner(built(exported(model), backend)[0])
    first, second, *_ = batches(1)
    found = engine.run(first)
    engine.prepare(second)()
    others, again = engine.run(second), engine.run(first)
    assert not np.array_equal(found["scores"], others["scores"])
    for name, array in found.items():
        np.testing.assert_allclose(again[name], array, atol=1e-3)


def test_bytes_are_taken_for_pixels(exported, model, batches, backend):
    session = OnnxRunner(exported(model))
    engine = EngineRunner(built(exported(model, image="uint8"), backend)[0])
    expected = [session.run(inputs) for inputs in batches(1)]
    found = [engine.run(inputs) for inputs in batches(1, "uint8")]
    assert share_agreed(expected, found, "fp32") >= LIMITS["fp32"][-1]


def test_every_convolution_of_two_engines_gets_a_time(exported, model, folder, backend):
    slim, card, _ = prune_detector(*load_detector(model), 0.5)
    save_detector(folder / "slim.safetensors", slim, card)
    engines = [built(exported(file), backend)[0] for file in (model, folder / "slim.safetensors")]
    explained = explain_deployed(*engines, num_threads=1, rounds=5, console=Console(quiet=True))
    convolutions = [layer for layer in explained.layers if layer.row.type.startswith("conv")]
    # 20 of ResNet-18, 8 of the neck and 3 of the RPN
    assert len(convolutions) == 31
    assert [layer.row.name for layer in convolutions if not (layer.dense.ms > 0 and layer.slim.ms > 0)] == []
    assert explained.is_pruned
