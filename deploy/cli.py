"""The commands `espalier deploy build` and `espalier deploy bench`; they only wire what the other modules do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from deploy.engine import engine_from_onnx
from deploy.graph import Arrays, random_inputs
from deploy.latency import Measurement, measure
from deploy.record import Record, record_from_measurement, rows_from_record, save_record, table_from_record
from deploy.runtime import FileRunner
from deploy.runtimes import ENGINE, ONNX, RUNTIMES, runner_for, runtimes_of

__all__ = ["RuntimeName", "app", "bench", "build"]

RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help=f"one of {', '.join(RUNTIMES)}  [default: that of the file's kind]")
]
Force = Annotated[bool, typer.Option("--force", help="replace what is there")]

app = typer.Typer(help="Build engines and measure what runs.", no_args_is_help=True)


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files or engines; the first of a batch is the reference, the dense one")
    ],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help=f"one of {', '.join(RUNTIMES)}; runs the files of its kind; may be repeated  [default: onnxruntime, "
            "and for an engine what built it]"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="measured rounds", min=1)] = 100,
    warmup: Annotated[int, typer.Option(help="rounds run first and not kept", min=0)] = 10,
    threads: Annotated[int, typer.Option(help="CPU threads of a runtime", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="figures alone on standard output")] = False,
    out: Annotated[Path | None, typer.Option(help="record to write  [default: latency-TIME.json]")] = None,
    force: Force = False,
) -> None:
    """Measure files against each other, in alternating order, on the same random inputs.

    Files may differ in their batch: each is compared with the first of its own.
    """
    _refuse_repeated("a file", "each file once", models)
    _refuse_repeated("a runtime", "each runtime once", runtime or [])
    if out:
        _refuse_existing(force, out)
    runners = _runners(models, runtime or [], threads)
    inputs = _inputs(runners)
    measurement = _measure_with_progress(runners, inputs, warmup, rounds)
    config = {"models": [str(path) for path in models], "runtimes": runtime}
    record = record_from_measurement(measurement, runners, inputs, config=config)
    out = out or Path(f"latency-{record.created:%Y%m%dT%H%M%SZ}.json")
    save_record(record, out)
    typer.echo(_figures(record) if as_json else table_from_record(record))
    if as_json and record.gpu and record.gpu.warning:
        typer.echo(record.gpu.warning, err=True)
    files = [path.with_suffix(ONNX) for path in models if path.suffix in (ONNX, ENGINE)] or [Path("MODEL.onnx")]
    typer.echo(f"wrote {out}\nnext: espalier deploy build {files[-1]}", err=as_json)


@app.command()
def build(
    onnx: Annotated[Path, typer.Argument(help="ONNX file with fixed shapes")],
    backend: Annotated[str, typer.Option(help="who builds: tensorrt_rtx or tensorrt")] = "tensorrt_rtx",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="GPU generation to build for, such as 8.6; may be repeated")
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(help="engines to build, NAME-1, NAME-2, ...: TensorRT chooses its kernels anew for each", min=1),
    ] = 1,
    workspace_mib: Annotated[int | None, typer.Option(help="limit of a layer's scratch memory", min=1)] = None,
    optimization_level: Annotated[int | None, typer.Option(help="how much the builder tries", min=0, max=5)] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="kernel times of earlier builds, made or brought up to date; tensorrt only")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="let products of float32 round to TensorFloat-32")] = False,
    out: Annotated[Path | None, typer.Option(help="engine to write  [default: beside the ONNX file]")] = None,
    force: Force = False,
) -> None:
    """Build an engine from an ONNX file; TensorRT-RTX needs no GPU for it."""
    engines = _engine_names(out or onnx.with_suffix(ENGINE), repeat)
    if repeat > 1 and timing_cache:
        raise ValueError(
            f"--repeat {repeat}: all would have the first one's kernels, got --timing-cache {timing_cache}; "
            f"leave one out"
        )
    _refuse_existing(force, *engines)
    for engine in engines:
        info = engine_from_onnx(
            onnx,
            engine,
            backend=backend,
            compute_capabilities=compute_capability or (),
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            timing_cache=timing_cache,
            tf32=tf32,
        )
        mib = engine.stat().st_size / 1024**2
        typer.echo(f"wrote {engine}: {info.precision}, {mib:.1f} MiB, built in {info.build_s:.1f} s")
    typer.echo(f"next, on a GPU: espalier deploy bench {' '.join(map(str, engines))}")


def _engine_names(out: Path, repeat: int) -> list[Path]:
    """Return net.engine, or net-1.engine, net-2.engine and so on."""
    if out.suffix != ENGINE:
        raise ValueError(f"--out {out}: not an engine's name, got {out.suffix or 'no ending'}; expected {ENGINE}")
    if repeat == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(1, repeat + 1)]


def _refuse_existing(force: bool, *paths: Path) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ValueError(f"{path}: exists already; give another --out, or --force to replace it")


def _refuse_repeated(what: str, expected: str, got: Sequence[object]) -> None:
    if len(set(got)) != len(got):
        raise ValueError(f"bench: {what} twice, got {' '.join(map(str, got))}; expected {expected}")


def _runners(models: Sequence[Path], named: Sequence[str], num_threads: int) -> dict[str, FileRunner]:
    """Open every file in its runtimes; rows are called after the file, and the runtime too where they have several."""
    pairs = runtimes_of(models, named)
    is_plain = len({runtime for _, runtime in pairs}) == 1
    return {
        str(path) if is_plain else f"{path} ({runtime})": runner_for(path, runtime, num_threads)
        for path, runtime in pairs
    }


def _inputs(runners: Mapping[str, FileRunner]) -> dict[str, Arrays]:
    """Return random inputs for every runner, the same but for batch and type, in which alone files may differ."""
    wanted = _sizes(next(iter(runners.values())))
    for name, runner in runners.items():
        if (got := _sizes(runner)) != wanted:
            raise ValueError(f"{name}: other inputs than the first file's, got {got}; expected {wanted}, any batch")
    return {name: random_inputs(runner.inputs) for name, runner in runners.items()}


def _sizes(runner: FileRunner) -> dict[str, tuple[int | None, ...]]:
    """Return what is left of the input shapes without the batch."""
    return {name: spec.shape[1:] for name, spec in runner.inputs.items()}


def _measure_with_progress(
    runners: Mapping[str, FileRunner], inputs: Mapping[str, Arrays], warmup: int, rounds: int
) -> Measurement:
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
        "rounds": record.conditions.rounds,
        "warmup": record.conditions.warmup,
        "gpu_warning": record.gpu.warning if record.gpu else None,
        "rows": rows_from_record(record),
    }
    return json.dumps(figures, indent=2)
