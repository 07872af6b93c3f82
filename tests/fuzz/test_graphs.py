"""Reads damaged ONNX files, and runs what is left of them."""

import math

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damaged, mutated
from onnx import ModelProto, TensorProto, helper, numpy_helper

from deploy.onnx_file import classes_of, foreign_operators, input_specs, load_onnx, output_specs, precision_of
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.tensors import random_inputs

MANY = settings(max_examples=5 * settings.default.max_examples)
MOST_ELEMENTS = 10**6


def network():
    """A convolution, a product and a branch, with two weights and a constant."""
    weights = {"kernel": np.ones((2, 3, 3, 3), np.float32), "matrix": np.ones((2, 4), np.float32)}
    shapes = {"image": (1, 3, 8, 8), "scores": (1, 4), "is_large": (), "chosen": (1, 4)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    branch = helper.make_graph([helper.make_node("Neg", ["scores"], ["chosen"])], "b", [], [values["chosen"]])
    other = helper.make_graph([helper.make_node("Abs", ["scores"], ["chosen"])], "c", [], [values["chosen"]])
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], kernel_shape=[3, 3], name="conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
        helper.make_node("Constant", [], ["is_large"], value=helper.make_tensor("v", TensorProto.BOOL, (), [True])),
        helper.make_node("If", ["is_large"], ["chosen"], then_branch=branch, else_branch=other),
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [values["image"]], [values["scores"], values["chosen"]], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"espalier_classes": '["a", "b"]'})
    return model


def read(path):
    model = load_onnx(path)
    classes_of(path, model)
    return input_specs(model), output_specs(model), precision_of(model), foreign_operators(model)


def run(path):
    runner = OnnxRunner(path)
    sizes = [math.prod(size or 0 for size in spec.shape) for spec in runner.inputs.values()]
    return runner.run(random_inputs(runner.inputs)) if max(sizes, default=0) < MOST_ELEMENTS else runner.precision


def test_the_valid_graph_is_read_and_run(tmp_path, safely):
    path = tmp_path / "model.onnx"
    path.write_bytes(network().SerializeToString())
    assert safely(read, path)[2] == "fp32"
    assert safely(run, path).keys() == {"scores", "chosen"}


@MANY
@given(data=st.data())
def test_damaged_graph_is_read_and_run_or_refused(data, tmp_path, safely):
    path = tmp_path / "model.onnx"
    path.write_bytes(data.draw(damaged(network().SerializeToString())))
    for use in (read, run):
        safely(use, path)


@MANY
@given(data=st.data())
def test_changed_graph_is_read_and_run_or_refused(data, tmp_path, safely):
    try:
        model = ParseDict(data.draw(mutated(MessageToDict(network()))), ModelProto())
    except (ParseError, TypeError, ValueError, AttributeError, SystemError):
        return  # no message can hold this
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for use in (read, run):
        safely(use, path)
