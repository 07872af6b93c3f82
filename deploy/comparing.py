"""Two latency records side by side: two machines, or one before and after a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from command.errors import RequestError
from deploy.deployment import ONNX_NAME
from deploy.latency import NUM_RESAMPLES, Speedup
from deploy.record import Candidate, Record
from deploy.text import latex_table, markdown, printable

__all__ = ["compared_latex", "compared_rows", "compared_table"]

_HEADERS = ("name", "A, ms", "B, ms", "A / B (95 % interval)", "verdict")


def compared_rows(first: Record, second: Record) -> list[dict[str, Any]]:
    """Return a row for every network that both records have, by its name, in the first one's order.

    `ratio` is the first's median time over the second's, with the 95 % interval `low` to `high` of a bootstrap; the two
    were measured apart, so their rounds are drawn apart. `verdict` says whether that interval leaves 1 out.

    Raises:
        RequestError: If no name is in both, or a network of that name has other inputs.
    """
    one, other = _by_name(first), _by_name(second)
    names = [name for name in one if name in other]
    if not names:
        got = f"{', '.join(one)} and {', '.join(other)}"
        raise RequestError(f"records: no network is in both, got {got}; expected records of the same networks")
    return [_row(name, one[name], other[name]) for name in names]


def compared_table(first: Record, second: Record) -> str:
    """Return a Markdown table of `compared_rows`, below the devices."""
    lines = [part for line in _notes(first, second) for part in (printable(line), "")]
    cells = [[markdown(cell) for cell in row] for row in _cells(first, second)]
    table = [_HEADERS, ("---", "---:", "---:", "---", "---"), *cells]
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in table)]) + "\n"


def compared_latex(first: Record, second: Record) -> str:
    """Return the same table for LaTeX, with the devices as comments."""
    return latex_table(_HEADERS, "lrrrl", _cells(first, second), _notes(first, second))


def _notes(first: Record, second: Record) -> list[str]:
    one, other = _by_name(first).keys(), _by_name(second).keys()
    left = [f"in one record only: {', '.join(sorted(one ^ other))}"] if one != other else []
    return [f"A: measured on {first.device.text}", f"B: measured on {second.device.text}", *left]


def _cells(first: Record, second: Record) -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['first_ms']:.3f}",
            f"{row['second_ms']:.3f}",
            f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
            row["verdict"],
        ]
        for row in compared_rows(first, second)
    ]


def _by_name(record: Record) -> Mapping[str, Candidate]:
    """Return the networks by the name of their file, or by its path where two files have one name."""
    short = [_file_name(name) for name in record.candidates]
    names = short if len(set(short)) == len(short) else list(record.candidates)
    return dict(zip(names, record.candidates.values(), strict=True))


def _file_name(name: str) -> str:
    """Return a name without folders; of a deployed folder and its ONNX file that of the folder, as files are alike."""
    path, _, runtime = name.partition(" (")
    parts = Path(path).parts
    num = 2 if Path(path).stem == "model" else 1
    file = "/".join(parts[-num:]).removesuffix(f"/{ONNX_NAME}")
    return f"{file} ({runtime}" if runtime else file


def _row(name: str, one: Candidate, other: Candidate) -> dict[str, Any]:
    if one.input_shapes != other.input_shapes:
        got, expected = other.input_shapes, one.input_shapes
        raise RequestError(f"{name}: other inputs in the second record, got {got}; expected {expected}")
    ratio = _ratio(one.latency.samples_ms, other.latency.samples_ms)
    verdict = "B is faster" if ratio.low > 1 else "A is faster" if ratio.high < 1 else "no difference is shown"
    return {
        "name": name,
        "first_ms": one.latency.median_ms,
        "second_ms": other.latency.median_ms,
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "verdict": verdict,
    }


def _ratio(first_ms: Sequence[float], second_ms: Sequence[float]) -> Speedup:
    rng = np.random.default_rng(0)
    drawn = [np.median(rng.choice(samples, (NUM_RESAMPLES, len(samples))), axis=1) for samples in (first_ms, second_ms)]
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    return Speedup(ratio=float(np.median(first_ms) / np.median(second_ms)), low=float(low), high=float(high))
