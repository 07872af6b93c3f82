import hashlib
import shutil

import onnx
import pytest
import torch
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, save_model
from classify.synthetic import SHAPES
from classify.train import Schedule
from deploy import EngineInfo
from deploy.graph import input_specs, output_specs
from detect import DetectorSettings, new_detector, save_detector
from detect.synthetic import write_scenes
from detect.train import train_detector
from experiment import Detector
from experiment.cli import app
from experiment.deployed.folder import sha256_of

SETTINGS = DetectorSettings(
    (96, 128), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16, anchor_scale=4
)


@pytest.fixture(scope="session")
def invoke():
    """Run a command in this process; its errors are raised."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Seven images of 96 x 128, which no batch of two divides."""
    scenes = write_scenes(tmp_path_factory.mktemp("scenes"), 7, (96, 128), seed=0)
    return sorted(scenes.images.iterdir())


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The file of a detector that has seen such scenes often enough to find something in them."""
    folder = tmp_path_factory.mktemp("model")
    scenes = write_scenes(folder / "scenes", 8, (96, 128), seed=1)
    net, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=0)
    train_detector(net, card, scenes, Schedule(epochs=15, batch_size=4, lr=1e-3, warmup_iters=5), folder / "work", 0)
    save_detector(folder / "det.safetensors", net, card)
    return folder / "det.safetensors"


@pytest.fixture(scope="session")
def deployed(model, invoke):
    """The folder that `deploy export` writes beside the model, for batches of two."""
    invoke("deploy", "export", model, "--set", "batch=2")
    return model.with_suffix(".deploy")


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    arch = Architecture("resnet18", 3, 8)
    card = ModelCard("classifier", arch.to_dict(), ("a", "b", "c"), {"image_size": 32})
    save_model(tmp_path / "net.safetensors", build_classifier(arch), card)
    return tmp_path / "net.safetensors"


@pytest.fixture
def elsewhere(deployed, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(deployed, tmp_path / "det.deploy")


@pytest.fixture
def with_engine():
    """Put a file that its sidecar calls an engine, built from the ONNX file there, into a folder."""

    def put(folder, name="model.engine", backend="tensorrt", content=b"engine", **other):
        (folder / name).write_bytes(content)
        graph = onnx.load(folder / "model.onnx")
        info = EngineInfo(
            backend=backend,
            backend_version="10.9.0",
            compute_capabilities=(),
            precision="float32",
            onnx_sha256=sha256_of(folder / "model.onnx"),
            engine_sha256=hashlib.sha256(content).hexdigest(),
            inputs=input_specs(graph),
            outputs=output_specs(graph),
        )
        (folder / f"{name}.json").write_text(info.model_copy(update=other).model_dump_json())

    return put


@pytest.fixture(scope="session")
def detector(deployed):
    return Detector.load(deployed)
