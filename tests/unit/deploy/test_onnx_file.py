import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy import TensorSpec, random_inputs
from deploy.onnx_file import foreign_operators, input_specs, load_onnx, output_specs, precision_of


def test_specs_are_those_of_the_file(onnx_files):
    model = load_onnx(onnx_files[0])
    assert input_specs(model) == {"image": TensorSpec((1, 3, 16, 16), "float32")}
    assert output_specs(model) == {"scores": TensorSpec((1, 2, 12, 12), "float32")}


def test_a_weight_listed_as_an_input_is_not_an_input(onnx_files):
    model = load_onnx(onnx_files[0])
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    assert list(input_specs(model)) == ["image"]


@pytest.mark.parametrize(("node", "precision"), [("Relu", "fp32"), ("QuantizeLinear", "int8")])
def test_precision_without_weights(one_node_file, node, precision):
    assert precision_of(onnx.load(one_node_file(node))) == precision


def test_precision_is_the_type_of_most_weights():
    tensors = [
        helper.make_tensor("index", TensorProto.INT64, [9], [0] * 9),
        helper.make_tensor("half", TensorProto.FLOAT16, [5], [0] * 5),
        helper.make_tensor("full", TensorProto.FLOAT, [4], [0] * 4),
    ]
    assert precision_of(helper.make_model(helper.make_graph([], "g", [], [], tensors))) == "fp16"


def test_only_weights_of_products_count_for_the_precision():
    tensors = [
        helper.make_tensor("anchors", TensorProto.FLOAT, [9], [0] * 9),
        helper.make_tensor("weight", TensorProto.FLOAT16, [5], [0] * 5),
    ]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    assert precision_of(helper.make_model(helper.make_graph([node], "g", [], [], tensors))) == "fp16"


def test_foreign_operators_are_found_inside_branches():
    body = helper.make_graph([helper.make_node("Special", ["x"], ["y"], domain="mmdeploy")], "body", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    assert foreign_operators(helper.make_model(helper.make_graph([node], "g", [], []))) == ["mmdeploy::Special"]


def test_random_inputs_hold_no_zero_and_repeat_with_their_seed():
    specs = {
        "image": TensorSpec((2, 3, 64, 64), "float16"),
        "labels": TensorSpec((500,), "int64"),
        "mask": TensorSpec((7,), "bool"),
    }
    first, again, other = random_inputs(specs, seed=1), random_inputs(specs, seed=1), random_inputs(specs, seed=2)
    assert {name: (array.shape, array.dtype.name) for name, array in first.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    assert all(np.all(array != 0) for array in first.values())
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], other["image"])


def test_bytes_and_floats_of_a_seed_are_the_same_pixels():
    bytes_, floats = (
        random_inputs({"image": TensorSpec((1, 3, 64, 64), dtype)})["image"] for dtype in ("uint8", "float32")
    )
    np.testing.assert_array_equal(bytes_, floats)
    assert (floats.min(), floats.max()) == (1, 255)


def test_a_size_is_that_of_the_image_not_random():
    specs = {"image": TensorSpec((2, 3, 8, 16), "float32"), "image_hw": TensorSpec((2, 2), "float32")}
    np.testing.assert_array_equal(random_inputs(specs)["image_hw"], [[8, 16], [8, 16]])


def test_random_inputs_refuse_a_free_dimension(one_node_file):
    specs = input_specs(onnx.load(one_node_file("Relu", shape=("batch", 4))))
    with pytest.raises(ValueError, match=r"tensor 'x': has a free dimension, got \(None, 4\); export it"):
        random_inputs(specs)


def test_a_graph_of_sequences_is_refused():
    node = helper.make_node("SequenceEmpty", [], ["all"])
    value = helper.make_tensor_sequence_value_info("all", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", [], [value]))
    with pytest.raises(ValueError, match="'all': not a tensor, got sequence_type; expected a graph of tensors"):
        output_specs(model)


def test_a_graph_without_inputs_has_the_precision_of_its_output():
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])
    zeros = numpy_helper.from_array(np.zeros(2, np.float16))
    node = helper.make_node("Constant", [], ["y"], value=zeros)
    assert precision_of(helper.make_model(helper.make_graph([node], "g", [], [value]))) == "fp16"


@pytest.mark.parametrize("content", [b"", b"hello world", b"\xff\xff\xff\xff"])
def test_a_file_that_is_not_onnx_is_refused(tmp_path, content):
    (tmp_path / "junk.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"junk\.onnx: not an ONNX file, got .*; expected an ONNX file"):
        load_onnx(tmp_path / "junk.onnx")


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"none\.onnx: no such file"):
        load_onnx("none.onnx")
