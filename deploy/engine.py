"""ONNX files to engines, by TensorRT or TensorRT-RTX: the two modules share one API.

Only strongly typed networks: the precision is that of the ONNX file. Engines are run in `deploy.runtimes.tensorrt`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from command.errors import RequestError, WorkError
from command.extras import optional_module
from command.files import existing_file, model_from_json, sha256_of, written_atomically
from deploy.machine import current_gpu
from deploy.onnx_file import (
    input_specs,
    onnx_from_bytes,
    output_specs,
    precision_of,
    read_onnx,
    weight_array,
    with_input_shapes,
)
from deploy.tensors import Specs, TensorSpec, checked_spec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["BACKENDS", "EngineInfo", "engine_from_onnx", "last_error", "load_engine", "read_engine_info"]

BACKENDS = ("tensorrt", "tensorrt_rtx")
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
"""Dtypes of an engine's inputs and outputs; float64 would be read as float32."""


class EngineInfo(BaseModel):
    """What an engine was built from and for; its sidecar, `<engine>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backend: Literal["tensorrt", "tensorrt_rtx"]
    backend_version: str
    compute_capabilities: tuple[str, ...]
    """Such as "8.6"; empty for the backend's own choice."""
    precision: str
    """As `deploy.onnx_file.precision_of` returns it; "tf32" where fp32 may be rounded to tf32 (TensorFloat-32)."""
    onnx_file: str | None = Field(None, pattern=r"^[^/]+$")
    """Its name, without folders. The fields with default None are missing in sidecars of earlier versions."""
    onnx_sha256: str
    engine_sha256: str
    """Detects an engine that was replaced after the sidecar was written."""
    build_s: float | None = None
    gpu: str | None = None
    """The GPU it was built on; None if it was built without one."""
    driver: str | None = None
    optimization_level: int | None = None
    workspace_mib: int | None = None
    """The limit; None for the backend's default."""
    inputs: Specs
    outputs: Specs


def engine_from_onnx(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    backend: str = "tensorrt_rtx",
    compute_capabilities: Sequence[str] = (),
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: str | Path | None = None,
    tf32: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> EngineInfo:
    """Build an engine and its sidecar, and return the sidecar's content.

    TensorRT-RTX needs no GPU for this; TensorRT builds for the GPU it finds.

    Args:
        onnx_path: A file with fixed shapes, or with those that `shapes` gives.
        engine_path: Engine to write; nothing is left there if the build fails.
        backend: A name in `BACKENDS`.
        compute_capabilities: GPU generations to build for, such as ("8.6", "8.9"); TensorRT-RTX only. Empty for the
            backend's own choice.
        workspace_mib: Limit, >= 1, of a layer's scratch memory in MiB; None for the backend's default.
        optimization_level: Builder effort, 0 to 5; None for the backend's default.
        timing_cache: File of the kernel times that TensorRT measured in earlier builds; created or updated.
        tf32: Whether fp32 products may round their factors to tf32 (TensorFloat-32, 10 bits of mantissa). The backends
            do so by default; here fp32 means fp32 in every runtime.
        shapes: Of inputs with free dimensions, by name.

    Raises:
        MissingFileError: If the ONNX file does not exist.
        RequestError: If it is not an ONNX file, or has a free dimension, NaN in a weight, or a dtype or node that the
            backend lacks; if the backend is not installed, does not support a compute capability or has no timing
            cache, or the cache is for another GPU or version.
        WorkError: If the backend cannot build the engine.
    """
    trt = _backend_module(backend)
    _check_options(backend, workspace_mib, optimization_level, timing_cache)
    data = read_onnx(onnx_path)
    model = with_input_shapes(onnx_from_bytes(onnx_path, data), shapes or {})
    _check_graph(onnx_path, model)
    start_s = time.perf_counter()
    _errors(backend).clear()
    builder = _builder(trt, backend)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _logger(backend))
    if not parser.parse(model.SerializeToString() if shapes else data):
        raise RequestError(_parser_fault(onnx_path, backend, parser))
    inputs = _fixed_specs(input_specs(model), [network.get_input(i) for i in range(network.num_inputs)])
    outputs = _fixed_specs(output_specs(model), [network.get_output(i) for i in range(network.num_outputs)])
    config = _config(trt, builder, compute_capabilities, workspace_mib, optimization_level)
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if timing_cache:
        _use_timing_cache(config, backend, Path(timing_cache))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise WorkError(f"{onnx_path}: {backend} cannot build it, got {last_error(backend)}; change the named layer")
    build_s, gpu, precision = round(time.perf_counter() - start_s, 3), current_gpu(), precision_of(model)
    info = EngineInfo(
        backend=backend,
        backend_version=trt.__version__,
        compute_capabilities=tuple(compute_capabilities),
        precision="tf32" if tf32 and precision == "fp32" else precision,
        onnx_file=Path(onnx_path).name,
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        build_s=build_s,
        gpu=gpu.name if gpu else None,
        driver=gpu.driver if gpu else None,
        optimization_level=config.builder_optimization_level,
        workspace_mib=workspace_mib,
        inputs=inputs,
        outputs=outputs,
    )
    _write(Path(engine_path), plan, info)
    if timing_cache:
        with written_atomically(timing_cache) as beside:
            beside.write_bytes(config.get_timing_cache().serialize())
    return info


