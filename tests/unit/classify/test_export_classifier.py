import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from classify.checkpoint import load_classifier
from classify.data import MEAN, STD
from deploy import OnnxRunner, random_inputs, writing
from deploy.ranges import check_range


def sets(*overrides):
    return [part for text in overrides for part in ("--set", text)]


@pytest.fixture
def exported(invoke):
    """Return the description of what `deploy export` writes, and its lines."""

    def run(model, out, *arguments):
        result = invoke("deploy", "export", model, "--out", out, *arguments)
        return json.loads((out / "deploy.json").read_text()), result.stderr

    return run


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.01)])
def test_a_classifier_is_exported_in_a_precision(exported, classifier, tmp_path, precision, tolerance):
    description, err = exported(classifier, tmp_path / "d", *sets(f"precision={precision}", "batch=2", "image=uint8"))
    assert description["precision"] == precision
    runner = OnnxRunner(tmp_path / "d/model.onnx")
    inputs = random_inputs(runner.inputs)
    assert (inputs["image"].shape, inputs["image"].dtype) == ((2, 3, 32, 32), np.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = load_classifier(classifier)[0]((torch.from_numpy(inputs["image"]) - mean) / std).detach()
    np.testing.assert_allclose(runner.run(inputs)["scores"], expected, atol=tolerance * float(expected.abs().max()))
    assert "scores differ from PyTorch's by " in err
    assert "at most on 2 random images\n" in err


def test_an_export_that_is_made_again_has_the_same_bytes(exported, classifier, tmp_path):
    first = exported(classifier, tmp_path / "d")[0]["parity"]
    torch.rand(3)  # whatever was drawn before
    assert exported(classifier, tmp_path / "again")[0]["parity"] == first


def test_no_weight_of_a_half_classifier_stays_fp32(exported, classifier, tmp_path):
    exported(classifier, tmp_path / "d", *sets("precision=fp16"))
    graph = onnx.load(tmp_path / "d/model.onnx").graph
    read = {name for node in graph.node if node.op_type in ("Conv", "Gemm") for name in node.input}
    types = {tensor.data_type for tensor in graph.initializer if tensor.name in read}
    assert types == {TensorProto.FLOAT16}


def test_a_classifier_is_exported_in_bf16(exported, classifier, tmp_path):
    description, _ = exported(classifier, tmp_path / "d", *sets("precision=bf16"))
    assert (description["precision"], description["parity"]) == ("bf16", None)
    onnx.checker.check_model(str(tmp_path / "d/model.onnx"), full_check=True)


def test_a_file_that_differs_from_pytorch_leaves_what_was_there(classifier, tmp_path, command, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/model.onnx").write_text("as before")
    monkeypatch.setattr(writing, "_TOLERANCES", {"fp32": 0.0})
    code, out, err = command("deploy", "export", classifier, "--out", tmp_path / "d", "--force")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "output 'scores' of ONNX Runtime differs from the module's" in err
    assert {path.name for path in tmp_path.iterdir()} == {"d", classifier.name}
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["model.onnx"]
    assert (tmp_path / "d/model.onnx").read_text() == "as before"


def test_a_sum_beyond_fp16_is_found_even_before_a_relu():
    """-60000 - 60000 is no number in fp16, and 0 behind the ReLU."""

    class Residual(nn.Module):
        dtype = torch.float16

        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True)
            self.conv.weight.data.fill_(1.0)

        def forward(self, image):
            return self.relu(self.conv(image) + image)

    check_range("net", Residual().half(), [{"image": torch.full((1, 1, 2, 2), -30000.0)}])
    with pytest.raises(ValueError, match=r"^net: layer relu exceeds the range of fp16, got 1\.2e\+05; expected"):
        check_range("net", Residual().half(), [{"image": torch.full((1, 1, 2, 2), -60000.0)}])
