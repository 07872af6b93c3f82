"""Two latency records side by side: two machines, or one before and after a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from command.errors import RequestError
from deploy.latency import NUM_RESAMPLES, Speedup
from deploy.record import Candidate, Record
from deploy.text import markdown, printable

__all__ = ["compared_rows", "compared_table"]


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
    rows = compared_rows(first, second)
    lines = [f"A: measured on {first.device.text}", "", f"B: measured on {second.device.text}", ""]
    left = sorted((_by_name(first).keys() | _by_name(second).keys()) - {row["name"] for row in rows})
    lines += [f"in one record only: {', '.join(left)}", ""] if left else []
    table = ["name | A, ms | B, ms | A / B (95 % interval) | verdict", "--- | ---: | ---: | --- | ---"]
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        cells = (markdown(row["name"]), f"{row['first_ms']:.3f}", f"{row['second_ms']:.3f}", ratio, row["verdict"])
        table.append(" | ".join(cells))
    return "\n".join([*map(printable, lines), *(f"| {line} |" for line in table)]) + "\n"


def _by_name(record: Record) -> Mapping[str, Candidate]:
    """Return the networks by the name of their file, or by its path where two files have one name."""
    short = [_file_name(name) for name in record.candidates]
    names = short if len(set(short)) == len(short) else list(record.candidates)
    return dict(zip(names, record.candidates.values(), strict=True))


def _file_name(name: str) -> str:
    """Return a name without folders; of a deployed folder, its name, as all its files have the same."""
    path, _, runtime = name.partition(" (")
    parts = Path(path).parts
    file = "/".join(parts[-2:]) if parts and Path(path).stem == "model" else Path(path).name
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
