import copy
import json

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet50

from classify.cifar import CifarResNet
from prune import LayerCut, PruneSpec, load_slim, masked_model, narrowed_model, prune_model, save_slim, slim_model
from prune.explain import explain
from prune.follow.branches import grouped_norms, residual_branches

BASIC = ("conv1", "bn1", "conv2", "bn2")


def without(model, *blocks):
    """The oracle: zero for the branch, whose last layer is a BatchNorm in all these networks."""
    model = copy.deepcopy(model)
    branches = residual_branches(model)
    for block in blocks:
        end = model.get_submodule(f"{block}.{branches[block][-1]}")
        nn.init.zeros_(end.weight)
        nn.init.zeros_(end.bias)
    return model


def spec_of(model, *blocks):
    branches = residual_branches(model)
    return PruneSpec({}, {block: branches[block] for block in blocks})


@pytest.mark.parametrize(
    ("make", "first", "later"),
    [
        (resnet18, "layer1.0", "layer3.1"),
        (resnet18, "layer2.0", "layer4.0"),  # both with a projection
        (resnet50, "layer1.0", "layer2.3"),
        (lambda: CifarResNet(20, 10), "layer2.0", "layer3.2"),  # a shortcut without parameters
        (lambda: mobilenet_v2().features[:8], "3", "6"),  # no activation after the sum
    ],
)
def test_slim_equals_dense_with_branches_at_zero(make, first, later, randomize):
    torch.manual_seed(0)
    dense, images = randomize(make()), torch.randn(2, 3, 32, 32)
    spec = spec_of(dense, first, later)
    slim, expected = slim_model(dense, spec), without(dense, first, later)(images)
    torch.testing.assert_close(slim(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked_model(dense, spec)(images), expected, rtol=0, atol=0)
    assert not torch.allclose(dense(images), expected, rtol=1e-2, atol=1e-3)
    gone = {f"{block}.{layer}." for block, layers in spec.removed_blocks.items() for layer in layers}
    kept = [name for name in dense.state_dict() if not name.startswith(tuple(gone))]
    assert list(slim.state_dict()) == kept
    slim.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


def test_projection_of_a_removed_first_block_stays():
    slim = slim_model(resnet18(), PruneSpec({}, {"layer2.0": BASIC}))
    assert [name for name, _ in slim.layer2[0].named_parameters()] == [
        *("downsample.0.weight", "downsample.1.weight", "downsample.1.bias")
    ]


def test_branches_are_found_by_their_layers():
    found = residual_branches(resnet50())
    assert list(found) == [f"layer{i}.{j}" for i, num in ((1, 3), (2, 4), (3, 6), (4, 3)) for j in range(num)]
    assert set(found.values()) == {("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")}
    assert set(residual_branches(CifarResNet(20, 10)).values()) == {BASIC}
    assert residual_branches(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))) == {}


