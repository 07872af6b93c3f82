import json

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from command.files import sha256_of
from deploy import onnx_from_module
from detect.synthetic import write_scenes


@pytest.fixture
def renamed():
    """Give a deployed folder other classes, in its `deploy.json` and, unless told otherwise, in its ONNX file."""

    def rename(folder, classes, *, in_file=True):
        description, model = json.loads((folder / "deploy.json").read_text()), onnx.load(folder / "model.onnx")
        helper.set_model_props(model, {"espalier_classes": json.dumps(classes)} if in_file else {})
        onnx.save(model, folder / "model.onnx")
        changed = {**description, "classes": classes, "sha256": {"model.onnx": sha256_of(folder / "model.onnx")}}
        (folder / "deploy.json").write_text(json.dumps(changed))

    return rename


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Seven generated scenes of 96 x 128 with their annotations."""
    return write_scenes(tmp_path_factory.mktemp("val"), 7, (96, 128), seed=0)


class TwoOutputs(nn.Module):
    def __init__(self, num_channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, num_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(num_channels)
        self.fc = nn.Linear(num_channels, 5)

    def forward(self, image, scale):
        features = torch.relu(self.bn(self.conv(image))).mean((2, 3)) * scale
        scores, labels = self.fc(features).topk(2)
        return scores, labels


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TwoOutputs()


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(2, 3, 8, 8, generator=generator), "scale": torch.full((2, 1), 3.0)}


@pytest.fixture
def conv_net():
    """Two convolutions, from an image of any size to 8 channels."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory):
    """A dense and a slim conv net with one input `image` of 1 x 3 x 16 x 16."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    for name, width in [("dense", 32), ("slim", 4)]:
        module = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 3))
        onnx_from_module(module, {"image": torch.randn(1, 3, 16, 16)}, folder / f"{name}.onnx", ["scores"])
    return folder / "dense.onnx", folder / "slim.onnx"


@pytest.fixture
def one_node_file(tmp_path):
    """Write an ONNX file of one node from float `x` to `y`."""

    def write(op_type, *, shape=(4,), num_inputs=1, domain=""):
        node = helper.make_node(op_type, ["x"] * num_inputs, ["y"], name="the_node", domain=domain)
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
        path = tmp_path / "one_node.onnx"
        onnx.save(
            helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets, ir_version=10), path
        )
        return path

    return write
