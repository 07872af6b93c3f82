"""The commands of `espalier deploy` that know models and images: `export` and `eval`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from classify.cli import AsJson, Force, closing, loading, refuse_existing
from deploy.cli import app

__all__ = ["app", "evaluate", "export"]


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model file of a classifier or detector.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write; the model's name with .deploy unless given.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per run, fixed in the file.")] = 1,
    force: Force = False,
) -> None:
    """Write a model file as ONNX with fixed shapes, and `deploy.json` that says how to feed it."""
    out = out or model.with_suffix(".deploy")
    refuse_existing(force, out)
    with loading("torch and mmdet"):
        from experiment.commands import export_file
    with Console(stderr=True).status("Exporting ..."):
        parity = export_file(model, out, batch)
    typer.echo(f"compared with PyTorch: {json.dumps(parity)}", err=True)
    closing(f"wrote {out}/model.onnx", f"espalier deploy bench {out}/model.onnx")


@app.command("eval")
def evaluate(
    deployed: Annotated[Path, typer.Argument(help="Folder that deploy export wrote, or the ONNX file in it.")],
    annotations: Annotated[Path, typer.Argument(help="COCO annotation file.")],
    images: Annotated[Path, typer.Argument(help="Folder its file names are relative to.")],
    model: Annotated[
        Path | None, typer.Option(help="Model file it was made from; looked for beside the folder unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the COCO mAP of the very file that is deployed, beside its model's in PyTorch."""
    with loading("torch and mmdet"):
        from detect.data import CocoSet
        from experiment.deploy_eval import evaluate_deployed
    found = evaluate_deployed(deployed, CocoSet(annotations, images), model, limit, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(found.figures, indent=1))
    else:
        Console().print(found.table())
    for note in found.notes:
        typer.echo(note, err=True)
    if found.warning:
        typer.secho(found.warning, fg="red", bold=True, err=True)
    closing(f"evaluated {found.onnx}", f"espalier deploy bench {found.onnx}")
