"""Measure the deployed file against mmdet's own `predict`: the same detector, the same image, alternately.

Run:     python benchmarks/deployed_vs_mmdet.py RECORD.json [--backbone resnet50] [--size-hw 800 1344] [--rounds 20]
Writes:  a measurement record; `espalier deploy` reads and tables it like any other

Weights are random: the convolutions do not care, and the test settings keep every proposal and fill every place of the
output, which is the most that post-processing can cost.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from classify.backbones import BACKBONES, Architecture
from deploy import (
    ModuleRunner,
    OnnxRunner,
    measure,
    onnx_from_module,
    record_from_measurement,
    save_record,
    table_from_record,
)
from detect import DetectorSettings, new_detector
from detect.fixed_shape import FixedShapeDetector


class MmdetPredict(nn.Module):
    """mmdet's `predict` with the signature of the fixed-shape detector; batch 1."""

    def __init__(self, detector: nn.Module) -> None:
        """Keep the detector."""
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor, image_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of one image (1, 3, H, W), RGB."""
        from mmdet.structures import DetDataSample

        shape = tuple(int(side) for side in image_hw[0])
        sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
        data = self.detector.data_preprocessor({"inputs": [image[0].flip(0)], "data_samples": [sample]})
        found = self.detector.predict(data["inputs"], data["data_samples"])[0].pred_instances
        return found.bboxes, found.scores, found.labels


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="resnet50")
    parser.add_argument("--size-hw", type=int, nargs=2, default=(800, 1344))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = DetectorSettings(image_size_hw=tuple(arguments.size_hw))
    classes = tuple(f"class {i}" for i in range(80))
    detector, _ = new_detector(Architecture(arguments.backbone, 1), classes, settings, seed=0)
    detector.eval().roi_head.test_cfg.score_thr = 0.0
    graph = FixedShapeDetector(detector, settings.image_size_hw)
    example = dict(zip(graph.input_names, graph.example_inputs(1), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # random heads score all boxes nearly alike, so rounding decides which are kept; the tests check parity
        onnx_from_module(graph, example, file, graph.output_names, tolerance=float("inf"))
        runners = {
            "mmdet predict": ModuleRunner(MmdetPredict(detector), graph.output_names),
            "deployed file": OnnxRunner(file, num_threads=arguments.threads),
        }
        inputs = {name: tensor.numpy() for name, tensor in example.items()}
        measurement = measure(runners, inputs, warmup=2, rounds=arguments.rounds)
    config = {"backbone": arguments.backbone, "num_classes": len(classes), "num_proposals": settings.num_proposals}
    record = record_from_measurement(measurement, runners, inputs, config=config)
    save_record(record, arguments.record)
    print(table_from_record(record))


if __name__ == "__main__":
    main()
