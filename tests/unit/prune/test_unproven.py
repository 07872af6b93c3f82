"""Parts of a model that the example input does not run as they run in earnest: what feeds them stays whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from prune import find_groups, prune_model

EMPTY = "reached only by an empty batch on the example input"
OUTPUT = "its channels are an output of the model"


class Regions(nn.Module):
    """A head for the images that a mask chooses: on the example, none."""

    def __init__(self, choose):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.head, self.norm, self.last = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        self.choose = choose

    def forward(self, x):
        features = self.a(x)
        return self.b(features), self.last(self.norm(self.head(features[self.choose(x)])))


def none_of(x):
    return x.amax((1, 2, 3)) > 100


def test_what_only_an_empty_batch_reaches_stays_and_says_so(x):
    obstacles = {group.name: group.obstacle for group in find_groups(Regions(none_of), (x,))}
    assert obstacles["head"] == EMPTY
    assert obstacles["a"]  # its channels feed the head
    assert obstacles["last"] == EMPTY


def test_slim_model_runs_where_the_example_was_empty(x):
    net = Regions(none_of).eval()
    slim = prune_model(net, (x,), 0.5).model
    slim.choose = net.choose = lambda x: x.amax((1, 2, 3)) > 0
    assert torch.allclose(slim(x)[1], net(x)[1])
    assert len(net(x)[1]) == 2


def test_part_that_is_left_out_for_an_empty_batch_keeps_what_feeds_it(x):
    class LeavesOut(Regions):
        def forward(self, x):
            features = self.a(x)
            chosen = features[self.choose(x)]
            return self.b(features) if not len(chosen) else self.last(self.norm(self.head(chosen)))

    obstacles = {group.name: group.obstacle for group in find_groups(LeavesOut(none_of), (x,))}
    assert obstacles["a"]
    assert obstacles["head"] == "not reached by the forward pass on the example input"


def test_new_empty_tensors_do_not_count(x):
    class Fresh(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            features = self.a(x)
            return self.b(features), torch.cat([features.new_zeros(0), features.new_zeros(2)])

    assert EMPTY not in {group.obstacle for group in find_groups(Fresh(), (x,))}


class Auxiliary(nn.Module):
    """A second classifier that runs in training only, as GoogLeNet's."""

    def __init__(self, condition=lambda net, x: net.training):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.aux, self.aux_norm, self.aux_out = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        self.condition = condition

    def forward(self, x):
        features = self.norm(self.a(x))
        result = self.b(functional.dropout(features, 0.5, self.training))
        if self.condition(self, x):
            return result, self.aux_out(functional.dropout(self.aux_norm(self.aux(features)), 0.5, self.training))
        return result


def trains(net, x):
    """Return whether a step of training gives every parameter a gradient."""
    outputs = net.train()(x)
    sum(output.sum() for output in outputs).backward()
    return all(parameter.grad is not None for parameter in net.parameters())


def test_parts_that_run_in_training_only_are_cut_with_what_feeds_them(x):
    net = Auxiliary()
    groups = {g.name: sorted(f"{m.layer}.{m.side}" for m in g.members) for g in find_groups(net, (x,))}
    assert groups["a"] == ["a.out", "aux.in", "b.in", "norm.out"]
    slim = prune_model(net, (x,), 0.5).model
    assert (slim.a.out_channels, slim.aux.in_channels, slim.aux_norm.num_features) == (2, 2, 3)
    assert trains(slim, x)


def test_training_only_part_computes_what_the_masked_one_does(x):
    net = Auxiliary().eval()
    slim = prune_model(net, (x,), 0.5).model.eval()
    kept_a = [i for i, row in enumerate(net.a.weight) if any(torch.equal(row, other) for other in slim.a.weight)]
    kept_aux = [i for i, bias in enumerate(net.aux.bias) if bias in slim.aux.bias]
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for layer, kept in ((twin.b, kept_a), (twin.aux, kept_a), (twin.aux_out, kept_aux)):
            layer.weight[:, [i for i in range(layer.in_channels) if i not in kept]] = 0
    slim.condition = twin.condition = lambda net, x: True
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(slim(x), twin(x), strict=True))


