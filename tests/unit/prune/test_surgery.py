import pytest
import torch
from torch import nn
from torchvision import models

from prune import LayerCut, PruneSpec, masked_model, narrowed_model, prune_model, slim_model


def outputs_of(net, image):
    """Return the outputs as a list of tensors."""
    with torch.no_grad():
        outputs = net.eval()(image)
    return [outputs] if isinstance(outputs, torch.Tensor) else [*getattr(outputs, "values", lambda: outputs)()]


def difference(one, other, image):
    """Return the largest difference of the outputs, relative to the largest output."""
    pairs = zip(outputs_of(one, image), outputs_of(other, image), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@pytest.mark.parametrize("prune_ratio", [0.0, 0.4, 0.7])
def test_slim_equals_masked_on_tiny_nets(declared, x, prune_ratio, randomize):
    net = randomize(declared[0])
    pruned = prune_model(net, (x,), prune_ratio)
    assert difference(pruned.model, masked_model(net, pruned.spec), x) < 1e-5


@pytest.mark.parametrize(
    ("name", "prune_ratio", "side"),
    [
        ("resnet18", 0.3, 64),
        ("resnet18", 0.7, 64),
        ("resnet34", 0.5, 64),
        ("resnet50", 0.3, 64),
        ("resnet50", 0.7, 64),
        ("vgg16_bn", 0.5, 32),
    ],
)
def test_slim_equals_masked(name, prune_ratio, side, randomize):
    torch.manual_seed(0)
    image = torch.randn(2, 3, side, side)
    dense = randomize(models.get_model(name, num_classes=10))
    pruned = prune_model(dense, (image,), prune_ratio)
    masked = masked_model(dense, pruned.spec)
    assert difference(pruned.model, masked, image) < 1e-5
    assert difference(masked, dense, image) > 1e-3  # else the comparison proves nothing


def test_slim_layers_know_their_widths(tiny, x):
    slim = prune_model(tiny("flatten"), (x,), 0.5).model
    # 4 -> 2 channels; 2 x 2 positions each make 8 inputs; 5 -> floor(2.5) = 2 hidden units
    assert (slim[0].in_channels, slim[0].out_channels) == (3, 2)
    assert (slim[3].in_features, slim[3].out_features) == (8, 2)
    assert (slim[4].in_features, slim[4].out_features) == (2, 2)


def test_slim_model_keeps_what_is_frozen_and_trains_the_rest(tiny, x):
    net = tiny("plain")
    net[0].requires_grad_(False)
    slim = prune_model(net, (x,), 0.5).model.train()
    slim(x).sum().backward()
    assert slim[0].weight.grad is None
    assert slim[1].weight.grad.shape == (2,)
    assert slim[3].weight.grad.shape == (2, 2, 1, 1)


def test_pruning_leaves_the_dense_model_untouched(tiny, x, same_state):
    net = tiny("plain").train()
    prune_model(net, (x,), 0.5)
    assert same_state(net, tiny("plain"))
    assert net.training
    assert net[0].out_channels == 4


def test_masking_leaves_the_dense_model_untouched(tiny, x, same_state):
    net = tiny("plain")
    masked_model(net, prune_model(net, (x,), 0.5).spec)
    assert same_state(net, tiny("plain"))


def test_pruning_two_models_in_turn_gives_the_same_as_alone(tiny, x, same_state):
    alone = prune_model(tiny("residual"), (x,), 0.5)
    prune_model(tiny("plain"), (x,), 0.25, ratios={"0": 0.75}, skip=["3"])
    after = prune_model(tiny("residual"), (x,), 0.5)
    assert after.spec == alone.spec
    assert same_state(after.model, alone.model)


def test_model_rebuilt_from_widths_and_weights_gives_the_same_output(randomize):
    image = torch.randn(1, 3, 64, 64)
    pruned = prune_model(randomize(models.resnet18(num_classes=5)), (image,), 0.3)
    rebuilt = narrowed_model(models.resnet18(num_classes=5), pruned.spec.widths())
    rebuilt.load_state_dict(pruned.model.state_dict())
    assert torch.equal(rebuilt.eval()(image), pruned.model.eval()(image))


def test_spec_of_another_width_is_refused(tiny):
    spec = PruneSpec({"3": LayerCut(kept_in=(0, 1), num_out=2, num_in=8)})
    with pytest.raises(ValueError, match=r"3: the spec is for another model, got \(4, 2\) .* expected \(8, 2\)"):
        slim_model(tiny("plain"), spec)


@pytest.mark.parametrize("cut", [slim_model, masked_model])
def test_spec_of_another_model_is_refused(tiny, x, cut):
    spec = prune_model(tiny("residual"), (x,), 0.5).spec
    with pytest.raises(ValueError, match="a: the spec is for another model; Sequential has no such layer"):
        cut(tiny("plain"), spec)


def test_layer_is_never_widened(tiny):
    with pytest.raises(ValueError, match=r"0: cannot be widened, got \(3, 5\); expected at most \(3, 4\)"):
        narrowed_model(tiny("plain"), {"0": (3, 5)})


def test_layer_without_widths_is_refused(tiny):
    with pytest.raises(ValueError, match="has no widths, got ReLU"):
        narrowed_model(tiny("plain"), {"2": (4, 4)})


class Halves(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(5, 8), torch.nn.Linear(4, 4)
        self.sizes, self.width = [4, 4], 8

    def forward(self, x):
        one, two = torch.split(self.a(x), self.sizes, 1)
        return self.b(one * two)


def test_old_widths_are_listed_beside_sizes_in_a_list():
    pruned = prune_model(Halves(), (torch.randn(3, 5),), 0.5)
    assert pruned.model.sizes == [2, 2]
    assert pruned.unchanged_widths == {"width": 8}


def test_network_of_torch_fx_is_cut(x):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    traced = torch.fx.symbolic_trace(net)
    pruned = prune_model(traced, (x,), 0.5)
    torch.testing.assert_close(pruned.model(x), prune_model(net, (x,), 0.5).model(x), rtol=0, atol=0)
    torch.testing.assert_close(traced(x), net(x), rtol=0, atol=0)
