"""ONNX files that a stranger may write: each ends in one line, and no other file is read."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy import OnnxRunner, random_inputs
from deploy.onnx_file import load_onnx
from deploy.runtimes.openvino import OpenVinoRunner

WEIGHT = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
PRODUCT = [helper.make_node("MatMul", ["x", "w"], ["y"])]
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1)]


def value(name, dtype=TensorProto.FLOAT, shape=(1, 4)):
    return helper.make_tensor_value_info(name, dtype, shape)


def graph(nodes=PRODUCT, weights=(WEIGHT,), x=None, y=None):
    return helper.make_graph(nodes, "g", [x or value("x")], [y or value("y")], list(weights))


def model(of=None, opsets=OPSETS, functions=()):
    return helper.make_model(of or graph(), opset_imports=opsets, ir_version=9, functions=functions)


def copying(dtype=TensorProto.FLOAT, shape=(1, 4)):
    """A graph of one Identity."""
    return model(
        graph([helper.make_node("Identity", ["x"], ["y"])], (), value("x", dtype, shape), value("y", dtype, shape))
    )


def outside(location="w.bin"):
    """The weight in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def changed(**fields):
    """The weight with other fields."""
    tensor = TensorProto()
    tensor.CopyFrom(WEIGHT)
    for name in fields:
        tensor.ClearField(name)
    tensor.MergeFrom(TensorProto(**fields))
    return tensor


def in_branch():
    body = helper.make_graph(PRODUCT, "b", [], [value("y")], [outside()])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    return model(graph([node], [numpy_helper.from_array(np.array(True), "c")]))


def in_function():
    nodes = [helper.make_node("Constant", [], ["w"], value=outside()), helper.make_node("MatMul", ["a", "w"], ["b"])]
    function = helper.make_function("evil", "Twice", ["a"], ["b"], nodes, OPSETS[:1])
    return model(graph([helper.make_node("Twice", ["x"], ["y"], domain="evil")], ()), functions=[function])


def sparse():
    built = model(graph(weights=()))
    index = numpy_helper.from_array(np.arange(4), "i")
    built.graph.sparse_initializer.append(onnx.SparseTensorProto(values=outside(), indices=index, dims=[4, 4]))
    return built


OUTSIDE = {
    "beside it": model(graph(weights=[outside()])),
    "above it": model(graph(weights=[outside("../w.bin")])),
    "absolute": model(graph(weights=[outside("/etc/hostname")])),
    "in memory": model(graph(weights=[outside("*/_ORT_MEM_ADDR_/*")])),
    "in a constant": model(graph([helper.make_node("Constant", [], ["w"], value=outside()), *PRODUCT], ())),
    "in a branch": in_branch(),
    "in a function": in_function(),
    "sparse": sparse(),
}


@pytest.fixture
def written(tmp_path):
    """Write a model, with weights for it in another file beside and above it."""

    def write(built):
        (tmp_path / "folder").mkdir(exist_ok=True)
        for folder in (tmp_path, tmp_path / "folder"):
            np.ones((4, 4), np.float32).tofile(folder / "w.bin")
        (tmp_path / "folder/net.onnx").write_bytes(built.SerializeToString())
        return tmp_path / "folder/net.onnx"

    return write


@pytest.mark.parametrize("where", OUTSIDE)
def test_weights_in_another_file_are_not_read(written, where, monkeypatch):
    path = written(OUTSIDE[where])
    monkeypatch.chdir(path.parent)  # where weights of a model in memory would be looked for
    with pytest.raises(ValueError, match=r"net\.onnx: has weights in another file, got 'w'; expected all in one"):
        load_onnx(path)
    with pytest.raises(ValueError, match=r"net\.onnx: (has weights|ONNX Runtime cannot load it)"):
        OnnxRunner(path)
    with pytest.raises(ValueError, match=r"net\.onnx: has weights in another file, got 'w'"):
        OpenVinoRunner(path)