def read_engine_info(engine_path: str | Path) -> EngineInfo:
    """Return an engine's sidecar; needs neither a GPU nor the backend.

    Raises:
        MissingFileError: If the engine or its sidecar does not exist.
        RequestError: If the sidecar is malformed or belongs to another engine.
    """
    path = existing_file(engine_path, _REBUILD)
    info = model_from_json(EngineInfo, _sidecar(path), _REBUILD)
    if sha256_of(path) != info.engine_sha256:
        raise RequestError(f"{path}: does not match its sidecar, got another sha256; {_REBUILD}")
    return info


def load_engine(engine_path: str | Path) -> Any:
    """Return the backend's engine object, ready to run on this machine's GPU.

    Raises:
        RequestError: If another version built it, or TensorRT built it on another GPU, or the ONNX file beside it has
            changed since.
        WorkError: If there is no GPU, or the backend cannot load it.
    """
    import torch

    info = read_engine_info(engine_path)
    trt = _backend_module(info.backend)
    _refuse_stale(Path(engine_path), info)
    if trt.__version__ != info.backend_version:
        raise RequestError(
            f"{engine_path}: built by another version, got {info.backend} {info.backend_version}; "
            f"expected the installed {trt.__version__}, {_REBUILD}"
        )
    if not torch.cuda.is_available():
        raise WorkError(f"{engine_path}: needs a GPU, got a machine without CUDA; use the ONNX file instead")
    gpu = current_gpu()
    if info.backend == "tensorrt" and gpu and info.gpu not in (None, gpu.name):  # TensorRT only warns, and runs slowly
        raise RequestError(f"{engine_path}: built for another GPU, got {info.gpu}; expected {gpu.name}, {_REBUILD}")
    _errors(info.backend).clear()
    engine = _runtime(info.backend).deserialize_cuda_engine(Path(engine_path).read_bytes())
    if engine is None:
        raise WorkError(f"{engine_path}: {info.backend} cannot load it, got {last_error(info.backend)}; {_REBUILD}")
    return engine


_REBUILD = "rebuild it with: espalier deploy build MODEL.onnx"


def _sidecar(engine_path: Path) -> Path:
    return engine_path.with_name(engine_path.name + ".json")


def _write(engine_path: Path, plan: Any, info: EngineInfo) -> None:
    with written_atomically(engine_path) as beside:
        beside.write_bytes(plan)
    with written_atomically(_sidecar(engine_path)) as beside:
        beside.write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _backend_module(backend: str) -> Any:
    if backend not in BACKENDS:
        raise RequestError(f"backend: unknown, got {backend!r}; expected one of {', '.join(BACKENDS)}")
    return optional_module(backend, "engines need")


@cache
def _errors(backend: str) -> list[str]:
    """Return the list to which the backend's logger appends."""
    return []


@cache
def _logger(backend: str) -> Any:
    """Return the one logger of a backend, which would ignore a second one with a warning."""
    trt = _backend_module(backend)
    errors = _errors(backend)

    class ErrorLog(trt.ILogger):  # type: ignore[name-defined]  # its base class is known at run time only
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(" ".join(message.split()))

    return ErrorLog()


@cache
def _runtime(backend: str) -> Any:
    """Return the only runtime of a backend; it must outlive its engines."""
    return _backend_module(backend).Runtime(_logger(backend))


def last_error(backend: str) -> str:
    """Return a backend's last error message."""
    return _errors(backend)[-1] if _errors(backend) else "no reason"


