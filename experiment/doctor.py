"""What this machine can do, and the command that installs each missing part.

Every part is tried where that is cheap: a package that is installed but does not load is reported as broken.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.table import Table
from rich.text import Text

from command.errors import WorkError

__all__ = ["Finding", "examine", "report_table"]

_TRIED_PAIR = ("torch==2.14.1", "torchvision==0.29.2")  # as in constraints.txt; a test compares them
_MIN_FREE_GB = 2
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError),
    *(SyntaxError, SystemError, TypeError, ValueError),
)
"""What a part raises when its binaries or versions do not fit, or its files are damaged; mmdet asserts its versions."""
_STYLES = {"ok": "green", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """One part of the machine or its software: "missing" is not there, "broken" is there but does not work."""

    subject: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    fix: str = ""
    """What to do, mostly a command to copy; empty where the status is "ok"."""


class _MissingError(Exception):
    """A part that is missing, where no import fails."""


def examine() -> list[Finding]:
    """Return what was found, in reading order; never raises because of a part."""
    rtx, engine = "builds engines on any machine, runs them only on an RTX GPU", "builds and runs engines only on a GPU"
    return [
        _finding("Python", _python, "make clean install PYTHON=python3.12"),
        _finding("torch and torchvision", _torch_pair, _pip(*_TRIED_PAIR)),
        _finding(
            "GPU",
            _gpu,
            "timings need an NVIDIA GPU, a driver new enough for this torch, and CUDA_VISIBLE_DEVICES not empty",
        ),
        _openmmlab("onedl-mmengine", "mmengine"),
        _openmmlab("onedl-mmcv", "mmcv"),
        _finding("mmcv operators", _mmcv_operators, _pip("--force-reinstall", "--no-deps", _requirement("onedl-mmcv"))),
        _openmmlab("onedl-mmdetection", "mmdet"),
        _library("pycocotools", "pycocotools.mask"),
        _library("onnx", "onnx"),
        _finding("ONNX Runtime", _onnxruntime, _pip(_requirement("onnxruntime"))),
        _library("openvino", "openvino"),
        _finding("C++ compiler", _compiler, "install g++: only torch.compile needs it"),
        _finding(
            "TensorRT",
            partial(_tensorrt, "tensorrt", engine),
            _pip(_requirement("tensorrt"), "--extra-index-url", "https://pypi.nvidia.com"),
        ),
        _finding("TensorRT-RTX", partial(_tensorrt, "tensorrt_rtx", rtx), _pip(_requirement("tensorrt-rtx"))),
        _finding("NVML", _nvml, f"needs an NVIDIA driver, and {_pip(_requirement('nvidia-ml-py'))}"),
        _finding("cores and memory", _cores_and_memory, "none: it is only not known"),
        _finding("disk", _disk, "free some, or work in a folder on another disk"),
    ]


def report_table(findings: Sequence[Finding]) -> Table:
    """Return the findings as a table for the terminal."""
    table = Table("part", "status", "found", "what to do")
    table.columns[-1].overflow = "fold"  # a command that is cut off cannot be copied
    for finding in findings:
        status = Text(finding.status, _STYLES[finding.status])
        table.add_row(finding.subject, status, Text(finding.detail), Text(finding.fix))
    return table


def _finding(subject: str, probe: Callable[[], str], fix: str) -> Finding:
    """Turn a probe's result, or the error it raises, into a finding."""
    try:
        return Finding(subject, "ok", probe())
    except (ModuleNotFoundError, _MissingError) as error:
        return Finding(subject, "missing", _first_line(error), fix)
    except _FAILURES as error:
        return Finding(subject, "broken", _first_line(error), fix)


def _first_line(error: Exception) -> str:
    if isinstance(error, metadata.PackageNotFoundError):
        return "not installed"
    return (str(error) or type(error).__name__).splitlines()[0]


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *arguments])


def _requirement(distribution: str) -> str:
    """Return the requirement from our own package metadata, such as "onnx>=1.17"; without it any version fits."""
    texts = metadata.requires("espalier") if _installed("espalier") else None
    stated = (Requirement(text) for text in texts or [])
    return next((f"{one.name}{one.specifier}" for one in stated if one.name == distribution), distribution)


