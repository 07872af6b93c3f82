"""The commands `espalier detect train`, `eval` and `predict`.

torch and mmdet are imported inside the commands: they take seconds, and help needs neither.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from classify.backbone_option import BackboneCode
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
from deploy.runtime_option import RuntimeName
from detect.mmdet_option import MmdetConfig, next_step

__all__ = ["app", "evaluate", "mmdet", "predict", "train"]

app = typer.Typer(help="Train, evaluate and run detectors.", no_args_is_help=True)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Config: a name, such as faster_rcnn_scenes, or a file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, out_file("runs/detect/<config>.safetensors")] = None,
    launcher: LauncherOption = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a Faster R-CNN, from a classifier's backbone or from a (slim) detector."""
    with loading("torch and mmdet"):
        from classify.curve import curve_at_risk, curve_file, curve_picture_file
        from command.config import read_config
        from command.folders import is_begun
        from detect.commands import train_to_file
        from detect.config import DetectorTraining
        from detect.detector_file import files_at_risk
    settings = read_config(config, overrides or (), DetectorTraining)
    out = model_output(out, Path("runs/detect") / f"{config.stem}.safetensors")
    mmdet = getattr(settings.start, "mmdet", None)
    refuse_existing(force or is_begun(out), *files_at_risk(out, mmdet), curve_picture_file(out), *curve_at_risk(out))
    figures = train_to_file(settings, out, force, Console(stderr=True), launcher)
    if not figures:  # another process of the same training shows them
        return
    show(figures, as_json)
    written = (
        f"wrote {out}, {curve_file(out)}, {curve_picture_file(out)}, and {out.with_suffix('.py')} for mmdet's tools"
    )
    closing(written, next_step(out, mmdet and out.with_suffix(".py")), settings.start.code)


def mmdet(
    tool: Annotated[
        str | None, typer.Argument(help="As test, train or get_flops; or a Python file.", show_default="all are listed")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="The tool's own.", show_default="none")] = None,
) -> None:
    """Run one of mmdet's own tools on its configs and ours; without one, list them."""
    with loading("torch and mmdet"):
        from detect.mmdet_tools import mmdet_tools, run_tool
    if tool:
        raise typer.Exit(run_tool(tool, arguments or []))
    typer.echo("\n".join(mmdet_tools()))


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model file of a detector.")],
    annotations: Annotated[Path, typer.Argument(help="COCO annotation file, or list of VOC images (test.txt).")],
    images: Annotated[Path, typer.Argument(help="Folder its file names are relative to.")],
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    as_json: AsJson = False,
) -> None:
    """Measure a detector's mAP: COCO's, or of VOC that of 2007."""
    with loading("torch and mmdet"):
        from detect.commands import evaluate_file
    with Console(stderr=True).status("Evaluating ..."):
        figures = evaluate_file(model, annotations, images, mmdet)
    show(figures, as_json)
    closing(f"evaluated {model}", next_step(model, mmdet), backbone)


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(help="Model file, or folder that deploy export wrote (or the ONNX file or an engine in it)."),
    ],
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, videos, or folders of them.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the images with boxes.")] = Path(
        "runs/predictions"
    ),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Boxes below this score are left out.")] = 0.3,
    runtime: RuntimeName = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw the boxes that a detector finds in images and videos."""
    with loading("the detector"):
        from detect.drawing import found_text, predict_files
    rows, next_command = predict_files(model, inputs, out, min_score, runtime, force, Console(stderr=True), mmdet)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            typer.echo(found_text(row))
    closing(f"wrote {len(rows)} files to {out}", next_command)
