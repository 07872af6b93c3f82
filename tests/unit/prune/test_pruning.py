import pytest
import torch
from torch import nn
from torchvision import models

from prune import Decision, cost_of, prune_model


def widths(pruned):
    return {d.group: d.num_kept for d in pruned.decisions}


def test_weakest_channels_go(tiny, x):
    net = tiny("plain")
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([1.0, 3.0, -4.0, 2.0]).view(4, 1, 1, 1)
    slim = prune_model(net, (x,), 0.5).model
    assert slim[0].weight[:, 0, 0, 0].tolist() == [3.0, -4.0]  # in their old order
    assert torch.equal(slim[3].weight, net[3].weight[:, [1, 2]])


def test_ratio_zero_changes_nothing(tiny, x, same_state):
    pruned = prune_model(tiny("residual"), (x,), 0.0)
    assert same_state(pruned.model, tiny("residual"))
    assert pruned.spec.layers == {}


def test_decisions_give_channels_kept_and_reason(tiny, x):
    assert prune_model(tiny("depthwise"), (x,), 0.5, skip=["2"]).decisions == (
        Decision("0", ("0", "1"), 4, 2, None, 2),
        Decision("2", ("2",), 2, 2, "its channels are an output of the model"),
    )


def test_untouched_groups_are_those_with_a_reason(tiny, x):
    pruned = prune_model(tiny("residual"), (x,), 0.5, skip=["b"])
    reasons = {d.group: d.reason for d in pruned.untouched}
    assert reasons == {"b": "skipped by the recipe (b)", "d": "its channels are an output of the model"}


def test_group_kept_whole_by_rounding_gives_it_as_reason(tiny, x):
    pruned = prune_model(tiny("residual"), (x,), 0.5, round_to=8)
    assert pruned.untouched[0].reason == "prune_ratio 0.5 rounded to a multiple of 8 keeps all 4 channels"


@pytest.mark.parametrize("layer", ["a", "c"])
def test_skipping_any_layer_of_a_group_keeps_the_group_whole(tiny, x, layer):
    pruned = prune_model(tiny("residual"), (x,), 0.5, skip=[layer])
    assert widths(pruned) == {"a": 4, "b": 3, "d": 2}


def test_ratios_override_by_pattern_and_the_first_match_counts(tiny, x):
    pruned = prune_model(tiny("fpn"), (x,), 0.0, ratios={"stage2": 0.5, "stage*": 0.25, "lateral2": 0.4})
    # stage1 4 * 0.75 = 3; stage2 6 * 0.5 = 3; the laterals' group 5 * 0.6 = 3
    assert widths(pruned) == {"stage1": 3, "stage2": 3, "lateral1": 3, "out1": 5, "out2": 5}


def test_kept_channels_are_rounded_to_the_multiple():
    pruned = prune_model(models.resnet18(num_classes=2), (torch.zeros(1, 3, 32, 32),), 0.3, round_to=16)
    kept = [num for name, num in widths(pruned).items() if name != "fc"]
    # 64 -> 44 -> 48, 128 -> 89 -> 96 (89 is nearer to 96 than to 80), 256 -> 179 -> 176, 512 -> 358 -> 352
    assert set(kept) == {48, 96, 176, 352}


@pytest.mark.parametrize("prune_ratio", [-0.1, 1.0])
def test_ratio_outside_its_range_is_refused(tiny, x, prune_ratio):
    with pytest.raises(ValueError, match=f"prune_ratio: .* got {prune_ratio}; expected a share"):
        prune_model(tiny("plain"), (x,), prune_ratio)


def test_own_ratio_outside_its_range_is_refused(tiny, x):
    with pytest.raises(ValueError, match=r"ratios\['0'\]: .* got 1.0; expected a share"):
        prune_model(tiny("plain"), (x,), 0.5, ratios={"0": 1.0})


@pytest.mark.parametrize("options", [{"skip": ["lateral3"]}, {"ratios": {"lateral3": 0.5}}])
def test_pattern_that_matches_nothing_is_refused_with_the_nearest_names(tiny, x, options):
    with pytest.raises(ValueError, match=r"lateral3: no layer .*; nearest names: lateral[12], lateral[12]"):
        prune_model(tiny("fpn"), (x,), 0.5, **options)


def test_pattern_that_matches_a_container_only_is_refused():
    with pytest.raises(ValueError, match="layer1: no layer of the model matches; nearest names: layer"):
        prune_model(models.resnet18(), (torch.zeros(1, 3, 32, 32),), 0.5, skip=["layer1"])


def test_unreached_layer_may_be_skipped(tiny, x):
    assert widths(prune_model(tiny("unreached"), (x,), 0.5, skip=["aside"]))["aside"] == 5


def test_unknown_criterion_is_refused(tiny, x):
    with pytest.raises(ValueError, match=r"criterion: unknown, got 'l7'; expected one of \['average_rank', .*'l1'"):
        prune_model(tiny("plain"), (x,), 0.5, criterion="l7")


PAPER = {
    # Li et al. 2017, table 1: the first convolution of every block but the sensitive ones, stages 1 to 3
    "ResNet-34-A": ((0.3, 0.3, 0.3), 20.152, 3.100, (44, 89, 179)),
    "ResNet-34-B": ((0.5, 0.6, 0.4), 19.469, 2.782, (32, 51, 153)),
}


@pytest.mark.parametrize(("shares", "mparams", "gmacs", "channels"), PAPER.values(), ids=PAPER)
def test_paper_s_slim_resnets_have_its_parameters_and_macs(shares, mparams, gmacs, channels):
    blocks = ("layer1.[12].conv1", "layer2.[12].conv1", "layer3.[1-4].conv1")
    small, full = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 224, 224)
    pruned = prune_model(models.resnet34(), (small,), 0.0, ratios=dict(zip(blocks, shares, strict=True)))
    cost = cost_of(pruned.model, (full,))
    assert (round(cost.params / 1e6, 3), round(cost.macs / 1e9, 3)) == (mparams, gmacs)
    assert tuple(widths(pruned)[f"layer{i}.1.conv1"] for i in (1, 2, 3)) == channels


class AddsItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.second(self.first(images) + images)


def test_channels_tied_to_the_input_stay_with_a_reason():
    pruned = prune_model(AddsItsInput(), (torch.zeros(1, 4, 2, 2),), 0.5)
    assert pruned.untouched[0].reason == "tied to the model's input or to a constant"


class CutsAtAFixedPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 2, 1)

    def forward(self, images):
        features = self.first(images)
        return self.second(features if features.numpy().shape[1] == 4 else features.flatten())


def test_model_whose_slim_copy_does_not_run_is_refused():
    with pytest.raises(ValueError, match="model: its slim copy does not run"):
        prune_model(CutsAtAFixedPlace(), (torch.zeros(1, 3, 2, 2),), 0.5)


def test_width_for_a_layer_that_cannot_be_cut_is_refused(tiny, x):
    with pytest.raises(ValueError, match=r"widths\['b'\]: cannot be cut, its channels are an output of the model"):
        prune_model(tiny("two_outputs"), (x,), 0.0, widths={"b": 1})


def test_pattern_of_a_norm_after_concatenation_skips_earlier_layers():
    pruned = prune_model(models.densenet121(), (torch.zeros(1, 3, 32, 32),), 0.5, skip=["features.transition1.*"])
    skipped = [d.group for d in pruned.untouched if d.reason.startswith("skipped")]
    assert skipped == ["features.transition1.conv"]
