"""The commands `espalier classify train` and `eval`.

torch is imported inside the commands: it takes seconds, and help needs none of it.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from classify.backbone_option import BackboneCode
from command.errors import RequestError
from command.extras import loading
from command.options import (
    AsJson,
    Force,
    LauncherOption,
    Overrides,
    closing,
    model_output,
    out_file,
    refuse_existing,
    show,
)

__all__ = ["app", "evaluate", "train"]

app = typer.Typer(help="Train and evaluate classifiers.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Config: a name, as resnet18_shapes, or a file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, out_file("runs/classify/<config>.safetensors")] = None,
    launcher: LauncherOption = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier: a dense one, or a slim one from kept or random weights."""
    with loading():
        from classify.commands import train_to_file
        from classify.config import ClassifierTraining
        from classify.curve import curve_at_risk, curve_file, curve_picture_file
        from classify.validation import best_file
        from command.config import read_config
        from command.folders import is_begun
    settings = read_config(config, overrides or (), ClassifierTraining)
    out = model_output(out, Path("runs/classify") / f"{config.stem}.safetensors")
    best = [best_file(out)] if settings.validate_every else []
    refuse_existing(force or is_begun(out), out, *best, curve_picture_file(out), *curve_at_risk(out))
    figures = train_to_file(settings, out, force, Console(stderr=True), launcher)
    if not figures:  # another process of the same training shows them
        return
    show(figures, as_json)
    written = ", ".join(map(str, (out, *best, curve_file(out))))
    then: list[str | Path] = ["espalier", "prune", "l1_half", out]
    closing(f"wrote {written}, and {curve_picture_file(out)}", then, settings.start.code)


@app.command("eval")
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(help="Model file of a classifier; with --weights, a network, as resnet56_cifar, or a config."),
    ],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Image folder with train/<class>/* and val/<class>/*, .npz file, or CIFAR as downloaded.",
            show_default="none",
        ),
    ] = None,
    data_option: Annotated[
        Path | None, typer.Option("--data", help="The data, in place of the argument.", show_default="none")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of that network from elsewhere, as for espalier import.", show_default="none"),
    ] = None,
    val_labels: Annotated[
        Path | None,
        typer.Option(help="Text file with the classes of val/*, without class folders.", show_default="none"),
    ] = None,
    crop_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            help="Share of the scaled image's shorter side that is seen, 0.875 for 224 of 256 pixels.",
            show_default="the model's",
        ),
    ] = None,
    backbone: BackboneCode = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for figures and a picture.", show_default="none")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure a classifier on validation images: in all, by class, its mistakes and its calibration."""
    with loading():
        from classify.accuracy_report import FIGURES, PICTURE, accuracy_tables, write_accuracy
        from classify.commands import evaluate_file
        from classify.image_data import images_at
    given = [one for one in (data, data_option) if one]
    if len(given) != 1:
        raise RequestError(
            f"data: not given once, got {len(given)} of them; expected a folder or file, or --data with one"
        )
    (place,) = given
    if out:
        refuse_existing(force, out / FIGURES, out / PICTURE)
    with Console(stderr=True).status("Evaluating ..."):
        figures = evaluate_file(model, images_at(place, val_labels), weights, crop_share)
    if as_json:
        show(figures, as_json)
    else:
        show({name: figure for name, figure in figures.items() if isinstance(figure, int | float)}, as_json)
        Console().print(*accuracy_tables(figures), sep="\n")
    done = f"wrote {write_accuracy(figures, out, (weights or model).name)}, and its figures beside it" if out else ""
    words: list[str | Path] = ["import", model, weights] if weights else ["prune", "l1_half", model]
    closing(done or f"evaluated {weights or model}", ["espalier", *words], backbone)
