import copy
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from classify.backbones import Architecture
from deploy import OnnxRunner, engine_from_onnx, onnx_from_module
from deploy.onnx_file import foreign_operators, load_onnx, precision_of
from deploy.precision import METHODS, quantized_onnx
from detect import DetectorSettings, new_detector
from detect.fixed_shape import FixedShapeDetector

pytestmark = pytest.mark.slow

SIZE_HW = (64, 64)
HALVES = {torch.float16: "fp16", torch.bfloat16: "bf16"}


class Small(nn.Module):
    """Two convolutions and one that stays float by its name, then a layer that is not a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.rpn_cls, self.fc = nn.Conv2d(8, 2, 1), nn.Linear(8, 5)

    def forward(self, image):
        features = torch.relu(self.second(torch.relu(self.first(image))))
        return self.rpn_cls(features), self.fc(features.mean((2, 3)))


def export(module, path, tensor, output_names=("y",)):
    onnx_from_module(module, {"image": tensor}, path, output_names)
    return path


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    return export(Small(), path, torch.rand(1, 3, 16, 16), ["cls", "fc"])


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return [{"image": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(3)]


def quantized_convolutions(path):
    """Weight names of the convolutions whose input and weight are dequantized, after checking that weights are int8
    with a symmetric scale for each output channel; and of all others."""
    graph = load_onnx(path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantized, kept = [], []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        if node.input[1] in arrays:
            assert arrays[node.input[1]].dtype == np.float32
            kept.append(node.input[1])
            continue
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        weight, scale, zero_point = (arrays[name] for name in made_by[node.input[1]].input)
        assert weight.dtype == np.int8
        assert scale.shape == (len(weight),)
        assert not zero_point.any()
        quantized.append(made_by[node.input[1]].input[0].removesuffix("_quantized"))
    return quantized, kept


@pytest.mark.parametrize("runtime", ["any", "onnxruntime"])
def test_convolutions_are_quantized_and_nothing_else(small_file, batches, tmp_path, runtime):
    names = quantized_onnx(small_file, tmp_path / "int8.onnx", batches, runtime=runtime)
    assert len(names) == 2
    assert quantized_convolutions(tmp_path / "int8.onnx") == (["first.weight", "second.weight"], ["rpn_cls.weight"])
    model = load_onnx(tmp_path / "int8.onnx")
    assert foreign_operators(model) == []
    assert precision_of(model) == "int8"
    assert "fc.weight" in {tensor.name for tensor in model.graph.initializer}
    assert list(model.metadata_props) == []
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_what_stays_float_can_be_chosen_by_weight_or_node(small_file, batches, tmp_path):
    first = next(node.name for node in load_onnx(small_file).graph.node if "first.weight" in node.input)
    quantized_onnx(small_file, tmp_path / "int8.onnx", batches, keep_float=["second.*", first])
    assert quantized_convolutions(tmp_path / "int8.onnx") == (["rpn_cls.weight"], ["first.weight", "second.weight"])


@pytest.mark.parametrize(("runtime", "types"), [("any", {TensorProto.INT8}), ("openvino", {TensorProto.UINT8})])
def test_the_forms_differ_in_activations_biases_and_rectifiers(small_file, batches, tmp_path, runtime, types):
    quantized_onnx(small_file, tmp_path / "int8.onnx", batches, runtime=runtime)
    graph = load_onnx(tmp_path / "int8.onnx").graph
    arrays = {tensor.name: tensor for tensor in graph.initializer}
    zero_points = [arrays[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {tensor.data_type for tensor in zero_points} == types
    if runtime == "any":
        assert not any(numpy_helper.to_array(tensor).any() for tensor in zero_points)
    assert (TensorProto.INT32 in {tensor.data_type for tensor in graph.initializer}) == (runtime != "any")
    assert Counter(node.op_type for node in graph.node)["Relu"] == (2 if runtime == "any" else 0)


@pytest.fixture(scope="module")
def scaling_file(tmp_path_factory):
    """One pixel-wise convolution that multiplies by 1 and by 100, both exact in int8 with a scale for each channel."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data = torch.tensor([1.0, 100.0]).reshape(2, 1, 1, 1)
    return export(conv, tmp_path_factory.mktemp("scaling") / "scaling.onnx", torch.rand(1, 1, 8, 8))


# half a step of x in [-1, 1] times the weight; on the CPU a step of 2 / 255, half of it, and one of y in [-100, 100]
@pytest.mark.parametrize(("runtime", "tolerances"), [("any", (0.5 / 127, 50 / 127)), ("onnxruntime", (0.79, 1.2))])
def test_errors_are_half_a_step_of_what_is_rounded(scaling_file, tmp_path, runtime, tolerances):
    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    quantized_onnx(scaling_file, tmp_path / "int8.onnx", [{"image": image}], runtime=runtime)
    found = OnnxRunner(tmp_path / "int8.onnx").run({"image": image})["y"]
    for channel, (weight, tolerance) in enumerate(zip((1, 100), tolerances, strict=True)):
        difference = np.abs(found[0, channel] - weight * image[0, 0]).max()
        assert 0 < difference <= tolerance + 1e-5


