"""ONNX files that others wrote: inputs of every type, name and shape, and what torchvision's networks export to."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper
from torchvision.models import detection

from deploy import TensorSpec, engine_from_onnx, random_inputs, read_engine_info, runner_for

DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64)),
)
NO_ENGINE = ("float64", "int16", "uint16", "uint32", "uint64")
NAME = "serving_default/my input:0"


@pytest.fixture
def squares(tmp_path):
    """Write a file that returns the squares of its inputs, added up, as float32; the shapes are given by name."""

    def write(dtype, **shapes):
        shapes = {(NAME if name == "x" else name): shape for name, shape in shapes.items()}
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        nodes = [helper.make_node("Cast", [name], [f"c{i}"], to=TensorProto.FLOAT) for i, name in enumerate(shapes)]
        nodes += [helper.make_node("Mul", [f"c{i}", f"c{i}"], [f"m{i}"]) for i in range(len(shapes))]
        nodes.append(helper.make_node("Sum", [f"m{i}" for i in range(len(shapes))], ["sum/out:0"]))
        given = [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()]
        made = helper.make_tensor_value_info("sum/out:0", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "g", given, [made])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, tmp_path / "squares.onnx")
        return tmp_path / "squares.onnx"

    return write


@pytest.mark.parametrize("shape", [(2, 3), (), (1,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_inputs_of_every_type_are_run(squares, dtype, shape, runtime):
    runner = runner_for(squares(dtype, x=shape), runtime)
    assert runner.inputs == {NAME: TensorSpec(shape, dtype)}
    inputs = random_inputs(runner.inputs)
    (output,) = runner.run(inputs).values()
    np.testing.assert_allclose(output, inputs[NAME].astype(np.float64) ** 2, rtol=1e-3)
    assert runner.prepare(inputs)() is None


@pytest.mark.parametrize("shape", [(2, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_is_built_for_every_type_that_engines_have(squares, dtype, shape, command, tmp_path):
    path = squares(dtype, x=shape)
    code, _, err = command("deploy", "build", path, "--compute-capability", "8.6", "--out", tmp_path / "e.engine")
    if dtype in NO_ENGINE:
        assert (code, err.count("\n")) == (2, 1)
        assert f"has a dtype that no engine supports, got {dtype}; expected one of float32" in err
    else:
        assert code == 0
        assert read_engine_info(tmp_path / "e.engine").inputs == {NAME: TensorSpec(shape, dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_inputs_are_no_zeros_and_whole_numbers_of_the_type(dtype):
    (array,) = random_inputs({"x": TensorSpec((50, 50), dtype)}).values()
    assert array.dtype == dtype
    assert array.all()
    assert (array.astype(np.float64) == np.round(array.astype(np.float64))).all()
    if dtype != "bool":
        assert len(np.unique(array)) > 100
        assert array.max() <= 255


def test_a_name_that_ends_as_a_size_may_be_no_size():
    shapes = {"image": (1, 3, 8, 16), "size_hw": (1, 2), "offset_hw": (5,), "scale_hw": (), "mask_hw": (1, 1, 4, 6)}
    arrays = random_inputs({name: TensorSpec(shape, "float32") for name, shape in shapes.items()})
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert arrays["size_hw"].tolist() == [[8.0, 16.0]]


def test_several_inputs_with_a_free_batch_are_measured_and_built(squares, invoke, tmp_path):
    path = squares("uint8", x=("n", 3), other=("n", 1))
    shapes = ["--shape", f"{NAME}=4,3", "--shape", "other=4,1"]
    options = [*shapes, "--rounds", 2, "--json", "--out", tmp_path / "r.json"]
    rows = json.loads(invoke("deploy", "bench", path, *options, "--runtime", "onnxruntime").stdout)["rows"]
    assert [(row["batch"], row["precision"]) for row in rows] == [(4, "uint8")]
    invoke("deploy", "build", path, *shapes, "--compute-capability", "8.6", "--out", tmp_path / "e.engine")
    info = read_engine_info(tmp_path / "e.engine")
    assert info.inputs == {NAME: TensorSpec((4, 3), "uint8"), "other": TensorSpec((4, 1), "uint8")}
    assert info.outputs["sum/out:0"].shape == (4, 3)


@pytest.mark.parametrize("name", ["bench", "explain", "build"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "has a free dimension, got (None, 3); export it with fixed sizes, or give a shape where an option takes"),
        (["--shape", "y=1,3"], f"--shape y: no such input; expected one of {NAME}"),
        (["--shape", f"{NAME}=1,4"], f"--shape {NAME}: does not fit, got (1, 4); expected (None, 3)"),
        (["--shape", f"{NAME}=1x3"], "not a shape; expected NAME=SIZE,SIZE,..., as image=1,3,224,224"),
    ],
)
def test_a_shape_that_is_missing_or_wrong_is_refused(squares, command, name, options, message):
    code, _, err = command("deploy", name, squares("float32", x=("n", 3)), *options)
    assert code == 2
    assert message in err.splitlines()[-1]


@pytest.mark.parametrize("name", ["bench", "explain", "build"])
def test_inputs_that_are_no_numbers_are_refused(command, tmp_path, name):
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "s.onnx")
    code, _, err = command("deploy", name, tmp_path / "s.onnx")
    assert (code, err.count("\n")) == (2, 1)
    assert "'x': not of numbers, got" in err


def exported(net, inputs, path, *, dynamo, **options):
    """Export a network as torchvision's users do."""
    options |= {"external_data": False} if dynamo else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter and torchvision's own code
        torch.onnx.export(net.eval(), inputs, path, dynamo=dynamo, **options)
    return path


