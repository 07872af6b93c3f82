import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.explain.causes import (
    Ceilings,
    LayerMs,
    MeasuredLayer,
    Reason,
    paired_layers,
    reasons,
    row_of,
    split_of,
    stages_of,
)
from deploy.explain.node_times import NodeTime
from deploy.explain.onnx_layers import OnnxGraph
from prune.layer_rows import LayerRow

CEILINGS = Ceilings(macs_per_ms=1_000_000, bytes_per_ms=100_000, shortest_ms=0.01)  # balanced at 10 MACs per byte


def chain(*layers, extra=()):
    """A graph of 1x1 convolutions on 4 x 4 maps, each (name, inputs, outputs), with a ReLU after each."""
    nodes, weights, tensor = [], [], "image"
    for name, num_in, num_out in layers:
        weights.append(numpy_helper.from_array(np.ones((num_out, num_in, 1, 1), np.float32), f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [tensor, f"{name}.weight"], [f"{name}.out"], f"conv_{name}"))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], f"relu_{name}"))
        tensor = f"{name}.relu"
    nodes += extra
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, layers[0][1], 4, 4))
    last = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [last], weights)
    return OnnxGraph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def rows(dense, slim):
    return [row_of(*pair) for pair in paired_layers(dense, slim, "A and B")]


def test_layers_are_matched_by_name_with_channels_macs_and_bytes_of_both():
    a, b = rows(chain(("a", 3, 8), ("b", 8, 6)), chain(("a", 3, 5), ("b", 5, 6)))
    assert (a.name, a.type, a.widths) == ("a", "conv 1x1", {"in": (3, 3), "out": (8, 5)})
    assert (a.dense_macs, a.macs) == (16 * 3 * 8, 16 * 3 * 5)  # 16 positions
    assert (a.dense_bytes, a.bytes) == (4 * (48 + 128 + 24), 4 * (48 + 80 + 15))
    assert (b.name, b.widths) == ("b", {"in": (8, 5), "out": (6, 6)})


def test_layers_of_other_names_are_matched_by_order():
    pairs = paired_layers(chain(("a", 3, 8), ("b", 8, 6)), chain(("x", 3, 5), ("y", 5, 6)), "A and B")
    assert [(dense.name, slim.name) for dense, slim in pairs] == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize(
    ("slim", "message"),
    [
        ([("a", 3, 8)], r"got 2 and 1 layers, b in only one of them"),
        ([("a", 3, 8), ("c", 8, 6)], r"got 2 and 2 layers, b in only one of them"),
        ([("x", 3, 8), ("y", 8, 6), ("z", 6, 6)], r"got 2 and 3 layers;"),
        ([("a", 3, 9), ("b", 9, 6)], r"got a as conv 1x1 3 to 8 and conv 1x1 3 to 9;"),
    ],
)
def test_two_networks_are_refused(slim, message):
    with pytest.raises(ValueError, match=rf"^A and B: different networks, {message}.*in this order$"):
        paired_layers(chain(("a", 3, 8), ("b", 8, 6)), chain(*slim), "A and B")


def test_a_graph_without_weights_is_refused():
    empty = chain(("a", 3, 8))
    empty.layers.clear()
    with pytest.raises(ValueError, match=r"^A and B: nothing to explain, got no layers with weights; expected"):
        paired_layers(empty, empty, "A and B")


