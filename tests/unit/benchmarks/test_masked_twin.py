import copy

import pytest
import torch
from masked_twin import randomised, verdict
from torch import nn

X = torch.rand(2, 3, 6, 6)


class Net(nn.Module):
    """Layers a (3 -> 4) and c (4 -> 2), with a function or a module between them."""

    def __init__(self, between=None, c=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Conv2d(3, 4, 3), c or nn.Conv2d(4, 2, 1)
        self.between = between or nn.Identity()

    def forward(self, x):
        return self.c(self.between(self.a(x)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def keep(owner, name, dim, kept):
    tensor = getattr(owner, name).data.index_select(dim, torch.tensor(kept))
    setattr(owner, name, nn.Parameter(tensor) if isinstance(getattr(owner, name), nn.Parameter) else tensor)


def cut(net, written=(0, 2), read=(0, 2)):
    """Return the net as given, and a copy in which `a` writes some channels and `c` reads some."""
    slim = copy.deepcopy(randomised(net))
    for name in ("weight", "bias"):
        keep(slim.a, name, 0, written)
    keep(slim.c, "weight", 1, read)
    return net, slim


def cut_norm(net, kept):
    dense, slim = cut(net)
    for name in ("weight", "bias", "running_mean", "running_var"):
        keep(slim.between[0], name, 0, kept)
    return dense, slim


def normed():
    return Net(nn.Sequential(nn.BatchNorm2d(4), nn.Sigmoid()))


def judged(dense, slim):
    return verdict(dense, slim, (X,), (X,))


def test_a_right_cut_is_equal():
    found = judged(*cut_norm(normed(), (0, 2)))
    assert (found.status, found.removed) == ("equal", "not read")
    assert found.difference < 1e-12


def test_an_untouched_copy_is_equal():
    net = normed()
    assert judged(net, copy.deepcopy(net)).status == "equal"


@pytest.mark.parametrize("kept", [(0, 1), (1, 3)])
def test_batch_norm_of_other_channels_is_wrong(kept):
    assert judged(*cut_norm(normed(), kept)).difference > 1e-3


def test_reading_other_channels_is_wrong():
    found = judged(*cut(Net(), read=(1, 3)))
    assert found.status == "wrong"
    assert found.why.startswith("outputs differ by ")


def test_channels_that_depend_on_removed_ones_are_wrong():
    assert judged(*cut(Net(Function(lambda x: x - x.mean(1, keepdim=True))))).status == "wrong"
    assert judged(*cut(Net(Function(lambda x: x.softmax(1))))).status == "wrong"


def test_product_of_activations_is_equal_where_removed_channels_are_zero():
    found = judged(*cut(Net(Function(lambda x: x * x.square().sum(1, keepdim=True)))))
    assert (found.status, found.removed) == ("equal", "zero")


def test_weights_that_the_dense_model_lacks_are_named():
    dense, slim = cut(Net())
    slim.c.weight.data += 1e-3
    found = judged(dense, slim)
    assert found.status == "unmatched"
    assert found.why == "c.weight (2, 2, 1, 1) is no part of the dense (2, 4, 1, 1)"


def test_a_changed_weight_of_the_old_shape_is_named():
    dense, slim = cut(Net())
    slim.c.bias.data += 1e-3
    assert judged(dense, slim).why.startswith("c.bias")


def test_groups_of_a_convolution_may_keep_other_inputs():
    # c has 2 groups of 2 inputs each; the first keeps input 1, the second (channels 2 and 3) keeps input 0
    dense = randomised(Net(c=nn.Conv2d(4, 2, 1, groups=2)))
    slim = copy.deepcopy(dense)
    for name in ("weight", "bias"):
        keep(slim.a, name, 0, (1, 2))
    slim.c.weight = nn.Parameter(torch.stack([dense.c.weight.data[0, [1]], dense.c.weight.data[1, [0]]]))
    assert judged(dense, slim).status == "equal"


def test_transposed_convolution_reads_along_its_first_dimension():
    dense = randomised(Net(c=nn.ConvTranspose2d(4, 2, 2)))
    slim = copy.deepcopy(dense)
    for layer, name in ((slim.a, "weight"), (slim.a, "bias"), (slim.c, "weight")):
        keep(layer, name, 0, (1, 3))
    assert judged(dense, slim).status == "equal"


def test_a_slim_model_that_does_not_run_is_wrong():
    assert judged(*cut(Net(Function(lambda x: x.view(-1, 4, 4, 4))))).why.startswith("slim does not run: RuntimeError")


def test_a_slim_model_that_breaks_in_training_is_wrong():
    net = Net()
    net.between.forward = lambda x: x * torch.ones(4, 1, 1) if net.between.training else x
    dense, slim = cut(net)
    slim.between.forward = lambda x: x * torch.ones(4, 1, 1) if slim.between.training else x
    assert judged(dense, slim).why.startswith("slim does not train: RuntimeError")


def test_a_parameter_that_no_longer_trains_is_named():
    dense, slim = cut(Net())
    slim.a.bias.requires_grad_(False)
    assert judged(dense, slim).why == "no gradient reaches a.bias in training"


def test_outputs_that_removed_channels_never_reach_show_nothing():
    assert judged(*cut(Net(Function(lambda x: x * 0)))).status == "unmeasured"


def test_random_numbers_differ_from_each_other():
    net = randomised(normed())
    for tensor in (net.between[0].weight, net.between[0].running_var, net.a.bias):
        assert len(tensor.unique()) == 4


class Blur(nn.Module):
    """The same filter for each of four channels, as a buffer."""

    def __init__(self):
        super().__init__()
        row = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filters", torch.outer(row, row).repeat(4, 1, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.filters, groups=len(self.filters))


def test_repeated_filters_are_cut_with_their_channels():
    dense, slim = cut(Net(Blur()))
    keep(slim.between, "filters", 0, (0, 2))
    assert judged(dense, slim).status == "equal"


def test_repeated_filters_of_other_channels_are_wrong():
    dense, slim = cut(Net(Blur()))
    keep(slim.between, "filters", 0, (1, 2))
    assert judged(dense, slim).status == "wrong"
