"""Two processes that train together, as torchrun starts them, on the CPU."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from classify.curve import read_curve
from classify.processes import _own_gpu, processes
from command.errors import RequestError

PROGRAM = '''
import sys
from pathlib import Path

import torch
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, save_model
from classify.curve import save_curve
from classify.processes import processes
from classify.schedule import Schedule
from classify.mmengine_runner import using_threads
from classify.train import train_classifier
from classify.validation import Validation


class Stripes(torch.utils.data.Dataset):
    """Random images, flipped at random."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        return image.flip(2) if torch.rand(()) < 0.5 else image, index % 3


def classifier(folder):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    schedule = Schedule(epochs=4, batch_size=8, lr=0.1, optimizer="SGD", warmup_iters=2)
    images = torch.randint(0, 256, (13, 3, 16, 16), generator=torch.Generator().manual_seed(99), dtype=torch.uint8)
    val = [(image, index % 3) for index, image in enumerate(images)]
    validation = Validation(2, val, lambda curve: save(net, folder / "best.safetensors"))
    return net, train_classifier(net, Stripes(), schedule, folder / "work", seed=0, validation=validation)


def save(net, path):
    save_model(path, net, ModelCard("classifier", Architecture("", 3), ("a", "b", "c")))


def detector(folder):
    from classify.synthetic import SHAPES
    from detect import DetectorSettings, new_detector
    from detect.data import CocoSet
    from detect.train import train_detector

    settings = DetectorSettings((128, 128), fpn_channels=16, head_channels=32, num_proposals=50, anchor_scale=4,
                                norm_eval=True, roi_samples=10_000)  # all: none are drawn
    net, _ = new_detector(Architecture("resnet18", 1, 8), SHAPES, settings, 0)
    net.rpn_head.sampler.num = 10**6
    schedule = Schedule(epochs=2, batch_size=4, lr=1e-2, optimizer="SGD")
    coco = CocoSet(folder.parent / "scenes/instances.json", folder.parent / "scenes/images")
    return net, train_detector(net, coco=coco, card=_, schedule=schedule, work_dir=folder / "work", seed=0)


folder, kind, launcher = Path(sys.argv[1]), sys.argv[2], (*sys.argv, None)[3]
with processes(launcher) as group, using_threads(1):
    net, curve = {"classifier": classifier, "detector": detector}[kind](folder)
    if group.is_first:
        save_curve(curve, folder / "curve.json")
        save(net, folder / "net.safetensors")
