"""Images in `.npz` files where a pruning, a study or an experiment takes images."""

import json

import numpy as np
import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_card, save_model
from classify.classifier_model import ClassifierModel
from classify.image_data import NpzData
from classify.synthetic import SHAPES
from command.config import read_config, shipped_configs
from command.options import setting
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import StageStore

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path):
    """Twelve images of six classes to train on, six to validate on."""
    for name, num in (("train", 12), ("val", 6)):
        images = np.random.default_rng(num).integers(0, 256, (num, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(num) % 6, classes=np.array(SHAPES))
    return NpzData(type="npz", train=tmp_path / "train.npz", val=tmp_path / "val.npz")


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    arch = Architecture("resnet20_cifar", 6)
    card = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
    save_model(tmp_path / "net.safetensors", build_classifier(arch), card)
    return tmp_path / "net.safetensors"


def given(data, key="data"):
    return setting(key, {"_delete_": True, **json.loads(data.model_dump_json())})


def test_a_criterion_measures_on_the_training_images(data, model, invoke, tmp_path):
    out = tmp_path / "slim.safetensors"
    result = invoke("prune", "taylor", model, "--set", given(data), "--set", "calibration.num_batches=2", "--out", out)
    assert read_card(out).provenance["data"] == [data.fingerprint("train")]
    assert f"--set '{given(data)}'" in result.stderr


def test_a_study_evaluates_the_validation_images(data, model, invoke, tmp_path):
    options = ("num_images=4", "prune_ratios=(0.5,)", "skip=('layer2.*', 'layer3.*')", "round_to=1")
    settings = (word for text in (given(data), *options) for word in ("--set", text))
    np.savez(data.val, images=np.zeros((6, 32, 32, 3), np.uint8), labels=np.full(6, guess(model)), classes=SHAPES)
    figures = json.loads(invoke("prune", "sensitivity", "sensitivity_shapes", model, *settings, "--json").stdout)
    assert (figures["num_images"], figures["score"]) == (4, 1.0)
    assert [curve["group"] for curve in figures["curves"]] == [f"layer1.{i}.conv1" for i in range(3)]
    study = json.loads((tmp_path / "net.sensitivity/study.json").read_text())
    assert study["made_from"]["data"] == [data.fingerprint("val")]


def guess(model):
    """Return what an untrained network answers for black images."""
    net = ClassifierModel(load_classifier(model)[0]).eval()
    batch = net.data_preprocessor({"inputs": torch.zeros(1, 3, 32, 32)})
    with torch.no_grad():
        return int(net.net(batch["inputs"]).argmax())


def hashes(data, tmp_path):
    config = read_config(shipped_configs()["quickstart"], [given(data, "classification.data")], ExperimentConfig)
    return {stage.hash: stage.name for stage in make_plan(config, StageStore(tmp_path / "run")).stages}


def test_an_experiment_repeats_what_a_changed_file_changes(data, tmp_path):
    before = hashes(data, tmp_path)
    assert not {"train_shapes", "val_shapes"} & {*before.values()}
    images = np.zeros((6, 32, 32, 3), np.uint8)
    np.savez(data.val, images=images, labels=np.arange(6), classes=np.array(SHAPES))
    after = hashes(data, tmp_path)
    assert {name for stage, name in after.items() if stage not in before} == {"evaluate_classifier"}
    assert after != before
