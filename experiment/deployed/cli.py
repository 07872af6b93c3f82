"""The commands of `espalier deploy` that know models and images: `export`, `eval`, `package`, `explain`, `sweep`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from classify.cli import AsJson, Force, Overrides, closing, loading, refuse_existing
from deploy.cli import RuntimeName, app

__all__ = ["app", "evaluate", "explain", "export", "package", "sweep"]

Mmdet = Annotated[
    Path | None, typer.Option(help="mmdet's config, where the model is a checkpoint (.pth) of mmdet's own.")
]


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Model file of a classifier or detector, or see --mmdet.")],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write; the model's name with .deploy unless given.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config, as configs/deploy/fp16.py; float32 for every engine unless given.")
    ] = None,
    overrides: Overrides = None,
    mmdet: Mmdet = None,
    force: Force = False,
) -> None:
    """Write a model file as ONNX with fixed shapes, and `deploy.json` that says how to feed it."""
    out = out or model.with_suffix(".deploy")
    refuse_existing(force, out)
    with loading("torch and mmdet"):
        from classify.config import read_config
        from experiment.deployed.export import ExportConfig, export_file
    settings = read_config(config, overrides or (), ExportConfig)
    with Console(stderr=True).status("Exporting ..."):
        exported = export_file(model, settings, out, mmdet)
    for note in exported.notes:
        typer.echo(note, err=True)
    onnx, command = out / "model.onnx", "build" if settings.precision == "bf16" else "bench"
    closing(f"wrote {onnx}, {settings.precision}; {exported.compared}", f"espalier deploy {command} {onnx}")


@app.command("eval")
def evaluate(
    deployed: Annotated[
        Path, typer.Argument(help="Folder that deploy export wrote, or the ONNX file or an engine in it.")
    ],
    annotations: Annotated[Path, typer.Argument(help="COCO annotation file.")],
    images: Annotated[Path, typer.Argument(help="Folder its file names are relative to.")],
    model: Annotated[
        Path | None, typer.Option(help="Model file it was made from; looked for beside the folder unless given.")
    ] = None,
    mmdet: Mmdet = None,
    runtime: RuntimeName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the COCO mAP of the very file that is deployed, beside its model's in PyTorch."""
    with loading("torch and mmdet"):
        from detect.data import CocoSet
        from experiment.deployed.evaluate import evaluate_deployed
    coco, console = CocoSet(annotations, images), Console(stderr=True)
    found = evaluate_deployed(deployed, coco, model, limit, console, mmdet=mmdet, runtime=runtime)
    if as_json:
        typer.echo(json.dumps(found.figures, indent=1))
    else:
        Console().print(found.table())
    for note in found.notes:
        typer.echo(note, err=True)
    if found.warning:
        typer.secho(found.warning, fg="red", bold=True, err=True)
    closing(f"evaluated {found.file}", f"espalier deploy bench {found.file}")


@app.command()
def package(
    folder: Annotated[Path, typer.Argument(help="Folder that deploy export wrote, or the ONNX file in it.")],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Model repository; the folder's name with .triton unless given."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model; the folder's name unless given.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="Engine that TensorRT built; the one in the folder that fits unless given.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a detector as a model repository of Triton Inference Server, with a client for it."""
    place = (folder if folder.is_dir() else folder.parent).resolve()  # "." has no name
    out, name = out or place.with_suffix(".triton"), name or place.stem
    refuse_existing(force, out)
    with loading("torch and mmdet"):
        from experiment.deployed.package import package_detector
    packaged = package_detector(folder, out, name, engine)
    for note in packaged.notes:
        typer.echo(note, err=True)
    closing(f"wrote {', '.join(packaged.models)} to {out}", f"tritonserver --model-repository {out}")


@app.command()
def explain(
    dense: Annotated[Path, typer.Argument(help="Folder that deploy export wrote, its ONNX file, or an engine.")],
    slim: Annotated[Path, typer.Argument(help="The same network, pruned; an engine where DENSE is one.")],
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of ONNX Runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Tell why a slim network is not faster: the time of every layer, dense and slim, beside its MACs."""
    with loading("torch and mmdet"):
        from experiment.deployed.advice import WIDTH, advice, explained_text
        from experiment.deployed.explain import explain_deployed
    told = explain_deployed(dense, slim, threads, runs, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps({**told.to_dict(), "advice": advice(told)}, indent=1))
    else:
        console = Console()
        console.width = console.width if console.is_terminal else WIDTH
        console.print(explained_text(told))
    closing(f"explained {slim}", "espalier deploy sweep configs/deploy/sweep_resnet18.py")


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="Config, as configs/deploy/sweep_resnet18.py.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to write; runs/deploy/<config> unless given.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure one backbone at many widths: which of them are fast on this machine, and where the steps are."""
    with loading("torch and mmdet"):
        from classify.config import read_config
        from experiment.deployed.sweep import FILES, PICTURE, SweepConfig, measure_sweep, sweep_table
    settings = read_config(config, overrides or (), SweepConfig)
    out = out or Path("runs/deploy") / config.stem
    refuse_existing(force, *(out / name for name in FILES))
    figures = measure_sweep(settings, out, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        Console().print(sweep_table(figures))
    closing(f"wrote {out / PICTURE}, and its figures beside it", "espalier prune configs/prune/l1_half.py MODEL")
