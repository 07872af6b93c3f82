"""Two processes whose BatchNorm sees images of its own, killed and resumed."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import safe_open

CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="npz", train="train.npz", val="val.npz")
image_size = 32
schedule = dict(epochs=4, batch_size=8, lr=0.05, optimizer="SGD", warmup_iters=2{more})
validate_every = 1
"""
WRITTEN = ("net.safetensors", "net-best.safetensors", "net.curve.json")

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    """Start a training of images as different as noise can be, by two processes."""
    numbers = np.random.default_rng(0)
    for name, num in (("train", 24), ("val", 41)):
        brightness = numbers.integers(1, 256, (num, 1, 1, 1))
        images = (numbers.integers(0, 256, (num, 32, 32, 3)) % brightness).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(num) % 3)

    def run(name, more):
        (tmp_path / "net.py").write_text(CONFIG.format(more=more))
        command = ["espalier", "classify", "train", "net.py", "--out", f"{name}/net.safetensors"]
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        # not by torchrun, whose processes outlive it when it is killed
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        return [
            subprocess.Popen(
                [sys.executable, "-m", *command, "--launcher", "pytorch"],
                cwd=tmp_path,
                env={**os.environ, **address, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in ("0", "1")
        ]

    return run


def finished(both):
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said


@pytest.mark.parametrize("more", ["", ", ema=0.75"], ids=["plain", "averaged"])
def test_two_processes_save_the_statistics_that_they_evaluate(start, more, command, tmp_path, monkeypatch):
    finished(start("whole", more))
    killed = start("killed", more)
    while not (tmp_path / "killed/net.training/epoch_1.pth.sha256").is_file():
        time.sleep(0.005)
        assert [process.poll() for process in killed] == [None, None]
    for process in killed:
        process.kill()
    for process in killed:
        process.communicate()
    finished(start("killed", more))
    for name in WRITTEN:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    monkeypatch.chdir(tmp_path)
    _, printed, _ = command("classify", "eval", "whole/net-best.safetensors", "val.npz", "--json")
    with safe_open("whole/net-best.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["espalier"])["provenance"]["metrics"]
    found = json.loads(printed)
    assert {name: 100 * kept[name] for name in ("top1", "top5")} == {
        name: pytest.approx(found[name]) for name in ("top1", "top5")
    }
