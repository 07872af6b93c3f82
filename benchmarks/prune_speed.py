"""Measure pruning itself against torch-pruning's pruner: the same network, the same criterion, alternately.

Run:     python benchmarks/prune_speed.py RECORD.json [--rounds 5] [--threads 2]
Writes:  a record: seconds of each (tracing, L1 norm, surgery; half of every group), whether both kept the same
         channels, and the peak memory of a separate process, in sizes of the dense model

Both return a slim model and leave the dense one unchanged: torch-pruning cuts in place, so its time includes the copy
that it works on. Ours is timed without and with its default check of the slim model's outputs against the dense one's.
"""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch_pruning
from records import write_cpu_record
from torch import Tensor, nn
from torchvision import models

from classify.backbones import Architecture
from detect import DetectorSettings, new_detector
from detect.pruning import PARTS, TracedDetector, prune_detector
from prune import prune_model

RATIO = 0.5


def faster_rcnn() -> tuple[nn.Module, Any]:
    """Return a Faster R-CNN R50-FPN of COCO's 80 classes and its card."""
    detector, card = new_detector(
        Architecture("resnet50", 1), tuple(f"class {i}" for i in range(80)), DetectorSettings(), 0
    )
    return detector.eval(), card


class FilterNorm(torch_pruning.importance.Importance):
    """The L1 norm of the filters that write a channel, summed over layers: our criterion as a torch-pruning class."""

    writes = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Return one score per channel of torch-pruning's group."""
        scores = torch.zeros(len(group[0].idxs))
        for item in group:
            if item.dep.handler in self.writes:
                norms = item.dep.layer.weight.flatten(1).abs().sum(1)
                scores.index_add_(0, torch.tensor(item.root_idxs), norms[item.idxs])
        return scores


def theirs(dense: nn.Module, image: Tensor) -> nn.Module:
    """Return a copy, cut by torch-pruning's high-level pruner."""
    model = copy.deepcopy(dense)
    outputs = [m for n, m in model.named_modules() if n.endswith(("fc", "classifier.6", "_cls", "_reg"))]
    pruner = torch_pruning.pruner.BasePruner(
        model, image, importance=FilterNorm(), pruning_ratio=RATIO, ignored_layers=outputs
    )
    pruner.step()
    return model


def networks() -> dict[str, Callable[[], tuple[nn.Module, nn.Module | None, Callable[[bool], nn.Module], Tensor]]]:
    """Return, per network, a function that returns (dense model, model for torch-pruning or None, our pruning, image).

    Our pruning takes whether to verify.
    """

    def classifier(name: str) -> Any:
        dense = models.get_model(name).eval()
        image = torch.zeros(1, 3, 224, 224)
        return dense, dense, lambda verify: prune_model(dense, (image,), RATIO, verify=verify).model, image

    def detector() -> Any:
        dense, _ = faster_rcnn()
        traced, image = TracedDetector(dense), torch.zeros(1, 3, 64, 64)
        return dense, traced, lambda verify: prune_model(traced, (image,), RATIO, verify=verify).model, image

    def rebuilt_detector() -> Any:
        dense, card = faster_rcnn()

        def prune(verify: bool) -> nn.Module:
            return prune_detector(dense, card, RATIO, parts=PARTS, verify=verify)[0]

        return dense, None, prune, torch.zeros(0)

    return {
        "ResNet-50": lambda: classifier("resnet50"),
        "VGG-16": lambda: classifier("vgg16"),
        "Faster R-CNN R50-FPN": detector,
        "the same, and rebuilt by mmdet": rebuilt_detector,
    }


def measured(name: str, rounds: int) -> dict[str, Any]:
    """Time all in turn; the first round is warm-up. torch-pruning cannot rebuild a detector from a config."""
    _, traced, prune, image = networks()[name]()
    seconds: dict[str, list[float]] = {"ours": [], "verified": []} | ({"theirs": []} if traced else {})
    for _ in range(rounds + 1):
        slim = _timed(lambda: prune(False), seconds["ours"])
        _timed(lambda: prune(True), seconds["verified"])
        if traced:
            other = _timed(lambda: theirs(traced, image), seconds["theirs"])
    ours, kept = slim.state_dict(), other.state_dict() if traced else {}
    return {
        "network": name,
        "seconds": {who: round(median(times[1:]), 3) for who, times in seconds.items()},
        "samples": {who: [round(t, 4) for t in times[1:]] for who, times in seconds.items()},
        "same_channels": all(torch.equal(ours[key], kept[key]) for key in ours) if traced else None,
        "peak_memory": float(subprocess.check_output([sys.executable, __file__, "--peak-of", name], text=True)),
    }


def _timed(work: Callable[[], nn.Module], seconds: list[float]) -> nn.Module:
    start = time.perf_counter()
    result = work()
    seconds.append(time.perf_counter() - start)
    return result


def peak_of(name: str) -> float:
    """Return the peak memory of this process during pruning, in sizes of the dense model."""
    prune_model(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), (torch.zeros(1, 3, 8, 8),), RATIO)
    dense, _, prune, _ = networks()[name]()
    size = sum(p.numel() * p.element_size() for p in dense.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak in the kernel
    before = _resident("VmRSS")
    prune(True)
    return round((_resident("VmHWM") - before + size) / size, 2)


def _resident(field: str) -> int:
    """Return a field of this process's memory status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def table(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows for the documents."""
    rows = []
    for result in results:
        ours, other = result["seconds"]["ours"], result["seconds"].get("theirs")
        same = "yes" if result["same_channels"] else "no"
        compared = [f"{other:.2f}", f"{other / ours:.1f}", same] if other else ["-"] * 3
        peak = f"{result['peak_memory']:.2f} x dense"
        rows.append([result["network"], f"{ours:.2f}", *compared, f"{result['seconds']['verified']:.2f}", peak])
    return rows


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.peak_of:
        print(peak_of(arguments.peak_of))
        return
    conditions = {"threads": arguments.threads, "ratio": RATIO, "torch-pruning": torch_pruning.__version__}
    results = [measured(name, arguments.rounds) for name in networks()]
    columns = ["network", "espalier (s)", "torch-pruning (s)", "times as fast", "same channels kept"]
    columns += ["espalier, checked (s)", "its peak memory"]
    write_cpu_record(arguments.record, "pruning", conditions, results, columns, table(results))


if __name__ == "__main__":
    main()
