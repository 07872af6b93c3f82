"""What a report says in sentences, verdicts first."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiment.comparison import SCORES
from experiment.report_lines import Line
from experiment.report_tables import interval_text
from experiment.verdicts import Judged, Speed, verdict_counts

__all__ = ["clocks", "conditions", "device", "finding", "how_judged", "measured_with"]


def conditions(results: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return how times were taken on each target, by its name; "" where there is one."""
    return results.get("targets") or {"": results["latency"]}


def device(results: Mapping[str, Any]) -> str:
    """Return on what latency was measured, and which targets were not run."""
    by_device: dict[str, list[str]] = {}
    for target, measured in conditions(results).items():
        by_device.setdefault(measured["device"], []).append(target)
    places = [
        f"on {name} ({', '.join(targets)})" if targets != [""] else f"on {name}" for name, targets in by_device.items()
    ]
    not_run = [f"Target {one['target']} was not run: {one['reason']}." for one in results.get("not_run", [])]
    return " ".join([f"Latency was measured {', '.join(places)}.", *not_run])


def measured_with(results: Mapping[str, Any]) -> str:
    """Return the runtime, precision and device of each target."""
    parts = [
        f"with {one['runtime']} in {one['precision']} on {one['device']}{f' ({target})' if target else ''}"
        for target, one in conditions(results).items()
    ]
    return f"Measured {', '.join(parts)}"


def clocks(results: Mapping[str, Any]) -> str:
    """Return what became of rounds in which the device was throttled."""
    nums = [one.get("throttled_rounds") for one in conditions(results).values()]
    num = sum(num for num in nums if num is not None)
    if None in nums:
        return "Clocks were not recorded, so throttled rounds are not known and none was left out."
    return f"{num} rounds in which the GPU was throttled were left out."


def finding(
    results: Mapping[str, Any], lines: Sequence[Line], judged: Sequence[Judged], speeds: Sequence[Speed]
) -> str:
    """Return sentences on the slim model with the highest score: verdict, speedup, control, and what is noise."""
    slim = [line for line in lines if line.is_slim]
    if not slim:
        return "Only the dense network was run."
    score = lines[0].score
    slim = [line for line in slim if line.values(score) and line.first("target") == lines[0].first("target")]
    if not slim:
        return f"No row of a slim network has a figure of {SCORES[score]}."
    best = max(slim, key=lambda line: (line.mean(score), line.mean("speedup")))
    lines = [line for line in lines if line.family == best.family]
    judged = [one for one in judged if one.first.family == best.family]
    verdict = [one.sentence() for one in judged if one.first is best and one.second.is_dense]
    counts = [text for text in verdict_counts(judged) if " against finetune" in text]
    sentences = [
        *verdict,
        _reached(best, lines[0], speeds),
        _unequal(results, lines),
        _control(lines),
        *counts,
        _seeds(best),
    ]
    return " ".join(filter(None, sentences))


def how_judged(judged: Sequence[Judged]) -> str:
    """Return what the verdicts go by."""
    num = max((one.num_compared for one in judged), default=0)
    if not num:
        return "Seeds and draws of images are too few to tell how large chance is: no verdict on accuracy is possible."
    several = f", corrected by Holm for {num} comparisons; the intervals are not" if num > 1 else ""
    images = any(one.difference.image_error is not None for one in judged)
    over = "seeds and validation images" if images else "seeds alone: draws of images are not in these results"
    return f"Differences are paired over {over}. At most 5 % of experiments have any wrong verdict{several}."


def _reached(best: Line, dense: Line, speeds: Sequence[Speed]) -> str:
    score = best.score
    accuracy = f"{best.label} reaches {best.number(score, 3)} {SCORES[score]} (dense: {dense.number(score, 3)})"
    interval = "" if interval_text(best) == "-" else f" (95% interval {interval_text(best)})"
    is_faster = any(speed.line is best and speed.verdict == "faster" for speed in speeds)
    gain = f"{best.number('speedup', 2)}x measured speedup{interval}{'' if is_faster else ', no measured gain'}"
    return f"{accuracy} at {gain}, with {best.number('mac_reduction', 2)}x fewer MACs."


def _seeds(best: Line) -> str:
    num = len(best.rows)
    if num == 1:
        return "One seed: differences smaller than the noise between seeds, which one seed cannot show, mean nothing."
    return f"Means over {num} seeds ± sample standard deviation."


def _unequal(results: Mapping[str, Any], lines: Sequence[Line]) -> str:
    """Return a sentence on the lengths of the detectors' trainings, or nothing where they are equal as published."""
    if results["config"].get("terms") == "equal_macs" and all(line.values("train_macs") for line in lines):
        least, most = (pick(line.mean("train_macs") for line in lines) for pick in (min, max))
        return f"All trainings of a row together took {least:.3g} to {most:.3g} multiply-adds, forward and backward."
    epochs = [line.epochs("detector") for line in lines]
    others = [f"{line.label} {num}" for line, num in zip(lines, epochs, strict=True) if num != epochs[0]]
    if not others:
        return ""
    dense = f"{lines[0].label} {epochs[0]}, {', '.join(others)}"
    return f"Detectors were trained for {min(epochs)} to {max(epochs)} epochs ({dense}), which alone can change mAP."


def _control(lines: Sequence[Line]) -> str:
    """Return a sentence on the dense detector that was trained longer, or nothing."""
    for line in lines:
        if line.first("ordering") == "dense_longer":
            return (
                f"Dense trained for {line.epochs('detector')} epochs (dense_longer) reaches {line.number('map', 3)} "
                f"mAP; it is not pruned, so its {line.number('speedup', 2)}x is what a speedup can be without pruning."
            )
    return ""
