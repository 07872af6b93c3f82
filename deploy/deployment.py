"""The deployed model: a folder of one ONNX file, engines built from it, and the `deploy.json` that describes it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from command.errors import RequestError
from command.files import existing_file, model_from_json, sha256_of
from deploy.engine import read_engine_info
from deploy.machine import num_cores
from deploy.runtimes.registry import ENGINE, runner_for
from deploy.runtimes.runner import FileRunner
from deploy.tensors import Specs, TensorSpec

__all__ = [
    "DEPLOYMENT",
    "INPUTS",
    "ONNX_NAME",
    "OUTPUTS",
    "Deployed",
    "Deployment",
    "Precision",
    "deployed_file",
    "open_deployment",
]

ONNX_NAME = "model.onnx"
DEPLOYMENT = "deploy.json"
"""File that describes how to feed the ONNX file beside it."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]

INPUTS = ("image", "image_hw")
OUTPUTS = ("boxes_xyxy", "scores", "labels")
"""Input and output names of every deployed detector."""
_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "image": ("batch", 3, "height", "width"),
    "image_hw": ("batch", 2),
    "boxes_xyxy": ("batch", "boxes", 4),
    "scores": ("batch", "boxes"),
    "labels": ("batch", "boxes"),
}
"""Sizes of the same name are equal."""
_DEBUG = {"nms_converged"}
_REMEDY = "expected a folder that espalier deploy export wrote, or the ONNX file or an engine in it"


class Deployment(BaseModel):
    """The content of `deploy.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    inputs: Specs
    outputs: Specs
    meaning: dict[str, str] = Field(default_factory=dict)
    """What each of them holds: its unit, order, coordinates and padding, human-readable."""
    preprocessing: str
    """Human-readable."""
    classes: tuple[str, ...] = Field(min_length=1)
    precision: Precision
    versions: dict[str, str]
    """Versions of the libraries that wrote the file."""
    opset: PositiveInt | None = None
    """ONNX operator set of the file."""
    oldest_runtimes: dict[str, str] = Field(default_factory=dict)
    """The oldest versions with which such files were run, by runtime."""
    sha256: dict[str, str]
    """Hash of the ONNX file, by its name."""
    model: str
    """The model file it was exported from: its path relative to the folder's parent if it is below that, else its
    name."""
    model_sha256: str
    parity: dict[str, Any] | None
    """Comparison with PyTorch; None where nothing could be compared."""
    compared_on: str
    """The images of that comparison, human-readable."""
    config: dict[str, Any]
    """The settings of the export."""
    mmdet: str | None = None
    """Name of mmdet's config, for a checkpoint of mmdet."""
    nms_iterations: PositiveInt | None = None
    """Rounds of NMS, where it is computed as arithmetic."""
    network_hw: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width that the detector works at, if not those of the input: the graph scales images then."""

    @field_validator("model")
    @classmethod
    def _is_below_the_parent(cls, model: str) -> str:
        if PurePosixPath(model).is_absolute() or ".." in PurePosixPath(model).parts:
            raise ValueError("leads out of the folder's parent")
        return model


@dataclass(frozen=True)
class Deployed:
    """A deployed detector: an ONNX file, or an engine built from it."""

    file: Path
    deployment: Deployment

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """Inputs of the file."""
        return self.deployment.inputs

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """Outputs of the file."""
        return self.deployment.outputs

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the input image."""
        _check_shapes(self.file, {**self.inputs, **self.outputs})
        height, width = self.inputs["image"].fixed_shape("image")[2:]
        return height, width

    @property
    def network_hw(self) -> tuple[int, int]:
        """Height and width that the detector inside works at."""
        return self.deployment.network_hw or self.size_hw

    @property
    def is_as_exported(self) -> bool:
        """Whether the file, or the ONNX file that the engine was built from, is the one in `deploy.json`."""
        made_from = read_engine_info(self.file).onnx_sha256 if self.file.suffix == ENGINE else sha256_of(self.file)
        return made_from in self.deployment.sha256.values()

    def runner(self, runtime: str | None = None) -> FileRunner:
        """Return a runner of the file, on all CPU cores of this process.

        Args:
            runtime: A name in `deploy.runtimes.registry.RUNTIMES`; default: the one for this kind of file.

        Raises:
            RequestError: If the file does not match its `deploy.json`, and for the reasons of `runner_for`.
            WorkError: If the runtime needs a GPU and finds none.
        """
        runner = runner_for(self.file, runtime, num_cores())
        self.check_graph(runner.inputs, runner.outputs, runner.classes)
        return runner

    def check_graph(
        self, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], classes: Sequence[str] | None
    ) -> None:
        """Raise RequestError unless `deploy.json` has the inputs, outputs and classes (if known) of this graph."""
        self._check_equal("inputs", sorted(inputs.items()), sorted(self.inputs.items()))
        self._check_equal("outputs", sorted(outputs.items()), sorted(self.outputs.items()))
        if classes is not None:
            self._check_equal("classes", classes, self.deployment.classes)
        _check_shapes(self.file, {**self.inputs, **self.outputs})

    def _check_equal(self, what: str, found: Iterable[object], declared: Iterable[object]) -> None:
        for got, expected in itertools.zip_longest(found, declared):
            if got != expected:
                raise RequestError(
                    f"{self.file}: does not match its {DEPLOYMENT}, got {got!r} in its {what}; expected {expected!r}, "
                    f"export it again"
                )


