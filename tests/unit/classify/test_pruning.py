import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.image_data import FolderData
from classify.losses import classifier_losses
from classify.pruning import prune_classifier
from classify.synthetic import SHAPES
from prune import masked_model, slim_model
from prune.choose.criteria import make_criterion


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
