"""The deployed model: a folder of one ONNX file, engines built from it, and the `deploy.json` that describes it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from command.errors import RequestError
from command.files import existing_file, model_from_json, sha256_of
from deploy.engine import read_engine_info
from deploy.runtimes.registry import ENGINE, runner_for
from deploy.runtimes.runner import FileRunner
from deploy.tensors import TensorSpec

__all__ = ["DEPLOYMENT", "INPUTS", "ONNX_NAME", "OUTPUTS", "Deployed", "Deployment", "Precision", "open_deployment"]

ONNX_NAME = "model.onnx"
DEPLOYMENT = "deploy.json"
"""How to feed the ONNX file beside it."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]

INPUTS = ("image", "image_hw")
OUTPUTS = ("boxes_xyxy", "scores", "labels")
"""What every deployed detector takes and gives."""
_DEBUG = {"nms_converged"}
_REMEDY = "expected a folder that espalier deploy export wrote, or the ONNX file or an engine in it"


class Deployment(BaseModel):
    """The content of `deploy.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    preprocessing: str
    """For people."""
    classes: tuple[str, ...]
    precision: Precision
    versions: dict[str, str]
    """Of the libraries that wrote the file."""
    sha256: dict[str, str]
    """Of the ONNX file, by its name."""
    model: str
    """The model file it was made from: its name, or its path from the folder's parent where it is below that."""
    model_sha256: str
    parity: dict[str, Any] | None
    """How the file compares with PyTorch; None where nothing could be compared."""
    compared_on: str
    """What both were run on."""
    config: dict[str, Any]
    """The settings of the export."""
    mmdet: str | None = None
    """Name of mmdet's config, where the model is none of ours."""
    nms_rounds: int | None = None
    """Rounds of suppression, where it is arithmetic."""
    network_hw: tuple[int, int] | None = None
    """What the detector sees, where that is not the input: images are scaled inside the graph then."""


@dataclass(frozen=True)
class Deployed:
    """A deployed detector: an ONNX file, or an engine built from it."""

    file: Path
    deployment: Deployment

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What the file takes."""
        return self.deployment.inputs

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """What the file gives."""
        return self.deployment.outputs

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that the file takes."""
        height, width = self.inputs["image"].fixed_shape("image")[2:]
        return height, width

    @property
    def network_hw(self) -> tuple[int, int]:
        """Height and width that the detector inside sees."""
        return self.deployment.network_hw or self.size_hw

    @property
    def is_as_exported(self) -> bool:
        """Whether the file, or what the engine was built from, is what `deploy.json` describes."""
        made_from = read_engine_info(self.file).onnx_sha256 if self.file.suffix == ENGINE else sha256_of(self.file)
        return made_from in self.deployment.sha256.values()

    def runner(self, runtime: str | None = None) -> FileRunner:
        """Return what runs the file, on all CPU cores of this process.

        Args:
            runtime: A name in `deploy.runtimes.registry.RUNTIMES`; that of the file's kind unless given.

        Raises:
            RequestError: If inputs or outputs are not those in `deploy.json`; else as `runner_for`.
            WorkError: If the runtime needs a GPU and finds none.
        """
        runner = runner_for(self.file, runtime, _num_cores())
        for got, expected in ((runner.inputs, self.inputs), (runner.outputs, self.outputs)):
            if got != expected:
                raise RequestError(f"{self.file}: not what its {DEPLOYMENT} describes, got {got}; expected {expected}")
        return runner


def open_deployment(path: str | Path, *, may_differ: bool = False) -> Deployed:
    """Return the detector in a folder; nothing is run yet.

    Args:
        path: The folder, whose ONNX file is taken, or an ONNX file or engine with their `deploy.json` beside it.
        may_differ: Whether an ONNX file that was changed after its export will do.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If it is no detector, not what its `deploy.json` describes, or an engine of another file.
    """
    path = Path(path)
    file = existing_file(path / ONNX_NAME if path.is_dir() else path, _REMEDY)
    deployment = model_from_json(Deployment, file.parent / DEPLOYMENT, _REMEDY)
    if file.suffix == ENGINE:
        info = read_engine_info(file)
        _check_names(file, {*info.inputs, *info.outputs})
    _check_names(file, {*deployment.inputs, *deployment.outputs})
    deployed = Deployed(file, deployment)
    if not (may_differ or deployed.is_as_exported):  # another detector's classes would have these names
        raise RequestError(f"{file}: not as exported, its {DEPLOYMENT} records another sha256; export it again")
    return deployed


def _check_names(file: Path, names: set[str]) -> None:
    expected = {*INPUTS, *OUTPUTS}
    if names - _DEBUG != expected:
        raise RequestError(
            f"{file}: not a detector of ours, got inputs and outputs {', '.join(sorted(names - _DEBUG))}; "
            f"expected {', '.join(sorted(expected))}"
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
