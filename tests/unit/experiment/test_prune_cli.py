from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from detect import DetectorSettings, new_detector, save_detector
from experiment.commands import prune_file, prune_table
from experiment.cuts import PruneConfig

CONFIG = Path(__file__).parents[3] / "configs/prune/l1_half.py"
CLASSES = ("cat", "dog")


def save_classifier(path, net):
    save_model(path, net, ModelCard("classifier", Architecture("resnet18", 2, 8), CLASSES, Preprocessing((32, 32))))
    return path


@pytest.fixture
def classifier(tmp_path):
    return save_classifier(tmp_path / "net.safetensors", build_classifier(Architecture("resnet18", 2, 8)))


@pytest.fixture
def detector(tmp_path):
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(tmp_path / "det.safetensors", *new_detector(Architecture("resnet18", 1, 8), CLASSES, settings, 0))
    return tmp_path / "det.safetensors"


@pytest.fixture
def refused(command, tmp_path):
    """Run `prune`, check that it is refused in one line with nothing written; return that line."""

    def run(*arguments):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        code, out, err = command("prune", CONFIG, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
        return err

    return run


def test_the_dense_model_is_not_written_over(refused, classifier):
    assert f"--out {classifier}: is the given model itself" in refused(classifier, "--out", classifier, "--force")


def test_parts_of_a_classifier_are_refused(refused, classifier):
    message = refused(classifier, "--set", "parts=('neck',)")
    assert f"parts: not used with a classifier, got {classifier}; expected none" in message


@pytest.mark.parametrize("own", ["ratios={'neck.*': 0.5}", "widths={'neck.*': 8}"])
def test_layers_of_a_part_that_stays_whole_get_nothing_of_their_own(refused, detector, own):
    message = refused(detector, "--set", own)
    assert "['neck.*']: in a part that is not cut, got neck; add it to parts" in message


def test_weight_that_is_not_finite_is_named(refused, tmp_path):
    net = build_classifier(Architecture("resnet18", 2, 8))
    with torch.no_grad():
        net.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    message = refused(save_classifier(tmp_path / "nan.safetensors", net))
    assert "weight layer2.0.conv1.weight is not finite, got NaN or infinity; expected numbers, train again" in message


def test_table_warns_when_nothing_was_cut(classifier, tmp_path):
    figures = {
        ratio: prune_file(classifier, PruneConfig(prune_ratio=ratio, round_to=1), tmp_path / f"{ratio}.safetensors")
        for ratio in (0.0, 0.5)
    }
    assert "NOTHING WAS CUT" in prune_table(figures[0.0]).caption
    assert "NOTHING WAS CUT" not in prune_table(figures[0.5]).caption
