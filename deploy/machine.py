"""What a measurement or an engine depends on besides this code: processor, GPU, driver, versions, commit.

The state of a GPU during a measurement is read in nvml.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = [
    "Device",
    "cpu_model",
    "current_gpu",
    "device_from_place",
    "git_commit",
    "installed_versions",
    "num_cores",
]

VERSIONED = (
    "espalier",
    "torch",
    "torchvision",
    "onedl-mmdetection",
    "onedl-mmengine",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)


class Device(BaseModel):
    """The device of a run; clocks and power as the driver reported them right after the last round, or None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_gpu: bool
    name: str
    num_threads: int | None = None
    """CPU threads; None on a GPU."""
    driver: str | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    power_draw_w: float | None = None

    @property
    def text(self) -> str:
        """The device in a sentence: "a CPU (AMD EPYC, 2 threads), not a GPU", or the GPU's name."""
        if self.is_gpu:
            return self.name
        threads = "" if self.num_threads is None else f", {self.num_threads} thread{'s' * (self.num_threads != 1)}"
        return f"a CPU ({self.name}{threads}), not a GPU"


def device_from_place(device: str, num_threads: int | None) -> Device:
    """Return the device for a runner's "cpu" or "cuda:<index>"."""
    return Device(is_gpu=False, name=cpu_model(), num_threads=num_threads) if device == "cpu" else _gpu(device)


def current_gpu() -> Device | None:
    """Return CUDA's default GPU; None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None  # avoids the import below, which takes seconds
    import torch

    return _gpu(f"cuda:{torch.cuda.current_device()}") if torch.cuda.is_available() else None


def cpu_model() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that affect results and times."""
    return {name: version for name in VERSIONED if (version := _version(name))}


@cache  # a plan asks for every stage
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Return the commit of this code, ending in -dirty if files were changed; None outside a checkout."""
    in_code = ("git", "-C", str(Path(__file__).parent))
    if _command_line(*in_code, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None  # installed into an environment inside another project's checkout
    return _command_line(*in_code, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _gpu(device: str) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(device)
    # selected by UUID: the driver's numbering ignores CUDA_VISIBLE_DEVICES
    facts = _command_line(
        "nvidia-smi",
        f"--id=GPU-{properties.uuid}",
        "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit,power.draw",
        "--format=csv,noheader,nounits",
    )
    return _gpu_from_facts(properties.name, facts)


def _gpu_from_facts(name: str, facts: str | None) -> Device:
    """Return the device from one line of nvidia-smi, which writes "[N/A]" for unknown values."""
    if facts is None:
        return Device(is_gpu=True, name=name)
    driver, *numbers = (fact.strip() for fact in facts.split(","))
    sm, memory, limit, draw = (float(number) if number.replace(".", "").isdigit() else None for number in numbers)
    return Device(
        is_gpu=True,
        name=name,
        driver=driver,
        sm_clock_mhz=sm,
        memory_clock_mhz=memory,
        power_limit_w=limit,
        power_draw_w=draw,
    )


def _command_line(*command: str) -> str | None:
    """Return the output of a command; None if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
