"""The commands `espalier prune guide`, `prune pattern` and `prune weights`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from classify.backbone_option import BackboneCode
from command.errors import RequestError
from command.extras import loading
from command.options import AsJson, Force, closing, refuse_existing
from detect.mmdet_option import MmdetConfig

__all__ = ["guide", "pattern", "weights"]

_PNG = typer.Option(dir_okay=False, help="Picture to write, .png.")


def guide(
    subject: Annotated[
        str, typer.Argument(metavar="NAME_OR_FILE", help="Preset, as resnet56-B, or model file of a pruned network.")
    ],
    target: Annotated[str, typer.Option("--for", metavar="NETWORK", help="The network to prune, as resnet110_cifar.")],
    by: Annotated[
        Literal["position", "stage"],
        typer.Option(help="Average the layers of a stage with one place in their blocks, or all of a stage."),
    ] = "position",
    num_classes: Annotated[int, typer.Option(min=1, max=10**6, help="Classes of that network.")] = 10,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Height and width of its images.", show_default="224, for CIFAR's 32"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random network.")] = 0,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write.", show_default="guided-<network>")
    ] = None,
    backbone: BackboneCode = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write configs that cut a network as another pruned one is cut, stage by stage, with two baselines."""
    with loading("torch and mmdet"):
        from command.own_code import short_name
        from experiment.guiding import CONFIGS, guide_for, guide_table, write_guide
    folder = out or Path(f"guided-{short_name(target)}")
    refuse_existing(force, *(folder / name for name in CONFIGS))
    found = guide_for(subject, target, by, num_classes, image_size, seed)
    write_guide(found, folder, subject)
    if as_json:
        typer.echo(json.dumps({"dense_macs": found.dense_macs, "macs": found.macs, "recipes": found.recipes}, indent=1))
    else:
        Console().print(guide_table(found))
    size = ["--size-hw", str(found.image_side), str(found.image_side)]
    then = ["espalier", "import", target, "--classes", str(num_classes), *size]
    closing(f"wrote {', '.join(str(folder / name) for name in CONFIGS)}", then)


def pattern(
    subjects: Annotated[
        list[str], typer.Argument(metavar="NAMES_OR_FILES...", help="Presets, or model files of pruned networks.")
    ],
    out: Annotated[Path, _PNG] = Path("pattern.png"),
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw what pruned networks keep of each layer; of single weights also where in their 3 x 3 kernels."""
    _check_picture(out, force)
    with loading("torch and mmdet"):
        from command.files import written_atomically
        from experiment.pattern_plot import pattern_plot
        from experiment.patterns import pattern_of
    patterns = [pattern_of(subject, mmdet) for subject in subjects]
    with written_atomically(out) as path:
        pattern_plot(patterns).savefig(path, format="png")
    if as_json:
        figures = {one.name: {"what": one.what, "kept": {x.name: x.kept for x in one.layers}} for one in patterns}
        typer.echo(json.dumps(figures, indent=1))
    closing(f"wrote {out}", ["espalier", "prune", "show", subjects[0]], backbone)


def weights(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Model files, as dense, fine-tuned, scratch.")
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A layer to draw; may be repeated.", show_default="six convolutions, evenly spread"),
    ] = None,
    out: Annotated[Path, _PNG] = Path("weights.png"),
    force: Force = False,
) -> None:
    """Draw the weights of several model files side by side: a histogram for each layer."""
    _check_picture(out, force)
    with loading():
        from command.files import written_atomically
        from experiment.pattern_plot import weights_plot
        from experiment.patterns import drawn_layers, weights_of
    models = {_label(file, files): weights_of(file) for file in files}
    layers = drawn_layers(models, layer)
    with written_atomically(out) as path:
        weights_plot(models, layers).savefig(path, format="png")
    closing(f"wrote {out}", ["espalier", "prune", "show", files[0]])


def _check_picture(out: Path, force: bool) -> None:
    if out.suffix != ".png":
        raise RequestError(f"--out {out}: not a picture's name, got the ending {out.suffix!r}; expected .png")
    refuse_existing(force, out)


def _label(file: Path, files: list[Path]) -> str:
    """Return the file's name, with its folder where other files have the same."""
    return file.stem if [other.stem for other in files].count(file.stem) == 1 else f"{file.parent.name}/{file.stem}"
