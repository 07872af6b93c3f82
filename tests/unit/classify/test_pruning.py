from dataclasses import replace

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.image_data import FolderData
from classify.losses import classifier_losses
from classify.pruning import example_of, prune_classifier, with_card
from classify.synthetic import SHAPES
from prune import masked_model, slim_model
from prune.choose.criteria import make_criterion
from prune.learn.structure_selection import StructureSelection


@pytest.fixture
def dense():
    torch.manual_seed(0)
    arch = Architecture("resnet18", len(SHAPES), 16)
    card = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
    return build_classifier(arch).eval(), card


def test_a_slim_classifier_is_its_masked_dense_one_after_save_and_load(dense, tmp_path):
    slim, card, pruned = prune_classifier(*dense, 0.5)
    save_model(tmp_path / "slim.safetensors", slim, card)
    loaded, _ = load_classifier(tmp_path / "slim.safetensors")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), masked_model(dense[0], pruned.spec)(images), atol=1e-5, rtol=1e-4)


def test_the_card_holds_the_spec(dense):
    _, card, pruned = prune_classifier(*dense, 0.5, skip=("layer1.*",))
    assert card.prune_spec == pruned.spec
    # (inputs, outputs): layer3 has 16 * 4 channels, layer4 16 * 8, and half of each stays
    assert card.backbone.widths["layer4.0.conv1"] == (32, 64)


def test_a_classifier_pruned_twice_is_rebuilt_from_its_card(dense, tmp_path):
    slim, card, _ = prune_classifier(*dense, 0.5)
    slimmer, card, _ = prune_classifier(slim, card, 0.5)
    save_model(tmp_path / "slimmer.safetensors", slimmer, card)
    loaded, card = load_classifier(tmp_path / "slimmer.safetensors")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), slimmer(images), rtol=0, atol=0)
    torch.testing.assert_close(loaded.state_dict(), slim_model(dense[0], card.prune_spec).state_dict(), rtol=0, atol=0)
    assert card.backbone.widths["layer4.0.conv1"] == (16, 32)  # of 64 and 128


@pytest.mark.parametrize("name", ["taylor", "mean_activation", "average_rank"])
def test_a_criterion_measured_on_images_ranks_every_group(dense, shapes, name):
    def spec():
        criterion = make_criterion(
            name, dense[0], classifier_losses(dense[1], FolderData(type="folder", root=shapes), 4, 2)
        )
        return prune_classifier(*dense, 0.5, criterion=criterion)[2].spec

    assert spec() == spec()
    by_l1 = prune_classifier(*dense, 0.5)[2].spec
    assert spec() != by_l1
    assert spec().widths() == by_l1.widths()


def test_a_criterion_that_needs_data_is_refused_by_its_name_alone(dense):
    with pytest.raises(ValueError, match=r"^criterion: taylor measures on data, got none; expected losses"):
        prune_classifier(*dense, 0.5, criterion="taylor")


NETWORKS = {"resnet18": 16, "resnet50": 16, "resnext50_32x4d": 64, "mobilenet_v2": 64, "regnet_x_400mf": 64}
"""Network -> base channels."""


def without_blocks(name, ratio=0.5):
    """Return a network, its masked twin, the slim one and its card; blocks go in order, and groups."""
    arch = Architecture(name, len(SHAPES), NETWORKS[name])
    torch.manual_seed(0)
    net, card = build_classifier(arch).eval(), ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
    method = StructureSelection(net, example_of(card), prune_ratio=ratio)
    for i, factor in enumerate(method.factors.values()):
        factor.data = torch.linspace(0.5, 0.6, len(factor)) + 0.1 * i
    slim, slim_card, learned = with_card(card, method.slim(net))
    for layer, factor in method.selected().items():
        method.factors[layer].data.copy_(factor)
    return net, slim, slim_card, learned


@pytest.mark.slow  # seconds each: whole networks
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_without_blocks_gives_what_the_masked_network_does(name, tmp_path):
    masked, slim, card, learned = without_blocks(name)
    assert learned.spec.removed_blocks
    assert card.is_slim
    save_model(tmp_path / "slim.safetensors", slim, card)
    loaded, again = load_classifier(tmp_path / "slim.safetensors")
    assert again == card
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), masked(images), rtol=1e-4, atol=1e-5)
    loaded.train()(torch.rand(4, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_a_file_of_a_dense_network_says_nothing_of_blocks(dense, tmp_path):
    save_model(tmp_path / "dense.safetensors", *dense)
    assert b"removed_blocks" not in (tmp_path / "dense.safetensors").read_bytes()


def test_channels_and_blocks_are_cut_in_either_order(tmp_path):
    _, slim, card, learned = without_blocks("resnet18", 0.25)
    assert list(learned.spec.removed_blocks) == ["layer1.0", "layer1.1"]
    slimmer, card, _ = prune_classifier(slim, card, 0.5)
    method = StructureSelection(slimmer, example_of(card), prune_ratio=0.5)  # 3 of the 6 that are left
    last, card, _ = with_card(card, method.slim(slimmer))
    assert list(card.backbone.removed_blocks) == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"]
    assert card.backbone.widths["layer4.0.conv1"] == (32, 64)
    assert not [name for name in card.backbone.widths if name.startswith("layer2.0.conv")]
    save_model(tmp_path / "last.safetensors", last, card)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_classifier(tmp_path / "last.safetensors")[0](images), last(images))


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        ({"layer1.9": ("conv1",)}, "layer1.9: the spec is for another model"),
        ({"layer1.0": ("conv1",)}, "layer1.0: cannot be removed"),
        ({"layer1.0": ("conv2", "bn2")}, "layer1.0: the spec is for another model, its branch has conv1, bn1, conv2"),
        ({"layer1.0": ()}, "PruneSpec: layer1.0 loses no branch"),
        ({"conv1": ("weight",)}, "conv1: cannot be removed"),
    ],
)
def test_a_file_with_blocks_that_the_network_lacks_is_refused(dense, tmp_path, blocks, line):
    card = replace(dense[1], backbone=replace(dense[1].backbone, removed_blocks=blocks))
    save_model(tmp_path / "net.safetensors", dense[0], card)
    with pytest.raises(ValueError, match=line):
        load_classifier(tmp_path / "net.safetensors")


@pytest.mark.slow  # a network of 22 blocks
def test_a_slim_regnet_is_rebuilt_from_its_file(tmp_path):
    arch = Architecture("regnet_x_400mf", 3)
    card = ModelCard("classifier", arch, ("a", "b", "c"), Preprocessing((32, 32)))
    slim, card, _ = prune_classifier(build_classifier(arch).eval(), card, 0.5)
    save_model(tmp_path / "slim.safetensors", slim, card)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_classifier(tmp_path / "slim.safetensors")[0](images), slim(images))
