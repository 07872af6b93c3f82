"""ONNX files to engines, by TensorRT or TensorRT-RTX: the two modules share one API.

Only strongly typed networks: precision is what the ONNX file says. Running an engine lives in runtime.py.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from deploy.files import existing_file, model_from_json, written_atomically
from deploy.graph import TensorSpec, input_specs, load_onnx, output_specs, precision_of

__all__ = ["EngineInfo", "engine_from_onnx", "load_engine", "read_engine_info"]

BACKENDS = ("tensorrt", "tensorrt_rtx")


class EngineInfo(BaseModel):
    """What an engine was built from and for; stands beside it as `<engine>.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    """Either "tensorrt" or "tensorrt_rtx"."""
    backend_version: str
    compute_capabilities: tuple[str, ...]
    """Such as "8.6"; empty means what the backend chooses itself."""
    precision: str
    onnx_sha256: str
    engine_sha256: str
    """Tells an engine from one that replaced it after the sidecar was written."""
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def engine_from_onnx(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    backend: str = "tensorrt_rtx",
    compute_capabilities: Sequence[str] = (),
    workspace_mib: int | None = None,
) -> EngineInfo:
    """Build an engine and its sidecar, and return what the sidecar says.

    TensorRT-RTX needs no GPU for this; TensorRT builds for the GPU it finds.

    Args:
        onnx_path: A file with fixed shapes.
        engine_path: Where the engine goes; nothing is left there when the build fails.
        backend: Which of the two modules builds.
        compute_capabilities: GPU generations to build for, such as ("8.6", "8.9"); TensorRT-RTX only. Empty
            leaves the choice to the backend.
        workspace_mib: Limit of the scratch memory a layer may take, in MiB; None leaves the backend's own.

    Raises:
        FileNotFoundError: If the ONNX file does not exist.
        ValueError: If it is no ONNX file or has a free dimension, or the backend knows no such compute capability.
        RuntimeError: If the backend is not installed, cannot read a node or cannot build the engine.
    """
    trt = _backend_module(backend)
    model = load_onnx(onnx_path)
    _errors(backend).clear()
    builder = trt.Builder(_logger(backend))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _logger(backend))
    if not parser.parse_from_file(str(onnx_path)):
        raise RuntimeError(_parser_fault(onnx_path, backend, parser))
    inputs = _fixed_specs(input_specs(model), [network.get_input(i) for i in range(network.num_inputs)])
    outputs = _fixed_specs(output_specs(model), [network.get_output(i) for i in range(network.num_outputs)])
    plan = builder.build_serialized_network(network, _config(trt, builder, compute_capabilities, workspace_mib))
    if plan is None:
        raise RuntimeError(
            f"{onnx_path}: {backend} cannot build it, got {_last_error(backend)}; change the named layer"
        )
    info = EngineInfo(
        backend=backend,
        backend_version=trt.__version__,
        compute_capabilities=tuple(compute_capabilities),
        precision=precision_of(model),
        onnx_sha256=_sha256(Path(onnx_path).read_bytes()),
        engine_sha256=_sha256(plan),
        inputs=inputs,
        outputs=outputs,
    )
    _write(Path(engine_path), plan, info)
    return info


def read_engine_info(engine_path: str | Path) -> EngineInfo:
    """Return an engine's sidecar; needs neither a GPU nor the backend.

    Raises:
        FileNotFoundError: If the engine or its sidecar does not exist.
        ValueError: If the sidecar is malformed or belongs to another engine.
    """
    path = existing_file(engine_path, _REBUILD)
    info = model_from_json(EngineInfo, _sidecar(path), _REBUILD)
    if _sha256(path.read_bytes()) != info.engine_sha256:
        raise ValueError(f"{path}: not the engine its sidecar describes, got another sha256; {_REBUILD}")
    return info


def load_engine(engine_path: str | Path) -> Any:
    """Return the backend's engine object, ready to run on this machine's GPU.

    Raises:
        ValueError: If another version built it.
        RuntimeError: If there is no GPU, or the backend refuses it.
    """
    import torch

    info = read_engine_info(engine_path)
    trt = _backend_module(info.backend)
    if trt.__version__ != info.backend_version:
        raise ValueError(
            f"{engine_path}: built by another version, got {info.backend} {info.backend_version}; "
            f"expected the installed {trt.__version__}, {_REBUILD}"
        )
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"{engine_path}: no GPU to run it, got a machine without CUDA; measure the ONNX file instead"
        )
    _errors(info.backend).clear()
    engine = _runtime(info.backend).deserialize_cuda_engine(Path(engine_path).read_bytes())
    if engine is None:
        raise RuntimeError(f"{engine_path}: {info.backend} refuses it, got {_last_error(info.backend)}; {_REBUILD}")
    return engine


_REBUILD = "rebuild it with: espalier deploy build MODEL.onnx"


def _sidecar(engine_path: Path) -> Path:
    return engine_path.with_name(engine_path.name + ".json")


def _write(engine_path: Path, plan: Any, info: EngineInfo) -> None:
    with written_atomically(engine_path) as beside:
        beside.write_bytes(plan)
    with written_atomically(_sidecar(engine_path)) as beside:
        beside.write_text(info.model_dump_json(indent=2) + "\n")


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _backend_module(backend: str) -> Any:
    if backend not in BACKENDS:
        raise ValueError(f"backend: unknown, got {backend!r}; expected one of {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(backend)
    except ModuleNotFoundError as error:
        extra = backend.replace("_", "-")
        raise RuntimeError(f'{backend} is not installed; engines need it: pip install -e ".[{extra}]"') from error


@cache
def _errors(backend: str) -> list[str]:
    """Return the list that the backend's logger fills."""
    return []


@cache
def _logger(backend: str) -> Any:
    """Return the one logger of a backend: it ignores a second one with a warning."""
    trt = _backend_module(backend)
    errors = _errors(backend)

    class ErrorLog(trt.ILogger):  # type: ignore[name-defined]  # its base is known at run time only
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(" ".join(message.split()))

    return ErrorLog()


@cache
def _runtime(backend: str) -> Any:
    """Return the one runtime of a backend, which must outlive its engines."""
    return _backend_module(backend).Runtime(_logger(backend))


def _last_error(backend: str) -> str:
    return _errors(backend)[-1] if _errors(backend) else "no reason"


def _fixed_specs(specs: Mapping[str, TensorSpec], tensors: Sequence[Any]) -> dict[str, TensorSpec]:
    """Return the file's dtypes with the shapes the backend found: a file need not say those of its outputs."""
    found = {}
    for tensor in tensors:
        shape = tuple(None if size < 0 else int(size) for size in tensor.shape)
        found[tensor.name] = TensorSpec(shape, specs[tensor.name].dtype)
        found[tensor.name].fixed_shape(tensor.name)
    return found


def _parser_fault(onnx_path: str | Path, backend: str, parser: Any) -> str:
    fault = parser.get_error(0)
    return (
        f"{onnx_path}: {backend} cannot read node {fault.node_name()!r} ({fault.node_operator()}), "
        f"got {' '.join(fault.desc().split())}; write it with other operators"
    )


def _config(trt: Any, builder: Any, compute_capabilities: Sequence[str], workspace_mib: int | None) -> Any:
    config = builder.create_builder_config()
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * 1024**2)
    targets = _targets(trt, compute_capabilities)
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    return config


def _targets(trt: Any, compute_capabilities: Sequence[str]) -> list[Any]:
    """Return the backend's own values for "8.6" and the like."""
    known = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    by_number = {f"{name[2:-1]}.{name[-1]}": value for name, value in known.items() if name.startswith("SM")}
    for number in compute_capabilities:
        if number not in by_number:
            expected = f"one of {', '.join(by_number)}" if by_number else "none: it builds for the GPU it finds"
            raise ValueError(
                f"compute_capability: {trt.__name__} cannot build for it, got {number}; expected {expected}"
            )
    return [by_number[number] for number in compute_capabilities]
