"""The latency of one backbone at many widths: which are fast on this machine, and where latency jumps.

Weights are random. They change the outputs of a network, not its latency.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file
from torch import Tensor, nn

from classify.backbones import Architecture, build_classifier, check_backbone
from classify.export import DTYPES, ClassScores
from command.config import Part, check_name
from command.errors import WorkError
from command.files import written_atomically
from command.progress import RunProgress
from deploy.engine import engine_from_onnx
from deploy.explain.profiled import measured_on
from deploy.export import onnx_from_module
from deploy.record import Record, record_from_measurement, rows_from_record, save_record
from deploy.runtimes.registry import MODEL, ONNX, RUNTIMES, runner_for
from deploy.runtimes.runner import FileRunner
from deploy.tensors import random_inputs
from experiment.config import Timing
from experiment.cuts import Ratio
from experiment.measuring import measure_with_progress
from experiment.sweep_plot import sweep_plot
from prune.cost import Cost, cost_of
from prune.pruning import prune_model

__all__ = ["FILES", "PICTURE", "SweepConfig", "measure_sweep", "sweep_table"]

PICTURE = "sweep.png"
_FIGURES, _RECORD = "sweep.json", "latency.json"
FILES = (_FIGURES, _RECORD, PICTURE)
"""What `measure_sweep` writes."""

_DENSE = "dense"


class SweepConfig(Part):
    """What `espalier deploy sweep` prunes and measures: every ratio with every rounding."""

    backbone: Annotated[str, AfterValidator(check_backbone)]
    """One of `classify.backbones.BACKBONES`, or `package.module:function`."""
    num_classes: int = Field(1000, ge=1, le=10**6)
    image_size: int = Field(224, ge=32, le=4096)
    """Height and width of the images."""
    batch: int = Field(1, ge=1, le=65_536)
    prune_ratios: tuple[Ratio, ...] = Field(tuple(i / 10 for i in range(1, 10)), min_length=1)
    """Shares of channels removed from every group."""
    round_to: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field((1, 8, 16, 32), min_length=1)
    """Multiples that kept channels are moved to, the nearest one."""
    runtime: Annotated[str, AfterValidator(lambda name: check_name(name, RUNTIMES))] = "onnxruntime"
    """One of `deploy.runtimes.registry.RUNTIMES`; engines are built."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the networks; the images and the scores are float32."""
    latency: Timing = Timing()


@dataclass(frozen=True)
class _Setting:
    """A ratio and a rounding, and the network they give."""

    prune_ratio: float
    round_to: int | None
    """None for the dense network."""
    cost: Cost
    measured_as: str
    """Name of the first setting that gives these widths."""

    @property
    def name(self) -> str:
        return _DENSE if self.round_to is None else f"prune_ratio {self.prune_ratio:g}, round_to {self.round_to}"