@pytest.mark.parametrize("runtime", ["any", "onnxruntime"])
def test_the_largest_products_do_not_overflow(tmp_path, runtime):
    conv = nn.Conv2d(64, 16, 3, bias=False)
    nn.init.ones_(conv.weight)
    image = np.ones((1, 64, 8, 8), np.float32)
    export(conv, tmp_path / "ones.onnx", torch.from_numpy(image))
    quantized_onnx(tmp_path / "ones.onnx", tmp_path / "int8.onnx", [{"image": image}], runtime=runtime)
    found = OnnxRunner(tmp_path / "int8.onnx").run({"image": image})["y"]
    np.testing.assert_allclose(found, 64 * 9, rtol=0.01)


def scale_of_the_input(path):
    graph = load_onnx(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return float(next(arrays[node.input[1]] for node in graph.node if node.input[0] == "image"))


def test_calibration_methods_find_other_ranges(small_file, batches, tmp_path):
    batches[1]["image"][0, 0, 0, 0] = 100.0  # alone among 2304 values
    scales = {}
    for method in METHODS:
        quantized_onnx(small_file, tmp_path / f"{method}.onnx", batches, method=method)
        scales[method] = scale_of_the_input(tmp_path / f"{method}.onnx")
    assert scales["minmax"] == pytest.approx(100 / 127)
    assert scales["entropy"] < scales["percentile"] < scales["minmax"]


def test_every_batch_counts_and_may_come_from_a_generator(small_file, batches, tmp_path):
    for place, largest in enumerate((7.0, 9.0, 8.0)):
        batches[place]["image"][0, 0, 0, 0] = largest
    quantized_onnx(small_file, tmp_path / "int8.onnx", iter(batches))
    assert scale_of_the_input(tmp_path / "int8.onnx") == pytest.approx(9 / 127)


def test_the_quantizer_prints_nothing(small_file, batches, tmp_path, capfd, caplog):
    quantized_onnx(small_file, tmp_path / "int8.onnx", batches, method="entropy")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def with_value(batches, value):
    batches[1]["image"][0, 0, 0, 0] = value
    return batches


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda b: [], {}, r"batches: no calibration data, got none; expected inputs image for .*small\.onnx"),
        (lambda b: [{"picture": b[0]["image"]}], {}, r"batch 0: wrong input names, got \['picture'\]; expected \['im"),
        (
            lambda b: [{"image": b[0]["image"][:, :2]}],
            {},
            r"batch 0: input 'image' has the wrong shape, got \(1, 2, 16",
        ),
        (
            lambda b: with_value(b, np.nan),
            {},
            "calibration batch 1: input 'image' is not finite, got NaN or infinity",
        ),
        (
            lambda b: with_value(b, np.inf),
            {},
            "calibration batch 1: input 'image' is not finite, got NaN or infinity",
        ),
        (lambda b: b, {"method": "median"}, "method: unknown, got 'median'; expected one of minmax, entropy, percent"),
        (lambda b: b, {"runtime": "gpu"}, "runtime: unknown, got 'gpu'; expected one of any, onnxruntime, openvino"),
        (
            lambda b: b,
            {"keep_float": ["*"]},
            "small.onnx: nothing to quantize, got 3 conv.*, all of them kept; expected",
        ),
        (
            lambda b: b,
            {"keep_float": ["frist*"]},
            r"keep_float: matches no .* got 'frist\*'; .*, such as '\*first.weight",
        ),
    ],
)
def test_wrong_requests_are_refused_in_one_line(small_file, batches, tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        quantized_onnx(small_file, tmp_path / "int8.onnx", change(batches), **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(small_file, batches, tmp_path, value):
    model = load_onnx(small_file)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ValueError, match=r"nan\.onnx: weight 'second\.weight' is not finite, got NaN or inf"):
        quantized_onnx(tmp_path / "nan.onnx", tmp_path / "int8.onnx", batches)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.onnx"]


def test_a_source_that_is_not_onnx_is_refused(batches, tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"no\.onnx: not an ONNX file"):
        quantized_onnx(tmp_path / "no.onnx", tmp_path / "int8.onnx", batches)
    with pytest.raises(FileNotFoundError, match=r"absent\.onnx: no such file"):
        quantized_onnx(tmp_path / "absent.onnx", tmp_path / "int8.onnx", batches)


def test_a_quantized_file_has_nothing_left_to_quantize(small_file, batches, tmp_path):
    quantized_onnx(small_file, tmp_path / "int8.onnx", batches)
    with pytest.raises(ValueError, match=r"int8\.onnx: nothing to quantize, got 1 convolutions"):
        quantized_onnx(tmp_path / "int8.onnx", tmp_path / "again.onnx", batches)


def test_a_file_that_was_there_survives_a_failure(small_file, batches, tmp_path, monkeypatch):
    (tmp_path / "int8.onnx").write_bytes(b"before")
    monkeypatch.setattr("deploy.precision.foreign_operators", lambda model: ["com.microsoft::QGemm"])
    with pytest.raises(RuntimeError, match=r"operators outside the ONNX standard, got com\.microsoft::QGemm"):
        quantized_onnx(small_file, tmp_path / "int8.onnx", batches)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.fixture(scope="module")
def detector():
    """A narrow Faster R-CNN with non-trivial BatchNorms, and scores that differ enough to keep their order."""
    settings = DetectorSettings(
        image_size_hw=SIZE_HW, fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16, anchor_scale=4
    )
    detector, _ = new_detector(Architecture("resnet18", 1, 8), ("a", "b", "c"), settings, 0)
    torch.manual_seed(0)
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=0.5)
    return detector