@pytest.fixture(scope="module", params=["dynamic_axes", "dynamic_shapes"])
def classifier_file(request, tmp_path_factory):
    """A classifier of torchvision with a free batch, written by the old exporter of torch, and by the new one."""
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(weights=None, num_classes=5)
    path = tmp_path_factory.mktemp(request.param) / "net.onnx"
    free = {"dynamic_axes": {"x": {0: "n"}}, "dynamic_shapes": ({0: torch.export.Dim("n")},)}[request.param]
    names = {"input_names": ["x"], request.param: free}
    return net, exported(net, (torch.rand(2, 3, 64, 64),), path, dynamo=request.param == "dynamic_shapes", **names)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_classifiers_of_torchvision_give_what_torch_gives(classifier_file, runtime):
    net, path = classifier_file
    runner = runner_for(path, runtime)
    inputs = {"x": np.random.default_rng(0).random((3, 3, 64, 64), np.float32)}  # another batch than at the export
    (output,) = runner.run(inputs).values()
    with torch.no_grad():
        np.testing.assert_allclose(output, net(torch.from_numpy(inputs["x"])), atol=1e-4)


@pytest.mark.slow
def test_a_classifier_of_torchvision_is_explained_and_built(classifier_file, invoke, tmp_path):
    _, path = classifier_file
    shape = ["--shape", "x=2,3,64,64"]
    figures = json.loads(invoke("deploy", "explain", path, *shape, "--rounds", 2, "--json").stdout)
    assert (figures["latency"]["batch"], len(figures["layers"]), figures["unsized"]) == (2, 54, [])
    engine_from_onnx(path, tmp_path / "e.engine", compute_capabilities=("8.6",), shapes={"x": (2, 3, 64, 64)})
    assert read_engine_info(tmp_path / "e.engine").inputs["x"].shape == (2, 3, 64, 64)


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """A detector of torchvision; the new exporter of torch 2.14 refuses these networks."""
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96, "rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20}
    net = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=5, **sizes)
    path = tmp_path_factory.mktemp("detector") / "frcnn.onnx"
    names = {"input_names": ["image"], "dynamic_axes": {"image": {1: "height", 2: "width"}}, "opset_version": 17}
    return exported(net, ([torch.rand(3, 64, 96)],), path, dynamo=False, **names)


@pytest.mark.slow
def test_a_detector_of_torchvision_is_measured_in_every_runtime(detector_file, invoke, tmp_path):
    options = ["--shape", "image=3,64,96", "--rounds", 2, "--json", "--out", tmp_path / "r.json"]
    runtimes = ["--runtime", "onnxruntime", "--runtime", "openvino"]
    rows = json.loads(invoke("deploy", "bench", detector_file, *runtimes, *options).stdout)["rows"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "openvino"]


@pytest.mark.slow
def test_a_detector_of_torchvision_is_explained_as_far_as_sizes_are_fixed(detector_file, invoke):
    options = ["--shape", "image=3,64,96", "--rounds", 2, "--json"]
    figures = json.loads(invoke("deploy", "explain", detector_file, *options).stdout)
    assert figures["operators"]["RoiAlign"]["ms"] > 0
    assert figures["unsized"]
    assert sum(one["ms"] for one in figures["operators"].values()) == pytest.approx(figures["nodes_ms"])


@pytest.mark.slow
def test_a_detector_of_torchvision_is_no_engine_and_the_line_says_so(detector_file, command, tmp_path):
    options = ["--shape", "image=3,64,96", "--out", tmp_path / "e.engine"]
    code, _, err = command("deploy", "build", detector_file, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "tensorrt_rtx cannot read node" in err
    assert f"rewrite it with other operators, or run the ONNX file: espalier deploy bench {detector_file}" in err
    assert not (tmp_path / "e.engine").exists()
