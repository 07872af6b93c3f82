import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from command.errors import RequestError
from prune.learn.magnitude import (
    HeldMasks,
    magnitude_masks,
    redraw,
    sparse_macs,
    two_of_four_layers,
    two_of_four_masks,
)


def pair(first, second):
    """Two convolutions of one input and these weights, and a linear layer."""
    net = nn.Sequential(*(nn.Conv2d(1, len(w), 1, bias=False) for w in (first, second)), nn.Linear(2, 2))
    for layer, weights in zip(net, (first, second), strict=False):
        layer.weight.data = torch.tensor(weights)[:, None, None, None]
    return net


def left(masks, name):
    return masks[name].flatten().int().tolist()


def test_least_weights_of_all_layers_go_together():
    masks = magnitude_masks(pair([0.1, -5.0, 0.2, 3.0], [-0.3, 0.4, 6.0, 7.0]), 0.5)
    assert masks.keys() == {"0.weight", "1.weight"}  # convolutions alone
    assert (left(masks, "0.weight"), left(masks, "1.weight")) == ([0, 1, 0, 1], [0, 0, 1, 1])


def test_least_weights_of_each_layer_go():
    net = pair([0.1, -0.5, 0.2, 0.3], [-3.0, 4.0, 6.0, 7.0])
    masks = magnitude_masks(net, 0.5, "layer")
    assert (left(masks, "0.weight"), left(masks, "1.weight")) == ([0, 1, 0, 1], [0, 0, 1, 1])


def test_exactly_the_share_goes_also_of_equal_weights():
    # the official code would lose one more of ten: those not above the fourth; and all that equal it
    masks = magnitude_masks(pair([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]), 0.3)
    assert sum(int(mask.sum()) for mask in masks.values()) == 7
    masks = magnitude_masks(pair([1.0, 1.0, 1.0], [1.0, 1.0]), 0.7)  # floor(3.5)
    assert (left(masks, "0.weight"), left(masks, "1.weight")) == ([0, 0, 0], [1, 1])


def test_ratio_is_taken_as_its_decimal_text():
    masks = magnitude_masks(
        pair([1.0] * 10, [9.0] * 10), 0.7, "layer"
    )  # 10 * 0.7 is 7.000000000000001 or 6.999 in floats
    assert int(masks["0.weight"].sum()) == 3


def test_later_rounds_take_their_share_of_what_is_left():
    net = pair([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0])
    first = magnitude_masks(net, 0.5)
    net[0].weight.data.fill_(9.0)  # it grows, but is gone
    second = magnitude_masks(net, 0.5, within=first)
    assert (left(second, "0.weight"), left(second, "1.weight")) == ([0, 0, 0, 0], [0, 0, 1, 1])
    assert left(first, "1.weight") == [1, 1, 1, 1]


def test_patterns_name_linear_layers_too():
    net = pair([1.0, 2.0], [3.0, 4.0])
    assert magnitude_masks(net, 0.5, layers=["0", "2"]).keys() == {"0.weight", "2.weight"}
    with pytest.raises(ValueError, match="layers: no convolution or linear layer matches, got '9'"):
        magnitude_masks(net, 0.5, layers=["9"])
    with pytest.raises(ValueError, match="prune_ratio: would remove all channels or more, got 1"):
        magnitude_masks(net, 1.0)
    with pytest.raises(ValueError, match="scope: unknown, got 'all'; expected global or layer"):
        magnitude_masks(net, 0.5, "all")


def test_masked_weights_stay_zero_through_momentum_and_decay():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)

    def step():
        net(torch.randn(4, 3, 3, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # momentum is there before the masks are
    masks = magnitude_masks(net, 0.5)
    method = HeldMasks(net, masks)
    for _ in range(3):
        before = net[0].weight.detach().clone()
        step()
        method.after_step(net, 0.1)
        assert torch.equal(net[0].weight != 0, masks["0.weight"])
        assert not torch.equal(net[0].weight, before)


def test_masks_are_held_in_another_precision():
    net = nn.Conv2d(3, 8, 3)
    method = HeldMasks(net, {"weight": torch.arange(216).view(8, 3, 3, 3) % 2 == 0})
    net.double()
    nn.init.ones_(net.weight)
    method.after_step(net, 0.1)
    assert net.weight.dtype == torch.float64
    assert int(net.weight.sum()) == 108


def test_new_weights_are_as_wide_as_what_is_left_demands():
    net = nn.Sequential(nn.Conv2d(64, 64, 3))
    mask = torch.zeros(64, 64, 3, 3, dtype=torch.bool)
    mask[:, :16] = True  # a quarter
    drawn = {}
    for scale in ("dense", "sparse"):
        redraw(net, {"0.weight": mask}, scale, seed=1)
        drawn[scale] = net[0].weight.detach().clone()
        assert torch.equal(drawn[scale] != 0, mask)
    torch.testing.assert_close(drawn["sparse"], 2 * drawn["dense"])  # sqrt(1 / density)
    # He by outputs: sqrt(2 / (9 * 64)); of 9216 numbers the deviation is off by 0.7 %
    assert drawn["dense"][mask].std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.06)
    redraw(net, {"0.weight": mask}, "sparse", seed=2)
    assert not torch.equal(net[0].weight, drawn["sparse"])


def test_layer_with_nothing_left_is_drawn_as_zero():
    net = nn.Sequential(nn.Conv2d(4, 4, 3))
    redraw(net, {"0.weight": torch.zeros(4, 4, 3, 3, dtype=torch.bool)}, "sparse")
    assert not net[0].weight.any()


def test_multiply_adds_of_masked_weights_are_left_out():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, 10))
    mask = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    mask.view(-1)[:27] = True
    image = torch.zeros(1, 3, 8, 8)
    assert sparse_macs(net, {"0.weight": mask}, (image,)) == 64 * 27 + 64 * 16 + 2560
    assert sparse_macs(net, {}, (image,)) == 64 * 108 + 64 * 16 + 2560


