import sys

import pytest
import torch
from torch import nn

from command.errors import RequestError
from prune import prune_model

MODULE = """
import torch
from prune.choose.criteria import DataDriven

class Bias:
    comparable = False
    def member_scores(self, model, member):
        layer = dict(model.named_modules()).get(member.layer)
        return layer.bias if member.side == "out" and isinstance(layer, torch.nn.Conv2d) else None

class Gradient(DataDriven):
    side = "out"
    def _measure(self, model, losses):
        for loss in losses(model):
            loss.backward()
        return {"0": model[0].bias.grad.abs().clone(), "2": model[2].bias.grad.abs().clone()}

class Listed(Bias):
    def member_scores(self, model, member):
        return [1.0, 2.0]

class Short(Bias):
    def member_scores(self, model, member):
        return torch.ones(3)

class Wanting(Bias):
    def __init__(self, more):
        self.more = more

class Broken(Bias):
    def member_scores(self, model, member):
        return 1 / 0

class Unmeasured(Gradient):
    def _measure(self, model, losses):
        return model["0"]

class Mute:
    comparable = True

def bias():
    return Bias()

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "own_criteria.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_criteria"
    sys.modules.pop("own_criteria", None)


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([3.0, 1.0, 4.0, 2.0]))
    return model


IMAGES = (torch.zeros(1, 3, 8, 8),)


@pytest.mark.parametrize("name", ["Bias", "bias"])
def test_channels_are_kept_by_the_scores_of_own_code(mine, net, name):
    spec = prune_model(net, IMAGES, 0.5, criterion=f"{mine}:{name}").spec
    assert list(spec.layers["0"].kept_out) == [0, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.module:Bias", r"^criterion: missing.module cannot be imported, got ModuleNotFoundError"),
        ("own_criteria:Bios", r"^criterion: own_criteria has no Bios, got 'own_criteria:Bios'; nearest names: Bias"),
        ("own_criteria:number", r"^criterion: own_criteria:number cannot be called, got int"),
        ("own_criteria:Mute", r"^criterion: own_criteria:Mute ranks no channels, got Mute; expected a Criterion, with"),
        ("own_criteria:Wanting", r"^criterion: own_criteria:Wanting cannot be made, got TypeError: "),
        ("own_criteria:Listed", r"^0: Listed does not score its channels, got list; expected a tensor of one score"),
        ("own_criteria:Short", r"^0: Short does not score its channels, got \(3,\); expected .* at least 4 channels"),
        ("own_criteria:Broken", r"^criterion: own_criteria:Broken fails on 0, got ZeroDivisionError: .*; correct your"),
        ("own_criteria:Gradient", r"^criterion: own_criteria:Gradient measures on data, got none"),
    ],
)
def test_code_that_is_no_criterion_is_refused_in_a_line(mine, net, name, message):
    with pytest.raises(RequestError, match=message) as raised:
        prune_model(net, IMAGES, 0.5, criterion=name)
    assert "\n" not in str(raised.value)


def test_own_code_that_cannot_be_measured_is_named(mine, net):
    from prune.choose.criteria import make_criterion

    with pytest.raises(RequestError, match=r"^criterion: own_criteria:Unmeasured cannot be measured, got TypeError"):
        make_criterion("own_criteria:Unmeasured", net, lambda model: iter([model(IMAGES[0]).sum()]))


def test_own_code_is_measured_on_data(mine, net):
    from prune.choose.criteria import make_criterion

    # of the first layer, channel 1 is read with no weight: nothing comes back to its bias
    with torch.no_grad():
        net[2].weight[:, 1] = 0
        net[2].weight[:, [0, 2, 3]] = 1
    made = make_criterion(f"{mine}:Gradient", net, lambda model: iter([model(torch.ones(IMAGES[0].shape)).sum()]))
    spec = prune_model(net, IMAGES, 0.25, criterion=made).spec
    assert list(spec.layers["0"].kept_out) == [0, 2, 3]
