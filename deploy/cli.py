"""The commands `espalier deploy build` and `espalier deploy bench`; they only wire what the other modules do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from deploy.engine import engine_from_onnx
from deploy.graph import Arrays, random_inputs
from deploy.latency import Measurement, measure
from deploy.record import Record, record_from_measurement, rows_from_record, save_record, table_from_record
from deploy.runtime import EngineRunner, OnnxRunner, Runner

__all__ = ["app", "bench", "build"]

Force = Annotated[bool, typer.Option("--force", help="replace what is there")]

app = typer.Typer(help="Build engines and measure what runs.", no_args_is_help=True)


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files or engines; the first is the reference, the dense one")
    ],
    rounds: Annotated[int, typer.Option(help="measured rounds", min=1)] = 100,
    warmup: Annotated[int, typer.Option(help="rounds run first and not kept", min=0)] = 10,
    threads: Annotated[int, typer.Option(help="CPU threads of ONNX Runtime", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="figures alone on standard output")] = False,
    out: Annotated[Path | None, typer.Option(help="record to write  [default: latency-TIME.json]")] = None,
    force: Force = False,
) -> None:
    """Measure files against each other, in alternating order, on the same random inputs."""
    if len(set(models)) != len(models):
        raise ValueError(f"bench: a file twice, got {' '.join(map(str, models))}; expected each file once")
    if out:
        _refuse_existing(out, force)
    runners = {str(path): _runner(path, threads) for path in models}
    inputs = random_inputs(next(iter(runners.values())).inputs)
    measurement = _measure_with_progress(runners, inputs, warmup, rounds)
    record = record_from_measurement(measurement, runners, inputs, config={"models": [str(path) for path in models]})
    out = out or Path(f"latency-{record.created:%Y%m%dT%H%M%SZ}.json")
    save_record(record, out)
    typer.echo(_figures(record) if as_json else table_from_record(record))
    typer.echo(f"wrote {out}\nnext: espalier deploy build {models[-1].with_suffix('.onnx')}", err=as_json)


@app.command()
def build(
    onnx: Annotated[Path, typer.Argument(help="ONNX file with fixed shapes")],
    backend: Annotated[str, typer.Option(help="who builds: tensorrt_rtx or tensorrt")] = "tensorrt_rtx",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="GPU generation to build for, such as 8.6; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="engine to write  [default: beside the ONNX file]")] = None,
    force: Force = False,
) -> None:
    """Build an engine from an ONNX file; TensorRT-RTX needs no GPU for it."""
    out = out or onnx.with_suffix(".engine")
    _refuse_existing(out, force)
    engine_from_onnx(onnx, out, backend=backend, compute_capabilities=compute_capability or ())
    typer.echo(f"wrote {out}\nnext, on a GPU: espalier deploy bench {out}")


def _refuse_existing(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise ValueError(f"{out}: exists already; give another --out, or --force to replace it")


def _runner(path: Path, num_threads: int) -> OnnxRunner | EngineRunner:
    return EngineRunner(path) if path.suffix == ".engine" else OnnxRunner(path, num_threads=num_threads)


def _measure_with_progress(runners: Mapping[str, Runner], inputs: Arrays, warmup: int, rounds: int) -> Measurement:
    # drawn between rounds only: a display thread of its own would share the cores with what is timed
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("measuring", total=warmup + rounds)
        return measure(
            runners,
            inputs,
            warmup=warmup,
            rounds=rounds,
            on_round=lambda: progress.update(task, advance=1, refresh=True),
        )


def _figures(record: Record) -> str:
    figures = {
        "is_gpu": record.is_gpu,
        "device": record.device.name,
        "num_threads": record.device.num_threads,
        "batch": record.conditions.batch,
        "rounds": record.conditions.rounds,
        "warmup": record.conditions.warmup,
        "rows": rows_from_record(record),
    }
    return json.dumps(figures, indent=2)
