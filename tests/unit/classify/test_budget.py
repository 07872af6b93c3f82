from fractions import Fraction
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.budget import scratch_epochs
from classify.config import ClassifierTraining
from classify.schedule import Schedule
from command.config import read_config
from prune import cost_of, prune_model
from prune.choose.presets import PRESETS

CONFIGS = Path(__file__).parents[3] / "configs/classify"
PAPER = [
    # Scratch-B epochs of the networks in table 1 of Liu et al., ICLR 2019, and the epochs after which the rate falls:
    # their code, imagenet/ and cifar/l1-norm-pruning/main_B.py. The last one: their README, of table 2
    ("resnet34-A", "imagenet_scratch", 106, (35, 70)),  # 106.36
    ("resnet34-B", "imagenet_scratch", 118, (39, 78)),  # 118.51, so it is not rounded to the nearest
    ("resnet56-A", "cifar_scratch", 178, (89, 133)),  # 178.57
    ("resnet56-B", "cifar_scratch", 220, (110, 165)),  # 220.86
    ("resnet110-A", "cifar_scratch", 190, (95, 142)),  # 190.16
    ("resnet110-B", "cifar_scratch", 260, (130, 195)),  # 260.84
    ("vgg16-A", "cifar_scratch", 243, (121, 182)),  # 243.14
    ("resnet50-thinet-70", "imagenet_scratch", 141, (47, 94)),  # 141.47
]


def mac_reduction_of(name):
    """MACs of a preset's dense network / MACs of the slim one."""
    entry = PRESETS[name]
    image = torch.zeros(1, 3, entry.image_side, entry.image_side)
    dense = build_classifier(Architecture(entry.backbone, 1000 if entry.image_side == 224 else 10))
    slim = prune_model(dense, (torch.zeros(1, 3, 32, 32),), 0.0, widths=entry.kept).model
    return Fraction(*(cost_of(net.to("meta"), (image.to("meta"),)).macs for net in (dense, slim)))


@pytest.mark.parametrize(("name", "recipe", "epochs", "decay_epochs"), PAPER)
def test_recipe_trains_the_paper_s_network_for_its_epochs(name, recipe, epochs, decay_epochs):
    config = read_config(CONFIGS / f"{recipe}.py", (), ClassifierTraining)
    start = config.start
    found = scratch_epochs(start.budget, config.schedule.epochs, mac_reduction_of(name), start.scratch_b_cap)
    assert found == epochs
    assert config.schedule.stretched(found).decay_epochs == decay_epochs


def test_network_without_its_sampler_has_other_epochs_than_published():
    # 132 are published; our preset lacks the channel sampler in front of each block, so it saves fewer MACs
    assert scratch_epochs("scratch_b", 90, mac_reduction_of("resnet50-2x")) == 116


@pytest.mark.parametrize(
    ("budget", "dense_epochs", "mac_reduction", "options", "expected"),
    [
        ("scratch_e", 90, 1.3164, {}, 90),
        ("scratch_b", 90, 1.0, {}, 90),
        ("scratch_b", 90, 1.1816, {}, 106),  # 106.344
        ("scratch_b", 90, 2.0, {}, 180),
        ("scratch_b", 90, 3.7, {}, 180),  # capped at twice
        ("scratch_b", 90, 3.7, {"cap": None}, 333),
        ("scratch_b", 90, 3.7, {"cap": 3}, 270),
        ("scratch_b", 160, Fraction(6, 5), {"cap": None}, 192),
        ("scratch_b", 49, Fraction(55, 49), {}, 55),  # as floats 49 x (55 / 49) is below 55
        ("scratch_b", 1, 1.9, {}, 1),
        ("scratch_e", 90, 1.3, {"finetune_epochs": 20}, 110),
        ("scratch_b", 90, 1.3164, {"finetune_epochs": 20}, 138),  # 118 + 20
        ("scratch_b", 90, 3.7, {"finetune_epochs": 20}, 200),  # the cap is of the first summand
    ],
)
def test_epochs_are_those_of_the_budget(budget, dense_epochs, mac_reduction, options, expected):
    assert scratch_epochs(budget, dense_epochs, mac_reduction, **options) == expected


def test_unknown_budget_is_refused():
    with pytest.raises(ValueError, match="budget: unknown, got 'finetune'; expected 'scratch_e' or 'scratch_b'"):
        scratch_epochs("finetune", 90, 1.5)


def test_stretching_moves_decay_down_to_whole_epochs():
    schedule = Schedule(epochs=10, batch_size=1, lr=1.0, milestones=(0.29, 0.5, 1.0))
    assert schedule.stretched(10) is schedule
    assert schedule.stretched(11).decay_epochs == (3, 5, 11)  # 3.19, 5.5
    assert schedule.stretched(100).decay_epochs == (29, 50, 100)  # 0.29 x 100 is 28.999999999999996
    assert schedule.stretched(100).epochs == 100


def test_stretching_keeps_all_other_settings():
    schedule = Schedule(epochs=10, batch_size=4, lr=0.5, optimizer="SGD", warmup_iters=7)
    assert schedule.stretched(15) == Schedule(epochs=15, batch_size=4, lr=0.5, optimizer="SGD", warmup_iters=7)
