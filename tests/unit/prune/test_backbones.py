"""Every backbone at three ratios: found, cut, equal to its masked twin, rebuilt from the spec alone."""

import pytest
import torch
from torch import nn

from classify.backbones import BACKBONES, Architecture, build_classifier
from prune import PruneSpec, cost_of, find_groups, masked_model, narrowed_model, prune_model

pytestmark = pytest.mark.slow

WHOLE = {"convnext_tiny": {"layer_norm"}, "cifar": {"padded with", "model's input"}}
"""What keeps groups whole, besides the model's outputs."""


def difference(one, other):
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.fixture(params=sorted(BACKBONES))
def backbone(request, randomize):
    torch.manual_seed(0)
    side = 32 if "cifar" in request.param or "vgg" in request.param else 64
    dense = build_classifier(Architecture(request.param, 10))
    for name, parameter in dense.named_parameters():
        if name.endswith("layer_scale"):
            parameter.data.uniform_(0.5, 1.5)  # at their first 1e-6 ConvNeXt's blocks would not matter
    return request.param, randomize(dense), torch.randn(2, 3, side, side)


@torch.no_grad()
def test_slim_equals_masked_and_is_rebuilt_from_its_spec(backbone):
    _, dense, image = backbone
    for prune_ratio in (0.3, 0.5, 0.7):
        pruned = prune_model(dense, (image,), prune_ratio)
        expected = pruned.model(image)
        masked = masked_model(dense, pruned.spec)(image)
        assert difference(expected, masked) < 1e-5
        assert difference(masked, dense(image)) > 1e-3  # else the comparison proves nothing
        spec = PruneSpec.from_json(pruned.spec.to_json())
        rebuilt = narrowed_model(dense, spec.widths())
        rebuilt.load_state_dict(pruned.model.state_dict())
        assert torch.equal(rebuilt(image), expected)


def test_pruning_half_saves_macs_and_reports_every_layer(backbone):
    _, dense, image = backbone
    pruned = prune_model(dense, (image[:1],), 0.5)
    dense_cost, slim_cost = (cost_of(model, (image[:1],)) for model in (dense, pruned.model))
    assert slim_cost.macs < 0.75 * dense_cost.macs
    assert slim_cost.params < 0.75 * dense_cost.params
    decided = {layer for decision in pruned.decisions for layer in decision.layers}
    assert decided >= {layer for layer, module in dense.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    for decision in pruned.decisions:
        assert (decision.num_kept == decision.num_channels) == bool(decision.reason)


def test_only_outputs_and_known_exceptions_stay_whole(backbone):
    name, dense, image = backbone
    reasons = {group.obstacle for group in find_groups(dense, (image,))} - {None}
    allowed = WHOLE.get(name, set()) | (WHOLE["cifar"] if name.startswith("resnet") and "cifar" in name else set())
    assert all("an output of the model" in reason or any(word in reason for word in allowed) for reason in reasons)
