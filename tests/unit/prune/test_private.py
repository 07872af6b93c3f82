"""The given model is never written, not even for a moment: threads and random numbers beside a pruning are as alone."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from prune import cost_of, find_groups, prune_model
from prune.private import Call, PrivateModel


class Moody(nn.Module):
    """Everything that writes: noise, statistics, a counter, power iterations, an attribute, its own modes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), spectral_norm(nn.Conv2d(8, 8, 1))
        self.c, self.last = nn.Conv2d(8, 2, 1), None
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        self.last = functional.dropout(self.norm(self.a(x)), 0.5, self.training)
        random.random()
        np.random.rand()
        return self.c(self.b(self.last)) + torch.rand(1)


class WritesWeights(nn.Module):
    """Clips its weights in every forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        self.a.weight.data.clamp_(-0.1, 0.1)
        return self.b(self.a(x))


def state_of(net):
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modules = [(module.training, len(module._forward_hooks), sorted(vars(module))) for module in net.modules()]
    return tensors, modules, [parameter.requires_grad for parameter in net.parameters()]


def same(one, other):
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and one[1:] == other[1:]


@pytest.mark.parametrize("build", [Moody, WritesWeights])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("step", [find_groups, cost_of, lambda net, inputs: prune_model(net, inputs, 0.5)])
def test_nothing_of_the_given_model_is_written(build, training, step, x):
    net = build().train(training)
    before, versions = state_of(net), [tensor._version for tensor in net.state_dict(keep_vars=True).values()]
    step(net, (x,))
    assert same(state_of(net), before)
    assert [tensor._version for tensor in net.state_dict(keep_vars=True).values()] == versions  # nor for a moment
    assert getattr(net, "last", None) is None


def test_the_example_input_is_not_written(x):
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    before = x.clone()
    prune_model(InPlace(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), (x,), 0.5)
    assert torch.equal(x, before)


def test_weights_that_the_forward_pass_writes_are_written_on_a_copy(x):
    net = WritesWeights()
    private = PrivateModel(net)
    private.run(Call.of((x,)), torch.no_grad())
    assert private.model.a.weight.abs().max() <= 0.1 < net.a.weight.abs().max()


def test_random_numbers_of_the_caller_are_untouched(x):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    net = Moody()
    seed()
    prune_model(net, (x,), 0.5)
    assert draw() == expected


def test_two_prunings_at_once_and_inference_beside_them_are_as_alone(x):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    net[0].train()  # a mode of its own
    alone, expected, before = prune_model(net, (x,), 0.5), net(x).detach(), state_of(net)
    done, faults = threading.Event(), []

    def watch():
        while not done.is_set():
            if not torch.equal(net(x).detach(), expected):
                faults.append("inference")
            if not same(state_of(net), before):
                faults.append("state")

    def prune():
        for _ in range(5):
            pruned = prune_model(net, (x,), 0.5)
            if pruned.spec != alone.spec:
                faults.append("spec")

    watcher, *pruners = [threading.Thread(target=target) for target in (watch, prune, prune)]
    for thread in (watcher, *pruners):
        thread.start()
    for thread in pruners:
        thread.join()
    done.set()
    watcher.join()
    assert faults == []


def test_model_that_runs_its_layers_from_outside_is_refused(x):
    net = nn.ModuleDict({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 2, 1)})
    net.forward = lambda x: net["b"](net["a"](x))  # a copy would run the layers of `net`
    with pytest.raises(ValueError, match=r"^model: a copy of it still uses its own tensors, got one of shape \(4,"):
        prune_model(net, (x,), 0.5)


def test_model_that_cannot_be_copied_is_refused(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^model: cannot be copied, cannot pickle '_thread.lock' object; expected"):
        prune_model(net, (x,), 0.5)


def test_model_after_a_step_of_training_is_pruned(x):
    net = Moody().train()
    net(x).sum().backward()  # `last` and the computed weight have a history, which deepcopy refuses
    assert prune_model(net, (x,), 0.5).model.eval()(x).shape == (2, 2, 8, 8)


def test_call_is_changed_however_deep_its_tensors_lie():
    given = Call(([torch.zeros(2)], {"x": (torch.zeros(1),)}), {"mask": torch.zeros(3)})
    changed = given.map(lambda tensor: tensor + 1)
    assert (changed.args[0][0].sum(), changed.args[1]["x"][0].sum(), changed.kwargs["mask"].sum()) == (2, 1, 3)
    assert given.kwargs["mask"].sum() == 0


def test_shared_layers_and_computed_weights_stay_so_on_a_copy():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    private = PrivateModel(net).model
    assert private[0].weight is private[1].weight
    assert private[0].weight is not net[0].weight
    assert private[0].weight.data_ptr() == net[0].weight.data_ptr()
    assert copy.deepcopy(net)[0].weight.data_ptr() != net[0].weight.data_ptr()
