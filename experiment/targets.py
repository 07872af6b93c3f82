"""Targets: where the models of an experiment run, and which of them this machine can build, evaluate and time."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from classify.checkpoint import Side
from command.config import Part, check_name
from command.errors import RequestError
from command.extras import install_command
from deploy.deployment import ONNX_NAME, Precision
from deploy.machine import cpu_model, current_gpu, installed_versions
from deploy.runtimes.onnxruntime_cuda import INSTALL, has_cuda_provider
from deploy.runtimes.registry import ENGINE, RUNTIMES
from detect.data import CocoSet
from detect.export_config import ExportConfig

__all__ = ["Scope", "Target", "has_gpu", "scope_of"]

_ALL: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
_PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "onnxruntime": ("fp32", "fp16", "int8"),
    "onnxruntime_cuda": ("fp32", "fp16"),
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": _ALL,
    "tensorrt_graph": _ALL,
    "tensorrt_rtx": _ALL,
    "tensorrt_rtx_graph": _ALL,
}
"""Runtime of a target -> precisions that it computes in."""


class Target(Part):
    """Where a model runs: its file is built, evaluated and timed there."""

    runtime: str = "onnxruntime"
    """`onnxruntime` and `openvino` on the CPU; `onnxruntime_cuda`, `tensorrt`, `tensorrt_rtx`, or these two as a CUDA
    graph, `tensorrt_graph` and `tensorrt_rtx_graph`, on a GPU."""
    precision: Precision = "fp32"
    """The precision asked for. Rows report the one found in the file, or in OpenVINO's compiled network."""
    batch: int = Field(1, ge=1, le=4096)
    """Images per run, fixed in the file."""
    size_hw: tuple[Side, Side] | None = None
    """Height and width that the detector works at, multiples of 32; None for those of its training."""
    num_calibration: int = Field(64, ge=1, le=10**6)
    """Training images from the first on that int8 is calibrated on, all held in memory."""
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] = ()
    """GPU generations that TensorRT-RTX builds for, such as "8.9"; none for its own choice."""
    build_only: bool = False
    """Whether it is only built, where that needs no GPU, until `espalier run --only latency` runs it elsewhere."""

    @model_validator(mode="after")
    def _is_possible(self) -> "Target":
        check_name(self.runtime, _PRECISIONS, "runtime")
        possible = _PRECISIONS[self.runtime]
        if self.precision not in possible:
            raise RequestError(
                f"precision: not in {self.runtime}, got {self.precision}; expected one of {', '.join(possible)}"
            )
        if self.compute_capabilities and self.backend != "tensorrt_rtx":
            raise RequestError(
                f"compute_capabilities: for tensorrt_rtx alone, got {', '.join(self.compute_capabilities)} with "
                f"{self.runtime}; expected none"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it is that of an experiment without `targets`."""
        return self == Target()

    @property
    def opened_by(self) -> str:
        """The name in `RUNTIMES` of what runs its file; OpenVINO computes files of fp32 in bf16."""
        return "openvino_bf16" if (self.runtime, self.precision) == ("openvino", "bf16") else self.runtime

    @property
    def backend(self) -> str | None:
        """What builds its engine; None where the ONNX file is run."""
        return RUNTIMES[self.runtime].backend

    @property
    def is_on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return RUNTIMES[self.runtime].needs_gpu

    @property
    def file(self) -> str:
        """Name of the file that is run, in the folder of its build."""
        return f"model{ENGINE}" if self.backend else ONNX_NAME

    @property
    def version(self) -> str | None:
        """The installed version of its runtime; None where its package has another name."""
        package = {"onnxruntime_cuda": "onnxruntime-gpu"}.get(self.runtime, self.backend or self.runtime)
        return installed_versions().get(package.replace("_", "-"))

    @property
    def _file_precision(self) -> Precision:
        return "fp32" if self.opened_by == "openvino_bf16" else self.precision

    @property
    def _graph(self) -> str:
        """The runtime that the graph is written for: int8 has a form of its own on each CPU runtime."""
        return self.runtime if self.precision == "int8" and not self.is_on_gpu else "any"

    def export_config(self, images: CocoSet | None) -> ExportConfig:
        """Return the config of its ONNX file.

        Args:
            images: Those to calibrate on, and to compare the file on; None for a classifier.
        """
        settings: dict[str, Any] = {"batch": self.batch, "precision": self._file_precision}
        if images:
            pictures = {"annotations": images.annotations, "images": images.images, "num_images": self.num_calibration}
            settings |= {"pictures": pictures, "size_hw": self.size_hw, "runtime": self._graph}
        return ExportConfig(**settings)

    def build_settings(self) -> dict[str, Any]:
        """Return what its file depends on besides model and images, so that targets of one file share it."""
        settings: dict[str, Any] = {"batch": self.batch, "precision": self._file_precision, "graph": self._graph}
        if self.size_hw:
            settings["size_hw"] = list(self.size_hw)
        if self.precision == "int8":
            settings |= {"num_calibration": self.num_calibration, "onnxruntime": Target().version}
        if self.backend:
            settings |= {"backend": self.backend, "version": self.version}
            settings["compute_capabilities"] = list(self.compute_capabilities)
        if self.backend == "tensorrt" and (gpu := current_gpu()):
            settings["gpu"] = gpu.name
        return settings

    def device_settings(self) -> dict[str, Any]:
        """Return what times on this machine depend on."""
        if not self.is_on_gpu:
            return {"cpu": cpu_model()}
        gpu = current_gpu()
        return {"gpu": gpu.name, "driver": gpu.driver} if gpu else {}


@dataclass(frozen=True)
class Scope:
    """What this machine does of the targets."""

    run: tuple[str, ...]
    """Names of those whose files are built, evaluated and timed."""
    built: tuple[str, ...]
    """Of those whose files are built alone."""
    left_out: Mapping[str, str]
    """Names of those that are not run, and why."""


def scope_of(targets: Mapping[str, Target], only_latency: bool = False) -> Scope:
    """Return what this machine does.

    Args:
        targets: By name.
        only_latency: Run all that can run here, `build_only` or not, and leave out the others.

    Raises:
        RequestError: If something is missing that a target needs, which is not left out; or if all are.
    """
    left_out, built = dict[str, str](), list[str]()
    for name, target in targets.items():
        fault = _missing_package(target) or _missing_gpu(target)
        if only_latency:
            left_out |= {name: fault} if fault else {}
        elif target.build_only:
            left_out[name] = "build_only: run on another machine by --only latency"
            built += [name] if _is_built_here(name, target) else []
        elif fault:
            raise RequestError(f"targets.{name}: {fault}{'' if _missing_package(target) else _ELSEWHERE}")
    if only_latency and len(left_out) == len(targets):
        name, fault = next(iter(left_out.items()))
        raise RequestError(f"--only latency: no target runs on this machine; targets.{name}: {fault}")
    return Scope(tuple(name for name in targets if name not in left_out), tuple(built), left_out)


_ELSEWHERE = "; expected build_only=True, and espalier run --only latency on a machine with one"


def _is_built_here(name: str, target: Target) -> bool:
    """Return whether it can be built, not run: TensorRT builds on the GPU that it is for."""
    if target.backend == "tensorrt" and not has_gpu():
        return False
    if target.backend and (fault := _missing_package(target)):
        raise RequestError(f"targets.{name}: {fault}")
    return True


def _missing_package(target: Target) -> str | None:
    package = target.backend or target.runtime.removesuffix("_cuda")
    if find_spec(package) is None:
        return f"{package} is not installed; {target.runtime} needs it: {install_command(package)}"
    if target.runtime == "onnxruntime_cuda" and not has_cuda_provider():
        return f"ONNX Runtime has no CUDA support, got onnxruntime for the CPU; {INSTALL}"
    return None


def _missing_gpu(target: Target) -> str | None:
    if target.is_on_gpu and not has_gpu():
        return f"{target.runtime} needs an NVIDIA GPU, got a machine without CUDA"
    return None


def has_gpu() -> bool:
    """Return whether there is a GPU that torch can use."""
    return torch.cuda.is_available()
