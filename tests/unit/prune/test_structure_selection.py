import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d

from classify.cifar import CifarResNet
from prune import PruneSpec, cost_of, find_groups, load_slim, save_slim, slim_model
from prune.learn import structure_selection
from prune.learn.structure_selection import StructureSelection, proximal_step

SIDE = 32


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(randomize):
    def build(make):
        torch.manual_seed(0)
        return randomize(make())

    return build


def test_three_steps_worked_by_hand():
    """Learning rate 0.1, penalty 0.5 (so that 0.05 is taken off), momentum 0.9, by the published order.

    v <- 0.9 v; z = soft(l - 0.1 g, 0.05); v <- z - l + v; l <- max(0, z + 0.9 v).
    """
    # first factor, g = 1, 1, 4:  z 0.85, v -0.15, l 0.715;  z 0.565, v -0.285, l 0.3085;  z -0.0415, v -0.6065, l 0
    # second factor, g = -2, 0, 0: z 1.15, v 0.15, l 1.285;  z 1.235, v 0.085, l 1.3115;  z 1.2615, v 0.0265, l 1.28535
    factors, velocities = torch.ones(2), torch.zeros(2)
    seen = []
    for gradients in ([1.0, -2.0], [1.0, 0.0], [4.0, 0.0]):
        factors, velocities = proximal_step(factors, torch.tensor(gradients), velocities, lr=0.1, penalty=0.5)
        seen += [*factors.tolist(), *velocities.tolist()]
    expected = [0.715, 1.285, -0.15, 0.15, 0.3085, 1.3115, -0.285, 0.085, 0.0, 1.28535, -0.6065, 0.0265]
    assert seen == pytest.approx(expected, abs=1e-6)


def test_factor_within_the_threshold_becomes_zero_and_may_return():
    # l 0.04 < 0.05: z 0, v -0.04, l max(0, -0.036) = 0; then g -5: z 0.5 - 0.05, v 0.45 - 0.036, l 0.45 + 0.9 * 0.414
    factors, velocities = proximal_step(torch.tensor([0.04]), torch.zeros(1), torch.zeros(1), 0.1, 0.5)
    assert (factors.item(), velocities.item()) == pytest.approx((0.0, -0.04))
    factors, _ = proximal_step(factors, torch.tensor([-5.0]), velocities, 0.1, 0.5)
    assert factors.item() == pytest.approx(0.8226)


