"""A measurement with the conditions it was taken under, as JSON; tables are made from records, never by hand."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deploy.files import model_from_json, written_atomically
from deploy.graph import Arrays
from deploy.latency import Latency, Measurement, Speedup
from deploy.runtime import Runner

__all__ = [
    "Candidate",
    "Conditions",
    "Device",
    "Record",
    "cpu_model",
    "git_commit",
    "installed_versions",
    "load_record",
    "record_from_measurement",
    "rows_from_record",
    "save_record",
    "table_from_record",
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
    "tensorrt",
    "tensorrt-rtx",
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(_Frozen):
    """Where it ran; clocks and power as the driver told them right after the last round, None where it did not."""

    is_gpu: bool
    name: str
    num_threads: int | None = None
    """CPU threads; None on a GPU."""
    driver: str | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    power_draw_w: float | None = None


class Conditions(_Frozen):
    """What was the same for all candidates."""

    warmup: int
    rounds: int
    batch: int
    input_shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration that led here, as the caller gives it."""


class Candidate(_Frozen):
    """What was measured, and its latency."""

    runtime: str
    precision: str
    macs: int | None
    """Multiply-adds per batch, if the caller knows them."""
    latency: Latency


class Record(_Frozen):
    """One call of `measure`, with all one needs to judge it and to repeat it."""

    version: Literal[1]
    """Of this file format."""
    created: datetime
    device: Device
    versions: dict[str, str]
    git_commit: str | None
    """Of the working directory; ends in "-dirty" if files were changed."""
    conditions: Conditions
    reference: str
    candidates: dict[str, Candidate]
    speedups: dict[str, Speedup]

    @property
    def is_gpu(self) -> bool:
        """Whether the times are a GPU's."""
        return self.device.is_gpu


def record_from_measurement(
    measurement: Measurement,
    runners: Mapping[str, Runner],
    inputs: Arrays,
    *,
    macs: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Record:
    """Return the record of a measurement just taken: device, versions and commit are looked up now.

    Args:
        measurement: What `measure` returned.
        runners: What it was given.
        inputs: What it was given; the first dimension of the first one is the batch.
        macs: Multiply-adds per batch by candidate, for the table's mac_reduction.
        config: Kept as it is; JSON values only.

    Raises:
        ValueError: If the runners ran on different devices or with different numbers of threads.
    """
    return Record(
        version=1,
        created=datetime.now(timezone.utc).replace(microsecond=0),
        device=_device(runners),
        versions={"python": platform.python_version(), **installed_versions()},
        git_commit=git_commit(),
        conditions=Conditions(
            warmup=measurement.warmup,
            rounds=measurement.rounds,
            batch=next(iter(inputs.values())).shape[0],
            input_shapes={name: array.shape for name, array in inputs.items()},
            config=dict(config or {}),
        ),
        reference=measurement.reference,
        candidates={
            name: Candidate(
                runtime=runners[name].runtime,
                precision=runners[name].precision,
                macs=(macs or {}).get(name),
                latency=latency,
            )
            for name, latency in measurement.latencies.items()
        },
        speedups=measurement.speedups,
    )


def save_record(record: Record, path: str | Path) -> None:
    """Write the record as JSON; the file is complete or not there."""
    with written_atomically(path) as beside:
        beside.write_text(record.model_dump_json(indent=2) + "\n")


def load_record(path: str | Path) -> Record:
    """Return a saved record.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is malformed or of another version.
    """
    return model_from_json(Record, path, "expected a version 1 record, measure again with: espalier deploy bench")


def rows_from_record(record: Record) -> list[dict[str, str | float | None]]:
    """Return one row of plain figures per candidate, the reference first, for JSON and tables."""
    rows: list[dict[str, str | float | None]] = []
    reference_macs = record.candidates[record.reference].macs
    for name, candidate in record.candidates.items():
        speedup = record.speedups.get(name)
        rows.append(
            {
                "name": name,
                "runtime": candidate.runtime,
                "precision": candidate.precision,
                "latency_ms": candidate.latency.median_ms,
                "latency_p90_ms": candidate.latency.p90_ms,
                "latency_p99_ms": candidate.latency.p99_ms,
                "speedup": speedup.ratio if speedup else 1.0,
                "speedup_low": speedup.low if speedup else None,
                "speedup_high": speedup.high if speedup else None,
                "mac_reduction": reference_macs / candidate.macs if reference_macs and candidate.macs else None,
            }
        )
    return rows


def table_from_record(record: Record) -> str:
    """Return a Markdown table whose first line says on what it was measured."""
    device, conditions = record.device, record.conditions
    where = f"measured on {device.name}" if record.is_gpu else f"measured on a CPU ({device.name}), not a GPU"
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in conditions.input_shapes.items())
    threads = "" if device.num_threads is None else f"{device.num_threads} CPU thread(s), "
    lines = [
        where,
        "",
        f"{threads}batch {conditions.batch} ({shapes}), {conditions.rounds} rounds in alternating order after "
        f"{conditions.warmup} of warm-up, {record.created:%Y-%m-%d}, commit {record.git_commit or 'unknown'}",
        "",
        "| name | runtime | precision | latency_ms, median | p90 | p99 | speedup (95 % interval) | mac_reduction |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_table_line, rows_from_record(record))]) + "\n"


def _table_line(row: dict[str, str | float | None]) -> str:
    interval = "" if row["speedup_low"] is None else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    reduction = "" if row["mac_reduction"] is None else f"{row['mac_reduction']:.2f}"
    return (
        f"| {row['name']} | {row['runtime']} | {row['precision']} | {row['latency_ms']:.3f} "
        f"| {row['latency_p90_ms']:.3f} | {row['latency_p99_ms']:.3f} | {row['speedup']:.2f}{interval} | {reduction} |"
    )


def _device(runners: Mapping[str, Runner]) -> Device:
    places = {(runner.device, runner.num_threads) for runner in runners.values()}
    if len(places) > 1:
        raise ValueError(f"runners: on different devices or threads, got {places}; expected the same for all")
    device, num_threads = places.pop()
    if device == "cpu":
        return Device(is_gpu=False, name=cpu_model(), num_threads=num_threads)
    return _gpu(device)


def cpu_model() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpu(device: str) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(device)
    # asked by identity: the driver's own numbering knows nothing of CUDA_VISIBLE_DEVICES
    facts = _command_line(
        "nvidia-smi",
        f"--id=GPU-{properties.uuid}",
        "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit,power.draw",
        "--format=csv,noheader,nounits",
    )
    return _gpu_from_facts(properties.name, facts)


def _gpu_from_facts(name: str, facts: str | None) -> Device:
    """Return the device from one line of nvidia-smi, which writes "[N/A]" where it does not know."""
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


def installed_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide results and times, of those that are installed."""
    installed = {}
    for name in VERSIONED:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """Return the commit this code is of, ending in -dirty where files differ from it; None outside a checkout."""
    in_code = ("git", "-C", str(Path(__file__).parent))
    if _command_line(*in_code, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed into an environment inside somebody else's checkout
    return _command_line(*in_code, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _command_line(*command: str) -> str | None:
    """Return what a command prints, None if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
