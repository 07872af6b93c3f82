"""Whole detectors really built into engines, in every precision, at the size of a COCO image: no GPU is needed."""

import pytest
import torch

from classify.backbones import Architecture
from deploy import engine_from_onnx, onnx_from_module, quantized_onnx
from detect import DetectorSettings, new_detector
from detect.fixed_shape import FixedShapeDetector

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SIZE_HW = (800, 1344)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    settings = DetectorSettings(SIZE_HW, fpn_channels=16, head_channels=32)
    return new_detector(Architecture("resnet18", 1, 8), ("cat", "dog"), settings, seed=0)[0].eval()


def exported(detector, path, batch, dtype=torch.float32):
    graph = FixedShapeDetector(detector, SIZE_HW, dtype=dtype)
    inputs = dict(zip(graph.input_names, graph.example_inputs(batch), strict=True))
    onnx_from_module(
        graph, inputs, path, graph.output_names, tolerance=None, opset=22 if dtype == torch.bfloat16 else 18
    )
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.parametrize(
    ("dtype", "precision", "batch"),
    [(torch.float32, "fp32", 1), (torch.float32, "fp32", 8), (torch.float16, "fp16", 8), (torch.bfloat16, "bf16", 8)],
)
def test_detector_builds(detector, tmp_path, dtype, precision, batch):
    exported(detector, tmp_path / "model.onnx", batch, dtype)
    info = engine_from_onnx(tmp_path / "model.onnx", tmp_path / "model.engine")
    assert (info.precision, info.inputs["image"].shape) == (precision, (batch, 3, *SIZE_HW))
    assert info.outputs["boxes_xyxy"].shape == (batch, 100, 4)


def test_quantized_detector_builds(detector, tmp_path):
    inputs = exported(detector, tmp_path / "float.onnx", batch=8)
    quantized_onnx(tmp_path / "float.onnx", tmp_path / "model.onnx", [inputs])
    info = engine_from_onnx(tmp_path / "model.onnx", tmp_path / "model.engine")
    assert (info.precision, info.inputs["image"].shape) == ("int8", (8, 3, *SIZE_HW))
