"""Run folders side by side: rows matched by detector, differences with intervals, and what else differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from command.errors import RequestError
from experiment.changes import changes
from experiment.comparison import SCORES, score_of
from experiment.finding import conditions, how_judged
from experiment.report_lines import Line, Row
from experiment.report_tables import Cell, Table, is_voc
from experiment.results import RESULTS, read_results
from experiment.statistics import Difference, paired_difference, verdicts_of
from experiment.verdicts import Judged

__all__ = ["SideBySide", "side_by_side"]

_DETECTOR = ("ordering", "budget", "method", "prune_ratio", "limit", "preset", "backbone", "target")
"""What makes a row that of one detector, whatever its seed."""
_LATER = ("backbone", "target")
"""Those of them that rows of earlier versions do not have, which had one."""
_MOST_CHANGES = 8
"""Settings that are named."""


@dataclass(frozen=True)
class _Run:
    name: str
    """Its folder, as the user gave it."""
    results: Mapping[str, Any]
    keys: Sequence[str]
    """Those of `_DETECTOR` that tell its rows from those of the others."""

    @cached_property
    def lines(self) -> dict[str, Line]:
        """The rows by detector."""
        rows: dict[str, list[Row]] = {}
        for row in self.results["rows"]:
            detector = [f"{row[key]}" for key in self.keys if row.get(key) is not None]
            if row["ordering"].startswith("dense") and row.get("prune_ratio") is not None:
                detector.remove(str(row["prune_ratio"]))
            rows.setdefault(", ".join(detector), []).append(row)
        return {detector: Line(f"{detector} in {self.name}", group) for detector, group in rows.items()}

    @property
    def score(self) -> str:
        """Key of the figure that tells how good its models are."""
        return score_of(self.results["rows"])

    @property
    def metric(self) -> str:
        """What that figure is, in words."""
        if self.score != "map":
            return SCORES[self.score]
        return "VOC's mAP" if is_voc(self.results["rows"]) else "COCO's mAP"

    @property
    def val(self) -> str | None:
        """What identifies its validation images; None of earlier versions."""
        return self.results["dataset"].get("val")

    def described(self) -> str:
        """Return what it was made of, in words."""
        data, times = self.results["dataset"], self.results["latency"]
        commit = (self.results["git_commit"] or "unknown")[:12]
        return (
            f"{self.name}: {self.results['experiment']}, commit {commit}, {data['name']} ({data['num_train']} images "
            f"to train, {data['num_val']} to validate), {times['runtime']} in {times['precision']} on {times['device']}"
        )


@dataclass(frozen=True)
class SideBySide:
    """Runs against the first of them."""

    runs: Sequence[_Run]

    @cached_property
    def judged(self) -> dict[tuple[str, str], Judged]:
        """The differences of rows that have a seed in common, by (detector, run)."""
        first, score = self.runs[0], self.runs[0].score
        pairs: dict[tuple[str, str], tuple[Line, Line]] = {
            (detector, run.name): (line, first.lines[detector])
            for run in self.runs[1:]
            for detector, line in run.lines.items()
            if detector in first.lines and line.by_seed(score).keys() & first.lines[detector].by_seed(score).keys()
        }
        found = [self._difference(*pair, run) for (_, run), pair in pairs.items()]
        num = sum(difference.is_known for difference in found)
        judged = zip(pairs.items(), found, verdicts_of(found), strict=True)
        return {key: Judged(*pair, difference, verdict, num) for (key, pair), difference, verdict in judged}

    def table(self) -> Table:
        """Return a row for each detector of each run that the first one has too."""
        first, score = self.runs[0], self.runs[0].score
        cells = [
            [detector, run.name, *self._cells(detector, run)]
            for detector in first.lines
            for run in self.runs[1:]
            if detector in run.lines
        ]
        name = SCORES[score]
        figures = [f"{name} first", name, "difference", "95% from", "to", "seeds", "images", "ms first", "ms"]
        headers = ["detector", "run", "verdict", *figures]
        return Table("runs", f"{name} against {first.name}", headers, cells, num_texts=3)

    def alone(self) -> dict[str, list[str]]:
        """Return the detectors that not all runs have, by the run that has them."""
        common = set.intersection(*({*run.lines} for run in self.runs))
        return {run.name: [name for name in run.lines if name not in common] for run in self.runs}

    def notes(self) -> list[str]:
        """Return what the runs are, and in what they differ besides the scores."""
        first, others = self.runs[0], self.runs[1:]
        alone = [f"Not in all runs, {name} has: {'; '.join(found)}." for name, found in self.alone().items() if found]
        return [
            *(run.described() for run in self.runs),
            *(text for run in others for text in _differing(first, run)),
            *alone,
            how_judged(list(self.judged.values())),
        ]

    def figures(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        table = self.table()
        return {
            "against": self.runs[0].name,
            "runs": [run.name for run in self.runs],
            "score": self.runs[0].score,
            "rows": [dict(zip(table.headers, cells, strict=True)) for cells in table.cells],
            "alone": self.alone(),
            "notes": self.notes(),
        }

    def _cells(self, detector: str, run: _Run) -> list[Cell]:
        line, first = run.lines[detector], self.runs[0].lines[detector]
        scores = [first.mean(first.score), line.mean(line.score)]
        times = [first.mean("latency_ms"), line.mean("latency_ms")]
        one = self.judged.get((detector, run.name))
        if one is None:
            return ["no seed in common", *map(_known, [*scores, scores[1] - scores[0], None, None]), 0, "no", *times]
        pair = [each.by_seed(each.score) for each in (first, line)]
        scores = [fmean(each[seed] for seed in pair[0].keys() & pair[1].keys()) for each in pair]
        found, verdict = one.difference, one.verdict if one.difference.is_known else "no interval"
        bounds = [found.low, found.high] if found.is_known else [None, None]
        images = "no" if found.image_error is None else "yes"
        return [verdict, *scores, found.mean, *bounds, found.num_seeds, images, *times]

    def _difference(self, line: Line, first: Line, run: str) -> Difference:
        """Return the difference over the seeds of both, and over images where both were scored on the same."""
        draws: list[Mapping[str, Any]] = [{}, {}]
        other = next(one for one in self.runs if one.name == run)
        if other.val and other.val == self.runs[0].val:
            draws = [one.results.get("draws", {}) for one in (other, self.runs[0])]
        drawn = (line.drawn(draws[0]), first.drawn(draws[1]))
        num_images = other.results["dataset"]["num_val"]
        return paired_difference(line.by_seed(line.score), first.by_seed(first.score), *drawn, num_images)


def side_by_side(folders: Sequence[Path]) -> SideBySide:
    """Read the results of run folders, to compare all others with the first.

    Raises:
        MissingFileError: If one has no results.
        RequestError: If one is given twice, or their scores are not the same figure of the same images.
    """
    names, places = [str(folder) for folder in folders], [folder.resolve() for folder in folders]
    if twice := [name for name, place in zip(names, places, strict=True) if places.count(place) > 1]:
        raise RequestError(f"{twice[0]}: given twice; expected folders of different runs")
    results = [read_results(folder / RESULTS) for folder in folders]
    keys = [key for key in _DETECTOR if key not in _LATER or _tells(key, results)]
    runs = [_Run(*one, keys) for one in zip(names, results, strict=True)]
    for run in runs[1:]:
        _check_comparable(runs[0], run)
    return SideBySide(runs)


def _tells(key: str, results: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all results have the key, or one has several values of it; a single target may have any name."""
    values = [{row.get(key) for row in one["rows"]} for one in results]
    if key == "target":
        return any(len(found) > 1 for found in values)
    return not any(None in found for found in values) or any(len(found) > 1 for found in values)