def test_two_of_every_four_inputs_stay():
    net = nn.Sequential(nn.Conv2d(8, 1, (1, 2), bias=False))
    net[0].weight.data[0, :, 0, 0] = torch.tensor([1.0, -4.0, 2.0, 3.0, 0.5, 0.1, -0.2, 0.3])
    net[0].weight.data[0, :, 0, 1] = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 9.0, 0.0])
    mask = two_of_four_masks(net)["0.weight"]
    assert mask[0, :, 0, 0].int().tolist() == [0, 1, 0, 1, 1, 0, 0, 1]
    assert mask[0, :, 0, 1].int().tolist() == [1, 1, 0, 0, 1, 0, 1, 0]  # of equal ones the first


def test_linear_layers_have_the_pattern_along_their_inputs():
    net = nn.Sequential(nn.Linear(4, 2))
    net[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    assert two_of_four_masks(net)["0.weight"].int().tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_pattern_is_what_tensorrt_reads():
    """The rule of TensorRT's developer guide: of weights (K, C, R, S), at most two of four along C are not zero."""
    net = resnet18()
    HeldMasks(net, masks := two_of_four_masks(net))
    assert len(masks) == 20  # all but the first convolution, which reads three channels
    for name in masks:
        weight = net.get_parameter(name).detach().numpy()
        fours = np.moveaxis(weight.reshape(*weight.shape, *[1] * (4 - weight.ndim)), 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(fours, axis=1) == 2).all()


def test_layers_that_qualify_are_named():
    assert "conv1" not in two_of_four_layers(resnet18())
    assert two_of_four_layers(resnet18())[-1] == "fc"
    named = two_of_four_layers(mobilenet_v2())
    assert "features.1.conv.1" in named  # 32 -> 16
    assert "features.1.conv.0.0" not in named  # depthwise
    assert two_of_four_layers(nn.Sequential(nn.ConvTranspose2d(8, 8, 2), nn.Conv2d(6, 8, 1))) == ()
    assert two_of_four_layers(resnet18(), ["layer4.*.conv1"]) == ("layer4.0.conv1", "layer4.1.conv1")


@pytest.mark.parametrize(
    ("masks", "line"),
    [
        ({"9.weight": torch.ones(2, 1, 1, 1) > 0}, "no such parameter, got '9.weight'; expected the model's own"),
        (
            {"0.weight": torch.ones(2) > 0},
            r"0.weight does not fit, got torch.bool \(2,\); expected torch.bool \(2, 1, 1, 1\)",
        ),
        ({"0.weight": torch.ones(2, 1, 1, 1)}, r"0.weight does not fit, got torch.float32 \(2, 1, 1, 1\); "),
    ],
)
def test_masks_of_another_model_are_refused(masks, line):
    net = pair([1.0, 2.0], [3.0, 4.0])
    for act in (HeldMasks, redraw, lambda net, masks: sparse_macs(net, masks, (torch.zeros(1, 1, 1, 1),))):
        with pytest.raises(RequestError, match=f"^masks: {line}"):
            act(net, masks)
    with pytest.raises(RequestError, match=f"^within: {line}"):
        magnitude_masks(net, 0.5, within=masks)


def test_earlier_round_without_a_layer_is_refused():
    with pytest.raises(RequestError, match=r"^within: has no mask of 0.weight; expected one of each layer, or None"):
        magnitude_masks(pair([1.0, 2.0], [3.0, 4.0]), 0.5, within={})


def test_state_with_masks_of_another_model_is_refused():
    net = pair([1.0, 2.0], [3.0, 4.0])
    method, other = HeldMasks(net, magnitude_masks(net, 0.5)), pair([1.0, 2.0, 3.0], [4.0])
    method.load_state_dict(HeldMasks(other, magnitude_masks(other, 0.5)).state_dict())
    with pytest.raises(RequestError, match=r"^masks: 0.weight does not fit, got torch.bool \(3, 1, 1, 1\); expected"):
        method.after_step(net, 0.1)


def test_masked_weights_that_overflow_are_zero_too():
    net = pair([float("inf"), 2.0, float("nan"), -3.0], [1.0])
    HeldMasks(net, {"0.weight": torch.tensor([False, True, False, True])[:, None, None, None]})
    assert net[0].weight.flatten().tolist() == [0.0, 2.0, 0.0, -3.0]


def test_grouped_convolutions_are_drawn_by_the_outputs_of_a_group():
    net = nn.Sequential(nn.Conv2d(64, 64, 3, groups=4), nn.ConvTranspose2d(32, 64, 3, groups=2))
    masks = {f"{i}.weight": torch.ones_like(net[i].weight, dtype=torch.bool) for i in range(2)}
    redraw(net, masks, "dense", seed=0)
    # of 9216 numbers each the deviation is off by 0.7 %
    assert net[0].weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.06)
    assert net[1].weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.06)


def test_new_weights_of_other_layers_are_refused():
    net = nn.Sequential(nn.BatchNorm2d(4))
    with pytest.raises(RequestError, match=r"^masks: of a BatchNorm2d; expected those of convolutions and linear"):
        redraw(net, {"0.weight": torch.ones(4, dtype=torch.bool)})
