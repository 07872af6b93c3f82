"""`espalier prune show`: the report on a preset, a PruneSpec or a model file, as data and as text."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import nn

from classify.backbones import Architecture, build_classifier, check_backbone, default_side
from classify.checkpoint import ModelCard, read_card
from classify.own_backbone import check_named
from command.errors import MissingFileError, RequestError
from command.own_code import is_own_code
from detect.detector_file import load_detector
from detect.foreign import dense_of
from detect.mmdet_option import next_step
from detect.model import build_detector, config_of, settings_of
from detect.pruning import spec_in_detector
from detect.traced import TracedDetector, traced_at_size
from prune.choose.presets import Preset, preset
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model
from prune.explain import Explanation, explain, untouched_reasons
from prune.layer_rows import CAUSES, GRID, MEMORY_BOUND, Cause, LayerRow
from prune.pruning import prune_model

__all__ = ["PruningReport", "report_of", "report_text"]

_IMAGENET_SIDE, _IMAGENET_CLASSES, _CIFAR_CLASSES = 224, 1000, 10
_BACKBONE = "backbone.net."
_MAX_LINES, _MAX_NAMES = 4, 4

_MEANS: dict[Cause, str] = {
    "misaligned": f"half precision runs on multiples of {GRID} channels; round_to={GRID} avoids the padding",
    "memory_bound": f"under {MEMORY_BOUND} MACs per byte, time follows the bytes moved, not the MACs",
    "half_cut": "the other side, and all the data moved there, stayed whole",
    "uncut": "as slow as before",
}


@dataclass(frozen=True)
class PruningReport:
    """What a pruning did to a network, layer by layer."""

    name: str
    architecture: str
    image_hw: tuple[int, int]
    explanation: Explanation
    preset: Preset | None = None
    file: Path | None = None
    """The model file, if the subject is one."""
    num_classes: int | None = None
    """Those of the network, if it is no file."""
    mmdet: Path | None = None
    """mmdet's config, if the file is a detector of mmdet's own parts."""
    removed_blocks: tuple[str, ...] = ()
    """Residual blocks of which the shortcut alone is left."""

    @property
    def next_command(self) -> str:
        """What to run next."""
        if not self.file:
            height, width = self.image_hw
            return f"espalier import {self.architecture} --classes {self.num_classes} --size-hw {height} {width}"
        is_cut = self.removed_blocks or any(row.sides_cut for row in self.explanation.layers)
        config = ["--mmdet", self.mmdet] if self.mmdet else []
        words = next_step(self.file, self.mmdet) if is_cut else ["espalier", "prune", "l1_half", self.file, *config]
        return shlex.join(map(str, words))

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON types; `published` is null except for presets."""
        known = self.preset
        published = known and {
            "params": known.published_params,
            "macs": known.published_macs,
            "source": known.source,
        }
        head = {"name": self.name, "architecture": self.architecture, "image_hw": list(self.image_hw)}
        head["removed_blocks"] = list(self.removed_blocks)
        return {**head, "published": published, **self.explanation.to_dict()}


@dataclass(frozen=True)
class _Options:
    image_side: int | None
    backbone: str | None
    num_classes: int | None

    def of(self, backbone: str) -> tuple[Architecture, int]:
        """Return the dense architecture and the image side: as requested, or by the data set it is made for."""
        side = default_side(backbone)
        num_classes = _IMAGENET_CLASSES if side == _IMAGENET_SIDE else _CIFAR_CLASSES
        return Architecture(backbone, self.num_classes or num_classes), self.image_side or side


def report_of(
    subject: str, image_side: int | None, backbone: str | None, num_classes: int | None, mmdet: Path | None = None
) -> PruningReport:
    """Explain a pruning.

    Args:
        subject: Name of a preset, or path of a PruneSpec (.json) or of a model file.
        image_side: Height and width of the image, or None for the one of the preset or model.
        backbone: The dense network that a PruneSpec belongs to, which the spec itself does not name.
        num_classes: Of that network, or of the preset's.
        mmdet: mmdet's config, for a detector of mmdet's own parts.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the name is no preset, or a file or option is of the wrong kind.
    """
    for name, value, most in (("--image-size", image_side, 4096), ("--num-classes", num_classes, 10**6)):
        if value and value > most:
            raise RequestError(f"{name}: too large, got {value}; expected at most {most}")
    options, path = _Options(image_side, backbone, num_classes), Path(subject)
    is_spec = path.suffix == ".json"
    if backbone and is_own_code(backbone):
        check_backbone(backbone)
    elif backbone and not is_spec:
        raise RequestError(f"--backbone {backbone}: used only with a PruneSpec, got {subject}; expected a .json file")
    if not path.suffix and not path.is_file() and path.name == subject:
        return _of_preset(preset(subject), options)
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a model file, a PruneSpec or the name of a preset")
    return _of_spec(path, options) if is_spec else _of_file(path, options, mmdet)


