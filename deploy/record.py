"""A measurement with its conditions, as JSON; tables are made from records, never by hand."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from command.files import model_from_json, written_atomically
from deploy.latency import Latency, Measurement, Speedup, Transfers, inputs_by_name
from deploy.machine import Device, cpu_model, device_from_place, git_commit, installed_versions
from deploy.nvml import GpuLog
from deploy.runtimes.runner import Runner
from deploy.tensors import Arrays
from deploy.text import latex_table, markdown, printable

__all__ = [
    "Candidate",
    "Conditions",
    "Device",
    "Record",
    "cpu_model",
    "git_commit",
    "installed_versions",
    "latex_from_record",
    "load_record",
    "record_from_measurement",
    "rows_from_record",
    "save_record",
    "table_from_record",
]

VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Conditions(_Frozen):
    """What was the same for all candidates."""

    warmup: int
    rounds: int
    """Those that were kept."""
    throttled_rounds: int | None = None
    """Rounds that were left out because the GPU was throttled; None where its clocks are not known."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration of the caller."""


class Candidate(_Frozen):
    """One measured file or module, and its latency."""

    runtime: str
    precision: str
    batch: PositiveInt
    """Images per run."""
    input_shapes: dict[str, tuple[int, ...]]
    reference: str
    """The candidate that this one is compared with: the first of the same batch, possibly itself."""
    file_sha256: str | None = None
    """Hash of the file, as in `espalier deploy eval`; None for a network in memory."""
    macs: int | None
    """Multiply-adds per batch, if known."""
    latency: Latency
    """Time of the computation, without copies to and from a GPU."""
    transfers: Transfers | None = None
    """The copies to and from a GPU; None on a CPU."""


class Record(_Frozen):
    """One call of `measure`, with everything needed to judge and repeat it."""

    version: Literal[1]
    """Version of this file format."""
    created: datetime
    device: Device
    gpu: GpuLog | None = None
    """Clocks, power and temperature during the measurement; None on a CPU, and without NVML."""
    versions: dict[str, str]
    git_commit: str | None
    """Commit of the working directory; ends in "-dirty" if files were changed."""
    conditions: Conditions
    candidates: dict[str, Candidate]
    speedups: dict[str, Speedup]

    @model_validator(mode="after")
    def _is_consistent(self) -> Record:
        names = self.candidates.keys()
        if not names:
            raise ValueError("no candidates")
        if unknown := {one.reference for one in self.candidates.values()}.union(self.speedups) - names:
            raise ValueError(f"unknown candidate {min(unknown)!r}")
        if untimed := [name for name, one in self.candidates.items() if one.latency.median_ms <= 0]:
            raise ValueError(f"no time of {untimed[0]!r}")
        return self

    @property
    def is_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return self.device.is_gpu

    @property
    def reference(self) -> str:
        """The first candidate, the dense one."""
        return next(iter(self.candidates))