def test_factors_of_one_change_nothing(network, images):
    net = network(resnet18)
    expected = net(images)
    method = StructureSelection(net, (images,))
    torch.testing.assert_close(net(images), expected, rtol=0, atol=0)
    assert not any("factor" in name for name, _ in net.named_parameters())
    assert list(method.factors) == [f"layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]


def test_branch_is_multiplied_and_its_gradient_is_the_loss_s(network, images):
    net = network(lambda: CifarResNet(20, 10))
    outputs = {}
    net.layer1[0].bn2.register_forward_hook(lambda layer, inputs, output: outputs.update(branch=output.detach()))
    net(images)
    plain = outputs["branch"]
    method = StructureSelection(net, (images,))
    factor = method.factors["layer1.0.bn2"]
    factor.data.fill_(0.25)
    net(images)
    torch.testing.assert_close(outputs["branch"], 0.25 * plain, rtol=1e-5, atol=1e-5)
    net.double()(images.double()).square().sum().backward()
    losses = []
    step = 2**-16
    for value in (0.25 - step, 0.25 + step):  # exact in float32
        factor.data.fill_(value)
        losses.append(net(images.double()).square().sum().item())
    assert factor.grad.item() == pytest.approx((losses[1] - losses[0]) / 2 / step, rel=0.01)
    assert type(net.layer1[0].bn2.weight) is nn.Parameter  # what the layer holds is its own again


def test_step_moves_factors_of_a_network(network, images):
    net = network(lambda: CifarResNet(20, 10))
    method = StructureSelection(net, (images,), branches={"layer1.0": ("conv1", "bn1", "conv2", "bn2")}, penalty=0.5)
    net(images).square().mean().backward()
    gradient = method.factors["layer1.0.bn2"].grad.item()
    method.after_step(net, lr=0.1)
    z = 1 - 0.1 * gradient - 0.05
    assert method.factors["layer1.0.bn2"].item() == pytest.approx(z + 0.9 * (z - 1))
    assert method.factors["layer1.0.bn2"].grad is None


def test_processes_share_the_mean_gradient(network, images, monkeypatch):
    class Two:
        @staticmethod
        def all_reduce(gradients):
            gradients += 3.0  # what the other process has

        is_available = is_initialized = staticmethod(lambda: True)
        get_world_size = staticmethod(lambda: 2)

    monkeypatch.setattr(structure_selection, "distributed", Two)
    net = network(lambda: CifarResNet(20, 10))
    method = StructureSelection(net, (images,), penalty=0.0, momentum=0.0)
    method.factors["layer1.0.bn2"].grad = torch.tensor([1.0])
    method.after_step(net, lr=0.1)
    assert method.factors["layer1.0.bn2"].item() == pytest.approx(1 - 0.1 * 2)
    assert method.factors["layer1.1.bn2"].item() == pytest.approx(1 - 0.1 * 1.5)  # its own was 0


@pytest.mark.parametrize("make", [resnet18, lambda: CifarResNet(20, 10)])
def test_blocks_of_factor_zero_disappear(make, network, images, tmp_path):
    net = network(make)
    method = StructureSelection(net, (images,))
    for name, factor in method.factors.items():
        factor.data.fill_(0.0 if name in ("layer1.0.bn2", "layer2.0.bn2", "layer3.1.bn2") else 0.7)
    expected = net(images)
    learned = method.slim(net)
    torch.testing.assert_close(learned.model.eval()(images), expected, rtol=1e-4, atol=1e-4)
    assert set(learned.spec.removed_blocks) == {"layer1.0", "layer2.0", "layer3.1"}
    assert {d.group: (d.num_kept, d.reason) for d in learned.decisions}["layer2.0"] == (0, None)
    assert {d.group: d.reason for d in learned.decisions}["layer2.1"] == "factor 0.7"
    assert sum(p.numel() for p in learned.model.parameters()) < sum(p.numel() for p in net.parameters())
    save_slim(tmp_path / "slim.safetensors", learned.model, learned.spec)
    loaded, _ = load_slim(tmp_path / "slim.safetensors", make)
    torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-4)
    learned.model.train()(images).square().sum().backward()


def test_groups_and_blocks_of_resnext_disappear(network, images):
    net = network(lambda: resnext50_32x4d(num_classes=5))
    method = StructureSelection(net, (images,))
    assert len(method.factors["layer1.0.bn2"]) == 32
    assert len(method.factors["layer1.0.bn3"]) == 1
    for factor in method.factors.values():
        factor.data.fill_(0.8)
    method.factors["layer1.1.bn2"].data[[0, 5, 31]] = 0
    method.factors["layer2.0.bn2"].data[2:] = 0
    method.factors["layer3.2.bn3"].data.zero_()
    method.factors["layer3.2.bn2"].data[:4] = 0  # gone with its block
    expected = net(images)
    learned = method.slim(net)
    torch.testing.assert_close(learned.model.eval()(images), expected, rtol=1e-4, atol=1e-4)
    assert learned.model.layer1[1].conv2.groups == 29
    assert (learned.model.layer2[0].conv2.groups, learned.model.layer2[0].conv1.out_channels) == (2, 2 * 8)
    assert list(learned.spec.removed_blocks) == ["layer3.2"]
    kept = learned.spec.layers["layer1.1.bn2"].kept_out
    assert sorted(set(range(128)) - {*kept}) == [*range(4), *range(20, 24), *range(124, 128)]


def test_layer_whose_groups_are_all_zero_keeps_one(network, images):
    net = network(lambda: resnext50_32x4d(num_classes=5))
    method = StructureSelection(net, (images,), branches={}, group_norms={"layer1.0.bn2": 32})
    method.factors["layer1.0.bn2"].data.zero_()
    learned = method.slim(net)
    assert learned.model.layer1[0].conv2.groups == 1
    torch.testing.assert_close(learned.model.eval()(images), net(images), rtol=1e-4, atol=1e-4)


def rising(method):
    """Give the blocks rising factors, 0.1, 0.2, ..., in the order of the forward pass."""
    for i, (block, layers) in enumerate(method.branches.items()):
        method.factors[f"{block}.{layers[-1]}"].data.fill_(0.1 * (i + 1))


