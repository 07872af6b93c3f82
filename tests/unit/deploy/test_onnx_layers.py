import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from classify.backbones import Architecture, build_classifier
from deploy import onnx_from_module
from deploy.explain.node_times import OnnxProfiler
from deploy.explain.onnx_layers import LAYOUT, OnnxGraph
from deploy.onnx_file import load_onnx
from prune import cost_of, prune_model


def node_times(path, inputs):
    profiler = OnnxProfiler(path)
    profiler.prepare(inputs)()
    return profiler.node_times(1)


def graph_of(nodes, inputs, weights, dtype=np.float32):
    """Return a model of these nodes; the output of the last one is its output."""
    initializers = [numpy_helper.from_array(np.ones(shape, dtype), name) for name, shape in weights.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    made = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", given, [made], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def one_layer(operator, image, weight, **attributes):
    node = helper.make_node(operator, ["x", "block.conv.weight"], ["y"], name="n", **attributes)
    (layer,) = OnnxGraph(graph_of([node], {"x": image}, {"block.conv.weight": weight})).layers.values()
    return layer


def test_costs_of_a_convolution_are_the_hand_counts():
    layer = one_layer("Conv", (2, 3, 8, 8), (16, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    assert (layer.name, layer.operator, layer.kernel, layer.groups) == ("block.conv", "Conv", (3, 3), 1)
    assert (layer.channels_in, layer.channels_out) == (3, 16)
    assert layer.macs == 2 * 16 * 4 * 4 * 27  # batch, outputs, positions, inputs of one output
    assert (layer.params, layer.activations) == (16 * 27, 2 * 16 * 16)
    assert layer.bytes == 4 * (2 * 3 * 64 + 2 * 16 * 16 + 16 * 27)


@pytest.mark.parametrize(
    ("operator", "image", "weight", "attributes", "channels", "macs"),
    [
        ("Conv", (1, 8, 4, 4), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}, (8, 8), 8 * 16 * 9),
        ("Conv", (1, 8, 4, 4), (6, 4, 1, 1), {"group": 2}, (8, 6), 6 * 16 * 4),
        ("ConvTranspose", (1, 4, 5, 5), (4, 6, 2, 2), {"strides": [2, 2]}, (4, 6), 4 * 25 * 6 * 4),
        ("Gemm", (3, 20), (7, 20), {"transB": 1}, (20, 7), 3 * 20 * 7),
        ("MatMul", (1, 5, 20), (20, 7), {}, (20, 7), 5 * 20 * 7),
    ],
)
def test_channels_and_macs_of_other_layers_are_the_hand_counts(operator, image, weight, attributes, channels, macs):
    layer = one_layer(operator, image, weight, **attributes)
    assert ((layer.channels_in, layer.channels_out), layer.macs) == (channels, macs)


def test_a_shared_weight_is_one_layer_computed_twice():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Gemm", ["h", "w"], ["y"], "two"),
    ]
    (layer,) = OnnxGraph(graph_of(nodes, {"x": (1, 6)}, {"w": (6, 6), "b": (6,)})).layers.values()
    assert (layer.nodes, layer.macs, layer.params) == (("one", "two"), 2 * 36, 36 + 6)
    assert layer.bytes == 4 * (6 + 6 + 42) + 4 * (6 + 6 + 36)


def test_products_of_two_activations_are_not_layers():
    assert OnnxGraph(graph_of([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": (4, 4)}, {})).layers == {}


def test_a_quantized_layer_moves_a_byte_per_element():
    nodes = [
        helper.make_node("DequantizeLinear", ["q.weight_quantized", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    model = graph_of(nodes, {"x": (1, 3, 4, 4)}, {"scale": ()})
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 3, 1, 1), np.int8), "q.weight_quantized"))
    (layer,) = OnnxGraph(model).layers.values()
    assert (layer.name, layer.bytes) == ("q", 3 * 16 + 5 * 16 + 15)


def test_a_free_dimension_is_refused():
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    model = graph_of([node], {"x": ("batch", 3, 4, 4)}, {"w": (5, 3, 1, 1)})
    with pytest.raises(ValueError, match=r"node 'conv': has a free dimension, got \(None, 3, 4, 4\); export it"):
        OnnxGraph(model)


@pytest.mark.parametrize(
    ("name", "operator", "sources"),
    [
        ("node_conv", "Conv", ("node_conv",)),
        ("relu_nchwc", "Conv", ("node_conv",)),  # named after the output of the ReLU it computes too
        ("relu_nchwc", "FusedNew", ("node_relu",)),  # the operator is nowhere before it
        ("pool_nchwc_token_3", "MaxPool", ("node_pool",)),
        ("pool_nchwc", "MaxPool", ("node_pool",)),
        ("node_conv_token_5", "QLinearConv", ("node_conv",)),
        ("InsertedPrecisionFreeCast_relu", "Conv", ("node_conv",)),
        ("node_pool/PadFusion", "MaxPool", ("node_pool",)),
        ("fused node_conv", "FusedConv", ("node_conv",)),
        ("node_conv + node_relu", "", ("node_conv", "node_relu")),
        ("PWN(PWN(node_relu), node_pool)", "", ("node_relu", "node_pool")),
        ("{ForeignNode[node_conv...node_pool]}", "", ("node_conv", "node_relu", "node_pool")),
        ("Reformatting CopyNode for Input Tensor 0 to node_conv", "Reformat", ()),
        ("ReorderOutput_token_2", "ReorderOutput", ()),
        ("Transpose_token_7", "Transpose", ()),
        ("HardSigmoid_12", "HardSigmoid", ()),
    ],
)
def test_nodes_of_a_runtime_are_matched_by_their_names(name, operator, sources):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], "node_conv"),
        helper.make_node("Relu", ["conv"], ["relu"], "node_relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "node_pool", kernel_shape=[2, 2]),
    ]
    graph = OnnxGraph(graph_of(nodes, {"x": (1, 3, 4, 4)}, {"w": (5, 3, 1, 1)}))
    assert graph.sources(name, operator) == sources


def test_a_transpose_of_the_file_is_its_own_source():
    graph = OnnxGraph(graph_of([helper.make_node("Transpose", ["x"], ["y"], "turn")], {"x": (2, 3)}, {}))
    assert graph.sources("turn", "Transpose") == ("turn",)


def test_every_exported_layer_is_in_the_log_and_costs_as_its_module(tmp_path):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32)
    net = prune_model(build_classifier(Architecture("resnet20_cifar", 10)).eval(), (image,), 0.45).model
    onnx_from_module(net, {"image": image}, tmp_path / "net.onnx", ["scores"])
    model = load_onnx(tmp_path / "net.onnx")
    graph, cost = OnnxGraph(model), cost_of(net, (image,))
    assert {name: layer.macs for name, layer in graph.layers.items()} == {n: c.macs for n, c in cost.layers.items()}
    times = node_times(tmp_path / "net.onnx", {"image": image.numpy()})
    found = [source for time in times for source in graph.sources(time.name, time.operator)]
    assert {node for layer in graph.layers.values() for node in layer.nodes} <= set(found)
    assert all(graph.sources(time.name, time.operator) or time.operator in LAYOUT for time in times)


def test_a_node_without_a_name_gets_onnx_runtimes(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Gemm", ["h", "w"], ["y"])]
    model = graph_of(nodes, {"x": (1, 6)}, {"w": (6, 6)})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 6)))
    onnx.save(model, tmp_path / "net.onnx")
    graph = OnnxGraph(model)
    (time,) = [t for t in node_times(tmp_path / "net.onnx", {"x": np.ones((1, 6), np.float32)}) if "Gemm" in t.operator]
    assert graph.sources(time.name, time.operator) == ("Gemm_1",)
