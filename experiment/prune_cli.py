"""The commands `espalier prune CONFIG MODEL`, `prune show`, `prune sensitivity` and `prune lottery`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from classify.backbone_option import BackboneCode
from command.errors import RequestError
from command.extras import loading
from command.options import (
    AsJson,
    AsLatex,
    Force,
    Overrides,
    check_file_name,
    check_one_form,
    closing,
    model_output,
    out_file,
    refuse_existing,
)
from detect.mmdet_option import MmdetConfig
from experiment.pattern_cli import guide, pattern, weights

__all__ = ["app", "apply", "lottery", "sensitivity", "show"]


class _ApplyByDefault(TyperGroup):
    """`espalier prune CONFIG MODEL` is `espalier prune apply CONFIG MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["apply", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ApplyByDefault,
    no_args_is_help=True,
    help="Cut channels: espalier prune CONFIG MODEL. Show what a pruning did, find the layers to skip, draw.",
)

for _command in (guide, pattern, weights):
    app.command()(_command)


@app.command()
def apply(
    config: Annotated[Path, typer.Argument(help="Config: a name, as l1_half, or a file.")],
    model: Annotated[Path, typer.Argument(help="Model file of a classifier or detector, dense or slim.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, out_file("<model>-<criterion>-<amount>.safetensors")] = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Cut channels from a classifier or a detector; `apply` may be left out."""
    with loading("torch and mmdet"):
        from command.config import read_config
        from detect.detector_file import files_at_risk
        from experiment.commands import prune_file, prune_table
        from experiment.cuts import PruneConfig
        from experiment.retraining import retraining_command
    settings = read_config(config, overrides or (), PruneConfig)
    check_file_name(model)
    out = model_output(out, model.with_name(f"{model.stem}-{settings.label}.safetensors"))
    if out.resolve() == model.resolve():
        raise RequestError(f"--out {out}: is the given model itself; expected another file")
    refuse_existing(force, *files_at_risk(out, mmdet))
    figures = prune_file(model, settings, out, mmdet)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        Console().print(prune_table(figures))
    closing(f"wrote {out}", retraining_command(model, settings, out, mmdet is not None))


@app.command()
def show(
    subject: Annotated[
        str,
        typer.Argument(metavar="NAME_OR_FILE", help="Preset, as resnet34-A; model file; or PruneSpec (.json)."),
    ],
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Height and width of the image.", show_default="the model's or preset's own"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Network that a PruneSpec belongs to, as resnet34; or your own code of a model file's network, "
            "package.module:function, which is run.",
            show_default="none",
        ),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of that network.", show_default="1000, for CIFAR's images 10")
    ] = None,
    mmdet: MmdetConfig = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pruning did to each layer, and which layers will not run faster on a GPU."""
    with loading("torch and mmdet"):
        from experiment.prune_show import report_of, report_text
    report = report_of(subject, image_size, backbone, num_classes, mmdet)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        Console().print(report_text(report))
    closing(f"explained {subject}", report.next_command, backbone)


@app.command()
def sensitivity(
    config: Annotated[Path, typer.Argument(help="Config: a name, as sensitivity_shapes, or a file.")],
    model: Annotated[Path, typer.Argument(help="Model file of a trained dense classifier or detector.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder to write.", show_default="the model's name with .sensitivity"),
    ] = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another study in that folder.")] = False,
    as_json: AsJson = False,
    as_latex: AsLatex = False,
) -> None:
    """Find the layers to skip: cut each group alone, and measure the accuracy lost and the MACs saved."""
    check_one_form(json=as_json, latex=as_latex)
    with loading("torch and mmdet"):
        from command.config import read_config
        from deploy.text import latex_from_rich
        from experiment.sensitivity import PICTURE, SensitivityConfig, measure_sensitivity, next_command
        from experiment.sensitivity import sensitivity_table as table
    settings = read_config(config, overrides or (), SensitivityConfig)
    out = out or model.with_suffix(".sensitivity")
    figures = measure_sensitivity(model, settings, out, force, Console(stderr=True), mmdet)
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    elif as_latex:
        typer.echo(latex_from_rich(table(figures)), nl=False)
    else:
        Console().print(table(figures))
    closing(f"wrote {out / PICTURE}, and its figures beside it", next_command(model, settings, figures), backbone)


@app.command()
def lottery(
    config: Annotated[Path, typer.Argument(help="Config: a name, as lottery_shapes, or a file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write.", show_default="runs/lottery/<config>")
    ] = None,
    as_json: AsJson = False,
    as_latex: AsLatex = False,
) -> None:
    """Train lottery tickets and their controls from random weights, or the unfinished rest of them; compare them."""
    check_one_form(json=as_json, latex=as_latex)
    with loading("torch and mmdet"):
        from command.config import read_config
        from deploy.text import latex_from_rich
        from experiment.lottery import FIGURES, lottery_table, run_lottery
        from experiment.lottery_config import LotteryConfig
    settings = read_config(config, overrides or (), LotteryConfig)
    out = out or Path("runs/lottery") / config.stem
    figures = run_lottery(settings, out, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    elif as_latex:
        typer.echo(latex_from_rich(lottery_table(figures)), nl=False)
    else:
        Console().print(lottery_table(figures))
    changed = [word for text in overrides or () for word in ("--set", text)]
    closing(f"wrote {out / FIGURES}", ["espalier", "prune", "lottery", config, *changed, "--out", out, "--latex"])