def of_sequences():
    x, y = (helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    return model(graph([helper.make_node("Identity", ["x"], ["y"])], (), x, y))


def optional():
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    node = helper.make_node("OptionalGetElement", ["x"], ["y"])
    return model(graph([node], (), helper.make_value_info("x", kind), value("y", shape=[4])))


def without_types():
    built = copying()
    built.graph.input[0].ClearField("type")
    return built


def without_outputs():
    built = model()
    del built.graph.output[:]
    return built


def twice(field):
    built = model()
    getattr(built.graph, field).append(getattr(built.graph, field)[0])
    return built


REFUSED = {
    "strings": copying(TensorProto.STRING),
    "8-bit floats": copying(TensorProto.FLOAT8E4M3FN),
    "4-bit integers": copying(TensorProto.UINT4),
    "complex": copying(TensorProto.COMPLEX64),
    "undefined": copying(TensorProto.UNDEFINED),
    "unknown type": copying(99),
    "sequences": of_sequences(),
    "optional": optional(),
    "no type": without_types(),
    "negative size": copying(shape=[-1, 4]),
    "huge size": copying(shape=[10**12, 4]),
    "overflowing size": copying(shape=[2**62, 2**62]),
    "no elements": copying(shape=[0, 4]),
    "200 dimensions": copying(shape=[1] * 200),
    "free size": copying(shape=["n", 4]),
    "no outputs": without_outputs(),
    "input twice": twice("input"),
    "node twice": twice("node"),
    "cycle": model(graph([helper.make_node("Relu", ["a"], ["a"]), helper.make_node("Add", ["x", "a"], ["y"])], ())),
    "no inputs of a node": model(graph([helper.make_node("Conv", [], ["y"])])),
    "no outputs of a node": model(graph([helper.make_node("MatMul", ["x", "w"], [])])),
    "short weight": model(graph(weights=[changed(raw_data=b"1234567890")])),
    "weight of an unknown type": model(graph(weights=[changed(data_type=99)])),
    "weight of a negative size": model(graph(weights=[changed(dims=[-4, 4])])),
    "huge weight": model(graph(weights=[changed(dims=[2**40, 2**40])])),
    "empty weight": model(graph(weights=[changed(dims=[4, 0], raw_data=b"")], y=value("y", shape=[1, 0]))),
    "no operator set": model(opsets=[]),
    "unknown operator": model(graph([helper.make_node("Evil", ["x"], ["y"])])),
    "operator of another domain": model(graph([helper.make_node("Evil", ["x"], ["y"], domain="evil")])),
    "wrong shapes": model(graph(weights=[changed(dims=[2, 8])])),
}
COMMANDS = {
    "build": ("deploy", "build"),
    "bench": ("deploy", "bench", "--rounds", 1, "--warmup", 0),
    "bench in OpenVINO": ("deploy", "bench", "--runtime", "openvino", "--rounds", 1, "--warmup", 0),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_odd_file_ends_in_one_line(command, written, tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*COMMANDS[name], written(REFUSED[kind]))
    assert (code in (1, 2), out, err.count("espalier: ")) == (True, "", 1)
    assert err.splitlines()[-1].startswith("espalier: ")


@pytest.mark.parametrize("kind", REFUSED)
def test_an_odd_file_is_not_explained(command, written, kind):
    path = written(REFUSED[kind])
    code, out, err = command("deploy", "explain", path, path, "--rounds", 1)
    assert (code in (1, 2), out) == (True, "")
    assert err.splitlines()[-1].startswith("espalier: ")


def test_names_in_a_report_are_text(command, written):
    name = "\x1b[2J[red]\n|"
    path = written(model(graph([helper.make_node("MatMul", ["x", name], ["y"])], [changed(name=name)])))
    code, out, err = command("deploy", "explain", path, path, "--rounds", 1)
    assert (code, "\x1b" in out + err) == (0, False)
    assert r"\x1b[2J[red]\n|" in out


@pytest.mark.parametrize("kind", ["strings", "sequences", "undefined", "cycle", "short weight", "wrong shapes"])
@pytest.mark.parametrize("name", ["package", "predict", "eval"])
def test_an_odd_file_is_no_detector(command, elsewhere, written, files, scenes, renamed, kind, name, tmp_path):
    (elsewhere / "model.onnx").write_bytes(REFUSED[kind].SerializeToString())
    renamed(elsewhere, ["a"])  # so that its hash is the one in deploy.json
    given = {
        "package": ("deploy", "package", elsewhere),
        "predict": ("detect", "predict", elsewhere, files[0], "--out", tmp_path / "out"),
        "eval": ("deploy", "eval", elsewhere, scenes.annotations, scenes.images),
    }
    code, out, err = command(*given[name])
    assert (code, out, err.count("espalier: ")) == (2, "", 1)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, model().SerializeToString().replace(b"MatMul", b"Mat\xff\xfel")]
)
@pytest.mark.parametrize("opened", [load_onnx, OnnxRunner, OpenVinoRunner])
def test_bytes_that_are_no_graph_are_refused(tmp_path, content, opened):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.onnx: (not an ONNX file|ONNX Runtime cannot load it)"):
        opened(tmp_path / "net.onnx")


def test_a_graph_without_inputs_is_measured(command, written, tmp_path):
    built = model(graph([helper.make_node("Identity", ["w"], ["y"])], y=value("y", shape=[4, 4])))
    del built.graph.input[:]
    assert command("deploy", "bench", written(built), "--rounds", 1, "--out", tmp_path / "r.json")[0] == 0


def test_inputs_that_numpy_lacks_are_refused(written):
    specs = OnnxRunner(written(copying(TensorProto.BFLOAT16))).inputs
    with pytest.raises(
        ValueError, match="tensor 'x': numpy has no bfloat16, got an input of it; export it with float32"
    ):
        random_inputs(specs)


def test_the_hash_of_a_runner_is_that_of_the_bytes_it_runs(written, monkeypatch):
    path = written(model())
    runner = OnnxRunner(path)
    path.write_bytes(written(copying()).read_bytes())
    assert runner.file_sha256 != OnnxRunner(path).file_sha256
    np.testing.assert_array_equal(runner.run({"x": np.ones((1, 4), np.float32)})["y"], [[4, 4, 4, 4]])
