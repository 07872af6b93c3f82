"""Detectors without some residual blocks: cut as in an experiment, saved, opened in both ways, cut again, exported."""

import copy

import pytest
import torch
from mmdet.apis import init_detector

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing
from classify.mmengine_runner import silent
from classify.pruning import example_of, with_card
from classify.synthetic import SHAPES
from detect import load_detector, save_detector
from detect.evaluate import evaluate_detector
from detect.export import export_file
from detect.export_config import ExportConfig
from detect.imported import detector_around
from detect.pruning import in_detector, prune_detector
from detect.traced import TracedDetector, example_images
from detect.train import train_detector
from prune import PruneSpec, Recipe, masked_model, slim_model
from prune.learn.structure_selection import StructureSelection


def without_blocks(detector, card, ratio=0.5):
    """Return the detector with factors where those of the removed blocks are zero, the slim one and its card."""
    dense, traced = copy.deepcopy(detector), TracedDetector(detector)
    recipe = in_detector(Recipe(ratio), ("backbone",), traced)
    method = StructureSelection(traced, example_images(), prune_ratio=ratio, skip=tuple(recipe.skip))
    for i, factor in enumerate(method.factors.values()):
        factor.data.fill_(0.5 + 0.1 * i)
    slim, slim_card, pruned = prune_detector(detector, card, ratio, pruner=lambda *_, **__: method.slim(traced))
    for layer, factor in method.selected().items():
        method.factors[layer].data.copy_(factor)
    return dense, detector, slim, slim_card, pruned


@pytest.fixture
def blockless(trained):
    return without_blocks(*trained)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_file_opens_in_both_ways_as_the_masked_detector(tiny, images, tmp_path, name):
    _, masked, slim, card, pruned = without_blocks(*tiny(name=name))
    assert len(pruned.spec.removed_blocks) == {"resnet18": 4, "resnet50": 8}[name]
    assert all(block.startswith("backbone.net.layer") for block in pruned.spec.removed_blocks)
    path = tmp_path / "slim.safetensors"
    save_detector(path, slim, card)
    loaded, again = load_detector(path)
    assert (again.backbone, again.prune_spec) == (card.backbone, card.prune_spec)
    with silent():
        by_mmdet = init_detector(str(path.with_suffix(".py")), str(path), device="cpu")
    expected = masked.eval().extract_feat(images)
    for detector in (loaded, by_mmdet):
        torch.testing.assert_close(detector.eval().extract_feat(images), expected, rtol=1e-4, atol=1e-5)


def test_the_card_counts_from_the_dense_backbone(blockless):
    dense, _, slim, card, pruned = blockless
    assert list(card.backbone.removed_blocks) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert card.prune_spec.removed_blocks == card.backbone.removed_blocks
    assert [decision.group for decision in pruned.untouched] == [
        f"backbone.net.layer{stage}.{block}" for stage in (3, 4) for block in (0, 1)
    ]
    names = slim_model(dense.backbone.net, card.prune_spec).state_dict().keys()
    assert names == slim.backbone.net.state_dict().keys()
    assert card.is_slim


def test_a_detector_without_blocks_is_finetuned_and_evaluated(blockless, scenes, schedule, tmp_path):
    _, _, detector, card, _ = blockless
    before = detector.backbone.net.layer1[1].state_dict(), detector.backbone.net.layer4[0].conv1.weight.clone()
    train_detector(detector, card, scenes, schedule, tmp_path / "train", seed=0)
    assert not before[0]  # an identity is left of it
    assert not torch.equal(detector.backbone.net.layer4[0].conv1.weight, before[1])
    metrics = evaluate_detector(detector, card, scenes, tmp_path / "evaluation")
    assert 0 <= metrics["map"] <= metrics["map50"] <= 1


@pytest.mark.slow  # an export
def test_channels_of_every_part_are_cut_after_the_blocks(blockless, images, tmp_path):
    _, _, slim, card, _ = blockless
    slimmer, slimmer_card, pruned = prune_detector(slim, card, 0.5, parts=("backbone", "neck"))
    found, expected = (net.eval().extract_feat(images) for net in (slimmer, masked_model(slim, pruned.spec)))
    kept = pruned.spec.layers["neck.fpn_convs.0.conv"].kept_out
    torch.testing.assert_close(found[0], expected[0][:, list(kept)], rtol=1e-4, atol=1e-5)
    assert slimmer_card.backbone.removed_blocks == card.backbone.removed_blocks
    assert slimmer_card.backbone.widths["layer4.0.conv1"] == (16, 32)  # of 32 and 64
    save_detector(tmp_path / "d.safetensors", slimmer, slimmer_card)
    loaded, _ = load_detector(tmp_path / "d.safetensors")
    torch.testing.assert_close(loaded.extract_feat(images), found)
    exported = export_file(tmp_path / "d.safetensors", ExportConfig(), tmp_path / "d")
    assert (tmp_path / "d/model.onnx").is_file()
    assert exported.parity


def test_a_detector_is_put_around_a_classifier_without_blocks():
    arch = Architecture("resnet18", len(SHAPES), 8)
    torch.manual_seed(0)
    net, card = build_classifier(arch).eval(), ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
    slim, card, _ = with_card(card, StructureSelection(net, example_of(card), prune_ratio=0.5).slim(net))
    detector, made = detector_around(slim, card, ("a", "b"), (64, 64))
    assert (made.backbone.num_classes, made.backbone.removed_blocks) == (2, card.backbone.removed_blocks)
    assert made.prune_spec == PruneSpec({}, card.backbone.removed_blocks)
    images = torch.rand(1, 3, 64, 64)
    layer1 = slim.layer1(slim.maxpool(slim.relu(slim.bn1(slim.conv1(images)))))
    torch.testing.assert_close(detector.backbone(images)[0], layer1)