def _of_preset(entry: Preset, options: _Options) -> PruningReport:
    arch, side = options.of(entry.backbone)
    dense, image = build_classifier(arch), torch.zeros(1, 3, side, side)
    slim = prune_model(dense, (image,), 0.0, widths=entry.kept, select_channels=entry.selects_channels).model
    explanation = _explained(dense, slim, image, f"{entry.name} does not cut it")
    return PruningReport(entry.name, arch.name, (side, side), explanation, entry, num_classes=arch.num_classes)


def _of_spec(path: Path, options: _Options) -> PruningReport:
    if not options.backbone:
        raise RequestError(f"{path}: does not name its network, got no --backbone; give one, as --backbone resnet34")
    try:
        spec = PruneSpec.from_json(path.read_bytes())
    except RequestError as error:
        raise RequestError(f"{path}: cannot be read, {error}") from error
    arch, side = options.of(options.backbone)
    dense, image = build_classifier(arch), torch.zeros(1, 3, side, side)
    try:
        explanation = _explained(dense, slim_model(dense, spec), image, "the spec does not cut it", spec=spec)
    except (RequestError, RuntimeError) as error:  # torch's own, where widths do not fit together
        raise RequestError(f"{path}: not for {arch.name} with {arch.num_classes} classes, {error}") from error
    removed, num_classes = tuple(spec.removed_blocks), arch.num_classes
    return PruningReport(
        str(path), arch.name, (side, side), explanation, num_classes=num_classes, removed_blocks=removed
    )


def _of_file(path: Path, options: _Options, mmdet: Path | None) -> PruningReport:
    detector, card = load_detector(path, mmdet) if mmdet else (None, read_card(path))
    check_named(card.backbone.name, path)
    if options.num_classes:
        raise RequestError(
            f"--num-classes: not used with a model file, got {path}; expected none, as the file has its own"
        )
    if mmdet:
        dense, slim, image_hw = _foreign(mmdet, detector, card, options.image_side)
    else:
        dense, slim, image_hw = (_detectors if card.kind == "detector" else _classifiers)(card, options.image_side)
    otherwise = "not cut when it was pruned" if card.is_slim else "not pruned yet"
    small = (64, 64) if card.kind == "detector" else image_hw  # channels meet in the same way at any size
    spec = spec_in_detector(card) if card.kind == "detector" else card.prune_spec or PruneSpec({})
    explanation = _explained(dense, slim, torch.zeros(1, 3, *small), otherwise, image_hw, spec)
    name = card.backbone.name if card.kind == "classifier" else f"Faster R-CNN with {card.backbone.name}"
    name = f"mmdet's {mmdet.name}" if mmdet else name
    removed = tuple(spec.removed_blocks)
    return PruningReport(str(path), name, image_hw, explanation, file=path, mmdet=mmdet, removed_blocks=removed)


def _classifiers(card: ModelCard, image_side: int | None) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    side = image_side or card.preprocessing.image_hw[0]
    dense = build_classifier(card.backbone.dense)
    return dense, build_classifier(card.backbone), (side, side)


def _detectors(card: ModelCard, image_side: int | None) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    settings = settings_of(card)
    if image_side:
        settings = replace(settings, image_size_hw=(image_side, image_side))
    dense_card = replace(card, backbone=card.backbone.dense, widths={})
    dense, slim = (TracedDetector(build_detector(config_of(one)), settings.num_proposals) for one in (dense_card, card))
    return dense, slim, (settings.image_size_hw[0], settings.image_size_hw[1])


def _foreign(
    mmdet: Path, slim: Any, card: ModelCard, image_side: int | None
) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    dense, traced = traced_at_size(dense_of(mmdet, card)), traced_at_size(slim)
    return dense, traced, (image_side, image_side) if image_side else card.preprocessing.image_hw


def _explained(
    dense: nn.Module,
    slim: nn.Module,
    image: torch.Tensor,
    otherwise: str,
    image_hw: tuple[int, int] | None = None,
    spec: PruneSpec | None = None,
) -> Explanation:
    """Explain two models, which are left on the meta device: counting there takes no time, even for large images."""
    reasons = untouched_reasons(dense, (image,), otherwise)
    counted = torch.zeros(1, 3, *(image_hw or image.shape[2:]), device="meta")
    return explain(dense.to("meta"), slim.to("meta"), (counted,), reasons, spec)


def report_text(report: PruningReport) -> RenderableType:
    """Return which layers a GPU will not run faster and why, a table of all layers, and totals."""
    explanation = report.explanation
    height, width = report.image_hw
    title = Text(f"{report.name}: {report.architecture}, one image of {height} x {width}", style="bold")
    marks = dict(zip((cause for cause in CAUSES if _rows(explanation, cause)), "1234", strict=False))
    parts = [
        title,
        _verdict(report),
        *_causes(explanation, marks),
        "",
        _table(explanation, marks),
        "",
        _totals(report),
    ]
    return Group(*parts)


