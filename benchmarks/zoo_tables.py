"""The tables of the zoo's record: one row per network, and one per kind of network."""

from statistics import median
from typing import Any

__all__ = ["network_table", "row", "summary_table"]

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""

NAMES = {"ours": "espalier", "theirs": "torch-pruning"}
REMOVED = ("macs_removed", "params_removed")


def network_table(results: list[dict[str, Any]]) -> Table:
    """Return what came out per network; times, where they were measured, are medians."""
    columns = ["network"]
    for name in NAMES.values():
        columns += [name, "MACs removed", "params removed"]
    if any("samples" in result for result in results):
        columns += ["espalier (s)", "not checked (s)", "torch-pruning (s)", "times as fast", "same channels kept"]
        columns += ["peak memory (x dense)", "torch-pruning's"]
    return columns, [row(result) for result in results]


def summary_table(results: list[dict[str, Any]]) -> Table:
    """Return, per kind of network, how many came out how, and the medians of what right slim models lack."""
    columns = ["networks", "number"]
    for name in NAMES.values():
        columns += [f"{name}: equal", "refused", "crashed", "not finished", "wrong", "MACs / params removed"]
    if any("samples" in result for result in results):
        columns += ["times as fast", "least", "peak memory (x dense)"]
    kinds = dict.fromkeys(result["kind"] for result in results)
    rows = [_summary_row(kind, [result for result in results if result["kind"] == kind]) for kind in kinds]
    return columns, [*rows, _summary_row("all", results)]


def row(result: dict[str, Any]) -> list[str]:
    """Return one network's row of the long table."""
    cells = [result["network"]]
    for tool in NAMES:
        found = result[tool]
        why = f": {found['why']}" if found.get("why") else ""
        why += ", nothing cut" if found["status"] == "equal" and not found["params_removed"] else ""
        cells += [(found["status"] + why).replace("|", "/"), *(_percent(found.get(key)) for key in REMOVED)]
    return cells + (_time_cells(result) if "samples" in result else [])


def _time_cells(result: dict[str, Any]) -> list[str]:
    samples, same = result["samples"] or {}, {True: "yes", False: "no", None: "-"}[result["same_channels"]]
    times = [median(samples[name]) if name in samples else None for name in ("ours", "unchecked", "theirs")]
    return [*(_number(time, ".2f") for time in times), _number(speedup(result), ".1f"), same, *_peaks(result)]


def _peaks(result: dict[str, Any]) -> list[str]:
    return [_number(result[tool]["peak"], ".2f") for tool in NAMES]


def speedup(result: dict[str, Any]) -> float | None:
    """Return how many times as fast the default is as torch-pruning, or None where one of them fails."""
    samples = result.get("samples") or {}
    return median(samples["theirs"]) / median(samples["ours"]) if {"ours", "theirs"} <= set(samples) else None


def _summary_row(kind: str, results: list[dict[str, Any]]) -> list[str]:
    cells = [kind, str(len(results))]
    for tool in NAMES:
        statuses = [result[tool]["status"] for result in results]
        right = [result[tool] for result in results if result[tool]["status"] == "equal"]
        counts = [statuses.count(status) for status in ("equal", "refused", "crashed", "not finished")]
        removed = [_percent(_median([found[key] for found in right if found[key] is not None])) for key in REMOVED]
        wrong = statuses.count("wrong") + statuses.count("unmatched")
        cells += [*map(str, counts), str(wrong), " / ".join(removed)]
    if not any("samples" in result for result in results):
        return cells
    ratios = [ratio for result in results if (ratio := speedup(result))]
    peaks = [peak for result in results if (peak := result["ours"].get("peak"))]
    return [
        *cells,
        _number(_median(ratios), ".1f"),
        _number(min(ratios, default=None), ".1f"),
        _number(_median(peaks), ".2f"),
    ]


def _median(values: list[float]) -> float | None:
    return median(values) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
