"""Pruning methods that act while a classifier trains, through the training that users run."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import load_classifier
from classify.config import ClassifierTraining
from classify.learning import EarlyTicket, Magnitude, Slimming, SoftFilters
from classify.preactivation import CifarPreResNet
from classify.schedule import Schedule
from classify.train import train_classifier
from command.config import read_config

PLAIN = Schedule(epochs=2, batch_size=4, lr=0.1, optimizer="SGD", momentum=0.9, warmup_iters=0, max_grad_norm=None)
ONE_STEP = replace(PLAIN, epochs=1, batch_size=8, weight_decay=0.0, milestones=(1.0,))  # at a constant rate
EXAMPLE = (torch.zeros(1, 3, 8, 8),)
METHODS = {
    "slimming": Slimming(type="slimming", penalty=0.25),
    "soft_filters": SoftFilters(type="soft_filters"),
    "magnitude": Magnitude(type="magnitude", prune_ratio=0.75),
    "early_bird": EarlyTicket(type="early_bird"),
}
CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=12, num_val=6)
image_size = 32
schedule = dict(epochs=1, batch_size=6, lr=1e-3)
"""


SHIPPED = [
    path.stem
    for path in sorted((Path(__file__).parents[3] / "configs/classify").glob("*.py"))
    if read_config(path, (), ClassifierTraining).method
]


class KilledError(Exception):
    pass


def new_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.fixture
def trained(pairs, tmp_path):
    """Train on eight images with a method's settings; return the network, the method and the weights of each step."""

    def train(settings, schedule=PLAIN, name="run", kill_at=None):
        net = new_net()
        images = torch.randint(0, 256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        method, steps = settings.on(net, EXAMPLE) if settings else None, []

        def follow(done, *_):
            steps.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
            if done == kill_at:
                raise KilledError

        train_classifier(net, pairs(images, [0, 1] * 4), schedule, tmp_path / name, 0, follow, method=method)
        return net, method, steps

    return train


@pytest.mark.parametrize("accumulate", [1, 2])
def test_slimming_adds_its_gradient_once_a_step(trained, accumulate):
    schedule = replace(ONE_STEP, accumulate=accumulate)
    _, _, plain = trained(None, schedule, "plain")
    _, _, steps = trained(METHODS["slimming"], schedule, "slimming")
    for norm in ("1.weight", "4.weight"):  # scales begin at 1, so that the sign of each is 1
        torch.testing.assert_close(plain[-1][norm] - steps[-1][norm], torch.full((8,), 0.1 * 0.25))
    assert torch.equal(plain[-1]["0.weight"], steps[-1]["0.weight"])


def test_soft_filters_are_zero_after_every_epoch_and_trained_in_it(trained):
    net, _, steps = trained(METHODS["soft_filters"])
    assert [(step["3.weight"].flatten(1).norm(dim=1) == 0).sum().item() for step in steps][:2] == [0, 0]
    assert sum(int((layer.weight.flatten(1).norm(dim=1) == 0).sum()) for layer in (net[0], net[3])) == 8


def test_masked_weights_stay_zero_in_every_step(trained):
    _, method, steps = trained(METHODS["magnitude"])
    num = sum(mask.numel() for mask in method.masks.values())
    assert num == 8 * 27 + 8 * 72
    assert sum(int(mask.sum()) for mask in method.masks.values()) == num - num * 3 // 4
    assert all((step[name][~mask] == 0).all() for step in steps for name, mask in method.masks.items())
    assert any((steps[0][name] != steps[-1][name]).any() for name in method.masks)


def test_two_of_four_weights_along_the_inputs_stay(trained):
    net, _, _ = trained(Magnitude(type="magnitude", pattern="2:4"))
    left = (net[3].weight != 0).movedim(1, -1).unflatten(-1, (2, 4)).sum(-1)
    assert (left == 2).all()
    assert (net[0].weight != 0).all()  # it reads three channels


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_training_with_a_method_ends_with_the_same_bytes(trained, name):
    whole, method, _ = trained(METHODS[name], name="whole")
    with pytest.raises(KilledError):
        trained(METHODS[name], name="killed", kill_at=3)
    resumed, other, _ = trained(METHODS[name], name="killed")
    for (key, tensor), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(tensor, found), key
    slim, again = (METHODS[name].slim(one, net) for one, net in ((method, whole), (other, resumed)))
    assert (slim is None) == (name == "magnitude")
    if slim:
        assert slim.spec == again.spec


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slimming", "soft_filters"])
def test_the_model_file_of_a_cutting_method_is_slim(invoke, tmp_path, name):
    (tmp_path / "c.py").write_text(f"{CONFIG}method = dict(type={name!r}, prune_ratio=0.5)\n")
    result = invoke("classify", "train", tmp_path / "c.py", "--out", tmp_path / "net.safetensors", "--json")
    net, card = load_classifier(tmp_path / "net.safetensors")
    assert card.prune_spec is not None
    assert sum(layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)) < 8 * (5 + 10 + 20 + 40)
    assert card.provenance["config"]["method"]["type"] == name
    assert 0 <= json.loads(result.stdout)["top1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_method_trains_a_step_of_its_network(name):
    settings = read_config(name, (), ClassifierTraining)
    torch.manual_seed(0)
    net = build_classifier(Architecture(getattr(settings.start, "name", "resnet20_cifar"), 10)).train()
    method = settings.method.on(net, (torch.zeros(1, 3, 32, 32),))
    net(torch.randn(4, 3, 32, 32)).sum().backward()
    method.after_backward(net)
    method.after_step(net, 0.1)
    method.after_epoch(net, 0)
    learned = settings.method.slim(method, net.eval())
    left = [layer.weight for layer in (learned.model if learned else net).modules() if isinstance(layer, nn.Conv2d)]
    all_of_them = [layer.weight for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(weight.count_nonzero() for weight in left) < 0.8 * sum(weight.numel() for weight in all_of_them)


def test_preactivation_networks_are_slimmed_by_the_shipped_config():
    settings = read_config("cifar_slimming", ("method.penalty=1e-5", "method.prune_ratio=0.6"), ClassifierTraining)
    net = CifarPreResNet(11, 10)
    method = settings.method.on(net, (torch.zeros(1, 3, 32, 32),))
    slim = settings.method.slim(method, net.eval()).model
    normed = sum(norm.num_features for norm in slim.modules() if isinstance(norm, nn.BatchNorm2d))
    assert normed == math.floor((16 + 32 + 64 + 64 + 128 + 128 + 256) * 0.4)  # of all channels that norms read
    assert slim.conv1.out_channels == 16


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("method={'type': 'slimming', 'prune_ratio': 1.0}", "would remove all channels or more, got 1.0"),
        ("method={'type': 'slimming', 'penalty': 0}", "greater than 0"),
        ("method={'type': 'slimmming'}", "slimmming"),
        ("method={'type': 'magnitude', 'scope': 'layers'}", "'layers'"),
    ],
)
def test_a_wrong_method_is_refused_before_any_work(command, tmp_path, change, line):
    (tmp_path / "c.py").write_text(CONFIG)
    out = tmp_path / "out/net.safetensors"
    code, _, err = command("classify", "train", tmp_path / "c.py", "--out", out, "--set", change)
    assert (code, line in err.splitlines()[-1]) == (2, True), err
    assert not out.parent.exists()