class Block(nn.Module):
    """A residual block whose sum is written in another way."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.norm, self.aside = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "branch"),
    [
        (lambda net, x: torch.add(x, net.norm(net.conv(x))), ("conv", "norm")),
        (lambda net, x: net.norm(net.conv(x)).add_(x), ("conv", "norm")),
        (lambda net, x: x.add(net.conv(net.norm(x))), ("norm", "conv")),
        (lambda net, x: net.conv(x) + net.aside(x), None),  # none of the two is the shortcut
        (lambda net, x: x + net.norm(net.conv(x)) + net.aside(x), None),
        (lambda net, x: x + torch.sigmoid(net.conv(x)), None),  # is not zero where the layer is
        (lambda net, x: x + net.conv(x) if x.sum() > 0 else x, None),
        (lambda net, x: x + net.conv(x) * 2, None),
        (lambda net, x: torch.add(net.conv(x), x, alpha=2), None),
        (lambda net, x: net.conv(x) + 1, None),
    ],
)
def test_what_is_a_residual_block(run, branch):
    assert residual_branches(nn.Sequential(Block(run))) == ({} if branch is None else {"0": branch})


class Counting(Block):
    """Writes to itself in its forward pass."""

    def __init__(self):
        super().__init__(lambda net, x: x + net.norm(net.conv(x)))
        self.register_buffer("calls", torch.zeros(()))
        self.seen = None

    def forward(self, x):
        self.calls += 1
        self.conv.weight.data.mul_(0.5)
        self.seen = super().forward(x)
        return self.seen


def test_looking_for_blocks_leaves_the_model_alone(same_state):
    net = nn.Sequential(Counting())
    before = copy.deepcopy(net)
    assert residual_branches(net) == {"0": ("conv", "norm")}
    assert grouped_norms(net) == {}
    assert same_state(net, before)
    assert net[0].seen is None


def test_layer_that_the_shortcut_reads_too_stays(randomize):
    torch.manual_seed(0)
    net = randomize(nn.Sequential(Block(lambda net, x: net.norm(x) + net.aside(net.conv(net.norm(x))))))
    assert residual_branches(net) == {"0": ("conv", "aside")}
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(slim_model(net, spec_of(net, "0"))(images), net[0].norm(images), rtol=0, atol=0)


def test_joined_steps_with_removed_blocks_are_one_step(randomize, same_state):
    torch.manual_seed(0)
    dense, images = randomize(resnet18(num_classes=5)), torch.randn(2, 3, 32, 32)
    first = prune_model(dense, (images,), 0.3)
    second = spec_of(first.model, "layer1.0", "layer3.0")
    third = prune_model(slim_model(first.model, second), (images,), 0.3)
    fourth = spec_of(third.model, "layer2.1")
    last = slim_model(third.model, fourth)
    joined = fourth.after(third.spec.after(second.after(first.spec)))
    assert joined == fourth.after(third.spec).after(second).after(first.spec)
    assert set(joined.removed_blocks) == {"layer1.0", "layer3.0", "layer2.1"}
    again = slim_model(dense, PruneSpec.from_json(joined.to_json()))
    assert same_state(again, last)
    torch.testing.assert_close(again(images), last(images), rtol=0, atol=0)
    torch.testing.assert_close(masked_model(dense, joined)(images), last(images), rtol=1e-4, atol=1e-5)


def test_network_without_blocks_comes_back_from_its_file(tmp_path, randomize):
    torch.manual_seed(0)
    dense, images = randomize(resnet18(num_classes=5)), torch.randn(2, 3, 32, 32)
    first = spec_of(dense, "layer1.0", "layer2.0")
    pruned = prune_model(slim_model(dense, first), (images,), 0.5)
    spec = pruned.spec.after(first)
    save_slim(tmp_path / "slim.safetensors", pruned.model, spec)
    loaded, read = load_slim(tmp_path / "slim.safetensors", lambda: resnet18(num_classes=5))
    assert read == spec
    torch.testing.assert_close(loaded(images), pruned.model(images), rtol=0, atol=0)
    narrowed = narrowed_model(dense, spec.widths(), spec.removed_blocks)
    narrowed.load_state_dict(pruned.model.state_dict())
    torch.testing.assert_close(narrowed.eval()(images), pruned.model(images), rtol=0, atol=0)


def test_model_that_still_has_a_removed_branch_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"layer1.0.conv1: the spec is for another model, got a layer of a removed"):
        save_slim(tmp_path / "slim.safetensors", resnet18(), PruneSpec({}, {"layer1.0": BASIC}))


def test_json_of_a_spec_with_blocks_has_a_version_of_its_own():
    spec = PruneSpec({}, {"layer1.0": BASIC})
    assert json.loads(spec.to_json()) == {"version": 2, "layers": {}, "removed_blocks": {"layer1.0": [*BASIC]}}
    assert PruneSpec.from_json(spec.to_json()) == spec
    assert PruneSpec.from_json('{"version": 1, "layers": {}}') == PruneSpec({})


def test_part_below_a_submodule_has_its_removed_blocks():
    spec = PruneSpec({}, {"backbone.layer1.0": BASIC, "backbones.layer1.0": BASIC})
    assert spec.under("backbone.") == PruneSpec({}, {"layer1.0": BASIC})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2, "layers": {}, "removed_blocks": {"a": []}}', "PruneSpec: a loses no branch"),
        ('{"version": 2, "layers": {}, "removed_blocks": {"": ["b"]}}', "PruneSpec: the model loses no branch"),
        ('{"version": 2, "layers": {}, "removed_blocks": {"a": "b"}}', "PruneSpec: not a spec, got removed_blocks.a"),
        ('{"version": 2, "layers": {}, "removed_blocks": {"a": [1]}}', "PruneSpec: not a spec, got removed_blocks.a.0"),
        ('{"version": 2, "layers": {}, "removed_blocks": [1]}', "PruneSpec: not a spec, got removed_blocks"),
        (
            '{"version": 2, "layers": {"a.b.c": {"num_out": 2}}, "removed_blocks": {"a": ["b"]}}',
            "PruneSpec: a.b.c is cut in a removed block",
        ),
    ],
)
def test_text_with_wrong_blocks_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PruneSpec.from_json(text)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"layer9": BASIC}, "layer9: the spec is for another model; ResNet has no such layer"),
        ({"layer1.0": ("conv1", "bn1")}, "layer1.0: cannot be removed, what bn1 gives is not added to a shortcut"),
        ({"layer1.0": ("conv2", "bn2")}, "layer1.0: the spec is for another model, its branch has conv1, bn1, conv2"),
        ({"layer1.0": ("bn9",)}, "layer1.0: cannot be removed, its forward pass calls bn9 0 times"),
        ({"inplanes": BASIC}, "inplanes: cannot be removed, got int"),
        ({"layer1": ("0", "1")}, "layer1: cannot be removed"),
    ],
)
def test_blocks_that_the_model_lacks_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        slim_model(resnet18(), PruneSpec({}, blocks))


def test_block_is_not_removed_twice_nor_cut_afterwards():
    first = PruneSpec({}, {"a": ("b",)})
    for second in (first, PruneSpec({"a.b": LayerCut((0,), None, 2, 2)})):
        with pytest.raises(ValueError, match=r"a\.b: the spec is for another model, got a layer of a removed block"):
            second.after(first)


def test_removed_blocks_count_in_the_dense_sums_alone():
    dense, spec, image = resnet18(), PruneSpec({}, {"layer1.0": BASIC}), torch.zeros(1, 3, 32, 32)
    slim = slim_model(dense, spec)
    explanation = explain(dense, slim, (image,), {}, spec)
    # two convolutions of 64 -> 64 channels, 3 x 3, on 8 x 8 places
    assert explanation.dense_macs - explanation.macs == 2 * 64 * 64 * 9 * 64
    assert explanation.dense_activations - explanation.activations == 2 * 64 * 64
    assert len(explanation.layers) == 21 - 2
    with pytest.raises(ValueError, match=r"layer1.0.conv1: in one of the two models only"):
        explain(dense, slim, (image,), {})
