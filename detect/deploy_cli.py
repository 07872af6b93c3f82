"""The commands of `espalier deploy` that open model files: `export`, `eval` and `bench`.

torch and mmdet are imported inside the commands, and only to open model files: `bench` measures deployed files without
them.
"""

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from classify.backbone_option import BackboneCode
from command.errors import RequestError
from command.extras import loading
from command.options import AsJson, AsLatex, Force, Overrides, check_file_name, check_one_form, closing, refuse_existing
from deploy.deployment import ONNX_NAME
from deploy.runtime_option import MOST_ROUNDS, RuntimeName, Shapes, Threads
from deploy.runtimes.module import OpenModel
from deploy.runtimes.registry import ENGINE, MODEL, ONNX, RUNTIMES
from detect.mmdet_option import MmdetConfig

__all__ = ["bench", "evaluate", "export"]


def export(
    model: Annotated[Path, typer.Argument(help="Model file of a classifier or detector; with --mmdet, a checkpoint.")],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder to write.", show_default="the model's name with .deploy"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Config: a name, such as fp16, or a file.", show_default="none: fp32 for every engine"),
    ] = None,
    overrides: Overrides = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    force: Force = False,
) -> None:
    """Write a model file as ONNX with fixed shapes, and `deploy.json`, which describes its inputs and outputs."""
    check_file_name(model)
    out = out or model.with_suffix(".deploy")
    refuse_existing(force, out)
    with loading("torch and mmdet"):
        from command.config import read_config
        from detect.export import export_file
        from detect.export_config import ExportConfig
    settings = read_config(config, overrides or (), ExportConfig)
    with Console(stderr=True).status("Exporting ..."):
        exported = export_file(model, settings, out, mmdet)
    for note in exported.notes:
        typer.echo(note, err=True)
    onnx, command = out / "model.onnx", "build" if settings.precision == "bf16" else "bench"
    closing(f"wrote {onnx}, {settings.precision}; {exported.compared}", ["espalier", "deploy", command, onnx])


def evaluate(
    deployed: Annotated[
        Path, typer.Argument(help="Folder that deploy export wrote, or the ONNX file or an engine in it.")
    ],
    annotations: Annotated[Path, typer.Argument(help="COCO annotation file, or list of VOC images (test.txt).")],
    images: Annotated[Path, typer.Argument(help="Folder its file names are relative to.")],
    model: Annotated[
        Path | None, typer.Option(help="Model file it was exported from.", show_default="searched beside the folder")
    ] = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    runtime: RuntimeName = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Use only the first N images.", show_default="all")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the mAP of a deployed file, COCO's or VOC's, and that of its model in PyTorch."""
    with loading("torch and mmdet"):
        from detect.data import CocoSet
        from detect.deployed import evaluate_deployed
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
    in_runtime = ["--runtime", runtime] if runtime else []
    closing(f"evaluated {found.file}", ["espalier", "deploy", "bench", found.file, *in_runtime])


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that deploy export wrote, ONNX files, engines, model files; the first with a batch size is "
            "its reference, the dense one. Or: compare A.json B.json, two records."
        ),
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(RUNTIMES)}; runs the files of its kind; may be repeated.",
            show_default="onnxruntime for ONNX files, the builder's for engines, torch for model files",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measured rounds.", min=1, max=MOST_ROUNDS)] = 100,
    warmup: Annotated[int, typer.Option(help="Rounds that are run first and discarded.", min=0, max=MOST_ROUNDS)] = 10,
    threads: Threads = 1,
    shape: Shapes = None,
    backbone: BackboneCode = None,
    mmdet: MmdetConfig = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print only the figures on standard output, as CSV.")] = False,
    as_latex: AsLatex = False,
    out: Annotated[Path | None, typer.Option(help="Record to write.", show_default="latency-<time>.json")] = None,
    force: Force = False,
) -> None:
    """Measure files against each other, in alternating order, on the same random inputs; or compare two records.

    Files may differ in batch size: each is compared with the first of the same batch size.
    """
    check_one_form(json=as_json, csv=as_csv, latex=as_latex)
    from deploy.bench import bench_files, figures_from_record
    from deploy.record import latex_from_record, rows_from_record, save_record, table_from_record
    from deploy.tensors import shapes_from

    if models[0] == Path("compare") and all(path.suffix == ".json" for path in models[1:]):
        _compare(models[1:], as_json, as_csv, as_latex)
        return
    if out:
        refuse_existing(force, out)
    open_model: OpenModel | None = None
    if any(path.suffix == MODEL for path in models):
        with loading("torch and mmdet", "measuring a model file needs"):
            from detect.export import module_from_file
        open_model = partial(module_from_file, mmdet=mmdet)
    record = bench_files(
        models,
        runtime or [],
        warmup=warmup,
        rounds=rounds,
        num_threads=threads,
        console=Console(stderr=True),
        open_model=open_model,
        shapes=shapes_from(shape or []),
    )
    out = out or Path(f"latency-{record.created:%Y%m%dT%H%M%SZ}.json")
    save_record(record, out)
    if as_csv:
        _print_csv(rows_from_record(record))
    elif as_json:
        typer.echo(json.dumps(figures_from_record(record), indent=1))
    else:
        typer.echo(latex_from_record(record) if as_latex else table_from_record(record), nl=not as_latex)
    if (as_json or as_csv) and record.gpu and record.gpu.warning:
        typer.echo(record.gpu.warning, err=True)
    longer = str(min(10 * rounds, MOST_ROUNDS))
    options = {"--runtime": runtime or [], "--threads": [str(threads)], "--shape": shape or [], "--rounds": [longer]}
    again = [word for name, values in options.items() for value in values for word in (name, value)]
    closing(f"wrote {out}", ["espalier", "deploy", *(_missing_step(models, shape) or ["bench", *models, *again])])


def _missing_step(models: list[Path], shape: list[str] | None) -> list[str | Path]:
    """Return the words of the step that a measured file lacks: an engine of an ONNX file, an export of a model file."""
    files = [path / ONNX_NAME if path.is_dir() else path for path in models]
    onnx = [path for path in files if path.suffix == ONNX and not path.with_suffix(ENGINE).exists()]
    if onnx and not shape:  # engines have fixed shapes
        return ["build", onnx[-1]]
    unexported = [path for path in files if path.suffix == MODEL and not path.with_suffix(".deploy").exists()]
    return ["export", unexported[-1]] if unexported else []


def _compare(records: list[Path], as_json: bool, as_csv: bool, as_latex: bool) -> None:
    from deploy.comparing import compared_latex, compared_rows, compared_table
    from deploy.record import load_record

    if len(records) != 2:
        raise RequestError(f"bench compare: not two records, got {len(records)}; expected A.json B.json")
    one, other = map(load_record, records)
    if as_csv:
        _print_csv(compared_rows(one, other))
    elif as_json:
        typer.echo(json.dumps(compared_rows(one, other), indent=1))
    else:
        typer.echo(compared_latex(one, other) if as_latex else compared_table(one, other), nl=not as_latex)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, rows[0])
    writer.writeheader()
    writer.writerows(rows)