def measure_sweep(config: SweepConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Prune, export and measure; write record, figures and picture into `folder`, and return the figures.

    All files are written at the end, each complete or not at all.

    Raises:
        RequestError: If a ratio and a rounding do not fit the network.
        WorkError: If a network cannot be exported, or the runtime or its GPU is missing.
    """
    if RUNTIMES[config.runtime].needs_gpu and not torch.cuda.is_available():
        raise WorkError(f"runtime: no GPU for {config.runtime}, got a machine without CUDA; expected onnxruntime")
    num = 1 + len(config.prune_ratios) * len(config.round_to)
    progress = RunProgress(console, [3.0, 1.0])
    with TemporaryDirectory(prefix="espalier-") as temporary:
        with progress.stage(f"prune and export up to {num} networks"):
            settings, runners = _exported(config, Path(temporary), num, progress)
        with progress.stage(f"measure {len(runners)} networks"):
            record = _measured(config, settings, runners, progress)
    figures = _figures(config, settings, record)
    save_record(record, folder / _RECORD)
    with written_atomically(folder / PICTURE) as path:
        sweep_plot(figures).savefig(path, format="png")
    with written_atomically(folder / _FIGURES) as path:
        path.write_text(json.dumps(figures, indent=1))
    return figures


def sweep_table(figures: Mapping[str, Any]) -> Table:
    """Return every ratio and rounding with its MACs and latency."""
    title = f"{figures['measured_on']}\n{figures['network']}, random weights: they do not change the time"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for header in ("removed", "round_to", "MMACs", "fewer", "ms", "faster (95 % interval)", "faster / fewer"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in figures["rows"]:
        removed = "dense" if row["round_to"] is None else f"{row['prune_ratio']:.0%}"
        interval = "" if row["speedup_low"] is None else f" ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
        table.add_row(
            removed,
            str(row["round_to"] or ""),
            f"{row['macs'] / 1e6:.4g}",
            f"{row['mac_reduction']:.2f}",
            f"{row['latency_ms']:.3f}",
            f"{row['speedup']:.2f}{interval}",
            f"{row['speedup'] / row['mac_reduction']:.2f}",
        )
    return table


def _exported(
    config: SweepConfig, folder: Path, num: int, progress: RunProgress
) -> tuple[list[_Setting], dict[str, FileRunner]]:
    """Return all settings, the dense one first, and a runner for each network that differs from those before it."""
    torch.manual_seed(0)
    images = torch.rand(config.batch, 3, config.image_size, config.image_size) * 255
    settings: list[_Setting] = []
    runners: dict[str, FileRunner] = {}
    names: dict[tuple[torch.Size, ...], str] = {}
    for ratio, round_to, net in _networks(config, images):
        widths = tuple(parameter.shape for parameter in net.parameters())
        setting = _Setting(ratio, round_to, cost_of(net, (images[:1],)), "")
        name = names.setdefault(widths, setting.name)
        settings.append(_Setting(ratio, round_to, setting.cost, name))
        if name not in runners:
            runners[name] = _runner(config, net, images, folder / str(len(runners)))
        progress(len(settings), num)
    return settings, runners


def _networks(config: SweepConfig, images: Tensor) -> Iterator[tuple[float, int | None, nn.Module]]:
    dense = build_classifier(Architecture(config.backbone, config.num_classes)).eval()
    yield 0.0, None, dense
    for round_to, ratio in itertools.product(config.round_to, config.prune_ratios):
        yield ratio, round_to, prune_model(dense, (images[:1],), ratio, round_to=round_to).model.eval()


def _runner(config: SweepConfig, net: nn.Module, images: Tensor, stem: Path) -> FileRunner:
    graph, runtime = ClassScores(net, DTYPES[config.precision]), RUNTIMES[config.runtime]
    file = stem.with_suffix(runtime.suffix)
    if runtime.suffix == MODEL:
        save_file(graph.state_dict(), file)  # its hash in the record is of the weights
    else:
        onnx = stem.with_suffix(ONNX)
        onnx_from_module(graph, {"image": images}, onnx, ["scores"], tolerance=None)  # random nets amplify rounding
        if runtime.backend:
            engine_from_onnx(onnx, file, backend=runtime.backend)
    return runner_for(file, config.runtime, config.latency.num_threads, open_model=lambda _: (graph, (images,)))


def _measured(
    config: SweepConfig, settings: list[_Setting], runners: Mapping[str, FileRunner], progress: RunProgress
) -> Record:
    inputs = random_inputs(runners[_DENSE].inputs)
    timing = config.latency
    measurement = measure_with_progress(runners, inputs, timing.warmup, timing.rounds, progress)
    macs = {setting.measured_as: config.batch * setting.cost.macs for setting in settings}
    return record_from_measurement(measurement, runners, inputs, macs=macs, config=config.model_dump(mode="json"))


def _figures(config: SweepConfig, settings: list[_Setting], record: Record) -> dict[str, Any]:
    measured = {row["name"]: row for row in rows_from_record(record)}
    kept = ("latency_ms", "latency_p90_ms", "latency_p99_ms", "speedup", "speedup_low", "speedup_high", "mac_reduction")
    return {
        "measured_on": measured_on(record),
        "network": f"{config.backbone} at {config.image_size} pixels",
        "is_gpu": record.is_gpu,
        "device": record.device.name,
        "num_threads": record.device.num_threads,
        "runtime": config.runtime,
        "precision": record.candidates[_DENSE].precision,
        "batch": config.batch,
        "rows": [
            {
                "name": setting.name,
                "prune_ratio": setting.prune_ratio,
                "round_to": setting.round_to,
                "measured_as": setting.measured_as,
                "macs": setting.cost.macs,
                "params": setting.cost.params,
                **{key: measured[setting.measured_as][key] for key in kept},
            }
            for setting in settings
        ],
    }