def test_batch_of_one_trains_too(x):
    class Once(Auxiliary):
        def forward(self, x):
            if self.training and len(x) == 1:
                raise ValueError("Expected more than 1 value per channel when training")
            return super().forward(x)

    slim = prune_model(Once(), (x[:1],), 0.5).model
    assert slim.aux.in_channels == 2
    assert trains(slim, x)


def test_features_returned_in_training_only_keep_their_width(x):
    class Returns(Auxiliary):
        def forward(self, x):
            features = self.a(x)
            return (self.b(features), features) if self.training else self.b(features)

    obstacles = {group.name: group.obstacle for group in find_groups(Returns(), (x,))}
    assert obstacles["a"] == OUTPUT


def test_where_training_fails_nothing_is_cut_while_a_part_is_unreached(x):
    class NeedsTargets(Auxiliary):
        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets should not be None")
            return super().forward(x)

    pruned = prune_model(NeedsTargets(), (x,), 0.5)
    reason = (
        "may feed aux, which no forward pass reached: training mode fails on the example input, "
        "targets should not be None; name it in `unused` if none ever does"
    )
    assert {d.group: d.reason for d in pruned.decisions}["a"] == reason
    assert pruned.spec.layers == {}


def test_where_training_fails_the_eval_pass_stands_if_it_reached_all(x):
    class NeedsTargets(nn.Sequential):
        def forward(self, x):
            if self.training:
                raise ValueError("targets should not be None")
            return super().forward(x)

    slim = prune_model(NeedsTargets(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), (x,), 0.5).model
    assert slim[0].out_channels == 2


def test_what_may_feed_a_branch_for_larger_images_stays_whole(x):
    net, larger = Auxiliary(condition=lambda net, x: x.shape[-1] > 100), torch.randn(1, 3, 104, 104)
    pruned = prune_model(net, (x,), 0.5)
    reasons = {d.group: d.reason for d in pruned.decisions}
    assert reasons["aux"] == "not reached by the forward pass on the example input"
    assert reasons["a"].startswith("may feed aux, which no forward pass reached: name it in `unused`")
    assert torch.equal(pruned.model.eval()(larger)[1], net.eval()(larger)[1])


def test_what_feeds_a_part_that_is_never_used_may_be_cut(x):
    net = Auxiliary(condition=lambda net, x: False)
    assert prune_model(net, (x,), 0.5, unused=["au*"]).model.a.out_channels == 2
    with pytest.raises(ValueError, match=r"^unused: no layer or parameter of the model matches, got 'b.bias'; see"):
        prune_model(net, (x,), 0.5, unused=["b.bias"])


def test_slim_model_that_cannot_train_is_refused(x):
    class FixedInTraining(Auxiliary):
        def forward(self, x):
            features = self.a(x)
            if self.training and features.numpy(force=True).shape[1] != 4:
                raise ValueError("expected 4 channels")
            return self.b(features)

    with pytest.raises(ValueError, match=r"model: its slim copy does not run in training mode, expected 4 .*skip a$"):
        prune_model(FixedInTraining(), (x,), 0.5, unused=["aux*", "norm"])


def test_slim_model_without_a_gradient_is_refused(x):
    class DetachesInTraining(Auxiliary):
        def forward(self, x):
            features = self.a(x)
            is_slim = len(self.a.weight.numpy(force=True)) < 4
            return self.b(features.detach() if self.training and is_slim else features)

    with pytest.raises(ValueError, match=r"model: its slim copy has no gradient in a\.weight; .*skip a$"):
        prune_model(DetachesInTraining(), (x,), 0.5, unused=["aux*", "norm"])
