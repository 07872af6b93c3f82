import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploy import OnnxRunner, onnx_from_module
from deploy.export import _checked_differences

NAMES = ["scores", "labels"]


def test_onnx_runtime_gives_what_the_module_gives(net, tensors, tmp_path):
    differences = onnx_from_module(net, tensors, tmp_path / "net.onnx", NAMES)
    other = {"image": torch.rand(2, 3, 8, 8), "scale": torch.rand(2, 1)}
    with torch.no_grad():
        scores, labels = net.eval()(*other.values())
    outputs = OnnxRunner(tmp_path / "net.onnx").run({name: tensor.numpy() for name, tensor in other.items()})
    np.testing.assert_allclose(outputs["scores"], scores.numpy(), atol=1e-5)
    np.testing.assert_array_equal(outputs["labels"], labels.numpy())
    assert differences["scores"] < 1e-5
    assert differences["labels"] == 0


def test_batch_norm_is_folded_and_no_path_of_this_machine_is_left(net, tensors, tmp_path):
    onnx_from_module(net, tensors, tmp_path / "net.onnx", NAMES)
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert operators == ["Conv", "Relu", "ReduceMean", "Mul", "Gemm", "TopK"]
    assert b"conftest.py" not in (tmp_path / "net.onnx").read_bytes()


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (20, 9), (22, 10)])  # as onnx's releases had them
def test_a_file_has_the_lowest_ir_version_of_its_operators(net, tensors, tmp_path, opset, ir_version):
    onnx_from_module(net, tensors, tmp_path / "net.onnx", NAMES, opset=opset)
    assert onnx.load(tmp_path / "net.onnx").ir_version == ir_version


def test_every_submodule_keeps_its_mode(net, tensors, tmp_path):
    net.train()
    net.bn.eval()
    onnx_from_module(net, tensors, tmp_path / "net.onnx", NAMES)
    assert net.conv.training
    assert not net.bn.training


def test_an_input_the_net_ignores_stays_an_input(tmp_path):
    class Ignores(nn.Module):
        def forward(self, image, image_hw):
            return image + 1

    tensors = {"image": torch.rand(2, 3), "image_hw": torch.rand(2, 2)}
    onnx_from_module(Ignores(), tensors, tmp_path / "net.onnx", ["out"])
    assert list(OnnxRunner(tmp_path / "net.onnx").inputs) == ["image", "image_hw"]


def test_half_precision_is_exported_as_it_is(tmp_path):
    net = nn.Conv2d(3, 4, 3).half()
    tensors = {"image": torch.rand(1, 3, 8, 8).half()}
    onnx_from_module(net, tensors, tmp_path / "net.onnx", ["y"], tolerance=1e-2)
    assert OnnxRunner(tmp_path / "net.onnx").precision == "fp16"


def test_the_exporter_prints_nothing(tmp_path):
    program = (
        "import torch; from deploy import onnx_from_module; "
        "onnx_from_module(torch.nn.Conv2d(3, 4, 3), {'x': torch.rand(1, 3, 8, 8)}, 'net.onnx', ['y'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_wrong_number_of_output_names_is_refused(net, tensors, tmp_path):
    with pytest.raises(ValueError, match="output_names: wrong count, got 1 names; expected 2"):
        onnx_from_module(net, tensors, tmp_path / "net.onnx", ["scores"])
    assert list(tmp_path.iterdir()) == []


def test_control_flow_on_values_is_refused_in_one_line(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(
        RuntimeError, match=r"Branches: cannot be exported to ONNX, got .*; expected a forward"
    ) as caught:
        onnx_from_module(Branches(), {"x": torch.rand(2)}, tmp_path / "net.onnx", ["y"])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_operator_outside_the_standard_is_named(tmp_path):
    class Custom(nn.Module):
        def forward(self, x):
            if not torch.onnx.is_in_onnx_export():
                return x
            return torch.onnx.ops.symbolic("mmdeploy::Special", [x], {}, dtype=x.dtype, shape=x.shape)

    with pytest.raises(RuntimeError, match="operators outside the ONNX standard, got mmdeploy::Special; rewrite"):
        onnx_from_module(Custom(), {"x": torch.rand(2)}, tmp_path / "net.onnx", ["y"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_outputs_is_refused_and_deleted(tmp_path):
    class Lies(nn.Module):
        def forward(self, x):
            return x, x + 0.5 if torch.onnx.is_in_onnx_export() else x

    with pytest.raises(RuntimeError, match=r"output 'b' of ONNX Runtime differs .* got 0\.5; expected at most 0\.0001"):
        onnx_from_module(Lies(), {"x": torch.tensor([0.25, 1.0])}, tmp_path / "net.onnx", ["a", "b"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("expected", "actual", "is_close"),
    [
        ([], [], True),
        ([0.5], [0.50005], True),  # 5e-5 <= 1e-4
        ([0.5], [0.5002], False),  # 2e-4 > 1e-4
        ([1000.0], [1000.05], True),  # 0.05 <= 1e-4 * 1000
        ([1000.0], [1000.2], False),  # 0.2 > 0.1
        ([-np.inf, 1.0], [-np.inf, 1.0], True),
        ([np.inf], [-np.inf], False),
        ([np.nan], [np.nan], False),
    ],
)
def test_tolerance_is_relative_to_the_largest_value_but_at_least_absolute(expected, actual, is_close):
    arrays = {"y": np.array(expected)}, {"y": np.array(actual)}
    if is_close:
        _checked_differences("f", *arrays, 1e-4)
    else:
        with pytest.raises(RuntimeError, match="output 'y' of ONNX Runtime differs"):
            _checked_differences("f", *arrays, 1e-4)


def test_integers_must_be_equal():
    with pytest.raises(RuntimeError, match=r"'labels' .* got 1; expected at most 0"):
        _checked_differences("f", {"labels": np.array([10**6])}, {"labels": np.array([10**6 + 1])}, tolerance=1.0)


def test_weights_over_two_gib_are_refused():
    net = nn.Linear(2**15, 2**14 + 1, bias=False, device="meta")  # 4 bytes x 2^15 x (2^14 + 1) > 2^31
    with pytest.raises(ValueError, match=r"Linear: too large for one ONNX file, got 2\.0 GiB"):
        onnx_from_module(net, {}, "unused.onnx", ["y"])
