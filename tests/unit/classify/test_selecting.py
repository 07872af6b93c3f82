import pytest
import torch
from torchvision.models import resnet50

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, load_weights, save_model
from classify.pruning import prune_classifier
from prune import refit_model

IMAGES = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ARCH = Architecture("resnet50_select", 4, base_channels=8)
LATER = {"skip": ("layer[234].*",), "select_channels": True}


def test_dense_net_takes_the_weights_of_resnet50_and_computes_the_same():
    torch.manual_seed(0)
    plain, net = resnet50(num_classes=4).eval(), build_classifier(Architecture("resnet50_select", 4)).eval()
    load_weights(net, plain.state_dict(), "resnet50")
    with torch.no_grad():
        assert torch.equal(net(IMAGES[:1]), plain(IMAGES[:1]))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_classifier(ARCH).eval()


def test_each_block_keeps_the_inputs_that_it_weighs_most_and_its_shortcut(net):
    with torch.no_grad():
        for block, small in ((1, 3), (2, 30)):
            net.layer1[block].conv1.weight[:, small] *= 1e-3
    card = ModelCard("classifier", ARCH, ("a", "b", "c", "d"), Preprocessing((64, 64)))
    slim, card, _ = prune_classifier(net, card, 0.0, widths={"layer1.[12].select": 31}, **LATER)
    found = [set(range(32)) - {*slim.layer1[block].select.index.tolist()} for block in (1, 2)]
    assert found == [{3}, {30}]
    assert slim.layer1[0].conv3.out_channels == slim.layer1[1].select.num_in == 32
    assert card.backbone.widths["layer1.1.select"] == (32, 31)


def test_slim_file_remembers_what_each_block_reads(net, tmp_path):
    card = ModelCard("classifier", ARCH, ("a", "b", "c", "d"), Preprocessing((64, 64)))
    slim, card, _ = prune_classifier(net, card, 0.5, **LATER)
    save_model(tmp_path / "slim.safetensors", slim, card)
    again, _ = load_classifier(tmp_path / "slim.safetensors")
    with torch.no_grad():
        assert torch.equal(again(IMAGES[:2]), slim.eval()(IMAGES[:2]))


@pytest.mark.parametrize("method", ["thinet", "lasso"])
def test_what_a_block_reads_is_chosen_on_data_and_refitted(net, method):
    with torch.no_grad():
        net.layer1[1].conv1.weight[:, 5] = 1e3  # of a channel that is always zero behind its ReLU
        net.layer1[0].bn3.weight[5], net.layer1[0].downsample[1].weight[5] = 0, 0
        net.layer1[0].bn3.bias[5], net.layer1[0].downsample[1].bias[5] = -1, -1
    batches = IMAGES[:30].split(10)
    pruned = refit_model(
        net, (IMAGES[:1],), lambda: batches, 0.0, method=method, widths={"layer1.[12].select": 24}, **LATER
    )
    assert 5 not in pruned.model.layer1[1].select.index
    assert {d.group for d in pruned.decisions if d.num_kept < d.num_channels} == {
        "layer1.1.select",
        "layer1.2.select",
    }
