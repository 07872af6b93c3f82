"""Every config in configs/prune cuts a stand-in of the model that it is for, which then trains for a step."""

from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing
from classify.image_data import FolderData
from classify.synthetic import SHAPES, write_shapes
from command.config import read_config
from detect import DetectorSettings, new_detector
from experiment.config import ExperimentConfig
from experiment.cuts import PruneConfig
from experiment.cutting import cut_by_config
from prune.choose.presets import PRESETS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
CONFIGS = sorted(
    path for path in ROOT.glob("configs/prune/*.py") if path.stem.split("_")[0] not in ("lottery", "sensitivity")
)
EXPERIMENTS = sorted(ROOT.glob("configs/experiment/*.py"))
SIDE, NUM_IMAGES = 64, 96
FEW = {"calibration.num_batches": 8, "calibration.batch_size": 12}
NARROW = {"preset": None, "prune_ratio": 0.5}
"""In place of a preset whose layers need more images to be fitted again than a test has."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "images"
    write_shapes(folder, NUM_IMAGES, 6, SIDE, seed=0)
    return folder


def on_a_few_images(path, images):
    """Return the config with data of its own kind, and what is cut by a limit in proportion to the stand-in."""
    config = read_config(path, (), PruneConfig)
    given = dict(FEW) if config.needs_data else {}
    if config.data:
        given |= {"data.root": images} if isinstance(config.data, FolderData) else {"data.num_train": NUM_IMAGES}
    if config.max_macs:
        given["max_macs"] = 2_200_000  # the stand-in has 2.6 million, and 8 channels stay of each layer
    if config.preset and config.needs_data:
        assert config.recipe.widths == PRESETS[config.preset].kept
        given |= NARROW
    return read_config(path, [f"{key}={value}" for key, value in given.items()], PruneConfig)


def model_for(config):
    """Return a model and its card: a detector, the preset's network, or a narrow ResNet-18."""
    if "roi_head" in config.parts:
        settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
        return new_detector(Architecture("resnet18", 1, 16), SHAPES, settings, seed=0)
    arch = Architecture("resnet18", len(SHAPES), 8)
    if config.preset:
        arch = Architecture(PRESETS[config.preset].backbone, len(SHAPES))
    return build_classifier(arch).eval(), ModelCard("classifier", arch, SHAPES, Preprocessing((SIDE, SIDE)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_pruning_cuts_a_model_that_trains(path, images):
    config = on_a_few_images(path, images)
    model, card = model_for(config)
    (slim, slim_card, pruned), _ = cut_by_config(model, card, config, path)
    assert slim_card.is_slim
    assert sum(decision.num_kept < decision.num_channels for decision in pruned.decisions) > 0
    if card.kind == "classifier":
        slim.train()(torch.randn(2, 3, SIDE, SIDE)).square().sum().backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in slim.parameters())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid_and_its_backbone_trains(path):
    config = read_config(path, (), ExperimentConfig)
    net = build_classifier(Architecture(config.backbone.name, 2, config.backbone.base_channels)).train()
    side = config.classification.image_size
    net(torch.randn(2, 3, side, side)).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())