def test_stages_follow_from_weights_and_what_lies_between_them():
    detector = chain(
        ("backbone.net.conv1", 3, 8),
        ("neck.lateral", 8, 8),
        ("proposals.head.rpn_conv", 8, 8),
        extra=[
            helper.make_node("Sigmoid", ["proposals.head.rpn_conv.relu"], ["scores"], "choose proposals"),
            helper.make_node("Concat", ["neck.lateral.relu"], ["canvas"], "stack maps", axis=0),
            helper.make_node("GridSample", ["canvas", "scores"], ["rois"], "sample"),
            helper.make_node("MatMul", ["rois", "detections.head.fc.weight"], ["boxes"], "fc"),
            helper.make_node("Exp", ["boxes"], ["y"], "decode"),
        ],
    )
    stages = stages_of(detector)
    assert stages == {
        "conv_backbone.net.conv1": "backbone",
        "relu_backbone.net.conv1": "backbone",
        "conv_neck.lateral": "neck",
        "relu_neck.lateral": "neck",
        "conv_proposals.head.rpn_conv": "rpn",
        "relu_proposals.head.rpn_conv": "postprocessing",  # nothing of the RPN follows it
        "choose proposals": "postprocessing",
        "stack maps": "roi_head",
        "sample": "roi_head",
        "fc": "roi_head",
        "decode": "postprocessing",
    }


def test_a_detector_that_scales_its_images_has_the_same_stages():
    stages = stages_of(chain(("detector.backbone.net.conv1", 3, 8), ("detector.neck.lateral", 8, 8)))
    assert [stages["conv_detector.backbone.net.conv1"], stages["conv_detector.neck.lateral"]] == ["backbone", "neck"]


def test_a_network_that_is_not_a_detector_is_one_stage():
    assert set(stages_of(chain(("a", 3, 8), ("b", 8, 6))).values()) == {"network"}


def node_time(name, time_ms, operator="Conv"):
    return NodeTime(name, operator, time_ms, (), ())


def test_times_go_to_layers_to_layout_or_to_the_rest():
    graph = chain(("a", 3, 8), ("b", 8, 6))
    times = [
        node_time("conv_a", 4.0),
        node_time("ReorderOutput", 1.0, "ReorderOutput"),
        node_time("conv_b", 2.0),
        node_time("relu_b", 0.5, "Relu"),
        node_time("InsertedByRuntime", 0.25, "Cast"),
    ]
    split = split_of(times, graph, stages_of(graph))
    assert split.layers == {"a": LayerMs(4.0, 0.5, True), "b": LayerMs(2.0, 0.5, True)}
    assert (split.layout_ms, split.rest_ms) == (1.0, {"network": 0.75})
    assert split.total_ms == 7.75
    assert split.short_ms(0.25) == 0.75  # of 0.25 and 0.5, up to three times the shortest


def test_layers_of_one_node_share_its_time_by_their_macs():
    graph = chain(("a", 3, 8), ("b", 8, 9))  # 24 and 72 per position
    split = split_of([node_time("conv_a + relu_a + conv_b", 4.0, "")], graph, stages_of(graph))
    assert split.layers == {"a": LayerMs(1.0, 0.0, False), "b": LayerMs(3.0, 0.0, False)}


def measured(dense, slim, dense_ms, slim_ms, *, macs, num_bytes, layout_ms=0.0, is_alone=True, calls=1):
    """A layer of (inputs, outputs), with its MACs and bytes dense and slim."""
    row = LayerRow(
        name="a",
        type="conv 3x3",
        dense_channels_in=dense[0],
        channels_in=slim[0],
        dense_channels_out=dense[1],
        channels_out=slim[1],
        groups=1,
        dense_macs=macs[0],
        macs=macs[1],
        dense_activations=1,
        activations=1,
        dense_params=1,
        params=1,
        dense_bytes=num_bytes[0],
        bytes=num_bytes[1],
        reason=None,
    )
    return MeasuredLayer(row, "network", calls, LayerMs(dense_ms), LayerMs(slim_ms, layout_ms, is_alone))


