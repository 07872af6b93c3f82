"""The commands `espalier classify train` and `eval`.

torch is imported inside the commands: it takes seconds, and help needs none of it.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from command.extras import loading
from command.options import AsJson, Force, Overrides, closing, model_output, out_file, refuse_existing, show

__all__ = ["app", "evaluate", "train"]

app = typer.Typer(help="Train and evaluate classifiers.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Config: a name, as resnet18_shapes, or a file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, out_file("runs/classify/<config>.safetensors")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier: a dense one, or a slim one from kept or random weights."""
    with loading():
        from classify.commands import train_to_file
        from classify.config import ClassifierTraining
        from classify.curve import curve_at_risk, curve_file
        from command.config import read_config
    settings = read_config(config, overrides or (), ClassifierTraining)
    out = model_output(out, Path("runs/classify") / f"{config.stem}.safetensors")
    refuse_existing(force, out, *curve_at_risk(out))
    show(train_to_file(settings, out, force, Console(stderr=True)), as_json)
    closing(f"wrote {out}, and {curve_file(out)}", ["espalier", "prune", "l1_half", out])


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file of a classifier.")],
    images: Annotated[Path, typer.Argument(help="Image folder with train/<class>/* and val/<class>/*.")],
    as_json: AsJson = False,
) -> None:
    """Measure a classifier on the validation images of a folder."""
    with loading():
        from classify.commands import evaluate_file
    with Console(stderr=True).status("Evaluating ..."):
        figures = evaluate_file(model, images)
    show(figures, as_json)
    closing(f"evaluated {model}", ["espalier", "prune", "l1_half", model])
