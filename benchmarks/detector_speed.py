"""Measure deployed Faster R-CNNs R50-FPN on a CPU: ours, torchvision's and mmdet's own, with the same weights.

Run:     python benchmarks/detector_speed.py RECORD.json [--size-hw 800 1344] [--rounds 10] [--threads 2]
Writes:  a measurement record, which `espalier deploy` reads like any other

All have the same weights, the same image and 1000 proposals in it. The only difference: torchvision's samples RoIs half
a feature off (aligned=False). Weights are random; the heads' are scaled so that scores and boxes vary as in a trained
detector. torchvision's network is written by torch's own exporter and run in the same runtimes as ours.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from classify.backbones import Architecture
from classify.checkpoint import ModelCard
from deploy import (
    Arrays,
    ModuleRunner,
    OnnxRunner,
    Runner,
    measure,
    onnx_from_module,
    quantized_onnx,
    random_inputs,
    record_from_measurement,
    save_record,
    table_from_record,
)
from deploy.runtimes.openvino import OpenVinoRunner
from deploy.runtimes.timed_step import Step
from detect import DetectorSettings, new_detector
from detect.fixed_shape import FixedShapeDetector

NUM_CLASSES = 80
SPREADS = {
    "rpn_head.rpn_cls": 2.0,
    "rpn_head.rpn_reg": 0.2,
    "roi_head.bbox_head.fc_cls": 2.0,
    "roi_head.bbox_head.fc_reg": 0.5,
}
"""Standard deviation of a head's outputs."""

TORCHVISION_NAMES = {
    "backbone.net.": "backbone.body.",
    "neck.lateral_convs.{}.conv.": "backbone.fpn.inner_blocks.{}.0.",
    "neck.fpn_convs.{}.conv.": "backbone.fpn.layer_blocks.{}.0.",
    "rpn_head.rpn_conv.": "rpn.head.conv.0.0.",
    "rpn_head.rpn_cls.": "rpn.head.cls_logits.",
    "rpn_head.rpn_reg.": "rpn.head.bbox_pred.",
    "roi_head.bbox_head.shared_fcs.0.": "roi_heads.box_head.fc6.",
    "roi_head.bbox_head.shared_fcs.1.": "roi_heads.box_head.fc7.",
    "roi_head.bbox_head.fc_cls.": "roi_heads.box_predictor.cls_score.",
    "roi_head.bbox_head.fc_reg.": "roi_heads.box_predictor.bbox_pred.",
}
"""Prefix of a parameter's name in mmdet -> in torchvision; {} is the level."""


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


class TorchvisionRunner:
    """torchvision's exported file, with our inputs and outputs."""

    def __init__(self, runner: Any) -> None:
        """Keep the runner of the file."""
        self.runner = runner
        self.runtime, self.device = runner.runtime, runner.device
        self.precision, self.num_threads = runner.precision, runner.num_threads
        self.file_sha256 = runner.file_sha256

    def run(self, inputs: Arrays) -> Arrays:
        """Return boxes, scores and labels, with classes numbered from 0."""
        found = self.runner.run(_theirs(inputs))
        return {
            "boxes_xyxy": found["boxes"][None],
            "scores": found["scores"][None],
            "labels": found["labels"][None] - 1,
        }

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the file."""
        return self.runner.prepare(_theirs(inputs))


def _theirs(inputs: Arrays) -> Arrays:
    return {"image": np.ascontiguousarray(inputs["image"][0] / np.float32(255))}


def random_detector(size_hw: tuple[int, int]) -> tuple[Any, ModelCard]:
    """Return mmdet's Faster R-CNN R50-FPN, its card; the heads' outputs have the standard deviations in `SPREADS`."""
    settings = DetectorSettings(image_size_hw=size_hw)
    classes = tuple(f"class {i}" for i in range(NUM_CLASSES))
    detector, card = new_detector(Architecture("resnet50", 1), classes, settings, seed=0)
    graph = FixedShapeDetector(detector.eval(), size_hw)
    heads = {name: detector.get_submodule(name) for name in SPREADS}
    for name, head in heads.items():  # in order: later heads see what earlier ones propose
        outputs: list[Tensor] = []
        part = name.replace("rpn_head", "proposals.head").replace("roi_head.bbox_head", "detections.head")
        hook = graph.get_submodule(part).register_forward_hook(lambda _, __, out, outputs=outputs: outputs.append(out))
        with torch.no_grad():
            graph(*graph.example_inputs())
            spread = torch.cat([out.flatten() for out in outputs]).std()
            head.weight.mul_(SPREADS[name] / spread)
        hook.remove()
        graph = FixedShapeDetector(detector, size_hw)
    return detector, card


def torchvision_twin(detector: Any, size_hw: tuple[int, int]) -> nn.Module:
    """Return torchvision's Faster R-CNN R50-FPN with the same weights and settings."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d)
    mean, std = (getattr(detector.data_preprocessor, name).flatten() / 255 for name in ("mean", "std"))
    twin = FasterRCNN(
        backbone,
        NUM_CLASSES + 1,
        min_size=min(size_hw),
        max_size=max(size_hw),
        image_mean=mean.tolist(),
        image_std=std.tolist(),
    ).eval()
    twin.load_state_dict(_renamed(detector.state_dict()))
    return twin


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {ours.format(i): theirs.format(i) for ours, theirs in TORCHVISION_NAMES.items() for i in range(5)}
    renamed = {
        theirs + key.removeprefix(ours): value
        for key, value in state.items()
        for ours, theirs in names.items()
        if key.startswith(ours) and ".fc." not in key
    }
    for key in ("weight", "bias"):
        # torchvision has the background first, ours last; it has box deltas for the background too
        scores = renamed[f"roi_heads.box_predictor.cls_score.{key}"]
        renamed[f"roi_heads.box_predictor.cls_score.{key}"] = scores.roll(1, 0)
        deltas = renamed[f"roi_heads.box_predictor.bbox_pred.{key}"]
        renamed[f"roi_heads.box_predictor.bbox_pred.{key}"] = torch.cat([torch.zeros_like(deltas[:4]), deltas])
    return renamed