def deployed_file(path: str | Path, remedy: str) -> Path:
    """Return the ONNX file in a folder, or the file that is given; raise MissingFileError with `remedy` without one."""
    path = Path(path)
    return existing_file(path / ONNX_NAME if path.is_dir() else path, remedy)


def open_deployment(path: str | Path, *, may_differ: bool = False) -> Deployed:
    """Return the detector in a folder; nothing is run yet.

    Args:
        path: The folder (its ONNX file is used), or an ONNX file or engine with `deploy.json` beside it.
        may_differ: Whether to accept an ONNX file that was changed after its export.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If it is not a detector, does not match its `deploy.json`, or is an engine of another file.
    """
    file = deployed_file(path, _REMEDY)
    deployment = model_from_json(Deployment, file.parent / DEPLOYMENT, _REMEDY)
    if file.suffix == ENGINE:
        info = read_engine_info(file)
        _check_names(file, {**info.inputs, **info.outputs})
    _check_names(file, {**deployment.inputs, **deployment.outputs})
    deployed = Deployed(file, deployment)
    if not (may_differ or deployed.is_as_exported):  # else another detector would get this one's class names
        raise RequestError(
            f"{file}: changed since its export, got another sha256 than in its {DEPLOYMENT}; export it again"
        )
    return deployed


def _check_names(file: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Raise RequestError unless these are the inputs and outputs of a detector."""
    names = specs.keys() - _DEBUG
    if names != _SHAPES.keys():
        raise RequestError(
            f"{file}: not an Espalier detector, got inputs and outputs {', '.join(sorted(names))}; "
            f"expected {', '.join(sorted(_SHAPES))}"
        )


def _check_shapes(file: Path, specs: Mapping[str, TensorSpec]) -> None:
    """Raise RequestError unless the tensors of a detector fit each other."""
    known: dict[int | str, int] = {3: 3, 2: 2, 4: 4}
    for name, sizes in _SHAPES.items():
        shape = specs[name].fixed_shape(name)
        if len(shape) != len(sizes) or any(
            known.setdefault(key, got) != got for key, got in zip(sizes, shape, strict=True)
        ):
            expected = tuple(known.get(size, size) for size in sizes)
            raise RequestError(f"{file}: not an Espalier detector, got {name} of shape {shape}; expected {expected}")
    if not specs["labels"].dtype.startswith("int"):
        raise RequestError(f"{file}: not an Espalier detector, got labels in {specs['labels'].dtype}; expected int64")