@pytest.mark.parametrize(
    ("ratio", "num_zero", "removed"),
    [
        (0.0, 0, []),
        (0.0, 1, ["layer4.1"]),  # the paper's: what is zero
        (0.3, 0, ["layer1.0", "layer1.1"]),  # floor(0.3 * 8)
        (0.3, 1, ["layer1.0", "layer4.1"]),  # the zero is among the two
        (0.3, 3, ["layer3.1", "layer4.0", "layer4.1"]),  # more are zero than asked for
    ],
)
def test_zeros_go_and_then_the_smallest_up_to_the_ratio(network, images, ratio, num_zero, removed):
    net = network(resnet18)
    method = StructureSelection(net, (images,), prune_ratio=ratio)
    rising(method)
    for block in ("layer4.1", "layer4.0", "layer3.1")[:num_zero]:
        method.factors[f"{block}.bn2"].data.zero_()
    assert sorted(method.slim(net).spec.removed_blocks) == removed


def test_bottlenecks_of_the_smallest_factors_are_as_if_zero(network, images):
    net = network(lambda: resnet50(num_classes=5))
    method = StructureSelection(net, (images,), prune_ratio=0.5)
    rising(method)
    learned = method.slim(net)
    assert list(learned.spec.removed_blocks) == [
        *("layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer2.3", "layer3.0")
    ]
    for block in learned.spec.removed_blocks:
        method.factors[f"{block}.bn3"].data.zero_()
    torch.testing.assert_close(learned.model.eval()(images), net(images), rtol=1e-4, atol=1e-5)
    left = {name.rpartition(".")[0] for name, _ in learned.model.layer1[0].named_parameters()}
    assert left == {"downsample.0", "downsample.1"}  # what the next block needs


def test_the_smallest_groups_go_up_to_the_ratio(network, images):
    net = network(lambda: resnext50_32x4d(num_classes=5))
    norms = {"layer1.0.bn2": 32, "layer1.1.bn2": 32}
    method = StructureSelection(net, (images,), branches={}, group_norms=norms, prune_ratio=0.75)
    method.factors["layer1.0.bn2"].data = torch.arange(1.0, 33)
    method.factors["layer1.1.bn2"].data = torch.linspace(0.1, 0.9, 32)
    learned = method.slim(net)
    # 48 of 64 go: the second layer's but its best, 31, and the 17 smallest of the first
    assert [learned.model.layer1[i].conv2.groups for i in range(2)] == [15, 1]
    method.factors["layer1.0.bn2"].data[:17] = 0
    method.factors["layer1.1.bn2"].data[:31] = 0
    torch.testing.assert_close(learned.model.eval()(images), net(images), rtol=1e-4, atol=1e-4)


def test_blocks_and_groups_that_are_skipped_have_no_factor(images):
    net = resnext50_32x4d(num_classes=5)
    method = StructureSelection(net, (images,), skip=("layer1.*", "layer2.*", "layer3.*", "layer4.[01].*"))
    assert list(method.factors) == ["layer4.2.bn2", "layer4.2.bn3"]


class PreActivation(nn.Module):
    """The published kind of block: it ends in a convolution; its projection reads the activation."""

    def __init__(self, num_in, num_out):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(num_in), nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(num_out), nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.project = nn.Conv2d(num_in, num_out, 1, bias=False) if num_in != num_out else None

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(active)
        return self.conv2(torch.relu(self.bn2(self.conv1(active)))) + shortcut


def test_removed_first_block_keeps_the_norm_its_projection_reads(network, images):
    net = network(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), PreActivation(4, 8), PreActivation(8, 8)))
    method = StructureSelection(net, (images,))
    assert list(method.factors) == ["1.conv2", "2.conv2"]
    for factor in method.factors.values():
        factor.data.zero_()
    learned = method.slim(net)
    torch.testing.assert_close(learned.model.eval()(images), net(images), rtol=1e-5, atol=1e-5)
    assert [name for name, _ in learned.model.named_parameters()] == [
        *("0.weight", "0.bias", "1.bn1.weight", "1.bn1.bias", "1.project.weight")
    ]


