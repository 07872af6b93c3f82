"""Networks in which a cut would go unseen: by numbers, other modes, other images, or what they leave behind."""

import copy
import math
import types

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, weight_norm

from prune import cost_of, prune_model

WIDTH = 8


class Net(nn.Module):
    """Two convolutions and a classifier; `features` and `head` can be called apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.last = nn.Linear(WIDTH, 5)

    def features(self, x):
        return self.a(x).relu()

    def head(self, features):
        return self.last(self.b(features).sigmoid().mean((2, 3)))

    def forward(self, x):
        return self.head(self.features(x))


def outputs(net, *args):
    torch.manual_seed(1)
    with torch.no_grad():
        found = net(*args)
    return found if isinstance(found, tuple) else (found,)


def equals_masked(net, slim, spec, *images):
    """Compare with the net whose later layers do not read what was removed, in both modes, in float64."""
    masked, slim = copy.deepcopy(net).double(), copy.deepcopy(slim).double()
    with torch.no_grad():
        for name, cut in spec.layers.items():
            layer = dict(masked.named_modules()).get(name)
            if layer is not None and cut.kept_in is not None:
                layer.weight[:, [i for i in range(cut.num_in) if i not in cut.kept_in]] = 0
    pairs = [
        pair
        for x in images
        for mode in (True, False)
        for pair in zip(outputs(masked.train(mode), x.double()), outputs(slim.train(mode), x.double()), strict=True)
    ]
    return all(one.shape == other.shape and torch.allclose(one, other, atol=1e-9) for one, other in pairs)


class ComparesWithASide(Net):
    def forward(self, x):
        features = self.features(x)
        return self.head(functional.avg_pool2d(features, 2) if x.shape[-1] > features.shape[1] else features)


class ComparesWithABatch(Net):
    def forward(self, x):
        return self.head(self.features(x) * (2 if x.shape[0] >= self.a.out_channels else 1))


class PadsToAWidth(Net):
    def forward(self, x):
        return self.head(functional.pad(self.features(x), (0, -x.shape[-1] % self.a.out_channels)))


class HasALimitOfThatSize(Net):
    def __init__(self):
        super().__init__()
        self.scale, self.max_size = nn.Parameter(torch.ones(WIDTH, 1, 1)), WIDTH

    def forward(self, x):
        features = self.features(x) * self.scale
        return self.head(functional.avg_pool2d(features, 2) if x.shape[-1] > self.max_size else features)


class AddsInTraining(Net):
    def forward(self, x):
        one = self.features(x)
        two = self.b(one)
        return self.last((one + two if self.training else two).mean((2, 3)))


class CutsAtAFixedPlaceInTraining(Net):
    def forward(self, x):
        features = self.features(x)
        return self.head(features) + (features[:, :2].mean((1, 2, 3))[:, None] if self.training else 0)


class MixesInTraining(Net):
    def forward(self, x):
        two = self.b(self.features(x))
        return self.last((two.softmax(1) if self.training else two).mean((2, 3)))


class SwapsInTraining(Net):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2 * WIDTH, 5)

    def forward(self, x):
        one, two = self.features(x), self.features(x.flip(1))
        halves = [self.b(one), two] if self.training else [two, self.b(one)]
        return self.last(torch.cat(halves, 1).mean((2, 3)))


class DropsChannels(nn.Module):
    def __init__(self, num):
        super().__init__()
        self.num = num

    def forward(self, x):
        return x * torch.bernoulli(torch.full((len(x), self.num, 1, 1), 0.5)) if self.training else x


class DropsInTraining(Net):
    def __init__(self):
        super().__init__()
        self.drop = DropsChannels(WIDTH)

    def forward(self, x):
        return self.head(self.drop(self.features(x)))


class SortsStably(Net):
    def forward(self, x):
        return self.head(self.features(x).sort(dim=1, stable=False)[0])


class Renormalises(Net):
    def forward(self, x):
        return self.head(torch.renorm(self.features(x), 2, 0, 1.0))


class CountsElements(Net):
    def forward(self, x):
        features = self.features(x)
        return self.head(features) * len(features[0]) / features.numel()


class Clips(Net):
    def forward(self, x):
        with torch.no_grad():
            self.b.weight.clamp_(-0.05, 0.05)
        return self.head(self.features(x))


class Averages(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH))

    def forward(self, x):
        features = self.features(x)
        if self.training:
            self.average.mul_(0.9).add_(features.detach().mean((0, 2, 3)), alpha=0.1)
        return self.head(features)


class FailsInTraining(Net):
    def forward(self, x):
        if self.training and x.dtype == torch.float32:
            raise Exception("targets should be passed")  # as foreign networks do
        return self.head(self.features(x))


class SaysYesOrNo(Net):
    def forward(self, x):
        return self.head(self.features(x)) > 0


@pytest.mark.parametrize(
    "kind",
    [
        ComparesWithASide,
        ComparesWithABatch,
        PadsToAWidth,
        HasALimitOfThatSize,
        AddsInTraining,
        CutsAtAFixedPlaceInTraining,
        MixesInTraining,
        SwapsInTraining,
        SortsStably,
        Renormalises,
        CountsElements,
        Clips,
        Averages,
        FailsInTraining,
        SaysYesOrNo,
    ],
)
def test_slim_equals_masked_for_other_images_and_in_training(kind, x):
    net = kind()
    pruned = prune_model(net, (x,), 0.5)
    assert pruned.spec.layers
    assert equals_masked(net, pruned.model, pruned.spec, x, torch.randn(9, 3, 6, 6), torch.randn(2, 3, 12, 12))


def test_noise_of_fixed_width_does_not_keep_a_slim_model_from_training(x):
    slim = prune_model(DropsInTraining(), (x,), 0.5).model
    assert outputs(slim.train(), x)[0].shape == (2, 5)


def test_branch_drawn_in_training_keeps_what_may_feed_it(x):
    class Draws(Net):
        def __init__(self):
            super().__init__()
            self.rare = nn.Conv2d(WIDTH, 4, 1)

        def forward(self, x):
            features = self.features(x)
            is_drawn = self.training and torch.rand(1).item() < 1e-6
            return self.head(features) + (self.rare(features).mean() if is_drawn else 0)

    assert prune_model(Draws(), (x,), 0.5).spec.layers == {}


def test_forward_of_an_instance_is_followed_in_training(x):
    def forward(self, x):
        features = self[0](x)
        return (self[1](features), self[2](features)) if self.training else self[1](features)

    net = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1), nn.Conv2d(WIDTH, 4, 1))
    net.forward = types.MethodType(forward, net)
    assert prune_model(net, (x,), 0.5).spec.layers == {}


WRONG = {
    "imaginary part": lambda y, width: torch.complex(y, y / math.log(width)),
    "whole numbers beside others": lambda y, width: (y, (y * 300 * math.log(width)).long()),
    "small numbers beside large": lambda y, width: torch.cat([y.sigmoid() * 640, (y * 30 / math.log(width)).sigmoid()]),
    "small share": lambda y, width: y * (1 + 4e-5 * math.log(width)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_no_part_of_the_outputs_goes_uncompared(wrong, x):
    class Hides(Net):
        def forward(self, x):
            features = self.features(x)
            return wrong(self.head(features), features.shape[1])

    with pytest.raises(ValueError, match="its slim copy computes something else"):
        prune_model(Hides(), (x,), 0.5)


class Lists(Net):
    def forward(self, x, found):
        found.append(self.features(x))
        return self.head(found[-1])


class Numbers(Net):
    def forward(self, x, found):
        features = self.features(x)
        return self.head(features), features.mean((2, 3)).tolist()


class Keeps(Net):
    def forward(self, x, found):
        self.kept = self.features(x)
        return self.head(self.kept)


@pytest.mark.parametrize("kind", [Lists, Numbers, Keeps])
def test_features_that_leave_by_another_way_stay_whole(kind, x):
    slim = prune_model(kind(), (x, []), 0.5).model
    assert (slim.a.out_channels, slim.b.out_channels) == (WIDTH, WIDTH // 2)


def test_numpy_does_not_write_to_the_given_model(x):
    class Writes(Net):
        def forward(self, x):
            self.a.weight.detach().numpy().__imul__(1.01)
            return self.head(self.features(x))

    net = Writes()
    before = net.a.weight.clone()
    prune_model(net, (x,), 0.5)
    assert torch.equal(net.a.weight, before)


def test_seed_set_by_the_forward_pass_does_not_stay(x):
    class Seeds(Net):
        def forward(self, x):
            torch.manual_seed(0)
            return self.head(self.features(x))

    net = Seeds()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prune_model(net, (x,), 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_scoring_does_not_run_the_given_model_s_parametrizations(x):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("num", torch.zeros(()))

        def forward(self, weight):
            self.num.add_(1)
            return weight

    net, counts = Net(), Counts()
    parametrize.register_parametrization(net.a, "weight", counts)
    before = counts.num.item()
    prune_model(net, (x,), 0.5)
    assert counts.num.item() == before


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_channels_are_ranked_by_the_weights_that_run():
    net = nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net[0].weight_g.data = torch.arange(1.0, 9).view(8, 1, 1, 1)  # `weight` has the norms of before until it runs
    spec = prune_model(net, (torch.randn(1, 3, 8, 8),), 0.5, criterion="l2").spec
    assert spec.layers["0"].kept_out == (4, 5, 6, 7)
    assert cost_of(net, (torch.randn(1, 3, 8, 8),)).macs == 6 * 6 * (3 * 3 * 3 * 8 + 8 * 4)


def test_module_that_copies_to_itself_is_refused(x):
    class Single(nn.Identity):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(ValueError, match=r"^1: cannot be copied, copy\.deepcopy gives the module itself"):
        prune_model(nn.Sequential(nn.Conv2d(3, 4, 1), Single(), nn.Conv2d(4, 2, 1)), (x,), 0.5)


def test_layers_without_weights_of_their_own_do_not_stop_pruning(x):
    frozen = nn.Conv2d(WIDTH, 4, 1)
    weight = frozen.weight.detach()
    del frozen.weight
    frozen.register_buffer("weight", weight)
    net = nn.Sequential(nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), frozen, nn.Flatten(), nn.Linear(256, 0))
    assert prune_model(net, (x,), 0.5).spec.layers


def test_limit_on_a_call_that_takes_no_single_image_counts_it_all(x):
    class Halves(Net):
        def forward(self, x):
            one, two = x.chunk(2, 0)
            return self.head(self.features(one)) - self.head(self.features(two))

    pruned = prune_model(Halves(), (x,), max_macs=cost_of(Halves(), (x,)).macs // 2)
    assert 0 < pruned.model.a.out_channels < WIDTH


def test_example_that_the_network_refuses_with_numbers_alone_is_refused():
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"^model: its forward pass fails on the example input, index out of range"):
        prune_model(net, (torch.tensor([[3, 12]]),), 0.5)
