"""The commands `espalier prune CONFIG MODEL`, `prune show` and `prune sensitivity`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from classify.cli import AsJson, Force, OutFile, Overrides, closing, loading, model_output, refuse_existing

__all__ = ["app", "apply"]

_FINETUNE = {
    "classifier": "classify train configs/classify/resnet18_shapes_finetune.py",
    "detector": "detect train configs/detect/faster_rcnn_scenes_finetune.py",
}


class _ApplyByDefault(TyperGroup):
    """`espalier prune CONFIG MODEL` is `espalier prune apply CONFIG MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["apply", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ApplyByDefault,
    no_args_is_help=True,
    help="Cut channels: espalier prune CONFIG MODEL. See what would be cut, and what it would cost.",
)


@app.command()
def apply(
    config: Annotated[Path, typer.Argument(help="Config, as configs/prune/l1_half.py.")],
    model: Annotated[Path, typer.Argument(help="Model file of a dense classifier or detector.")],
    overrides: Overrides = None,
    out: OutFile = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Cut channels from a classifier or a detector; `apply` may be left out."""
    with loading("torch and mmdet"):
        from classify.config import read_config
        from experiment.commands import prune_file, prune_table
        from experiment.config import PruneConfig
    settings = read_config(config, overrides or (), PruneConfig)
    out = model_output(out, model.with_name(f"{model.stem}-{settings.label}.safetensors"))
    refuse_existing(force, out, out.with_suffix(".py"))
    figures = prune_file(model, settings, out)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        Console().print(prune_table(figures))
    closing(f"wrote {out}", f"espalier {_FINETUNE[figures['kind']]} --set start.file={out}")