def _check_comparable(first: _Run, other: _Run) -> None:
    if other.metric != first.metric:
        raise RequestError(
            f"{other.name}: another score, got {other.metric}; expected {first.metric}, as in {first.name}"
        )
    ours, theirs = (run.results["dataset"] for run in (first, other))
    is_known = first.val is not None and other.val is not None
    if first.val != other.val if is_known else any(ours[key] != theirs[key] for key in ("num_val", "classes")):
        got, expected = (f"{data['name']} ({data['num_val']} images)" for data in (theirs, ours))
        raise RequestError(
            f"{other.name}: other validation images, got {got}; expected those of {first.name}, {expected}"
        )


def _differing(first: _Run, other: _Run) -> list[str]:
    """Return sentences on what two runs do not share."""
    found = changes(first.results["config"], other.results["config"])
    more = f" and {len(found) - _MOST_CHANGES} more" if len(found) > _MOST_CHANGES else ""
    ours, theirs = first.results, other.results
    notes = {
        f"{other.name} has other settings: {'; '.join(found[:_MOST_CHANGES])}{more}.": bool(found),
        f"{other.name} was run by another commit, or one that is not known.": ours["git_commit"] is None
        or ours["git_commit"] != theirs["git_commit"],
        f"{other.name} was timed on another device or runtime{_on_targets(ours, theirs)}: these latencies are not "
        "comparable.": bool(_other_targets(ours, theirs)),
        f"{other.name} was trained on another data set.": any(
            ours["dataset"][key] != theirs["dataset"][key] for key in ("name", "num_train")
        ),
        f"Which images {other.name} or {first.name} was validated on was not recorded by its version; their number and "
        "classes are the same.": first.val is None or other.val is None,
    }
    return [text for text, is_so in notes.items() if is_so]


def _other_targets(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the targets of both that were timed by another device, runtime or precision."""
    first, other = conditions(ours), conditions(theirs)
    if len(first) == len(other) == 1:
        other = dict(zip(first, other.values(), strict=True))  # a single target has any name
    keys = ("device", "runtime", "precision")
    return [name for name in first if name in other and any(first[name][key] != other[name][key] for key in keys)]


def _on_targets(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    names = list(filter(None, _other_targets(ours, theirs)))
    return f" ({', '.join(names)})" if names else ""


def _known(figure: float | None) -> float | None:
    return None if figure is None or figure != figure else figure
