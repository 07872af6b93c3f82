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
from classify.learning import EarlyTicket, Magnitude, MethodHook, Slimming, SoftFilters, Structures
from classify.preactivation import CifarPreResNet
from classify.schedule import Schedule
from classify.train import train_classifier
from command.config import read_config
from prune.learn.magnitude import nonzero_masks

PLAIN = Schedule(epochs=2, batch_size=4, lr=0.1, optimizer="SGD", momentum=0.9, warmup_iters=0, max_grad_norm=None)
ONE_STEP = replace(PLAIN, epochs=1, batch_size=8, weight_decay=0.0, milestones=(1.0,))  # at a constant rate
EXAMPLE = (torch.zeros(1, 3, 8, 8),)
METHODS = {
    "slimming": Slimming(type="slimming", penalty=0.25),
    "soft_filters": SoftFilters(type="soft_filters"),
    "structure_selection": Structures(type="structure_selection", penalty=0.25, prune_ratio=0.5),
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return (x + self.bn(self.conv(x))).relu()


def new_net(settings=None):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    if isinstance(settings, Structures):
        layers += [Block(), Block()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.fixture
def trained(pairs, tmp_path):
    """Train on eight images with a method's settings; return the network, the method and the weights of each step."""

    def train(settings, schedule=PLAIN, name="run", kill_at=None):
        net = new_net(settings)
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


@pytest.fixture
def train_file(invoke, tmp_path):
    """Train by a config with some lines more; return the network, its card and the figures."""

    def train(lines, name="net", *options):
        (tmp_path / "c.py").write_text(f"{CONFIG}{lines}\n")
        out = tmp_path / f"{name}.safetensors"
        result = invoke("classify", "train", tmp_path / "c.py", "--out", out, "--json", *options)
        return *load_classifier(out), json.loads(result.stdout)

    return train


@pytest.mark.slow
def test_the_model_file_lacks_the_blocks_whose_factor_is_zero(train_file, tmp_path):
    # a step takes off 1e-3 * 1e4 = 10 from factors of 1
    lines = "schedule['warmup_iters'] = 0\nvalidate_every = 1\nmethod = dict(type='structure_selection', penalty=1e4)"
    net, card, figures = train_file(lines)
    assert len(card.backbone.removed_blocks) == 8
    # the first layer, three projections with their norms, and the last layer, by hand
    stem, projections, head = 3 * 49 * 8 + 16, (8 * 16 + 32) + (16 * 32 + 64) + (32 * 64 + 128), 64 * 6 + 6
    assert sum(parameter.numel() for parameter in net.parameters()) == stem + projections + head
    assert card.provenance["metrics"]["top1"] == figures["top1"]
    best, dense_card = load_classifier(tmp_path / "net-best.safetensors")
    assert not dense_card.is_slim
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(best(images), net(images), rtol=1e-4, atol=1e-5)  # the factors are in its weights


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["dense", "sparse"])
def test_a_sparse_file_is_trained_from_scratch_with_its_masks(train_file, tmp_path, scale):
    sparse, _, _ = train_file("method = dict(type='magnitude', prune_ratio=0.75)", "sparse")
    lines = f"start = dict(type='scratch', file={str(tmp_path / 'sparse.safetensors')!r})\n"
    drawn, card, figures = train_file(f"{lines}method = dict(type='magnitude', masks='kept', scale={scale!r})", "again")
    masks = nonzero_masks(sparse)
    assert sorted(masks) == sorted(f"{name}.weight" for name, m in drawn.named_modules() if isinstance(m, nn.Conv2d))
    for name, mask in masks.items():
        assert torch.equal(drawn.get_parameter(name) != 0, mask), name
        assert not torch.equal(drawn.get_parameter(name), sparse.get_parameter(name))
    left, all_weights = (
        sum(int(count) for count in counts)
        for counts in zip(*((m.sum(), m.numel()) for m in masks.values()), strict=True)
    )
    assert left == all_weights - all_weights * 3 // 4
    assert figures["params"] - figures["nonzero_params"] == all_weights - left
    assert figures["nonzero_macs"] < figures["macs"]
    assert card.provenance["metrics"]["nonzero_params"] == figures["nonzero_params"]


@pytest.mark.slow
def test_scratch_b_of_a_sparse_file_counts_macs_that_are_not_zero(train_file, tmp_path):
    _, _, sparse = train_file("method = dict(type='magnitude', prune_ratio=0.75)", "sparse")
    start = (
        f"dict(type='scratch', file={str(tmp_path / 'sparse.safetensors')!r}, budget='scratch_b', scratch_b_cap=None)"
    )
    _, card, figures = train_file(f"start = {start}\nmethod = dict(type='magnitude', masks='kept')")
    assert (figures["macs"], figures["nonzero_macs"]) == (sparse["macs"], sparse["nonzero_macs"])
    assert card.provenance["schedule"]["epochs"] == figures["macs"] // figures["nonzero_macs"] > 1  # the dense has 1


@pytest.mark.slow
def test_an_evaluation_counts_the_weights_that_are_not_zero(train_file, invoke, tmp_path):
    for name, keys in (("magnitude", {"nonzero_macs", "nonzero_params"}), ("slimming", set())):
        _, _, figures = train_file(f"method = dict(type={name!r}, prune_ratio=0.5)", name)
        found = invoke("classify", "eval", tmp_path / f"{name}.safetensors", next(tmp_path.glob("shapes2-*")), "--json")
        found = json.loads(found.stdout)
        assert {key for key in found if key.startswith("nonzero")} == keys
        assert {key: found[key] for key in keys} == {key: figures[key] for key in keys}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["dict(type='structure_selection', penalty=100, prune_ratio=0.5)", "dict(type='magnitude', masks='kept')"],
)
def test_a_command_killed_in_its_second_epoch_writes_the_same_file(train_file, tmp_path, monkeypatch, method):
    train_file("method = dict(type='magnitude', prune_ratio=0.75)", "start")
    start = f"start = dict(type='scratch', file={str(tmp_path / 'start.safetensors')!r})"
    lines = f"{start}\nschedule['epochs'] = 2\nmethod = {method}"
    train_file(lines, "whole")

    def kill(hook, runner):
        if runner.epoch == 1:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(MethodHook, "before_train_epoch", kill)
        with pytest.raises(KilledError):
            train_file(lines, "killed")
    assert list((tmp_path / "killed.training").glob("epoch_1.pth"))
    train_file(lines, "killed")
    whole, killed = (tmp_path / f"{name}.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slimming", "soft_filters"])
