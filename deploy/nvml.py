"""NVML's readings of a GPU before, during and after a measurement: clocks, power, temperature, throttling.

A time measured while the clock dropped is not comparable.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["GpuLog", "GpuSample", "GpuWatch", "Phase", "gpu_watch"]

Phase = Literal["before", "warmup", "measured", "after"]

CLOCK_TOLERANCE = 0.05
THROTTLING = {
    "SwPowerCap": "power limit",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "temperature",
    "HwThermalSlowdown": "temperature, in hardware",
    "HwPowerBrakeSlowdown": "external power brake",
}
"""NVML's names of the reasons for throttling under load, and their meaning."""


class GpuSample(BaseModel):
    """One reading; None for values that this GPU or driver does not report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Phase
    time_s: float
    """Since the first sample."""
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttled_by: tuple[str, ...]


class GpuLog(BaseModel):
    """All readings of one measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: tuple[GpuSample, ...]

    @property
    def summary(self) -> str:
        """The readings during the measured rounds, in one line."""
        parts = [
            _range("SM clock", "MHz", [sample.sm_clock_mhz for sample in self._measured]),
            _range("power", "W", [sample.power_w for sample in self._measured]),
            _range("temperature", "C", [sample.temperature_c for sample in self._measured]),
        ]
        return ", ".join(part for part in parts if part)

    @property
    def warning(self) -> str | None:
        """Why these times are not reliable, in one line; None if nothing was found."""
        clocks = [sample.sm_clock_mhz for sample in self._measured if sample.sm_clock_mhz]
        reasons = {reason: None for sample in self._measured for reason in sample.throttled_by}
        faults = [f"throttling by {', '.join(reasons)}"] if reasons else []
        if clocks and min(clocks) < (1 - CLOCK_TOLERANCE) * max(clocks):
            faults.insert(0, f"an SM clock of {min(clocks)} to {max(clocks)} MHz")
        if not faults:
            return None
        problems = " and ".join(faults)
        return f"GPU: clocks not steady, got {problems}; lock them (nvidia-smi -lgc), let it cool, measure again"

    @property
    def _measured(self) -> list[GpuSample]:
        """The samples without the idle GPU before and the warm-up, in which clocks rise."""
        return [sample for sample in self.samples if sample.phase in ("measured", "after")]


class GpuWatch:
    """Reads a GPU's state between rounds.

    Args:
        nvml: The `pynvml` module, initialised.
        handle: Its handle of the GPU.
        interval_s: Least time between two samples of one phase: the GPU idles while a sample is taken.
        clock: Monotonic, in nanoseconds.
    """

    def __init__(
        self, nvml: Any, handle: Any, *, interval_s: float = 0.5, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._nvml, self._handle, self._interval_s, self._clock = nvml, handle, interval_s, clock
        self._start_ns = clock()
        self._samples: list[GpuSample] = []

    def sample(self, phase: Phase) -> None:
        """Take a sample, unless the last one is recent and of the same phase."""
        time_s = (self._clock() - self._start_ns) / 1e9
        last = self._samples[-1] if self._samples else None
        if last is None or last.phase != phase or time_s - last.time_s >= self._interval_s:
            self._samples.append(self._new_sample(phase, time_s))

    @property
    def is_throttled(self) -> bool:
        """Whether the last sample found throttling."""
        return bool(self._samples and self._samples[-1].throttled_by)

    @property
    def log(self) -> GpuLog:
        """The samples so far."""
        return GpuLog(samples=tuple(self._samples))

    def _new_sample(self, phase: Phase, time_s: float) -> GpuSample:
        nvml = self._nvml
        power_mw = self._reading(nvml.nvmlDeviceGetPowerUsage)
        reasons = self._reading(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
        return GpuSample(
            phase=phase,
            time_s=time_s,
            sm_clock_mhz=self._reading(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._reading(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            power_w=None if power_mw is None else power_mw / 1000,
            temperature_c=self._reading(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            throttled_by=tuple(
                text for name, text in THROTTLING.items() if reasons & getattr(nvml, f"nvmlClocksThrottleReason{name}")
            ),
        )

    def _reading(self, function: Callable[..., int], *arguments: int) -> int | None:
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


def gpu_watch(device: str) -> GpuWatch | None:
    """Return a watch over the GPU "cuda:<index>"; None on a CPU, and where nvidia-ml-py or the driver is missing."""
    if device == "cpu":
        return None
    import torch

    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    try:
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # the driver's numbering is not CUDA's
        return GpuWatch(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except nvml.NVMLError:
        return None


def _range(what: str, unit: str, readings: list[Any]) -> str | None:
    known = [reading for reading in readings if reading is not None]
    return f"{what} {min(known):.0f} to {max(known):.0f} {unit}" if known else None