def _check_version(distribution: str, version: str) -> None:
    required = Requirement(_requirement(distribution)).specifier
    if not required.contains(version, prereleases=True):
        raise WorkError(f"{distribution} {version} is installed; expected {required}")


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _load(distribution: str, module: str) -> str:
    """Return the installed version after checking that it fits and loads."""
    version = metadata.version(distribution)
    _check_version(distribution, version)
    importlib.import_module(module)
    return version


def _library(distribution: str, module: str) -> Finding:
    return _finding(distribution, partial(_load, distribution, module), _pip(_requirement(distribution)))


def _openmmlab(distribution: str, module: str) -> Finding:
    """Check for the maintained fork; upstream's distribution, named like its module, writes into the same folder."""
    install = _pip(_requirement(distribution))
    if upstream := _installed(module):
        uninstall = shlex.join([sys.executable, "-m", "pip", "uninstall", "-y", module])
        fix = f"{uninstall} && {install} --force-reinstall --no-deps"
        return Finding(
            module, "broken", f"upstream {module} {upstream} is installed; expected {distribution} alone", fix
        )
    return _finding(module, lambda: f"{distribution} {_load(distribution, module)}", install)


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = metadata.metadata("espalier")["Requires-Python"]
    if version not in SpecifierSet(supported):
        raise WorkError(f"{version} is not supported; expected {supported}")
    return version


def _torch_pair() -> str:
    """Run an operator of torchvision's, which works only with the torch it was compiled against."""
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
    for name, version in versions.items():
        _check_version(name, version)
    try:
        import torchvision

        boxes_xyxy = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        kept = torchvision.ops.nms(boxes_xyxy, torch.tensor([0.9, 0.8]), 0.5).tolist()
    except _FAILURES as error:
        pair = " and ".join(f"{name} {version}" for name, version in versions.items())
        raise WorkError(f"{pair} do not fit: {_first_line(error)}") from error
    if kept != [0]:
        raise WorkError(f"torchvision.ops.nms keeps {kept} of two overlapping boxes; expected [0]")
    return f"torch {torch.__version__}, torchvision {torchvision.__version__}, nms runs"


def _gpu() -> str:
    import torch

    driver = _driver_version()
    if not torch.cuda.is_available():
        if driver:
            raise WorkError(f"driver {driver} is there, but torch {torch.__version__} sees no GPU")
        raise _MissingError("none: CPU only")
    torch.ones(1, device="cuda").sum().item()  # raises where this torch has no kernels for this GPU
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{torch.cuda.get_device_name()}, driver {driver or 'unknown'}, compute capability {capability}"


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.partition("\n")[0].strip() or None


def _mmcv_operators() -> str:
    """Return what provides mmcv's operators; those compiled against another torch do not load."""
    try:
        operators = importlib.import_module("mmcv._ext")
    except ModuleNotFoundError as error:
        if error.name != "mmcv._ext":
            raise
        operators = None
    if getattr(operators, "__file__", None):
        return "compiled"
    return "not compiled; nms and RoIAlign come from torchvision (detect.ops)"


def _onnxruntime() -> str:
    version = _load("onnxruntime", "onnxruntime")
    providers = importlib.import_module("onnxruntime").get_available_providers()
    return f"{version} with {', '.join(providers)}"


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise _MissingError("none; torch.compile cannot be measured on the CPU")
    return f"{compiler}; torch.compile makes kernels with it"


def _nvml() -> str:
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise _MissingError(f"{metadata.version('nvidia-ml-py')}, but no driver: {error}") from error
    return f"{metadata.version('nvidia-ml-py')}; clocks, power and temperature are recorded beside every time"


def _tensorrt(module: str, abilities: str) -> str:
    """Import the module, as package names differ: NVIDIA's containers bring TensorRT under other package names."""
    version = importlib.import_module(module).__version__
    _check_version(module.replace("_", "-"), version)
    return f"{version}; {abilities}"


def _cores_and_memory() -> str:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{num_cores} cores, {memory_gb:.0f} GB of memory"


def _disk() -> str:
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    if free_gb < _MIN_FREE_GB:
        raise WorkError(f"{free_gb:.1f} GB free in {Path.cwd()}; expected at least {_MIN_FREE_GB} GB")
    return f"{free_gb:.0f} GB free in {Path.cwd()}"
