"""Training on a GPU, through the commands."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import load_classifier
from classify.curve import curve_file, read_curve
from experiment.cli import app
from prune import prune_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="training on a GPU needs an NVIDIA GPU")

CLASSIFIER = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=256, num_val=64)
image_size = 64
schedule = dict(epochs=3, batch_size=32, lr=0.02, optimizer="SGD", warmup_iters=4)
"""
OPTIONS = ("amp='fp16'", "amp='bf16'", "compile='inductor'", "channels_last=True", "accumulate=2", "ema=0.5")


def espalier(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def losses(model):
    return [epoch.losses["loss"] for epoch in read_curve(curve_file(model)).epochs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the config, the generated images and the networks that tests train."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "shapes.py").write_text(CLASSIFIER)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """A network trained without any option."""
    espalier("classify", "train", folder / "shapes.py", "--out", folder / "plain.safetensors")
    return folder / "plain.safetensors"


def on_the_cpu(folder, out):
    """Train the same in another process, which sees no GPU."""
    command = [sys.executable, "-m", "espalier", "classify", "train", folder / "shapes.py", "--out", out]
    subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True, capture_output=True)


def test_a_gpu_follows_the_curve_of_the_cpu(plain, folder):
    on_the_cpu(folder, folder / "cpu.safetensors")
    assert losses(plain) == pytest.approx(losses(folder / "cpu.safetensors"), rel=0.1)
    assert losses(plain)[0] == pytest.approx(losses(folder / "cpu.safetensors")[0], rel=0.02)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_trains_to_finite_weights(plain, folder, option):
    out = folder / f"{OPTIONS.index(option)}.safetensors"
    espalier("classify", "train", folder / "shapes.py", "--out", out, "--set", f"schedule.{option}")
    assert losses(out)[0] == pytest.approx(losses(plain)[0], rel=0.1)
    net, _ = load_classifier(out)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


@pytest.mark.parametrize("option", ["sync_bn=False", "sync_bn=True"])
def test_a_process_of_torchrun_trains_through_nccl(plain, folder, option):
    out = folder / f"{option}.safetensors"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "espalier"]
    command = ["classify", "train", folder / "shapes.py", "--out", out, "--launcher", "pytorch"]
    done = subprocess.run(
        [sys.executable, *launcher, *command, "--set", f"schedule.{option}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(losses(plain), rel=0.1)


@pytest.mark.parametrize("amp", ["None", "'fp16'"])
def test_a_detector_learns_on_a_gpu_and_is_scored_there(folder, amp):
    out = folder / f"detector-{amp.strip(chr(39))}.safetensors"
    options = ("--set", f"schedule.amp={amp}", "--set", "schedule.epochs=2", "--set", "data.num_train=32")
    start = ("--set", f"start.file={str(_classifier(folder))!r}")
    trained = espalier("detect", "train", "faster_rcnn_scenes", "--out", out, *options, *start, "--json")
    assert 0 <= json.loads(trained.stdout)["map"] <= 1
    first, last = losses(out)
    assert 0 < last < first


def _classifier(folder: Path) -> Path:
    """Return a network of the shape that the config of detectors starts from."""
    out = folder / "for-detectors.safetensors"
    if not out.exists():
        espalier("classify", "train", "resnet18_shapes", "--out", out, "--set", "schedule.epochs=1")
    return out


def test_pruning_on_a_gpu_cuts_what_it_cuts_on_the_cpu():
    torch.manual_seed(0)
    net = build_classifier(Architecture("resnet18", 10, 16)).eval()
    on_gpu, image = copy.deepcopy(net).cuda(), torch.rand(2, 3, 64, 64)
    before, random_state = copy.deepcopy(on_gpu.state_dict()), torch.cuda.get_rng_state()
    cpu, gpu = prune_model(net, (image,), 0.5), prune_model(on_gpu, (image.cuda(),), 0.5)
    assert gpu.spec == cpu.spec
    assert next(gpu.model.parameters()).is_cuda
    with torch.no_grad():
        torch.testing.assert_close(gpu.model(image.cuda()).cpu(), cpu.model(image), rtol=1e-3, atol=1e-3)
    for name, tensor in on_gpu.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.cuda.get_rng_state(), random_state)


def test_dropout_on_a_gpu_is_no_reason_to_refuse_a_network():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 3)).cuda()
    assert prune_model(net, (torch.rand(2, 3, 16, 16).cuda(),), 0.5).model[0].out_channels == 4
