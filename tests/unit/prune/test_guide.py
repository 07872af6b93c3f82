"""What one pruned network keeps becomes a recipe for another."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from command.errors import RequestError
from prune import cost_of, prune_model
from prune.explain import explain
from prune.guide import guided_ratios, random_widths, stage_shares


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(torch.relu(self.conv1(x)))


def network(*depths):
    """Blocks of 8 channels on 8 x 8, then of 16 on 4 x 4."""
    first, second = ([Block(width) for _ in range(num)] for width, num in zip((8, 16), depths, strict=True))
    torch.manual_seed(0)
    layers = {"stem": nn.Conv2d(3, 8, 3, padding=1), "one": nn.Sequential(*first)}
    layers |= {"down": nn.Conv2d(8, 16, 3, 2, 1), "two": nn.Sequential(*second)}
    return nn.Sequential(OrderedDict(layers)).eval()


IMAGE = (torch.zeros(1, 3, 8, 8),)


def rows(dense, slim=None):
    return explain(dense, slim or dense, IMAGE, {}).layers


@pytest.fixture(scope="module")
def pruned():
    dense = network(2, 1)
    ratios = {"one.0.conv1": 0.5, "one.1.conv1": 0.25, "two.0.conv1": 0.75}
    return rows(dense, prune_model(dense, IMAGE, 0.0, ratios=ratios).model)


def test_shares_are_averaged_by_stage_and_place_in_the_block(pruned):
    # of conv1 in the first stage 4 and 6 of 8 channels are left; in the second, 4 of 16
    assert stage_shares(pruned) == {
        (0, "stem"): 1.0,
        (0, "*.conv1"): 0.625,
        (0, "*.conv2"): 1.0,
        (1, "down"): 1.0,
        (1, "*.conv1"): 0.25,
        (1, "*.conv2"): 1.0,
    }


def test_shares_are_averaged_over_whole_stages(pruned):
    # the stem, two conv2 and 0.5 and 0.75; down, conv2 and 0.25
    assert stage_shares(pruned, "stage") == {(0, ""): (3 + 1.25) / 5, (1, ""): 2.25 / 3}


def test_a_deeper_network_keeps_the_average_of_each_stage(pruned):
    deeper = network(3, 4)
    ratios = guided_ratios(pruned, rows(deeper))
    assert ratios == {"one.*.conv1": 0.375, "two.*.conv1": 0.75}
    slim = prune_model(deeper, IMAGE, 0.0, ratios=ratios).model
    assert [block.conv1.out_channels for block in slim.one] == [5, 5, 5]
    assert [block.conv1.out_channels for block in slim.two] == [4] * 4
    assert [block.conv2.out_channels for block in slim.two] == [16] * 4


def test_names_without_patterns_stay_where_layers_differ():
    def plain(*widths):
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *widths), widths, strict=False)]
        return nn.Sequential(*layers[:2], nn.MaxPool2d(2), *layers[2:]).eval()

    dense = plain(8, 8, 8, 8)
    slim = prune_model(dense, IMAGE, 0.0, widths={"0": 2, "3": 4}).model
    # layers 0 and 1 of the first stage keep 2 and 8 of 8; of the second 4 and 8
    assert guided_ratios(rows(dense, slim), rows(plain(4, 4, 4))) == {"0": 0.375, "1": 0.375, "3": 0.25}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: rows(network(1, 1)), "guide: nothing was cut in the pruned network; expected a slim one"),
        (
            lambda: rows(network(1, 1))[:1],
            "stages: do not correspond, got 1 sizes of feature maps .* and 2 in the other",
        ),
    ],
)
def test_a_source_that_says_nothing_is_refused(source, message):
    with pytest.raises(RequestError, match=message):
        guided_ratios(source(), rows(network(2, 2)))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_random_network_has_nearly_the_macs_and_another_by_seed(share):
    dense = network(6, 6)
    most = int(share * cost_of(dense, IMAGE).macs)

    def widths(seed):
        slim = prune_model(dense, IMAGE, 0.0, widths=random_widths(dense, IMAGE, most, seed)).model
        macs = cost_of(slim, IMAGE).macs
        # one channel of a conv1 is less than a fiftieth of all
        assert 0.95 * most < macs <= most
        return [block.conv1.out_channels for block in (*slim.one, *slim.two)]

    assert widths(0) == widths(0) != widths(1)
    assert len(set(widths(0))) > 3


def test_a_limit_below_all_random_networks_is_refused():
    with pytest.raises(RequestError, match=r"^max_macs: below what can be reached, got 1; expected at least \d+"):
        random_widths(network(1, 1), IMAGE, 1, 0)
