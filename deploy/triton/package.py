"""A deployed detector as a model repository of Triton Inference Server."""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import deploy.fitting
from command.errors import RequestError
from command.files import sha256_of
from command.folders import filled_folder
from deploy.deployment import DEPLOYMENT, ONNX_NAME, Deployed, open_deployment
from deploy.engine import read_engine_info
from deploy.onnx_file import classes_of, input_specs, load_onnx, output_specs
from deploy.runtimes.registry import ENGINE
from deploy.tensors import TensorSpec

__all__ = ["Packaged", "package_detector"]

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
_MOST_LETTERS = 200
"""Of a model's name: folders are named after it, with a suffix."""
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
)


@dataclass(frozen=True)
class Packaged:
    """Result of `package_detector`."""

    models: tuple[str, ...]
    """Names of the models in the repository."""
    notes: tuple[str, ...]
    """Engines left out and why, one line each."""


def package_detector(path: str | Path, repository: str | Path, name: str, engine: str | Path | None = None) -> Packaged:
    """Write a model repository: the ONNX file, TensorRT's engine if there is one, and a model that takes images.

    Existing models of these names are replaced; others stay.

    Args:
        path: Folder of an exported detector, or the ONNX file in it.
        repository: Created.
        name: Name of the model; the others are `<name>_plan` and `<name>_images`.
        engine: Engine that TensorRT built from that ONNX file; default: the one in the folder.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the name is not valid in Triton, the folder has no Espalier detector or several engines for
            Triton, or the given engine is not for Triton or from another file.
    """
    repository, engine = Path(repository), Path(engine) if engine else None
    deployed = open_deployment(path)
    if deployed.file.suffix == ENGINE:
        raise RequestError(
            f"{path}: cannot be packaged alone, got an engine; expected its folder, with --engine {path}"
        )
    _check_name(name)
    _check_labels(deployed.deployment.classes)
    _check_graph(deployed)
    engine, notes = (_checked(engine, deployed.file), []) if engine else _only_engine(deployed.file)
    graphs = [_Graph(name, "onnxruntime", ONNX_NAME, deployed.file)]
    if engine:
        graphs.append(_Graph(f"{name}_plan", "tensorrt", "model.plan", engine))
    values = _values(deployed, name, graphs)
    names = (*(graph.name for graph in graphs), f"{name}_images")
    with filled_folder(repository) as work:
        for graph in graphs:
            _write_graph(deployed, graph, work / graph.name, values)
        _write_images(deployed, work / names[-1], values)
    if not engine:  # else the engine of an earlier package would be served beside a newer graph
        shutil.rmtree(repository / f"{name}_plan", ignore_errors=True)
    return Packaged(names, tuple(notes))


@dataclass(frozen=True)
class _Graph:
    """A model of the repository that consists of one file."""

    name: str
    backend: str
    filename: str
    source: Path


def _check_name(name: str) -> None:
    """Raise RequestError if the name is not valid in Triton, where it is a folder and part of a URL."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{,{_MOST_LETTERS - 1}}}", name):
        raise RequestError(
            f"--name: not a valid model name, got {name!r}; expected letters, digits, and - _ . after the first, "
            f"at most {_MOST_LETTERS}"
        )


def _check_labels(classes: Sequence[str]) -> None:
    """Raise RequestError if a class name is not one line, as it must be in Triton's labels.txt."""
    for name in classes:
        if name.splitlines() != [name]:
            raise RequestError(f"class {name!r}: not a line of text; expected a name without line breaks, not empty")


def _check_graph(deployed: Deployed) -> None:
    """Raise RequestError unless the ONNX file fits its `deploy.json` and has only types that Triton knows."""
    model = load_onnx(deployed.file)
    deployed.check_graph(input_specs(model), output_specs(model), classes_of(deployed.file, model))
    for name, spec in {**deployed.inputs, **deployed.outputs}.items():
        if spec.dtype not in _TYPES:
            raise RequestError(
                f"{deployed.file}: {name} is not for Triton, got {spec.dtype}; expected {', '.join(_TYPES)}"
            )


def _only_engine(onnx: Path) -> tuple[Path | None, list[str]]:
    """Return the engine beside an ONNX file that Triton can run, if there is one, and notes on the others."""
    fitting, notes = [], []
    for path in sorted(onnx.parent.glob(f"*{ENGINE}")):
        try:
            fitting.append(_checked(path, onnx))
        except (FileNotFoundError, ValueError) as error:
            notes.append(f"note: not packaged: {error}")
    if len(fitting) > 1:
        names = ", ".join(path.name for path in fitting)
        raise RequestError(f"{onnx.parent}: several engines, got {names}; choose one with --engine")
    return next(iter(fitting), None), notes


def _checked(engine: Path, onnx: Path) -> Path:
    """Return an engine; raises RequestError unless TensorRT built it from that ONNX file."""
    info = read_engine_info(engine)
    remedy = f"build one with: espalier deploy build {shlex.quote(str(onnx))} --backend tensorrt"
    if info.backend != "tensorrt":
        raise RequestError(f"{engine}: not for Triton, got an engine for {info.backend}; {remedy}")
    if info.onnx_sha256 != (expected := sha256_of(onnx)):
        raise RequestError(
            f"{engine}: not built from {onnx.name}, got an engine for sha256 {info.onnx_sha256[:12]}; "
            f"expected {expected[:12]}, {remedy}"
        )
    return engine


def _values(deployed: Deployed, name: str, graphs: Sequence[_Graph]) -> dict[str, Any]:
    """Return the variables of the templates."""
    image = deployed.inputs["image"]
    shape = image.fixed_shape("image")
    shapes = [{"name": graph.name, "backend": graph.backend, "shape": list(shape)} for graph in graphs]
    return {
        "name": name,
        "graph": graphs[-1].name,
        "graphs": shapes,
        "batch": shape[0],
        "size_hw": deployed.size_hw,
        "dtype": image.dtype,
        "num_places": deployed.outputs["scores"].fixed_shape("scores")[1],
        "classes": deployed.deployment.classes,
        "inputs": _tensors(deployed.inputs),
        "outputs": _tensors(deployed.outputs),
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": name, "data_type": _TYPES[spec.dtype], "dims": list(spec.fixed_shape(name))}
        for name, spec in specs.items()
    ]


def _write_graph(deployed: Deployed, graph: _Graph, folder: Path, values: Mapping[str, Any]) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(graph.source, version / graph.filename)
    if graph.filename == ONNX_NAME:  # so that Espalier's commands open this file too
        shutil.copyfile(deployed.file.parent / DEPLOYMENT, version / DEPLOYMENT)
    _write_labels(deployed, folder)
    own = {"name": graph.name, "backend": graph.backend, "filename": graph.filename}
    _render("graph.pbtxt", folder / "config.pbtxt", {**values, **own})


def _write_images(deployed: Deployed, folder: Path, values: Mapping[str, Any]) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    shutil.copyfile(deploy.fitting.__file__, version / "fitting.py")
    _write_labels(deployed, folder)
    for file in ("model.py", "client.py"):  # both import fitting.py from their folder
        _render(file, version / file, values)
    _render("README.md", folder / "README.md", values)
    _render("images.pbtxt", folder / "config.pbtxt", values)


def _write_labels(deployed: Deployed, folder: Path) -> None:
    text = "".join(f"{name}\n" for name in deployed.deployment.classes)
    (folder / "labels.txt").write_text(text, encoding="utf-8")


def _render(template: str, path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(_TEMPLATES.get_template(f"{template}.jinja").render(values), encoding="utf-8")
