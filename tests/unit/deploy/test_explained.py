import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from rich.console import Console
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.synthetic import SHAPES
from command.errors import RequestError
from deploy import engine_from_onnx, onnx_from_module
from deploy.explain import profiled
from deploy.explain.alone import explain_alone
from detect import DetectorSettings, new_detector
from detect.fixed_shape import FixedShapeDetector
from detect.pruning import prune_detector
from experiment.cli import app
from prune import PruneSpec, cost_of, slim_model

SIZE_HW = (64, 64)
SETTINGS = DetectorSettings(
    SIZE_HW, fpn_channels=16, head_channels=32, num_proposals=30, roi_samples=32, anchor_scale=2
)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def write_net(path, widths, *, side=8, names=("a", "b", "fc"), dtype=np.float32):
    """Write an image of 3 channels -> 3x3 convolution, ReLU -> 1x1 convolution -> mean -> linear layer of 5 outputs."""
    a, b, fc = names
    shapes = {a: (widths[0], 3, 3, 3), b: (widths[1], widths[0], 1, 1), fc: (widths[1], 5)}
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.random(s).astype(dtype), f"{name}.weight") for name, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", f"{a}.weight"], ["a"], "conv_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", f"{b}.weight"], ["b"], "conv_b"),
        helper.make_node("GlobalAveragePool", ["b"], ["m"], "mean"),
        helper.make_node("Flatten", ["m"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", f"{fc}.weight"], ["scores"], "gemm"),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    image = helper.make_tensor_value_info("image", element, (2, 3, side, side))
    scores = helper.make_tensor_value_info("scores", element, (2, 5))
    graph = helper.make_graph(nodes, "g", [image], [scores], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def built(onnx, name=None):
    """Build an engine beside an ONNX file; no GPU is needed."""
    engine = onnx.with_name(name) if name else onnx.with_suffix(".engine")
    engine_from_onnx(onnx, engine, compute_capabilities=("8.6",))
    return engine


def changed(engine, **entries):
    """Write other entries into an engine's sidecar."""
    sidecar = engine.with_name(f"{engine.name}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **entries}))


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    """A machine of 1e12 MACs and 1e12 bytes a second, which no layer here reaches: measuring takes a second."""
    fixed = profiled.Roofline(1e12, 1e12, 64, "fp32")
    monkeypatch.setattr(profiled, "measure_roofline", lambda runner: fixed)


@pytest.fixture
def pair(tmp_path):
    return write_net(tmp_path / "dense.onnx", (16, 32)), write_net(tmp_path / "slim.onnx", (9, 32))


@pytest.fixture
def refusal(command):
    """Run `deploy explain`; return exit code and its one line on standard error."""

    def run(*arguments):
        code, _, err = command("deploy", "explain", *arguments)
        return code, err.splitlines()[-1].removeprefix("espalier: ")

    return run


def figures_of(*arguments):
    return json.loads(invoke("deploy", "explain", *arguments, "--rounds", 3, "--json").stdout)


def test_every_layer_has_channels_macs_and_times_of_both_files(pair):
    figures = figures_of(*pair)
    a, b, fc = figures["layers"]
    assert [layer["name"] for layer in (a, b, fc)] == ["a", "b", "fc"]
    assert (a["dense_channels_out"], a["channels_out"], a["multiple_of"]) == (16, 9, 1)
    positions = 2 * 8 * 8  # of both images
    assert (a["dense_macs"], a["macs"]) == (positions * 27 * 16, positions * 27 * 9)
    assert (b["dense_macs"], b["macs"]) == (positions * 16 * 32, positions * 9 * 32)
    assert (fc["dense_macs"], fc["mac_reduction"]) == (2 * 32 * 5, 1.0)
    assert a["dense_bytes"] == 4 * (2 * 3 * 64 + 2 * 16 * 64 + 27 * 16)
    for layer in figures["layers"]:
        assert layer["speedup"] == layer["dense"]["ms"] / layer["slim"]["ms"]
        assert layer["peak_share"]["slim"] == pytest.approx(layer["macs"] / layer["slim"]["ms"] / 1e9)
    macs = [positions * (27 * width + 32 * width) + 320 for width in (16, 9)]
    assert figures["latency"]["slim"]["mac_reduction"] == pytest.approx(macs[0] / macs[1])
    assert fc["reasons"][0]["cause"] == "uncut"


def test_figures_name_the_device_and_conditions(pair):
    figures = figures_of(*pair)
    assert (figures["is_gpu"], figures["runtime"], figures["batch"], figures["rounds"]) == (False, "onnxruntime", 2, 3)
    assert figures["files"] == {"dense": str(pair[0]), "slim": str(pair[1])}
    assert figures["ceilings"]["peak_of"] == "a product of 64 x 64 matrices in fp32"
    (stage,) = figures["stages"]
    assert stage["stage"] == "network"
    assert stage["slim_ms"] + figures["layout_ms"]["slim"] == pytest.approx(figures["nodes_ms"]["slim"])


def test_the_text_begins_with_the_device_and_ends_with_what_to_try(pair):
    result = invoke("deploy", "explain", *pair, "--rounds", 3)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("measured on a CPU (")
    assert lines[0].endswith(", onnxruntime, fp32, batch 2, 3 rounds in alternating order")
    assert "MAC reduction 1.77: " in lines[1]  # (128 x (27 + 32) x 16 + 320) / (128 x (27 + 32) x 9 + 320)
    assert lines[lines.index("What to try") + 1].startswith("- ")
    assert f"explained {pair[1]}\nnext: espalier deploy sweep sweep_resnet18\n" in result.stderr


def test_the_next_command_has_the_threads_that_were_given(pair):
    result = invoke("deploy", "explain", *pair, "--rounds", 3, "--threads", 2)
    assert result.stderr.endswith("next: espalier deploy sweep sweep_resnet18 --set latency.num_threads=2\n")


def test_a_file_beside_itself_was_not_pruned(pair, tmp_path):
    figures = figures_of(pair[0], shutil.copy(pair[0], tmp_path / "same.onnx"))
    assert figures["advice"] == ["prune it: both files have the same channels"]
    assert figures["causes"] == {}


@pytest.fixture
def without_a_block(tmp_path):
    """A ResNet-20, and one without the branch of a block that has 32 channels on 16 x 16 places."""
    dense = build_classifier(Architecture("resnet20_cifar", 10)).eval()
    slim = slim_model(dense, PruneSpec({}, {"layer2.1": ("conv1", "bn1", "conv2", "bn2")}))
    files = []
    for name, net in (("dense", dense), ("slim", slim)):
        files.append(tmp_path / f"{name}.onnx")
        onnx_from_module(net, {"image": torch.zeros(1, 3, 32, 32)}, files[-1], ("scores",), tolerance=None)
    return files


def test_layers_of_removed_blocks_are_listed_with_what_they_took(without_a_block):
    figures = figures_of(*without_a_block)
    removed = figures["removed"]
    assert [layer["name"] for layer in removed] == ["layer2.1.conv1", "layer2.1.conv2"]
    assert all(layer["dense_macs"] == 32 * 32 * 9 * 16 * 16 and layer["dense"]["ms"] > 0 for layer in removed)
    assert not {layer["name"] for layer in removed} & {layer["name"] for layer in figures["layers"]}
    (stage,) = figures["stages"]
    assert stage["dense_macs"] - stage["macs"] == 2 * 32 * 32 * 9 * 16 * 16
    gone_ms = sum(layer["dense"]["ms"] for layer in removed)
    left_ms = sum(layer["dense"]["ms"] for layer in figures["layers"])
    assert stage["dense_layers_ms"] == pytest.approx(gone_ms + left_ms)
    assert not figures["advice"][0].startswith("prune it")
    lines = invoke("deploy", "explain", *without_a_block, "--rounds", 3).stdout.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("removed, 2 layers: "))
    assert lines[place].endswith(" ms and 4.72 MMACs of the dense file")
    assert [line.split()[:3] for line in lines[place + 1 : place + 3]] == [
        ["layer2.1.conv1", "conv", "3x3,"],
        ["layer2.1.conv2", "conv", "3x3,"],
    ]


def test_the_slim_network_comes_second_without_blocks_too(without_a_block, refusal):
    dense, slim = without_a_block
    code, line = refusal(slim, dense)
    assert code == 2
    assert "different networks, got 18 and 20 layers, layer2.1.conv1 in only one of them" in line


def test_folders_of_deploy_export_are_taken(pair, tmp_path):
    for name, path in zip(("d", "s"), pair, strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(path, tmp_path / name / "model.onnx")
    assert figures_of(tmp_path / "d", tmp_path / "s")["files"]["slim"] == str(tmp_path / "s" / "model.onnx")


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """A dense and a slim detector, all parts pruned, as graphs and as files."""
    folder = tmp_path_factory.mktemp("detectors")
    dense, card = new_detector(Architecture("resnet18", 1, 16), SHAPES, SETTINGS, seed=0)
    slim, _, _ = prune_detector(
        dense, card, prune_ratio=0.4, round_to=1, parts=("backbone", "neck", "rpn_head", "roi_head")
    )
    made = []
    for name, net in (("dense", dense), ("slim", slim)):
        graph = FixedShapeDetector(net, SIZE_HW, nms_iterations=2)
        examples = dict(zip(graph.input_names, graph.example_inputs(), strict=True))
        onnx_from_module(graph, examples, folder / f"{name}.onnx", graph.output_names, tolerance=None)
        made.append((graph, folder / f"{name}.onnx"))
    return made


def test_a_detector_is_split_into_its_stages(detectors):
    (dense, dense_file), (slim, slim_file) = detectors
    figures = figures_of(dense_file, slim_file)
    stages = {stage["stage"]: stage for stage in figures["stages"]}
    assert list(stages) == ["backbone", "neck", "rpn", "roi_head", "postprocessing"]
    assert all(stage["dense_ms"] > 0 and stage["slim_ms"] > 0 for stage in stages.values())
    for side, graph in (("dense_macs", dense), ("macs", slim)):
        cost = cost_of(graph, graph.example_inputs())
        expected = {
            prefix: sum(layer.macs for name, layer in cost.layers.items() if name.startswith(prefix))
            for prefix in ("backbone.", "neck.", "proposals.", "detections.")
        }
        assert [stages[stage][side] for stage in list(stages)[:4]] == list(expected.values())
    assert stages["postprocessing"]["macs"] == 0
    shared = next(layer for layer in figures["layers"] if layer["name"] == "proposals.head.rpn_conv")
    assert shared["calls"] == 5  # once for each level
    assert all(layer["speedup"] for layer in figures["layers"])


def test_one_file_alone_shows_what_its_time_goes_to(pair):
    figures = figures_of(pair[0])
    a, b, fc = figures["layers"]
    assert [(layer["name"], layer["type"]) for layer in (a, b, fc)] == [
        ("a", "conv 3x3"),
        ("b", "conv 1x1"),
        ("fc", "linear"),
    ]
    assert (a["macs"], b["macs"], fc["macs"]) == (128 * 27 * 16, 128 * 16 * 32, 2 * 32 * 5)  # 128 positions
    assert figures["files"] == {"network": str(pair[0])}
    assert figures["latency"]["runtime"] == "onnxruntime"
    operators, (network,) = figures["operators"], figures["stages"].values()
    assert operators["Conv"]["num_nodes"] == 2
    assert sum(one["ms"] for one in operators.values()) == pytest.approx(figures["nodes_ms"])
    assert network["layers_ms"] == pytest.approx(sum(layer["ms"] for layer in figures["layers"]))
    assert sum(network.values()) + figures["layout_ms"] == pytest.approx(figures["nodes_ms"])
    for layer in figures["layers"]:
        assert layer["peak_share"] == pytest.approx(layer["macs"] / layer["ms"] / 1e9)


def test_the_text_on_one_file_says_what_pruning_would_not_speed_up(pair):
    result = invoke("deploy", "explain", pair[0], "--rounds", 3)
    lines = result.stdout.splitlines()
    assert lines[0].endswith(", onnxruntime, fp32, batch 2, 3 rounds")
    assert " layers with weights, 0.1212 MMACs" in lines[1]  # 128 x (27 + 32) x 16 + 320 = 121152
    after = lines[lines.index("What pruning speeds up little or not at all") + 1 :]
    assert any("is in network, outside the layers that pruning cuts" in line for line in after)
    assert f"explained {pair[0]}\n" in result.stderr


def test_one_detector_alone_is_split_into_its_stages(detectors):
    figures = figures_of(detectors[0][1])
    assert list(figures["stages"]) == ["backbone", "neck", "rpn", "roi_head", "postprocessing"]
    assert figures["stages"]["postprocessing"]["layers_ms"] == 0
    assert figures["stages"]["postprocessing"]["rest_ms"] > 0
    assert any("is in postprocessing, outside the layers that pruning cuts" in line for line in figures["limits"])


def test_a_file_without_weights_is_explained_alone(one_node_file):
    figures = figures_of(one_node_file("Relu", shape=(64, 64)))
    assert (figures["layers"], list(figures["operators"])) == ([], ["Relu"])


@pytest.mark.parametrize("num", [1, 2])
def test_a_free_dimension_is_given_a_size(pair, tmp_path, num):
    free = write_net(tmp_path / "free.onnx", (16, 32), side="side")
    files = [free, pair[1]][:num]
    figures = figures_of(*files, "--shape", "image=2,3,8,8")
    assert figures["layers"][0]["macs" if num == 1 else "dense_macs"] == 128 * 27 * 16


@pytest.mark.parametrize("content", [None, "folder", b"no protobuf"])
def test_what_is_no_network_is_refused_alone_too(refusal, tmp_path, content):
    path = tmp_path / "net.onnx"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    code, line = refusal(path)
    assert code == 2
    assert line.startswith(f"{path}")
    assert " expected a" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_an_engine_alone_needs_a_gpu(pair, refusal):
    engine = built(pair[0])
    code, line = refusal(engine)
    assert (code, line.split(",")[0]) == (1, f"{engine}: needs a GPU")


def test_missing_files_are_refused(pair, refusal, tmp_path):
    code, line = refusal(pair[0], tmp_path / "none.onnx")
    assert (code, line.split(";")[0]) == (2, f"{tmp_path}/none.onnx: no such file")


def test_a_file_that_is_not_onnx_is_refused(pair, refusal, tmp_path):
    (tmp_path / "text.onnx").write_text("no protobuf")
    code, line = refusal(pair[0], tmp_path / "text.onnx")
    assert code == 2
    assert line.startswith(f"{tmp_path}/text.onnx: not an ONNX file, got ")


def test_a_file_with_a_free_dimension_is_refused(pair, refusal, tmp_path):
    free = write_net(tmp_path / "free.onnx", (16, 32), side="side")
    code, line = refusal(free, pair[1])
    assert (code, line.split(", got")[0]) == (2, f"{free}: node 'conv_a': has a free dimension")


@pytest.mark.parametrize(
    ("widths", "options", "problem"),
    [
        (
            (16, 32),
            {"names": ("a", "b", "other")},
            "different networks, got 3 and 3 layers, fc in only one of them",
        ),
        ((17, 32), {}, "different networks, got a as conv 3x3 3 to 16 and conv 3x3 3 to 17"),
    ],
)
def test_two_networks_are_refused(widths, options, problem, pair, refusal, tmp_path):
    other = write_net(tmp_path / "other.onnx", widths, **options)
    code, line = refusal(pair[0], other)
    assert (code, line.split(";")[0]) == (2, f"{pair[0]} and {other}: {problem}")


def test_files_for_other_images_are_refused(pair, refusal, tmp_path):
    large = write_net(tmp_path / "large.onnx", (9, 32), side=16)
    code, line = refusal(pair[0], large)
    assert code == 2
    assert line.startswith(f"{large}: input 'image' has the wrong shape, got (2, 3, 8, 8); expected (2, 3, 16, 16)")


def test_files_of_two_precisions_are_refused(pair, refusal, tmp_path):
    half = write_net(tmp_path / "half.onnx", (9, 32), dtype=np.float16)
    code, line = refusal(pair[0], half)
    assert code == 2
    assert line.endswith("half.onnx: cannot be compared, got fp32 and fp16; expected the same precision")


def test_an_engine_and_an_onnx_file_are_refused(pair, refusal):
    engine = built(pair[0])
    code, line = refusal(engine, pair[1])
    problem = "cannot be compared, got an engine for tensorrt_rtx and an ONNX file; expected two of the same kind"
    assert (code, line) == (2, f"{engine} and {pair[1]}: {problem}")


def test_engines_of_two_backends_are_refused(pair, refusal):
    engines = [built(path) for path in pair]
    changed(engines[1], backend="tensorrt")
    code, line = refusal(*engines)
    assert code == 2
    assert line.endswith("got an engine for tensorrt_rtx and an engine for tensorrt; expected two of the same kind")


def test_an_engine_needs_the_file_it_was_built_from(pair, refusal, tmp_path):
    engine, other = (built(path) for path in pair)
    write_net(tmp_path / "slim.onnx", (8, 32))
    code, line = refusal(engine, other)
    assert (code, line.split(";")[0]) == (
        2,
        f"{tmp_path}/slim.onnx: changed since slim.engine was built from it, got another sha256",
    )
    (tmp_path / "slim.onnx").unlink()
    assert refusal(engine, other)[1].startswith(
        f"{tmp_path}/slim.onnx: no such file; expected the file that the engine"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_engines_without_a_gpu_are_refused_in_one_line(pair, refusal):
    engines = [built(path) for path in pair]
    code, line = refusal(*engines)
    assert (code, line.split(",")[0]) == (1, f"{engines[0]}: needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
@pytest.mark.parametrize("name", ["dense-2.engine", "elsewhere.engine"])
def test_the_sidecar_names_the_file_that_an_engine_was_built_from(name, pair, refusal):
    engine, slim = built(pair[0], name), built(pair[1])
    assert refusal(engine, slim)[1].startswith(f"{engine}: needs a GPU")
    pair[0].rename(pair[0].with_name("gone.onnx"))
    assert refusal(engine, slim)[1].startswith(f"{pair[0]}: no such file; expected the file that the engine was built")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_without_a_name_in_the_sidecar_the_engines_own_name_is_used(pair, refusal):
    engines = [built(path) for path in pair]
    changed(engines[0], onnx_file=None)
    assert refusal(*engines)[1].startswith(f"{engines[0]}: needs a GPU")


def test_a_file_that_computes_nothing_is_refused(tmp_path):
    constant = helper.make_node("Constant", [], ["y"], value=helper.make_tensor("v", 1, [1], [0.5]))
    graph = helper.make_graph([constant], "g", [], [helper.make_tensor_value_info("y", 1, [1])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n.onnx")
    with pytest.raises(RequestError, match="got a file that computes nothing"):
        explain_alone(tmp_path / "n.onnx", 1, 2, Console(quiet=True))