'''
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

pytestmark = pytest.mark.slow


@pytest.fixture
def train(tmp_path):
    """Start a training in a folder below `tmp_path`, by one process or two."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name, kind, num_processes):
        (tmp_path / name).mkdir(exist_ok=True)
        launcher = [*TORCHRUN] if num_processes == 2 else []
        command = [sys.executable, *launcher, program, tmp_path / name, kind, *(["pytorch"] if launcher else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    return start


def finished(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def losses(folder):
    return [epoch.losses["loss"] for epoch in read_curve(folder / "curve.json").epochs]


def test_two_processes_train_a_classifier_as_one_does(train, tmp_path):
    finished(train("one", "classifier", 1))
    finished(train("two", "classifier", 2))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    figures = [
        [epoch.figures for epoch in read_curve(tmp_path / name / "curve.json").epochs] for name in ("one", "two")
    ]
    assert figures[0] == figures[1]
    assert [bool(epoch) for epoch in figures[0]] == [False, True, False, True]
    one, two = (load_file(tmp_path / name / "net.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_two_processes_train_a_detector_as_one_does(train, tmp_path):
    from detect.synthetic import write_scenes

    write_scenes(tmp_path / "scenes", 8, (96, 120), seed=0)
    finished(train("one", "detector", 1))
    finished(train("two", "detector", 2))
    # mmdet divides some losses by the number of boxes in the images of a process
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-2)


def test_two_killed_processes_resume_to_the_same_bytes(train, tmp_path):
    finished(train("whole", "classifier", 2))
    killed = train("killed", "classifier", 2)
    while not (tmp_path / "killed/work/epoch_1.pth").is_file():
        time.sleep(0.01)
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finished(train("killed", "classifier", 2))
    for name in ("net.safetensors", "best.safetensors", "curve.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture
def two_by_hand(tmp_path, free_port):
    """Start a long training by two processes without torchrun; return them once they train."""
    started = []

    def start(program):
        (tmp_path / "program.py").write_text(program.replace("return 24", "return 24_000"))
        for rank in (0, 1):
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port), "WORLD_SIZE": "2"}
            environment = {**os.environ, **address, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, tmp_path / "program.py", tmp_path, "classifier", "pytorch"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        while not (tmp_path / "work").is_dir():
            time.sleep(0.01)
            assert [one.poll() for one in started] == [None, None]
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_others_stop_when_torchrun_s_process_dies(train, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.replace("return 24", "return 24_000"))
    training = train("dies", "classifier", 2)
    while not (tmp_path / "dies/work").is_dir():
        time.sleep(0.01)
        assert training.poll() is None
    children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said, _ = training.communicate(timeout=60)
    assert training.returncode != 0
    assert "another of its processes ended without a word" in said or "Signal 9" in said


@pytest.mark.parametrize("dies", [0, 1])
def test_the_other_stops_when_a_process_dies(two_by_hand, dies):
    both = two_by_hand(PROGRAM)
    both[dies].kill()
    said, _ = both[1 - dies].communicate(timeout=60)
    assert both[1 - dies].returncode == 1
    assert "another of its processes ended without a word" in said


def test_the_other_stops_when_a_process_is_frozen(two_by_hand):
    sooner = "import classify.liveness\nclassify.liveness._LOST_S = 5.0\nclassify.liveness._GRACE_S = 1.0\n"
    first, second = two_by_hand(sooner + PROGRAM)
    second.send_signal(signal.SIGSTOP)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "espalier: training: process 1 gives no sign of life, got none for 5 s" in said


def test_the_other_says_why_a_process_failed(two_by_hand):
    failing = "image = fails() if os.environ['RANK'] == '1' and index > 20_000 else torch.randint"
    fails = "import os\ndef fails():\n    raise RuntimeError('the disk is full')\n"
    first, second = two_by_hand(fails + PROGRAM.replace("image = torch.randint", failing))
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "training: process 1 ended: the disk is full" in said
    assert second.wait(60) == 1


def test_a_launcher_that_did_not_start_the_process_is_refused(monkeypatch):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RequestError, match=r"--launcher pytorch: not started by it, got no RANK .* torchrun"):
        processes("pytorch").__enter__()
    with pytest.raises(RequestError, match=r"--launcher slurm: not started by it, got no RANK .* srun"):
        processes("slurm").__enter__()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="got a process of torchrun; add --launcher pytorch"):
        processes(None).__enter__()


@pytest.mark.parametrize(
    ("launcher", "local_rank", "num_gpus", "own"),
    [("pytorch", 0, 1, 0), ("pytorch", 3, 4, 3), ("slurm", 3, 1, 0), ("slurm", 3, 4, 3)],
)
def test_each_process_takes_a_gpu_of_its_own(launcher, local_rank, num_gpus, own):
    assert _own_gpu(launcher, local_rank, num_gpus) == own


def test_more_processes_than_gpus_are_refused():
    line = "--launcher pytorch: more processes than GPUs on this machine, got process 2 and 1 visible; start one for"
    with pytest.raises(RequestError, match=line):
        _own_gpu("pytorch", 1, 1)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"])
def test_a_number_of_the_launcher_that_is_none_is_refused(monkeypatch, name):
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for key, value in {**given, name: "a"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(RequestError, match=f"{name}: no whole number, got 'a'"):
        processes("pytorch").__enter__()


@pytest.mark.parametrize(("name", "value"), [("RANK", "5"), ("WORLD_SIZE", "0"), ("MASTER_PORT", "99999")])
def test_numbers_of_a_launcher_that_do_not_fit_are_refused(monkeypatch, name, value):
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for key, number in {**given, name: value}.items():
        monkeypatch.setenv(key, number)
    with pytest.raises(RequestError, match=r"RANK, WORLD_SIZE, MASTER_PORT: do not fit, got"):
        processes("pytorch").__enter__()


def test_the_command_trains_by_two_processes_and_writes_once(tmp_path):
    small = ["data.num_train=24", "data.num_val=6", "schedule.epochs=2", "schedule.batch_size=8"]
    small += ["start.base_channels=8", "image_size=32"]
    sets = [text for setting in small for text in ("--set", setting)]
    train = ["espalier", "classify", "train", "resnet18_shapes", "--launcher", "pytorch", "--out", "net.safetensors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *TORCHRUN, "-m", *train, *sets]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("wrote net.safetensors") == 1
    assert len(read_curve(tmp_path / "net.curve.json").epochs) == 2
    assert not (tmp_path / "net.training").exists()