def files_of(detector: Any, size_hw: tuple[int, int], folder: Path) -> dict[str, Path]:
    """Export ours, in one form for each runtime, and torchvision's."""
    torch.manual_seed(1)
    graphs = {
        target: FixedShapeDetector(detector, size_hw, runtime=target) for target in ("any", "onnxruntime", "openvino")
    }
    inputs = graphs["any"].example_inputs()
    files = {}
    for target, graph in graphs.items():
        example = dict(zip(graph.input_names, inputs, strict=True))
        files[target] = folder / f"{target}.onnx"
        # nothing is compared: with random heads, rounding decides which of nearly equal boxes are kept
        onnx_from_module(graph, example, files[target], graph.output_names, tolerance=None)
    files["int8"] = folder / "int8.onnx"
    calibration = [{name: tensor.numpy() for name, tensor in example.items()}]
    quantized_onnx(files["onnxruntime"], files["int8"], calibration, runtime="onnxruntime")
    files["torchvision"] = folder / "torchvision.onnx"
    names = {"input_names": ["image"], "output_names": ["boxes", "labels", "scores"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = torchvision_twin(detector, size_hw)
        torch.onnx.export(twin, ([inputs[0][0] / 255],), files["torchvision"], dynamo=False, opset_version=17, **names)
    return files


def runners_of(detector: Any, files: dict[str, Path], threads: int) -> dict[str, Runner]:
    """Return the runners to time, the reference first."""

    def in_openvino(name: str, hint: str) -> Any:
        return OpenVinoRunner(files[name], num_threads=threads, precision_hint=hint)

    def in_onnxruntime(name: str) -> Any:
        return OnnxRunner(files[name], num_threads=threads)

    outputs = ("boxes_xyxy", "scores", "labels")
    return {
        "mmdet, eager": ModuleRunner(MmdetPredict(detector), outputs),
        "torchvision, ONNX Runtime": TorchvisionRunner(in_onnxruntime("torchvision")),
        "ours for every engine, ONNX Runtime": in_onnxruntime("any"),
        "ours, ONNX Runtime": in_onnxruntime("onnxruntime"),
        "ours in int8, ONNX Runtime": in_onnxruntime("int8"),
        "torchvision, OpenVINO": TorchvisionRunner(in_openvino("torchvision", "f32")),
        "ours, OpenVINO": in_openvino("openvino", "f32"),
        "torchvision, OpenVINO asked for bf16": TorchvisionRunner(in_openvino("torchvision", "bf16")),
        "ours, OpenVINO asked for bf16": in_openvino("openvino", "bf16"),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--size-hw", type=int, nargs=2, default=(800, 1344))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector, _ = random_detector(tuple(arguments.size_hw))
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(detector, tuple(arguments.size_hw), Path(folder))
        runners = runners_of(detector, files, arguments.threads)
        inputs = random_inputs(OnnxRunner(files["any"]).inputs)
        measurement = measure(runners, inputs, warmup=2, rounds=arguments.rounds)
    config = {"backbone": "resnet50", "num_classes": NUM_CLASSES, "num_proposals": 1000}
    record = record_from_measurement(measurement, runners, inputs, config=config)
    save_record(record, arguments.record)
    print(table_from_record(record))


if __name__ == "__main__":
    main()
