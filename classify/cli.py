"""The commands `espalier classify train` and `eval`, and the options and lines that all step commands share.

torch is loaded inside the commands: it takes seconds, and help needs none of it.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

__all__ = [
    "AsJson",
    "Force",
    "OutFile",
    "Overrides",
    "app",
    "closing",
    "evaluate",
    "loading",
    "model_output",
    "refuse_existing",
    "show",
    "train",
]

Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=value over the config; may be repeated.")]
OutFile = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="Model file to write; named after what it is made from unless given."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Figures alone on standard output.")]

app = typer.Typer(help="Train and evaluate classifiers.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Config, as configs/classify/resnet18_shapes.py.")],
    overrides: Overrides = None,
    out: OutFile = None,
    force: Force = False,
) -> None:
    """Train a classifier: a dense one, or a slim one from kept or random weights."""
    with loading():
        from classify.commands import train_to_file
        from classify.config import ClassifierTraining, read_config
    settings = read_config(config, overrides or (), ClassifierTraining)
    out = model_output(out, Path("runs/classify") / f"{config.stem}.safetensors")
    refuse_existing(force, out)
    train_to_file(settings, out, force, Console(stderr=True))
    closing(f"wrote {out}", f"espalier prune configs/prune/l1_half.py {out}")


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
    closing(f"evaluated {model}", f"espalier prune configs/prune/l1_half.py {model}")


def loading(what: str = "torch") -> AbstractContextManager[object]:
    """Tell the user, while the block imports, why nothing happens yet."""
    return Console(stderr=True).status(f"Loading {what} ...")


def model_output(out: Path | None, default: Path) -> Path:
    """Return the model file to write.

    Raises:
        ValueError: If its name does not end in .safetensors, by which model files are told from others.
    """
    if out and out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: not a model file's name, got the ending {out.suffix!r}; expected .safetensors")
    return out or default


def refuse_existing(force: bool, *paths: Path) -> None:
    """Raise ValueError if a path exists, unless `force`."""
    for path in paths:
        if path.exists() and not force:
            raise ValueError(f"{path}: exists already; give another --out, or --force to replace it")


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures on standard output: JSON, or one line each."""
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    width = max(map(len, figures))
    for name, figure in figures.items():
        typer.echo(f"{name:{width}}  {figure:,.4f}" if isinstance(figure, float) else f"{name:{width}}  {figure:,}")


def closing(done: str, next_command: str) -> None:
    """Say on standard error what was written and what to run next."""
    typer.echo(f"{done}\nnext: {next_command}", err=True)