def record_from_measurement(
    measurement: Measurement,
    runners: Mapping[str, Runner],
    inputs: Arrays | Mapping[str, Arrays],
    *,
    macs: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Record:
    """Return the record of a measurement just taken: device, versions and commit are read now.

    Args:
        measurement: Result of `measure`.
        runners: Its runners.
        inputs: Its inputs.
        macs: Multiply-adds per batch by candidate, for the table's mac_reduction.
        config: Stored as it is; JSON values only.
    """
    own_inputs = inputs_by_name(list(runners), inputs)
    first = next(iter(runners.values()))
    return Record(
        version=VERSION,
        created=datetime.now(timezone.utc).replace(microsecond=0),
        device=device_from_place(first.device, first.num_threads),
        gpu=measurement.gpu,
        versions={"python": platform.python_version(), **installed_versions()},
        git_commit=git_commit(),
        conditions=Conditions(
            warmup=measurement.warmup,
            rounds=measurement.rounds,
            throttled_rounds=measurement.throttled_rounds,
            config=dict(config or {}),
        ),
        candidates={
            name: Candidate(
                runtime=runners[name].runtime,
                precision=runners[name].precision,
                batch=measurement.batches[name],
                input_shapes={key: array.shape for key, array in own_inputs[name].items()},
                reference=measurement.references[name],
                file_sha256=runners[name].file_sha256,
                macs=(macs or {}).get(name),
                latency=latency,
                transfers=measurement.transfers.get(name),
            )
            for name, latency in measurement.latencies.items()
        },
        speedups=measurement.speedups,
    )


def save_record(record: Record, path: str | Path) -> None:
    """Write the record as JSON, completely or not at all."""
    with written_atomically(path) as beside:
        beside.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_record(path: str | Path) -> Record:
    """Return a saved record.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is malformed or of another version.
    """
    return model_from_json(Record, path, "expected a record of version 1, made by: espalier deploy bench")


def rows_from_record(record: Record) -> list[dict[str, str | float | None]]:
    """Return one row of plain figures per candidate, in their order, for JSON and tables.

    `latency_ms` is the computation alone; `host_to_device_ms` and `device_to_host_ms` are the copies, None on a CPU.
    """
    rows: list[dict[str, str | float | None]] = []
    for name, candidate in record.candidates.items():
        speedup = record.speedups.get(name)
        reference_macs = record.candidates[candidate.reference].macs
        transfers = candidate.transfers
        rows.append(
            {
                "name": name,
                "runtime": candidate.runtime,
                "precision": candidate.precision,
                "batch": candidate.batch,
                "file_sha256": candidate.file_sha256,
                "latency_ms": candidate.latency.median_ms,
                "latency_p90_ms": candidate.latency.p90_ms,
                "latency_p99_ms": candidate.latency.p99_ms,
                "host_to_device_ms": transfers.host_to_device.median_ms if transfers else None,
                "device_to_host_ms": transfers.device_to_host.median_ms if transfers else None,
                "images_per_s": candidate.batch * 1000 / candidate.latency.median_ms,
                "speedup": speedup.ratio if speedup else 1.0,
                "speedup_low": speedup.low if speedup else None,
                "speedup_high": speedup.high if speedup else None,
                "mac_reduction": reference_macs / candidate.macs if reference_macs and candidate.macs else None,
            }
        )
    return rows


def table_from_record(record: Record) -> str:
    """Return a Markdown table whose first line names the device."""
    columns, rows = _cells(record)
    table = [columns, ["---"] * len(columns), *([markdown(cell) for cell in row] for row in rows)]
    lines = [part for line in _notes(record) for part in (printable(line), "")]
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in table)]) + "\n"


def latex_from_record(record: Record) -> str:
    """Return the same table for LaTeX, with the device and conditions as comments."""
    columns, rows = _cells(record)
    alignment = "".join("l" if title in _TEXTS else "r" for title in columns)
    return latex_table(columns, alignment, rows, _notes(record))


def _cells(record: Record) -> tuple[list[str], list[list[str]]]:
    """Return the titles of the columns that are not empty, and the texts of the rows."""
    rows = rows_from_record(record)
    columns = {title: text for title, text in _COLUMNS.items() if any(text(row) for row in rows)}
    return list(columns), [[text(row) for text in columns.values()] for row in rows]


def _notes(record: Record) -> list[str]:
    device, conditions = record.device, record.conditions
    gpu_lines = [text for text in (record.gpu.summary, record.gpu.warning) if text] if record.gpu else []
    return [
        f"measured on {device.text}",
        f"{_batches(record)}, {conditions.rounds} rounds in alternating order after "
        f"{conditions.warmup} of warm-up, {record.created:%Y-%m-%d}, commit {record.git_commit or 'unknown'}",
        *gpu_lines,
    ]


def _batches(record: Record) -> str:
    """Return "batch 2 (image 2x3x8x8)" for each measured batch."""
    shapes = {candidate.batch: candidate.input_shapes for candidate in record.candidates.values()}
    sizes = {
        batch: ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inputs.items())
        for batch, inputs in shapes.items()
    }
    return ", ".join(f"batch {batch} ({text})" for batch, text in sizes.items())


def _speedup(row: dict[str, Any]) -> str:
    interval = "" if row["speedup_low"] is None else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    return f"{row['speedup']:.2f}{interval}"


def _decimals(key: str, num: int) -> Callable[[dict[str, Any]], str]:
    return lambda row: "" if row[key] is None else f"{row[key]:.{num}f}"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "runtime": lambda row: row["runtime"],
    "precision": lambda row: row["precision"],
    "batch": lambda row: str(row["batch"]),
    "latency_ms, median": _decimals("latency_ms", 3),
    "p90": _decimals("latency_p90_ms", 3),
    "p99": _decimals("latency_p99_ms", 3),
    "host to device": _decimals("host_to_device_ms", 3),
    "device to host": _decimals("device_to_host_ms", 3),
    "images_per_s": _decimals("images_per_s", 2),
    "speedup (95 % interval)": _speedup,
    "mac_reduction": _decimals("mac_reduction", 2),
}
"""Title, and a row's text; a column that is empty in all rows is left out."""
_TEXTS = ("name", "runtime", "precision")
"""The columns without figures."""
