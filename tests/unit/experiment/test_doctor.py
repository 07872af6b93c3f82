import importlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from rich.console import Console

from experiment import doctor
from experiment.doctor import Finding, examine, report_table

ROOT = Path(__file__).parents[3]
PARTS = [
    "Python",
    "torch and torchvision",
    "GPU",
    "mmengine",
    "mmcv",
    "mmcv operators",
    "mmdet",
    "pycocotools",
    "onnx",
    "ONNX Runtime",
    "openvino",
    "C++ compiler",
    "TensorRT",
    "TensorRT-RTX",
    "NVML",
    "cores and memory",
    "disk",
]


def found(subject: str) -> Finding:
    return next(finding for finding in examine() if finding.subject == subject)


def change_versions(monkeypatch, **changed: str | None) -> None:
    """Let distributions have another version, or None for not installed; `_` replaces `-`."""
    real = metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in changed:
            return real(name)
        if changed[key] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[key]

    monkeypatch.setattr(metadata, "version", version)


def forbid_import(monkeypatch, module: str, error: Exception) -> None:
    real = importlib.import_module

    def import_module(name: str):
        if name == module:
            raise error
        return real(name)

    monkeypatch.setattr(importlib, "import_module", import_module)


def test_this_machine_has_what_the_tests_need():
    findings = {finding.subject: finding for finding in examine()}
    assert list(findings) == PARTS
    optional = {"GPU", "TensorRT", "NVML", "C++ compiler", "mmcv operators", "disk"}
    assert [one for one in findings.values() if one.status != "ok" and one.subject not in optional] == []


def test_every_finding_that_is_not_ok_has_a_remedy():
    assert all((finding.status == "ok") == (finding.fix == "") for finding in examine())


def test_findings_become_json():
    assert len(json.loads(json.dumps([asdict(finding) for finding in examine()]))) == len(PARTS)


def test_table_keeps_brackets_and_whole_commands():
    command = "pip install 'espalier[tensorrt]' " + "x" * 100
    console = Console(width=80, file=io.StringIO())
    console.print(report_table([Finding("part", "missing", "found [cpu]", command)]))
    text = console.file.getvalue()
    assert "[cpu]" in text
    assert text.count("x") == 100


def test_without_our_own_package_s_metadata_every_part_is_still_named(monkeypatch):
    change_versions(monkeypatch, espalier=None)
    findings = {finding.subject: finding for finding in examine()}
    assert list(findings) == PARTS
    assert findings["onnx"].status == "ok"


@pytest.mark.parametrize("error", [KeyError("uid"), SyntaxError("bad"), NameError("x"), ZeroDivisionError("0")])
def test_a_part_that_fails_in_any_way_is_broken(monkeypatch, error):
    forbid_import(monkeypatch, "pycocotools.mask", error)
    assert found("pycocotools").status == "broken"


def test_a_machine_that_tells_nothing_of_its_memory_is_examined(monkeypatch):
    def sysconf(_):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(doctor.os, "sysconf", sysconf)
    assert found("cores and memory").detail == "unrecognized configuration name"


@pytest.mark.slow
def test_an_empty_environment_is_examined():
    command = [sys.executable, "-m", "espalier", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, env={"PYTHONIOENCODING": "ascii"}, cwd=ROOT, check=False)
    assert done.returncode in (0, 1)
    assert [finding["subject"] for finding in json.loads(done.stdout)] == PARTS


def test_named_pair_is_the_pinned_pair():
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch")]
    assert list(doctor._TRIED_PAIR) == pinned


def test_torchvision_without_its_operators_is_broken(monkeypatch):
    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    pair = found("torch and torchvision")
    assert pair.status == "broken"
    assert "do not fit: operator torchvision::nms does not exist" in pair.detail
    assert pair.fix.endswith("pip install torch==2.14.1 torchvision==0.29.2")


def test_old_torch_is_broken(monkeypatch):
    change_versions(monkeypatch, torch="2.5.1")
    assert found("torch and torchvision").detail == "torch 2.5.1 is installed; expected >=2.6"


def test_unsupported_python_is_broken(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert found("Python").status == "broken"


@pytest.mark.parametrize(
    ("subject", "distribution"),
    [("onnx", "onnx"), ("pycocotools", "pycocotools"), ("ONNX Runtime", "onnxruntime"), ("openvino", "openvino")],
)
def test_missing_library_names_its_command(monkeypatch, subject, distribution):
    change_versions(monkeypatch, **{distribution: None})
    finding = found(subject)
    assert (finding.status, finding.detail) == ("missing", "not installed")
    assert f"-m pip install '{distribution.replace('_', '-')}" in finding.fix


def test_library_that_does_not_load_is_broken(monkeypatch):
    forbid_import(monkeypatch, "pycocotools.mask", ValueError("numpy.dtype size changed\nmore"))
    finding = found("pycocotools")
    assert (finding.status, finding.detail) == ("broken", "numpy.dtype size changed")


def test_upstream_beside_the_maintained_line_is_broken(monkeypatch):
    change_versions(monkeypatch, mmdet="3.3.0")
    finding = found("mmdet")
    assert finding.detail == "upstream mmdet 3.3.0 is installed; expected onedl-mmdetection alone"
    assert "pip uninstall -y mmdet && " in finding.fix


def test_missing_detector_library_is_missing(monkeypatch):
    change_versions(monkeypatch, onedl_mmengine=None)
    assert found("mmengine").status == "missing"


@pytest.mark.parametrize(
    ("operators", "detail"),
    [
        (SimpleNamespace(__file__="mmcv/_ext.so"), "compiled"),
        (SimpleNamespace(), "not compiled; nms and RoIAlign come from torchvision (detect.ops)"),
    ],
)
def test_compiled_operators_differ_from_the_substitute(monkeypatch, operators, detail):
    monkeypatch.setitem(sys.modules, "mmcv._ext", operators)
    assert found("mmcv operators").detail == detail


def test_operators_compiled_for_another_torch_are_broken(monkeypatch):
    forbid_import(monkeypatch, "mmcv._ext", ImportError("undefined symbol: _ZN3c10"))
    assert found("mmcv operators").status == "broken"


def test_no_gpu_is_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_version", lambda: None)
    assert (found("GPU").status, found("GPU").detail) == ("missing", "none: CPU only")


def test_gpu_that_torch_cannot_see_is_broken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "_driver_version", lambda: "470.1")
    assert found("GPU").detail.startswith("driver 470.1 is there, but torch")


def test_gpu_is_named_with_driver_and_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 4090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    monkeypatch.setattr(doctor, "_driver_version", lambda: "580.65")
    assert found("GPU").detail == "RTX 4090, driver 580.65, compute capability 8.9"


def test_missing_tensorrt_names_nvidias_index(monkeypatch):
    forbid_import(monkeypatch, "tensorrt", ModuleNotFoundError("No module named 'tensorrt'"))
    finding = found("TensorRT")
    assert finding.status == "missing"
    assert finding.fix.endswith("install 'tensorrt>=10.8' --extra-index-url https://pypi.nvidia.com")


def test_tensorrt_without_its_libraries_is_broken(monkeypatch):
    forbid_import(monkeypatch, "tensorrt", ImportError("libnvinfer.so.10: cannot open shared object file"))
    assert found("TensorRT").status == "broken"


def test_old_tensorrt_is_broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    assert found("TensorRT").detail == "tensorrt 8.6.1 is installed; expected >=10.8"


def test_too_little_disk_is_broken(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5e9))
    assert (found("disk").status, found("disk").detail.startswith("1.5 GB free in")) == ("broken", True)
