import json
import math

import pytest
import torch
from torch import nn

from prune import narrowed_model, prune_model
from prune.explain import explain, untouched_reasons
from prune.layer_rows import Finding

OUTPUT = "its channels are an output of the model"
MAPS = torch.zeros(1, 3, 8, 8)  # 64 positions


def conv(num_in, num_out, kernel=1, groups=1):
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2, groups=groups, bias=False)


def net_of(**layers):
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


def explained(net, image=MAPS, **widths):
    slim = prune_model(net, (image,), 0.0, widths=widths).model
    return explain(net, slim, (image,), untouched_reasons(net, (image,), "not requested"))


def layer_explained(layer, maps, widths):
    """A single layer at (inputs, outputs) width, explained for maps of (height, width)."""
    slim = narrowed_model(net_of(layer=layer), {"layer": widths})
    dense_maps = torch.zeros(1, layer.in_channels, *maps, device="meta")

    class Fed(nn.Module):  # both get the dense maps; the slim layer reads as many channels as it has
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x[:, : self.net.layer.in_channels])

    dense = Fed(net_of(layer=layer)).to("meta")
    return explain(dense, Fed(slim).to("meta"), (dense_maps,), {}).layers[0]


@pytest.fixture
def four():
    """16 -> 12, 16 -> 8 and two layers left whole."""
    net = net_of(a=conv(3, 16), b=conv(16, 16), c=conv(16, 10), d=conv(10, 10))
    return explained(net, a=12, b=8)


def test_costs_of_every_layer_are_the_hand_counts(four):
    rows = {row.name: row for row in four.layers}
    assert list(rows) == ["a", "b", "c", "d"]
    # inputs, outputs, 64 positions: macs = 64 * in * out; activations = 64 * out; params = in * out
    for name, dense, slim in [
        ("a", (3, 16), (3, 12)),
        ("b", (16, 16), (12, 8)),
        ("c", (16, 10), (8, 10)),
        ("d", (10, 10), (10, 10)),
    ]:
        row = rows[name]
        assert (row.dense_channels_in, row.dense_channels_out) == dense
        assert (row.channels_in, row.channels_out) == slim
        assert (row.dense_macs, row.macs) == (64 * math.prod(dense), 64 * math.prod(slim))
        assert (row.dense_activations, row.activations) == (64 * dense[1], 64 * slim[1])
        assert (row.dense_params, row.params) == (math.prod(dense), math.prod(slim))
    assert (rows["b"].dense_bytes, rows["b"].bytes) == (2 * (1024 + 1024 + 256), 2 * (768 + 512 + 96))
    assert rows["b"].macs_per_byte == 6144 / 2752


def test_totals_are_the_hand_counts(four):
    assert (four.dense_macs, four.macs) == (64 * (48 + 256 + 160 + 100), 64 * (36 + 96 + 80 + 100))
    assert (four.dense_activations, four.activations) == (64 * (16 + 16 + 10 + 10), 64 * (12 + 8 + 10 + 10))
    assert (four.dense_params, four.params) == (564, 312)
    assert four.mac_reduction == 564 / 312
    assert four.padded_macs == 64 * (3 * 16 + 16 * 8 + 80 + 100)  # 12 channels run as 16


def test_the_multiple_is_the_largest_of_32_16_8_dividing_the_outputs():
    net = net_of(a=conv(3, 64), b=conv(64, 64), c=conv(64, 64), d=conv(64, 10))
    assert [row.multiple_of for row in explained(net, b=48, c=40).layers] == [32, 16, 8, 1]


def test_a_width_off_the_grid_of_8_misaligns_writer_and_reader(four):
    a, b, c, d = four.layers
    text = "12 channels run as 16: 25 % of its work is padding"
    assert (a.padding, a.slow) == (0.25, "12 channels run as 16, as before pruning: 25 % of its work is padding")
    assert (b.padding, b.findings[1]) == (0.25, Finding("misaligned", text))
    assert (c.padding, d.padding) == (0, 0)  # 10 was off the grid before


def test_a_layer_runs_as_before_if_nothing_was_cut_or_padding_undoes_it(four):
    assert [row.runs_as_before for row in four.layers] == [True, False, False, True]


def test_padding_of_both_sides_multiplies():
    row = layer_explained(conv(16, 16), (8, 8), (12, 9))
    assert row.padding == 1 - 12 / 16 * 9 / 16
    assert "12 channels run as 16 and 9 channels run as 16, as before pruning: 58 % of its work is padding" in row.slow


def test_a_grouped_layer_is_padded_once_as_its_inputs_are_its_groups():
    row = layer_explained(conv(16, 16, 3, groups=16), (8, 8), (12, 12))
    assert (row.type, row.padding) == ("depthwise 3x3", 0.25)


def test_a_layer_below_the_threshold_is_memory_bound_if_bytes_lag(four):
    b, c = four.layers[1:3]
    # b: 2.2 MACs per byte; MACs 256 -> 96; bytes 4608 -> 2752.  c: MACs 160 -> 80; bytes 3648 -> 2464
    assert b.findings[0] == Finding(
        "memory_bound", "bound by memory at 2 MACs per byte: bytes moved fell by 40 %, MACs by 62 %"
    )
    assert c.slow == "bound by memory at 2 MACs per byte: bytes moved fell by 32 %, MACs by 50 %"