def test_detached_network_computes_without_factors(network, images):
    net = network(resnet18)
    expected = net(images)
    method = StructureSelection(net, (images,))
    for factor in method.factors.values():
        factor.data.fill_(0.5)
    baked = method.baked_model(net)
    torch.testing.assert_close(baked(images), net(images), rtol=1e-5, atol=1e-5)
    method.detach()
    torch.testing.assert_close(net(images), expected, rtol=0, atol=0)


def test_network_with_factors_is_traced_and_counted_as_without(network, images):
    net = network(resnet18)
    expected = [(group.name, group.num_channels, group.obstacle) for group in find_groups(net, (images,))]
    cost = cost_of(net, (images[:1],))
    method = StructureSelection(net, (images,))
    assert [(group.name, group.num_channels, group.obstacle) for group in find_groups(net, (images,))] == expected
    assert cost_of(net, (images[:1],)) == cost
    assert all(factor.tolist() == [1.0] for factor in method.factors.values())


def test_copy_of_a_network_follows_the_same_factors(network, images):
    net = network(resnet18)
    method = StructureSelection(net, (images,))
    averaged = copy.deepcopy(net)  # as a moving average has it
    method.factors["layer1.0.bn2"].data.fill_(0.1)
    torch.testing.assert_close(averaged(images), net(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_ratio": 1.0}, "prune_ratio: would remove all channels or more, got 1.0"),
        ({"skip": ("layer9.*",)}, r"skip\['layer9.\*'\]: matches no layer"),
        ({"branches": {}}, "model: has no residual branch or group to select"),
        ({"branches": {"layer1.0": ("relu",)}}, "layer1.0.relu: has no weight that a factor could scale"),
        ({"branches": {"layer1.9": ("bn2",)}}, "layer1.9.bn2: the spec is for another model"),
        ({"branches": {}, "group_norms": {"bn1": 3}}, "bn1: cannot be scaled in 3 groups"),
    ],
)
def test_what_cannot_be_selected_is_refused(options, message, images):
    with pytest.raises(ValueError, match=message):
        StructureSelection(resnet18(), (images,), **options)


class Grouped(nn.Module):
    """A grouped convolution whose input another layer reads too."""

    def __init__(self, act):
        super().__init__()
        self.a, self.g, self.n = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.BatchNorm2d(8)
        self.d, self.e, self.act = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1), act

    def forward(self, x):
        x = self.a(x).relu()
        return self.d(self.act(self.n(self.g(x)))) + self.e(x)


@pytest.mark.parametrize("act", [torch.relu, torch.sigmoid])
def test_groups_whose_channels_are_read_elsewhere_are_not_cut(act):
    torch.manual_seed(0)
    net = nn.Sequential(Grouped(act)).eval()
    method = StructureSelection(net, (torch.randn(2, 3, 8, 8),), branches={})
    method.factors["0.n"].data[[1, 2]] = 0
    with pytest.raises(ValueError, match="are read elsewhere, or are not zero after their activation"):
        method.slim(net)


class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return x + self.conv(x)


def test_a_layer_that_ends_two_blocks_is_refused():
    conv = nn.Conv2d(4, 4, 1)
    net = nn.Sequential(Block(conv), Block(conv))
    with pytest.raises(ValueError, match="one layer would have two factors"):
        StructureSelection(net, (torch.randn(2, 4, 8, 8),), branches={"0": ("conv",), "1": ("conv",)})


def test_a_block_goes_with_the_one_around_it():
    inner = Block(nn.Conv2d(4, 4, 1))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.last = inner, nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return x + self.last(self.i(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Outer())
    method = StructureSelection(net, (torch.randn(2, 3, 8, 8),), branches={"1": ("i", "last"), "1.i": ("conv",)})
    for factor in method.factors.values():
        factor.data.zero_()
    learned = method.slim(net.eval())
    assert [*learned.spec.removed_blocks] == ["1"]


class DropsItself(Block):
    def forward(self, x):
        return nn.functional.dropout(x + self.conv(x), 0.5, self.training)


def test_a_block_that_does_otherwise_in_training_is_not_removed():
    net = nn.Sequential(DropsItself(nn.Conv2d(4, 4, 1)))
    with pytest.raises(ValueError, match="0: cannot be removed, its own forward pass does otherwise in training"):
        slim_model(net, PruneSpec({}, {"0": ("conv",)}))
