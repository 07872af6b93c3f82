"""Exporting a detector whose scores are nearly equal, as with random weights: latency does not depend on weights."""

import json

import pytest
import torch
from torch import nn

from classify.backbones import Architecture
from classify.synthetic import SHAPES
from deploy import writing
from detect import DetectorSettings, new_detector, save_detector
from detect import export as export_module
from detect.export import export_file
from detect.export_config import ExportConfig
from detect.networks import NetworkOutputs

pytestmark = pytest.mark.slow

SETTINGS = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("untrained") / "net.safetensors"
    detector, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=0)
    for name in ("rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls"):
        nn.init.normal_(detector.get_submodule(name).weight, std=1e-6)
    save_detector(path, detector, card)
    return path


@pytest.fixture
def all_must_agree(monkeypatch):
    """Demand more than 100 %, so that the result does not depend on the processor's rounding."""
    monkeypatch.setattr(writing, "_LEAST_AGREED", {"fp32": 1.1, "fp16": 1.1})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_networks_are_compared_where_scores_are_nearly_equal(untrained, all_must_agree, tmp_path, precision):
    exported = export_file(untrained, ExportConfig(precision=precision), tmp_path / "d")
    recorded = json.loads((tmp_path / "d/deploy.json").read_text())["parity"]
    assert recorded.keys() == {"num_agreed", "num_detections", "networks"}
    assert recorded["networks"].keys() == {"rpn_scores", "rpn_deltas", "head_scores", "head_deltas"}
    assert max(recorded["networks"].values()) <= (1e-4 if precision == "fp32" else 0.01)
    assert exported.compared.startswith("the networks' outputs before NMS differ from PyTorch's by ")
    assert "nearly equal, as in an untrained detector" in exported.notes[0]
    assert {path.name for path in (tmp_path / "d").iterdir()} == {"model.onnx", "deploy.json"}


def test_a_frame_that_is_scaled_inside_is_compared_too(untrained, all_must_agree, tmp_path):
    assert export_file(untrained, ExportConfig(input_hw=(50, 70)), tmp_path / "d").parity["networks"]


def test_networks_that_differ_are_refused(untrained, all_must_agree, tmp_path, monkeypatch):
    class Wrong(NetworkOutputs):
        """The exported networks return other scores than the reference, which is built second."""

        num_made = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            Wrong.num_made += 1
            self.added = 1.0 if Wrong.num_made == 1 else 0.0

        def forward(self, image, image_hw):
            scores, *others = super().forward(image, image_hw)
            return scores + self.added, *others

    monkeypatch.setattr(export_module, "NetworkOutputs", Wrong)
    with pytest.raises(RuntimeError, match=r"output 'rpn_scores' of ONNX Runtime differs from the module's, got 1"):
        export_file(untrained, ExportConfig(), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_trained_detector_must_agree_on_its_detections(model, all_must_agree, tmp_path):
    with pytest.raises(
        RuntimeError, match=r"differs from PyTorch, got \d+ of \d+ detections that agree; expected 110%"
    ):
        export_file(model, ExportConfig(), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_the_heads_outputs_depend_on_no_proposal(untrained):
    from detect.export import module_from_file

    graph, inputs = module_from_file(untrained)
    outputs = NetworkOutputs(graph)
    before = outputs(*inputs)
    graph.proposals.iou_threshold = 0.1  # other proposals survive
    for found, expected in zip(outputs(*inputs), before, strict=True):
        assert torch.equal(found, expected)
