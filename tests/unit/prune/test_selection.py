"""Several norms that read one sum or concatenation through channel selections, each with channels of its own."""

import copy

import pytest
import torch
from torch import nn

from classify.preactivation import CifarDenseNet, CifarPreResNet
from prune import Recipe, find_groups, load_slim, masked_model, narrowed_model, prune_model, save_slim
from prune.learn.slimming import NetworkSlimming, zero_scales
from prune.learn.soft_filters import SoftFilterPruning, zero_filters
from prune.selection import ChannelSelection

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SCALES = {"criterion": "bn_scale", "ranking": "global", "select_channels": True}
"""Of Network Slimming, on a network that was trained elsewhere."""


class TwoReaders(nn.Module):
    """A sum of four channels, read by two norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        for name in "ab":
            setattr(self, f"select_{name}", ChannelSelection(4))
            setattr(self, f"norm_{name}", nn.BatchNorm2d(4))
            setattr(self, f"conv_{name}", nn.Conv2d(4, 2, 1))

    def forward(self, images):
        stem = self.stem(images)
        return [self.conv_a(self.norm_a(self.select_a(stem))), self.conv_b(self.norm_b(self.select_b(stem)))]


NETS = {"residual": lambda: CifarPreResNet(11, 5), "dense": lambda: CifarDenseNet(10, 5)}


@pytest.fixture(params=NETS)
def net(request, randomize):
    torch.manual_seed(0)
    return randomize(NETS[request.param]())


def groups_of(net, **options):
    return {
        group.name: ({f"{member.layer}.{member.side}" for member in group.members}, group.obstacle)
        for group in find_groups(net, (torch.zeros(1, 3, 4, 4),), **options)
        if not group.name.startswith("conv")  # whose channels are outputs
    }


def difference(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


def repeating_borders(net):
    """A border that repeats the image leaves no place where kernels read zeros."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and any(layer.padding):
            layer.padding_mode = "replicate"
            layer._reversed_padding_repeated_twice = [p for p in layer.padding[::-1] for _ in range(2)]
    return net


def test_channels_of_a_sum_go_for_all_its_readers_unless_they_select():
    of_stem = {"stem.out", "select_a.in", "select_b.in"}
    of_a, of_b = {"select_a.out", "norm_a.out", "conv_a.in"}, {"select_b.out", "norm_b.out", "conv_b.in"}
    obstacle = "read through channel selections, each of which chooses for itself"
    assert groups_of(TwoReaders()) == {"stem": (of_stem | of_a | of_b, None)}
    found = groups_of(TwoReaders(), select_channels=True)
    assert found == {"stem": (of_stem, obstacle), "select_a": (of_a, None), "select_b": (of_b, None)}


def test_each_reader_keeps_the_channels_of_its_largest_scales(randomize):
    net = randomize(TwoReaders())
    net.norm_a.weight.data, net.norm_b.weight.data = torch.tensor([4.0, 1, 3, 2]), torch.tensor([1.0, 3, 2, 4])
    slim = prune_model(net, (IMAGES,), 0.5, **{**SCALES, "ranking": "uniform"}).model
    assert (slim.select_a.index.tolist(), slim.select_b.index.tolist()) == ([0, 2], [1, 3])
    assert (slim.stem.out_channels, slim.norm_a.num_features, slim.conv_b.in_channels) == (4, 2, 2)
    with torch.no_grad():
        net.norm_a.weight[[1, 3]] = net.norm_a.bias[[1, 3]] = net.norm_b.weight[[0, 2]] = net.norm_b.bias[[0, 2]] = 0
        for found, expected in zip(slim(IMAGES), net(IMAGES), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_a_reader_selects_is_numbered_anew_when_the_sum_is_cut(randomize):
    net = randomize(TwoReaders())
    net.select_a.index, net.norm_a, net.conv_a = torch.tensor([1, 3]), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
    net.stem.weight.data = torch.tensor([1.0, 2, 3, 4])[:, None, None, None].expand(4, 3, 1, 1).clone()
    pruned = prune_model(net.eval(), (IMAGES,), 0.5)  # channels 2 and 3 stay
    assert (pruned.model.select_a.index.tolist(), pruned.model.select_b.index.tolist()) == ([1], [0, 1])
    assert pruned.model.select_a.num_in == 2


@pytest.mark.parametrize("options", [{}, SCALES], ids=["all readers", "each reader"])
@torch.no_grad()
def test_networks_that_normalise_first_equal_their_masked_twins(net, options):
    first = prune_model(net, (IMAGES,), 0.4, **options)
    second = prune_model(first.model, (IMAGES,), 0.3, **options)  # selections that are not whole any more
    spec = second.spec.after(first.spec)
    found, expected = second.model(IMAGES), masked_model(net, spec)(IMAGES)
    assert difference(found, expected) < 1e-5
    assert difference(expected, net(IMAGES)) > 1e-3  # else the comparison proves nothing
    again = narrowed_model(net, spec.widths())
    again.load_state_dict(second.model.state_dict())
    assert torch.equal(again(IMAGES), found)


@pytest.mark.parametrize("shift", ["zeroed", "folded"])
@torch.no_grad()
def test_slimming_selects_for_each_norm(net, shift):
    method = NetworkSlimming(net, (IMAGES,), Recipe(prune_ratio=0.5), shift=shift)
    assert method.norms == tuple(name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d))
    learned = method.slim(net)
    chosen = {tuple(layer.index.tolist()) for layer in learned.model.modules() if isinstance(layer, ChannelSelection)}
    assert len(chosen) > 1
    masked = zero_scales(copy.deepcopy(net), learned.spec, shift)
    assert difference(repeating_borders(learned.model)(IMAGES), repeating_borders(masked)(IMAGES)) < 1e-5
    assert difference(masked(IMAGES), repeating_borders(net)(IMAGES)) > 0.01


@torch.no_grad()
def test_constants_of_soft_filters_reach_every_norm_that_reads_them(net):
    learned = SoftFilterPruning(net, (IMAGES,), Recipe(prune_ratio=0.4)).slim(net)
    masked = zero_filters(copy.deepcopy(net), learned.spec)
    assert difference(repeating_borders(learned.model)(IMAGES), repeating_borders(masked)(IMAGES)) < 1e-5
    dropped = masked_model(net, learned.spec)  # what the slim network would be without the constants
    assert difference(repeating_borders(dropped)(IMAGES), masked(IMAGES)) > 0.01


def test_a_slim_file_holds_what_each_reader_selects(tmp_path):
    torch.manual_seed(0)
    pruned = prune_model(NETS["residual"](), (IMAGES,), 0.5, **SCALES)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    again, _ = load_slim(tmp_path / "slim.safetensors", NETS["residual"])
    assert torch.equal(again(IMAGES), pruned.model.eval()(IMAGES))


@pytest.mark.parametrize("index", [[0, 4], [-1, 2], [2, 2], [3, 1], [-(2**63), 2**62]])
def test_an_index_of_no_channels_is_refused(index):
    net = nn.Sequential(ChannelSelection(4))
    net[0].index = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"0\.index: selects no channels, got .* expected ascending ones below 4"):
        net.load_state_dict({"0.index": torch.tensor(index)})


def test_widths_that_select_more_than_is_read_are_refused():
    with pytest.raises(ValueError, match="channel selection: passes on what it does not read"):
        narrowed_model(nn.Sequential(ChannelSelection(4)), {"0": (2, 3)})


def test_a_whole_selection_copies_nothing():
    features = torch.randn(2, 4, 3, 3)
    assert ChannelSelection(4)(features).data_ptr() == features.data_ptr()
