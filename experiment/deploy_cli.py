"""All of `espalier deploy`: the commands of `deploy` and `detect`, and `sweep`, which prunes and measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from command.extras import loading
from command.options import AsJson, AsLatex, Force, Overrides, check_one_form, closing, refuse_existing
from deploy.cli import build, explain, package
from detect.deploy_cli import bench, evaluate, export

__all__ = ["app", "sweep"]

app = typer.Typer(help="Export, build engines, measure.", no_args_is_help=True)


def sweep(
    config: Annotated[Path, typer.Argument(help="Config: a name, as sweep_resnet18, or a file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write.", show_default="runs/deploy/<config>")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    as_latex: AsLatex = False,
) -> None:
    """Measure one backbone at many widths: which are fast on this machine, and where latency jumps."""
    check_one_form(json=as_json, latex=as_latex)
    with loading("torch"):
        from command.config import read_config
        from deploy.text import latex_from_rich
        from experiment.sweep import FILES, PICTURE, SweepConfig, measure_sweep, sweep_table
    settings = read_config(config, overrides or (), SweepConfig)
    out = out or Path("runs/deploy") / config.stem
    refuse_existing(force, *(out / name for name in FILES))
    figures = measure_sweep(settings, out, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    elif as_latex:
        typer.echo(latex_from_rich(sweep_table(figures)), nl=False)
    else:
        Console().print(sweep_table(figures))
    size_hw = ("--size-hw", str(settings.image_size), str(settings.image_size))
    network = ["espalier", "import", settings.backbone, "--classes", str(settings.num_classes), *size_hw]
    closing(f"wrote {out / PICTURE}, and its figures beside it", network)


_COMMANDS: dict[str, Callable[..., None]] = {
    "export": export,
    "eval": evaluate,
    "build": build,
    "bench": bench,
    "explain": explain,
    "sweep": sweep,
    "package": package,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
