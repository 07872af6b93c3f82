"""The commands of `espalier deploy` that need only deployed files: `build`, `package`, `explain`."""

import json
import shlex
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from command.errors import RequestError
from command.extras import loading
from command.options import AsJson, Force, check_file_name, closing, refuse_existing, setting
from deploy.runtime_option import MOST_ROUNDS, Shapes, Threads
from deploy.runtimes.registry import ENGINE
from deploy.tensors import shapes_from

__all__ = ["build", "explain", "package"]


def build(
    onnx: Annotated[Path, typer.Argument(help="ONNX file; free dimensions need --shape.")],
    shape: Shapes = None,
    backend: Annotated[str, typer.Option(help="Builder: tensorrt_rtx or tensorrt.")] = "tensorrt_rtx",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU generation to build for, such as 8.6; may be repeated.", show_default="the builder's own choice"
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            help="Engines to build, NAME-1, NAME-2, ...: TensorRT chooses its kernels anew for each.", min=1, max=100
        ),
    ] = 1,
    workspace_mib: Annotated[
        int | None,
        typer.Option(help="Limit of a layer's scratch memory.", show_default="the builder's own", min=1, max=2**20),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="Builder effort, 0 to 5.", show_default="the builder's own", min=0, max=5)
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="File of kernel times from earlier builds, created or updated; tensorrt only.", show_default="none"
        ),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Allow tf32 (TensorFloat-32) in fp32 products.")] = False,
    out: Annotated[Path | None, typer.Option(help="Engine to write.", show_default="beside the ONNX file")] = None,
    force: Force = False,
) -> None:
    """Build an engine from an ONNX file; TensorRT-RTX needs no GPU for it."""
    from deploy.engine import engine_from_onnx

    check_file_name(onnx)
    engines = _engine_names(out or onnx.with_suffix(ENGINE), repeat)
    if repeat > 1 and timing_cache:
        raise RequestError(
            f"--repeat {repeat}: all engines would get the first one's kernels, got --timing-cache {timing_cache}; "
            f"drop one of the two options"
        )
    refuse_existing(force, *engines)
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
            shapes=shapes_from(shape or []),
        )
        mib = engine.stat().st_size / 1024**2
        typer.echo(f"wrote {engine}: {info.precision}, {mib:.1f} MiB, built in {info.build_s:.1f} s")
    typer.echo(f"next, on a GPU: {shlex.join(['espalier', 'deploy', 'bench', *map(str, engines)])}")


def package(
    folder: Annotated[Path, typer.Argument(help="Folder that deploy export wrote, or the ONNX file in it.")],
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Model repository to write.", show_default="the folder's name with .triton"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the folder's name")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="Engine built by TensorRT.", show_default="the one in the folder that fits")
    ] = None,
    force: Force = False,
) -> None:
    """Write a detector as a model repository of Triton Inference Server, with a client for it."""
    from deploy.triton.package import package_detector

    place = (folder if folder.is_dir() else folder.parent).resolve()  # Path(".").name is empty
    check_file_name(place)
    out, name = out or place.with_suffix(".triton"), name or place.stem
    refuse_existing(force, out)
    packaged = package_detector(folder, out, name, engine)
    for note in packaged.notes:
        typer.echo(note, err=True)
    closing(f"wrote {', '.join(packaged.models)} to {out}", ["tritonserver", "--model-repository", out])


def explain(
    dense: Annotated[Path, typer.Argument(help="Folder that deploy export wrote, its ONNX file, or an engine.")],
    slim: Annotated[
        Path | None,
        typer.Argument(
            help="The same network, pruned; an engine where DENSE is one.", show_default="DENSE is explained"
        ),
    ] = None,
    threads: Threads = 1,
    shape: Shapes = None,
    rounds: Annotated[int, typer.Option(min=1, max=MOST_ROUNDS, help="Measured rounds.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Find out why a slim network is not faster than the dense one; or, of one network, what its time goes to."""
    with loading("ONNX Runtime"):
        from deploy.explain.advice import WIDTH, advice, explained_text
        from deploy.explain.alone import alone_text, explain_alone
        from deploy.explain.explained import explain_deployed
    measured = threads, rounds, Console(stderr=True), shapes_from(shape or [])
    if slim:
        explained = explain_deployed(dense, slim, *measured)
        figures, text = {**explained.to_dict(), "advice": advice(explained)}, explained_text(explained)
        runtime = explained.rows[1]["runtime"]
    else:
        alone = explain_alone(dense, *measured)
        figures, text, runtime = alone.to_dict(), alone_text(alone), alone.row["runtime"]
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
    else:
        console = Console()
        console.width = console.width if console.is_terminal else WIDTH
        console.print(text)
    default = {"runtime": "onnxruntime", "latency.num_threads": 1}
    conditions = {"runtime": runtime, "latency.num_threads": threads}
    settings = [["--set", setting(name, value)] for name, value in conditions.items() if value != default[name]]
    closing(f"explained {slim or dense}", ["espalier", "deploy", "sweep", "sweep_resnet18", *chain(*settings)])


def _engine_names(out: Path, repeat: int) -> list[Path]:
    """Return net.engine, or net-1.engine, net-2.engine and so on."""
    if out.suffix != ENGINE:
        raise RequestError(f"--out {out}: not an engine file, got {out.suffix or 'no suffix'}; expected {ENGINE}")
    if repeat == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(1, repeat + 1)]
