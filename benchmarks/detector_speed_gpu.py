"""Measure Faster R-CNN R50-FPN on a GPU in PyTorch: mmdet's, ours and ours slim, eager and as CUDA graphs.

Run:     python benchmarks/detector_speed_gpu.py RECORD.json [--size-hw 800 1344] [--rounds 50]
Writes:  a measurement record, which `espalier deploy` reads like any other
Needs:   an NVIDIA GPU, no TensorRT

All have the same image and 1000 proposals in it. The dense ones have the same weights; the slim ones lost half of their
channels by L1 norm, kept numbers rounded to 32. Weights are random; see detector_speed.py.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from detector_speed import NUM_CLASSES, MmdetPredict, random_detector

from deploy import (
    ModuleRunner,
    Runner,
    TensorSpec,
    measure,
    random_inputs,
    record_from_measurement,
    save_record,
    table_from_record,
)
from deploy.runtimes.module import Mode
from detect import prune_detector
from detect.fixed_shape import FixedShapeDetector
from detect.traced import detector_cost

OUTPUTS = ("boxes_xyxy", "scores", "labels")
DEVICE = "cuda:0"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def runners_of(detectors: dict[str, Any], size_hw: tuple[int, int]) -> dict[str, tuple[Runner, str]]:
    """Return the runners to time with the name of their detector, the reference first."""
    dense = detectors["dense"].to(DEVICE)
    made: dict[str, tuple[Runner, str]] = {
        "mmdet, eager, fp32": (ModuleRunner(MmdetPredict(dense), OUTPUTS, device=DEVICE), "dense")
    }
    modes: dict[str, Mode] = {"eager": "eager", "graph": "cuda_graph"}
    for precision, dtype in DTYPES.items():
        for name, detector in detectors.items():
            graph = FixedShapeDetector(detector, size_hw, dtype=dtype).to(DEVICE)
            for mode_name, mode in modes.items():
                runner = ModuleRunner(graph, OUTPUTS, device=DEVICE, mode=mode)
                made[f"ours, {name}, {mode_name}, {precision}"] = (runner, name)
    return made


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(800, 1344))
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    size_hw = tuple(arguments.size_hw)
    dense, card = random_detector(size_hw)
    halves = {"slim backbone": ("backbone",), "slim everywhere": ("backbone", "neck", "rpn_head", "roi_head")}
    slim = {name: prune_detector(dense, card, 0.5, parts=parts, round_to=32)[:2] for name, parts in halves.items()}
    detectors = {"dense": (dense, card), **slim}
    macs = {name: detector_cost(detector, its_card).macs for name, (detector, its_card) in detectors.items()}
    runners = runners_of({name: detector for name, (detector, _) in detectors.items()}, size_hw)
    inputs = random_inputs({"image": TensorSpec((1, 3, *size_hw), "float32")})
    inputs["image_hw"] = torch.tensor([size_hw], dtype=torch.float32).numpy()
    alone = {name: runner for name, (runner, _) in runners.items()}
    measurement = measure(alone, inputs, warmup=5, rounds=arguments.rounds)
    config = {"backbone": "resnet50", "num_classes": NUM_CLASSES, "num_proposals": 1000}
    costs = {name: macs[detector] for name, (_, detector) in runners.items()}
    record = record_from_measurement(measurement, alone, inputs, macs=costs, config=config)
    save_record(record, arguments.record)
    print(table_from_record(record))


if __name__ == "__main__":
    main()