@pytest.mark.parametrize(
    ("layer", "maps", "widths"),
    [
        (conv(32, 32, 3, groups=32), (8, 8), (16, 16)),  # depthwise: all of it falls by half
        (conv(512, 512, 3), (7, 7), (256, 512)),  # weights outweigh activations 47 to 1
        (nn.Conv2d(64, 64, 3, padding=1), (56, 56), (32, 32)),  # from 132 to 66 MACs per byte: just below the threshold
    ],
)
def test_a_layer_whose_time_falls_as_its_macs_do_is_not_slow(layer, maps, widths):
    assert layer_explained(layer, maps, widths).slow is None


@pytest.mark.parametrize("widths", [(32, 64), (64, 32)])
def test_a_layer_cut_on_one_side_still_moves_many_bytes(widths):
    row = layer_explained(conv(64, 64, 3), (56, 56), widths)
    # activations 2 x 200704 -> 200704 + 100352, weights 36864 -> 18432: 438272 -> 319488 elements
    assert row.findings == (Finding("half_cut", "cut on one side: bytes moved fell by 27 %, MACs by 50 %"),)
    assert row.macs_per_byte > 69


def test_a_layer_that_was_not_cut_at_all_is_slow_for_its_reason(four):
    d = four.layers[3]
    assert (d.reason, d.slow) == (OUTPUT, f"left whole: {OUTPUT}")
    assert d.findings[0].cause == "uncut"
    assert four.slow == four.layers


def test_layers_with_whole_outputs_have_reasons(four):
    assert [row.reason for row in four.layers] == [None, None, "not requested", OUTPUT]


def test_where_nothing_was_pruned_nothing_is_slow(tiny):
    net = tiny("residual")
    unpruned = explain(net, net, (MAPS,), untouched_reasons(net, (MAPS,), "not requested"))
    assert (unpruned.slow, unpruned.mac_reduction) == ((), 1)


def test_reasons_distinguish_tied_layers_from_uncuttable_ones(tiny):
    assert untouched_reasons(tiny("residual"), (MAPS,), "left") == {
        "a": "left, tied to other layers",
        "b": "left",
        "c": "left, tied to other layers",
        "d": OUTPUT,
    }
    reasons = untouched_reasons(tiny("unreached"), (MAPS,), "left")
    assert reasons["aside"] == "not reached by the forward pass on the example input"


def test_normalisation_layers_are_no_rows_and_get_no_reason(tiny):
    net = tiny("plain")
    assert untouched_reasons(net, (MAPS,), "left") == {"0": "left", "3": OUTPUT}
    assert [row.name for row in explain(net, net, (MAPS,), {}).layers] == ["0", "3"]


def test_a_layer_that_runs_twice_moves_its_bytes_twice(tiny):
    net = tiny("shared_layer")
    row = explain(net, net, (MAPS,), {}).layers[1]
    assert row.bytes == 2 * 2 * (4 * 64 + 4 * 64 + 16 + 4)  # 2 calls of 2 bytes per element, weights and biases


def test_types_name_the_kernel():
    net = net_of(a=conv(8, 8, 3), b=conv(8, 8, 1, groups=2), c=nn.ConvTranspose2d(8, 8, 2, 2), d=nn.Linear(16, 2))
    types = [row.type for row in explain(net, net, (torch.zeros(1, 8, 8, 8),), {}).layers]
    assert types == ["conv 3x3", "conv 1x1 in 2 groups", "transposed conv 2x2", "linear"]


def test_an_explanation_becomes_json(four):
    data = json.loads(json.dumps(four.to_dict()))
    assert data["mac_reduction"] == four.mac_reduction
    first = data["layers"][0]
    assert (first["name"], first["multiple_of"], first["padding"]) == ("a", 1, 0.25)
    assert first["slow"] == "12 channels run as 16, as before pruning: 25 % of its work is padding"
    assert first["findings"] == [{"cause": "misaligned", "text": first["slow"]}]


def test_the_models_may_be_on_the_meta_device(four):
    net = net_of(a=conv(3, 16), b=conv(16, 16), c=conv(16, 10), d=conv(10, 10))
    slim = prune_model(net, (MAPS,), 0.0, widths={"a": 12, "b": 8}).model
    reasons = untouched_reasons(net, (MAPS,), "not requested")
    assert explain(net.to("meta"), slim.to("meta"), (MAPS.to("meta"),), reasons) == four


def test_models_of_other_layers_are_refused(tiny):
    with pytest.raises(ValueError, match=r"^1: in one of the two models only; expected a slim model and its own dense"):
        explain(nn.Sequential(conv(3, 4), conv(4, 4)), nn.Sequential(conv(3, 4)), (MAPS,), {})


def test_no_hook_stays(tiny):
    net = tiny("plain")
    explain(net, net, (MAPS,), {})
    assert not any(layer._forward_hooks for layer in net.modules())
