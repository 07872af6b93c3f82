"""The command `espalier import`: a model file from what one has."""

from pathlib import Path
from typing import Annotated

import typer

from command.errors import RequestError
from command.extras import loading
from command.notes import note
from command.options import Force, closing, model_output, out_file, refuse_existing
from command.own_code import short_name
from deploy.text import printable

__all__ = ["bring"]


def bring(
    name: Annotated[str, typer.Argument(help="Network, as resnet50; with --mmdet, a checkpoint.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Its weights from torchvision, timm, mmpretrain or a program for CIFAR (.pth, .th, .safetensors).",
            show_default="random ones",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="How many, a text file of names, or an image folder; ImageNet's if there are 1000.",
            show_default="as many as the weights have, else 1000, of a detector 80",
        ),
    ] = None,
    mmdet: Annotated[
        Path | None,
        typer.Option(
            help="mmdet's config, for a checkpoint of its two-stage detectors; it is run.", show_default="none"
        ),
    ] = None,
    detector: Annotated[bool, typer.Option("--detector", help="Put a Faster R-CNN around it.")] = False,
    size_hw: Annotated[
        tuple[int, int] | None,
        typer.Option(
            help="Height and width of its images.",
            show_default="224 224, for CIFAR's images 32 32, of a detector 800 1344",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of random weights.")] = 0,
    out: Annotated[Path | None, out_file("<network>.safetensors, or <network>-detector.safetensors")] = None,
    force: Force = False,
) -> None:
    """Make a model file of a network that was not trained here, or not at all."""
    with loading("torch and mmdet"):
        from classify.checkpoint import save_model
        from classify.importing import class_list, import_classifier
        from detect.detector_file import files_at_risk, save_detector
        from detect.imported import detector_around, detector_from_mmdet
    is_detector = detector or mmdet is not None
    stem = Path(name).stem if mmdet else short_name(name)
    out = model_output(out, Path(f"{stem}-detector.safetensors" if is_detector else f"{stem}.safetensors"))
    given = Path(name) if mmdet else file
    if given and out.resolve() == given.resolve():
        raise RequestError(f"--out {out}: is the given file itself; expected another one")
    refuse_existing(force, *(files_at_risk(out, mmdet) if is_detector else [out]))
    next_command: list[str | Path] = ["espalier", "prune", "l1_half", out]
    if mmdet:
        if file or classes or size_hw:
            raise RequestError("--mmdet: the config says all, got further weights, classes or a size; leave them out")
        found, card, reason = detector_from_mmdet(mmdet, Path(name))
        save_detector(out, found, card, mmdet if card.is_foreign else None)
        if card.is_foreign:
            config = out.with_suffix(".py")
            note(f"kept as mmdet's own parts ({printable(reason)}); give commands both, {out} --mmdet {config}")
            next_command += ["--mmdet", config]
    elif detector:
        classifier, card = import_classifier(name, file, seed=seed)
        save_detector(out, *detector_around(classifier, card, class_list(classes, 80), size_hw or (800, 1344), seed))
    else:
        height, width = size_hw or (None, None)
        if height != width or height not in (None, *range(1, 16_385)):
            raise RequestError(f"--size-hw: not square, got {height} {width}; expected two equal sides up to 16384")
        save_model(out, *import_classifier(name, file, classes, height, seed))
    closing(f"wrote {out}", next_command, name)