def _verdict(report: PruningReport) -> Text:
    explanation, rows, removed = report.explanation, report.explanation.layers, report.removed_blocks
    gone = f"Without the residual {'blocks' if len(removed) > 1 else 'block'} {', '.join(removed)}." if removed else ""
    if not any(row.sides_cut for row in rows):
        return Text(gone or "Nothing was pruned.")
    nothing = sum(row.runs_as_before for row in rows)
    less = sum(not row.runs_as_before for row in explanation.slow)
    others = f", and less than the MACs suggest on {less or 'none'} of the others" if nothing < len(rows) else ""
    return Text.assemble(
        (f"A GPU gains next to nothing on {nothing or 'none'} of {_count(len(rows), 'layer')}{others}.", "bold"),
        "\nPredicted from shapes alone (one image, half precision), not measured.",
        gone and f"\n{gone}",
    )


def _causes(explanation: Explanation, marks: dict[Cause, str]) -> Iterator[RenderableType]:
    """Yield a paragraph per cause: what it means, and its layers, grouped by their finding."""
    for cause, mark in marks.items():
        rows = _rows(explanation, cause)
        yield Text.assemble(
            f"\n{mark} ", (f"{cause.replace('_', '-')}, {_count(len(rows), 'layer')}", "bold"), f": {_MEANS[cause]}"
        )
        by_text: dict[str, list[str]] = {}
        for row in rows:
            text = next(finding.text for finding in row.findings if finding.cause == cause)
            by_text.setdefault(text, []).append(_display(row))
        yield Padding(_lines(by_text), (0, 0, 0, 2))


def _lines(by_text: dict[str, list[str]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right")
    lines = sorted(by_text.items(), key=lambda line: -len(line[1]))
    for text, names in lines[:_MAX_LINES]:
        grid.add_row(f"{len(names)}x", Text.assemble(text, "\n", (_shortened(names), "dim")))
    left = sum(len(names) for _, names in lines[_MAX_LINES:])
    if left:
        grid.add_row(f"{left}x", Text("others; see the table", "dim"))
    return grid


def _rows(explanation: Explanation, cause: Cause) -> list[LayerRow]:
    return [row for row in explanation.layers if any(finding.cause == cause for finding in row.findings)]


def _table(explanation: Explanation, marks: dict[Cause, str]) -> RenderableType:
    reasons = dict.fromkeys(row.reason for row in explanation.layers if row.reason)
    letters = dict(zip(reasons, ascii_lowercase, strict=False))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    for header in ("inputs", "outputs", f"x{GRID}", "MACs", "activations"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True)
    for row in explanation.layers:
        why = sorted(marks[finding.cause] for finding in row.findings)
        table.add_row(*_cells(row), " ".join([*why, *filter(None, [letters.get(row.reason or "")])]))
    note = f"x{GRID}: largest of 32, 16 and 8 that divides the outputs. Why: causes above; why no output was cut:"
    return Group(table, "", Text(note), *(Text(f"{letter} {reason}") for reason, letter in letters.items()))


def _cells(row: LayerRow) -> tuple[str | Text, ...]:
    return (
        Text(_display(row)),
        row.type.removeprefix("conv "),
        _change(row.dense_channels_in, row.channels_in, str),
        _change(row.dense_channels_out, row.channels_out, str),
        Text("no", "yellow") if row.multiple_of == 1 else str(row.multiple_of),
        _change(row.dense_macs, row.macs),
        _change(row.dense_activations, row.activations),
    )


def _totals(report: PruningReport) -> RenderableType:
    e, grid = report.explanation, Table.grid(padding=(0, 2))
    padded = f", {_short(e.padded_macs)} with padding" if e.padded_macs > e.macs else ""
    grid.add_row("MACs", _change(e.dense_macs, e.macs), f"{e.mac_reduction:.2f}x fewer{padded}")
    grid.add_row("activations", _change(e.dense_activations, e.activations), "elements of the layers' outputs")
    grid.add_row("params", _change(e.dense_params, e.params), "")
    known = report.preset
    if known is None:
        return grid
    figures = {"params": known.published_params, "MACs": known.published_macs}
    printed = ", ".join(f"{figure} {name}" for name, figure in figures.items() if figure) or "no figures"
    return Group(grid, Text(f"published: {printed}. {known.source}"))


def _change(before: int, after: int, form: Callable[[int], str] = lambda num: _short(num)) -> Text:
    return Text(form(after), "dim") if before == after else Text(f"{form(before)}->{form(after)}")


def _short(num: int) -> str:
    """Return three digits and a unit: 115605504 is 116M."""
    for divisor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if num >= divisor:
            value = num / divisor
            return f"{value:.{max(0, 3 - len(str(int(value))))}f}{unit}"
    return str(num)


def _count(num: int, what: str) -> str:
    return f"{num} {what}" + "s" * (num != 1)


def _display(row: LayerRow) -> str:
    """Return the layer's name; a detector's backbone has the classifier's names, as in patterns."""
    return row.name.removeprefix(_BACKBONE)


def _shortened(names: list[str]) -> str:
    left = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {left} more" if left > 0 else "")
