"""A training that is stopped anywhere and resumed has the same bytes as one that never stopped."""

import io

import pytest
import torch
from torch import nn

from prune import Recipe
from prune.learn.early_bird import EarlyBird
from prune.learn.magnitude import HeldMasks, magnitude_masks
from prune.learn.slimming import NetworkSlimming
from prune.learn.soft_filters import SoftFilterPruning
from prune.learn.structure_selection import StructureSelection
from prune.learn.tickets import Rewinding

EXAMPLE = (torch.zeros(2, 3, 8, 8),)
HALF = Recipe(prune_ratio=0.5)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = _Block()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


METHODS = {
    "slimming": lambda net: NetworkSlimming(net, EXAMPLE, HALF, penalty=0.01),
    "structure_selection": lambda net: StructureSelection(net, EXAMPLE, penalty=0.1),
    "soft_filters": lambda net: SoftFilterPruning(net, EXAMPLE, HALF),
    "magnitude": lambda net: HeldMasks(net, magnitude_masks(net, 0.5)),
    "rewinding": lambda net: Rewinding(net, iteration=3),
    "early_bird": lambda net: EarlyBird(net, EXAMPLE, HALF, window=3, tolerance=1.0),
}


class Training:
    def __init__(self, name):
        torch.manual_seed(0)
        self.net = Residual()
        self.method = METHODS[name](self.net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)

    def run(self, epochs):
        for epoch in epochs:
            generator = torch.Generator().manual_seed(epoch)
            for _ in range(2):
                self.optimizer.zero_grad()
                self.net(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
                self.method.after_backward(self.net)
                self.optimizer.step()
                self.method.after_step(self.net, 0.05)
            self.method.after_epoch(self.net, epoch)
        return self

    def saved(self):
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.net, self.optimizer, self.method)], file)
        return file.getvalue()

    def load(self, data):
        states = torch.load(io.BytesIO(data), weights_only=True)
        for part, state in zip((self.net, self.optimizer, self.method), states, strict=True):
            part.load_state_dict(state)
        return self


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_equals_never_stopped(name, stop):
    whole = Training(name).run(range(4))
    first = Training(name).run(range(stop))
    second = Training(name).load(first.saved()).run(range(stop, 4))
    assert second.saved() == whole.saved()
    assert Training(name).saved() != whole.saved()


@pytest.mark.parametrize("name", METHODS)
def test_state_is_no_view_of_what_goes_on(name):
    training = Training(name).run(range(2))
    before = training.saved()
    state = training.method.state_dict()
    training.run(range(2, 4))
    fresh = Training(name)
    fresh.method.load_state_dict(state)
    again = fresh.method.state_dict()
    file = io.BytesIO()
    torch.save([*torch.load(io.BytesIO(before), weights_only=True)[:2], again], file)
    assert file.getvalue() == before


@pytest.mark.parametrize("name", METHODS)
def test_state_of_another_method_is_refused(name):
    with pytest.raises(ValueError, match=r": the state is another method's, got \['other'\]; expected \["):
        Training(name).method.load_state_dict({"other": 1})


def test_factors_of_another_network_are_refused():
    method = Training("structure_selection").method
    state = {"factors": {"a": torch.ones(1)}, "velocities": {"a": torch.ones(1)}}
    with pytest.raises(ValueError, match="the state is another network's; expected factors of the same layers"):
        method.load_state_dict(state)


def test_masks_are_held_from_the_state():
    training = Training("magnitude")
    mask = torch.zeros(8, 3, 3, 3, dtype=torch.bool)
    training.method.load_state_dict({"masks": {"stem.weight": mask}})
    training.method.after_step(training.net, 0.1)
    assert not training.net.stem.weight.any()