def _check_options(
    backend: str, workspace_mib: int | None, optimization_level: int | None, timing_cache: str | Path | None
) -> None:
    if workspace_mib is not None and workspace_mib < 1:
        raise RequestError(f"workspace_mib: too small, got {workspace_mib}; expected at least 1")
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise RequestError(f"optimization_level: out of range, got {optimization_level}; expected 0 to 5")
    if timing_cache and backend != "tensorrt":
        raise RequestError(
            f"timing_cache: not used with {backend}, which times no kernels, got {timing_cache}; drop this option"
        )


def _check_graph(onnx_path: str | Path, model: ModelProto) -> None:
    """Refuse graphs of which a backend would build an engine with wrong results."""
    for name, spec in {**input_specs(model), **output_specs(model)}.items():
        if spec.dtype not in DTYPES:
            raise RequestError(
                f"{onnx_path}: {name!r} has a dtype that no engine supports, got {spec.dtype}; "
                f"expected one of {', '.join(DTYPES)}"
            )
    for tensor in model.graph.initializer:
        array = weight_array(onnx_path, tensor)
        if "float" in array.dtype.name and bool((array != array).any()):
            raise RequestError(
                f"{onnx_path}: weight {tensor.name!r} is not finite, got NaN; expected numbers, train again"
            )


def _builder(trt: Any, backend: str) -> Any:
    try:
        return trt.Builder(_logger(backend))
    except TypeError as error:  # pybind11 raises it for a null pointer
        raise WorkError(
            f"{backend}: cannot start, got {last_error(backend)}; use a machine with an NVIDIA GPU, or "
            f"--backend tensorrt_rtx"
        ) from error


def _refuse_stale(engine_path: Path, info: EngineInfo) -> None:
    source = engine_path.parent / info.onnx_file if info.onnx_file else None
    if source and source.is_file() and sha256_of(source) != info.onnx_sha256:
        raise RequestError(f"{engine_path}: outdated, got a {source} that was changed since; {_REBUILD}")


def _fixed_specs(specs: Mapping[str, TensorSpec], tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    """Return the file's dtypes with the shapes that the backend found: a file may lack those of its outputs."""
    found = {}
    for tensor in tensors:
        if tensor.name not in specs:  # TensorRT renames an output that is an input, too
            raise RequestError(f"tensor {tensor.name!r}: not in the file, got a graph that returns an input; remove it")
        shape = tuple(None if size < 0 else int(size) for size in tensor.shape)
        found[tensor.name] = checked_spec(tensor.name, shape, specs[tensor.name].dtype)
        found[tensor.name].fixed_shape(tensor.name)
    return found


def _parser_fault(onnx_path: str | Path, backend: str, parser: Any) -> str:
    fault = parser.get_error(0)
    reason = " ".join(fault.desc().split()).partition(" [checkMacros")[0]  # the rest is about a missing GPU
    return (
        f"{onnx_path}: {backend} cannot read node {fault.node_name()!r} ({fault.node_operator()}), "
        f"got {reason}; rewrite it with other operators, or run the ONNX file: espalier deploy bench {onnx_path}"
    )


def _config(
    trt: Any,
    builder: Any,
    compute_capabilities: Sequence[str],
    workspace_mib: int | None,
    optimization_level: int | None,
) -> Any:
    config = builder.create_builder_config()
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * 1024**2)
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    targets = _targets(trt, compute_capabilities)
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    return config


def _use_timing_cache(config: Any, backend: str, path: Path) -> None:
    """Pass the kernel times in a file to the builder; none if the file does not exist yet."""
    if path.exists() and not path.is_file():
        raise RequestError(f"{path}: not a file, got a folder, pipe or device; give a new file name, it is created")
    known = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise RequestError(
            f"{path}: not for this GPU and version, got {last_error(backend)}; give a new file name, it is created"
        )


def _targets(trt: Any, compute_capabilities: Sequence[str]) -> list[Any]:
    """Return the backend's own values for names such as "8.6"."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    by_number = {f"{name[2:-1]}.{name[-1]}": value for name, value in known.items() if name.startswith("SM")}
    for number in compute_capabilities:
        if number not in by_number:
            expected = f"one of {', '.join(by_number)}" if by_number else "none, it builds for this machine's GPU"
            raise RequestError(
                f"compute_capability: {trt.__name__} cannot build for it, got {number}; expected {expected}"
            )
    return [by_number[number] for number in compute_capabilities]