HALVED = {"dense": (64, 64), "slim": (32, 32), "macs": (4_000_000, 1_000_000), "num_bytes": (80_000, 40_000)}
ONE_SIDE = {"dense": (64, 64), "slim": (64, 32), "macs": (4_000_000, 2_000_000), "num_bytes": (80_000, 70_000)}
ODD = {"dense": (64, 64), "slim": (36, 64), "macs": (4_000_000, 2_250_000), "num_bytes": (80_000, 40_000)}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # a quarter of the MACs: three times as fast is enough
        (measured(**HALVED, dense_ms=8.0, slim_ms=2.66), []),
        (measured(**HALVED, dense_ms=8.0, slim_ms=2.68), [Reason("unexplained", "37 % of the peak, dense 50 %")]),
        # 10 % of the MACs gone: 7.5 % of the time is enough, a speedup of 1.081
        (measured((64, 64), (56, 64), 8.0, 7.39, macs=(1000, 900), num_bytes=(80, 72)), []),
        (
            measured((64, 64), (56, 64), 8.0, 7.41, macs=(1000, 900), num_bytes=(80, 72)),
            [Reason("unexplained", "0 % of the peak, dense 0 %")],
        ),
        (measured(**HALVED, dense_ms=8.0, slim_ms=4.0), [Reason("unexplained", "25 % of the peak, dense 50 %")]),
        (
            measured((64, 64), (64, 64), 8.0, 7.9, macs=(400, 400), num_bytes=(80, 80)),
            [Reason("uncut", "left whole: 7.900 ms, dense 8.000 ms")],
        ),
        (  # 36 run as 40: 10 % of the work
            measured(**ODD, dense_ms=8.0, slim_ms=7.0),
            [Reason("misaligned", "36 channels, no multiple of 8: 10 % of its work if padded")],
        ),
        (
            measured(**ONE_SIDE, dense_ms=8.0, slim_ms=7.0),
            [Reason("half_cut", "cut on one side: bytes moved fell by 12 %, MACs by 50 %")],
        ),
        (  # below 10 MACs per byte in both; 800 000 bytes take 8 ms, so the slim layer's 6 are 75 % of 8 ms
            measured((64, 64), (32, 32), 10.0, 8.0, macs=(4_000_000, 1_000_000), num_bytes=(1_000_000, 600_000)),
            [Reason("memory_bound", "bound by memory at 1.7 MACs per byte: bytes moved fell by 40 %, MACs by 75 %")],
        ),
        (  # the same bytes in a layer that takes ten times as long: moving them is a fraction of it
            measured((64, 64), (32, 32), 100.0, 80.0, macs=(4_000_000, 1_000_000), num_bytes=(1_000_000, 600_000)),
            [Reason("unexplained", "1 % of the peak, dense 4 %")],
        ),
        (  # depthwise: bytes fall as MACs do, so memory is no reason to gain less
            measured((64, 64), (32, 32), 10.0, 8.0, macs=(1_000_000, 500_000), num_bytes=(1_000_000, 500_000)),
            [Reason("unexplained", "6 % of the peak, dense 10 %")],
        ),
        (  # five calls of 0.03 ms, three times the shortest node
            measured(**HALVED, dense_ms=0.2, slim_ms=0.15, calls=5),
            [Reason("overhead", "0.030 ms per call, the shortest node takes 0.010 ms")],
        ),
        (  # its own time fell as it should, that of its layout changes did not
            measured(**HALVED, dense_ms=8.0, slim_ms=2.0, layout_ms=0.3),
            [Reason("layout", "0.300 ms on top of 2.000 ms, dense 0.000 ms")],
        ),
        (measured(**HALVED, dense_ms=8.0, slim_ms=8.0, is_alone=False), []),
        (measured(**HALVED, dense_ms=0.0, slim_ms=8.0), []),  # the runtime reported no time
    ],
)
def test_causes_follow_from_the_figures(layer, expected):
    assert reasons(layer, CEILINGS) == expected


def test_several_causes_are_all_reported():
    layer = measured((64, 64), (64, 36), 0.04, 0.03, macs=(4_000, 2_250), num_bytes=(800, 700))
    assert [reason.cause for reason in reasons(layer, CEILINGS)] == ["misaligned", "half_cut", "overhead"]


def test_lost_time_is_what_exceeds_the_mac_reduction():
    layer = measured(**HALVED, dense_ms=8.0, slim_ms=5.0)
    assert (layer.mac_reduction, layer.speedup, layer.lost_ms) == (4.0, 1.6, 3.0)