@pytest.fixture(scope="module")
def detector_file(detector, tmp_path_factory):
    """Return the ONNX file of the detector in a precision; written without a parity check, which CPUs lack for bf16."""
    folder = tmp_path_factory.mktemp("detector")

    def write(dtype):
        path = folder / f"{dtype}.onnx"
        if not path.exists():
            module = FixedShapeDetector(detector, SIZE_HW, nms_iterations=2, dtype=dtype)
            names = {"input_names": module.input_names, "output_names": module.output_names}
            torch.onnx.export(
                module, module.example_inputs(), path, dynamo=True, verbose=False, external_data=False, **names
            )
        return path

    return write


def pictures(seed):
    """Coarse random patches, so that neighbouring pixels are alike, as in photographs."""
    patches = np.random.default_rng(seed).uniform(0, 255, (1, 3, 8, 8)).astype(np.float32)
    return {"image": patches.repeat(8, 2).repeat(8, 3), "image_hw": np.array([SIZE_HW], np.float32)}


def logits_of_proposals(path):
    """The outputs of the float convolutions at the end of the RPN for one image."""
    model = load_onnx(path)
    nodes = [node for node in model.graph.node if "proposals.head.rpn_cls.weight" in node.input]
    names = [node.output[0] for node in sorted(nodes, key=lambda node: node.name)]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    beside = path.with_name("with_logits.onnx")
    onnx.save(model, beside)
    outputs = OnnxRunner(beside).run(pictures(9))
    return [outputs[name] for name in names[:3]]  # the last levels have few pixels


@pytest.mark.parametrize("runtime", ["any", "onnxruntime"])
def test_a_detector_finds_in_int8_what_it_finds_in_float(detector_file, tmp_path, runtime):
    path = detector_file(torch.float32)
    names = quantized_onnx(path, tmp_path / "int8.onnx", map(pictures, range(4)), runtime=runtime)
    quantized, kept = quantized_convolutions(tmp_path / "int8.onnx")
    assert len(quantized) == len(names) == 20 + 8 + 5  # ResNet-18, FPN, rpn_conv on five levels
    assert sorted(set(kept)) == ["proposals.head.rpn_cls.weight", "proposals.head.rpn_reg.weight"]
    assert len(kept) == 10
    # NMS turns small differences into other boxes, so outputs before it are compared
    for expected, found in zip(*(logits_of_proposals(file) for file in (path, tmp_path / "int8.onnx")), strict=True):
        assert np.std(found - expected) < 0.1 * np.std(expected)


def test_a_detector_finds_in_fp16_what_it_finds_in_fp32(detector_file):
    expected, found = (
        OnnxRunner(detector_file(dtype)).run(pictures(9))["scores"] for dtype in (torch.float32, torch.float16)
    )
    np.testing.assert_allclose(found, expected, atol=0.005)


@pytest.mark.parametrize("dtype", HALVES)
def test_no_network_weight_stays_fp32_in_a_half_file(detector_file, dtype):
    model = load_onnx(detector_file(dtype))
    assert precision_of(model) == HALVES[dtype]
    networks = ("backbone.", "neck.", "proposals.head.", "detections.head.")
    types = {tensor.data_type for tensor in model.graph.initializer if tensor.name.startswith(networks)}
    assert types == {TensorProto.FLOAT16 if dtype == torch.float16 else TensorProto.BFLOAT16}


@pytest.mark.parametrize("dtype", HALVES)
def test_tensorrt_builds_half_precision(detector_file, tmp_path, dtype):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: nothing to build engines with")
    info = engine_from_onnx(detector_file(dtype), tmp_path / "half.engine")
    assert info.precision == HALVES[dtype]


def test_tensorrt_builds_its_int8_form(detector_file, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: nothing to build engines with")
    quantized_onnx(detector_file(torch.float32), tmp_path / "int8.onnx", [pictures(0)])
    assert engine_from_onnx(tmp_path / "int8.onnx", tmp_path / "int8.engine").precision == "int8"


def test_a_batch_norm_that_cannot_be_folded_is_refused(detector):
    class NormFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            nn.init.uniform_(self.bn.bias, 1, 2)

        def forward(self, image):
            return (self.conv(self.bn(image)),)

    detector = copy.deepcopy(detector)
    detector.backbone = NormFirst()
    with pytest.raises(ValueError, match=r"backbone: BatchNorm cannot be folded .*, got different features"):
        FixedShapeDetector(detector, SIZE_HW, dtype=torch.float16)