def test_the_model_file_of_a_cutting_method_is_slim(train_file, name):
    net, card, figures = train_file(f"method = dict(type={name!r}, prune_ratio=0.5)")
    assert card.prune_spec is not None
    assert sum(layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)) < 8 * (5 + 10 + 20 + 40)
    assert card.provenance["config"]["method"]["type"] == name
    assert 0 <= figures["top1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_method_trains_a_step_of_its_network(name):
    changes = ("method.penalty=1e4",) if name == "cifar_structure_selection" else ()  # all is zero after a step
    settings = read_config(name, changes, ClassifierTraining)
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
        ("schedule.sync_bn=True", "sync_bn: not with structure_selection, which acts on BatchNorms themselves"),
        ("schedule.amp=fp16", "amp: not fp16 with structure_selection, whose factors are not scaled back"),
    ],
)
def test_training_in_which_factors_would_not_act_is_refused(change, line):
    with pytest.raises(ValueError, match=line):
        read_config("cifar_structure_selection", [change], ClassifierTraining)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("method={'type': 'slimming', 'prune_ratio': 1.0}", "would remove all channels or more, got 1.0"),
        ("method={'type': 'slimming', 'penalty': 0}", "greater than 0"),
        ("method={'type': 'slimmming'}", "slimmming"),
        ("method={'type': 'magnitude', 'scope': 'layers'}", "'layers'"),
        ("method={'type': 'magnitude', 'masks': 'kept'}", 'method.masks: no weight of the network is zero, got "kept"'),
        ("method={'type': 'structure_selection', 'prune_ratio': 1}", "would remove all channels or more, got 1"),
        ("method={'type': 'structure_selection', 'skip': ('layer9.*',)}", "skip['layer9.*']: matches no layer"),
    ],
)
def test_a_wrong_method_is_refused_before_any_work(command, tmp_path, change, line):
    (tmp_path / "c.py").write_text(CONFIG)
    out = tmp_path / "out/net.safetensors"
    code, _, err = command("classify", "train", tmp_path / "c.py", "--out", out, "--set", change)
    assert (code, line in err.splitlines()[-1]) == (2, True), err
    assert not out.parent.exists()
