"""Model files: one `.safetensors` that rebuilds itself. No pickle is executed to read one."""

import io
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import torch
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from safetensors.torch import save_file
from torch import Tensor, nn

from classify.augmentation import CropShare
from classify.backbones import Architecture, Widths, build_classifier, default_normalisation, weightless
from classify.class_order import is_same_order
from classify.data import MEAN, STD
from classify.naming import renamed, unwrapped
from classify.own_backbone import check_named, name_backbone
from command.errors import RequestError, WorkError, is_of_the_machine
from command.files import existing_file, shown, written_atomically
from deploy.ranges import check_finite
from prune.cut.spec import PruneSpec
from prune.selection import ChannelSelection

__all__ = [
    "UNREADABLE",
    "ModelCard",
    "Preprocessing",
    "Side",
    "check_classes",
    "check_weights",
    "has_card",
    "load_classifier",
    "load_weights",
    "name_own",
    "read_card",
    "read_weights",
    "save_model",
    "torch_content",
]

UNREADABLE = (
    *(safetensors.SafetensorError, pickle.UnpicklingError, struct.error, EOFError, AssertionError),
    *(RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError),
)
"""What reading a damaged or foreign file raises; torch's reader does not wrap errors of its parser."""
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""Those of weights that a network can copy as they are."""
_KEY = "espalier"
_VERSION = 1
_REMEDY = "expected a model file"
_LISTED = 5
"""Weights that do not fit are named, so many of them."""
Side = Annotated[int, Field(ge=1, le=16_384)]
"""Of an image, in pixels."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network sees it."""

    image_hw: tuple[Side, Side]
    """Height and width that the network is made for, in pixels: a classifier's crop, what a detector's image is scaled
    to fit."""
    mean_rgb: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = MEAN
    """Subtracted, for pixels of 0 to 255."""
    std_rgb: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = STD
    """Divided by, after the mean is subtracted."""
    keep_ratio: bool = True
    """False where a foreign detector was trained on images stretched to its shape."""
    crop_share: CropShare = 1.0
    """Of a classifier: its image is scaled until `image_hw` is this share of the shorter side, then cropped."""

    @classmethod
    def of(cls, backbone: str, image_hw: tuple[int, int], crop_share: float = 1.0) -> "Preprocessing":
        """Return that of a network, by its name, with its own normalisation."""
        return cls(image_hw, *default_normalisation(backbone), crop_share=crop_share)


@dataclass(frozen=True)
class ModelCard:
    """Metadata of a model file: what its weights are and how they were made."""

    kind: Literal["classifier", "detector"]
    backbone: Architecture
    """Its name is empty where mmdet's config says which backbone a detector has."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    preprocessing: Preprocessing = Preprocessing((224, 224))
    settings: Mapping[str, Any] | None = None
    """Arguments of `detect.model.DetectorSettings`, for detectors; None where mmdet's config has the parts around the
    backbone."""
    widths: Widths = field(default_factory=dict)
    """(inputs, outputs) of a slim detector's narrower layers outside the backbone; of all where it has no name."""
    spec: Mapping[str, Any] | None = None
    """The PruneSpec that made it slim, or None. The backbone's layers have the classifier's names."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Parents' hashes, config, data fingerprint, metrics, versions."""

    @property
    def prune_spec(self) -> PruneSpec | None:
        """The spec as an object."""
        return None if self.spec is None else PruneSpec.from_json(json.dumps(self.spec))

    @property
    def is_foreign(self) -> bool:
        """Whether it is a detector of mmdet's own parts, which is opened with mmdet's config."""
        return self.kind == "detector" and self.settings is None

    @property
    def is_slim(self) -> bool:
        """Whether anything of it was cut."""
        return bool(self.backbone.is_slim or self.widths)

    def check_dense(self, subject: object) -> None:
        """Raise RequestError if the model was pruned before."""
        if self.is_slim:
            raise RequestError(f"{subject}: slim already; expected a dense model")


_CARD = TypeAdapter(with_config(ConfigDict(extra="forbid"))(ModelCard))


def save_model(path: str | Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and card as one file, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    fields = asdict(card)
    if not card.backbone.removed_blocks:  # as earlier versions read it
        del fields["backbone"]["removed_blocks"]
    metadata = {_KEY: json.dumps({"version": _VERSION, **fields})}
    with written_atomically(path) as partial:
        try:
            save_file(weights, partial, metadata)
        except safetensors.SafetensorError as error:  # of the disk: it wraps what the system answers
            raise WorkError(f"{path}: cannot be written, {error}; free some space, or give another --out") from error


def read_card(path: str | Path) -> ModelCard:
    """Return the card of a model file without reading its weights.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the file is not a model file of this project.
    """
    path = existing_file(path, _REMEDY)
    try:
        with safetensors.safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})[_KEY])
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{path}: not an espalier model file; expected a .safetensors written by espalier"
        ) from error
    if not isinstance(fields, dict) or fields.pop("version", None) != _VERSION:
        raise RequestError(f"{path}: written by another version of espalier; expected model file version {_VERSION}")
    try:
        return _CARD.validate_python(fields)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RequestError(
            f"{path}: its card is damaged, {where} {fault['msg']}, got {fault['input']!r:.200}; "
            "expected a file written by espalier"
        ) from error


def has_card(path: Path) -> bool:
    """Return whether a file is a model file of this project, whatever its version."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            return _KEY in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in a `.safetensors` or PyTorch file; nothing in it is executed.

    What a training program wraps them in is removed: see `classify.naming.unwrapped`.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is neither format, or would execute code.
    """
    path = existing_file(path, _REMEDY)
    try:
        data = _safetensors_content(path) if path.suffix == ".safetensors" else torch_content(path)
    except UNREADABLE as error:
        if is_of_the_machine(error):
            raise
        raise RequestError(
            f"{path}: no plain weights inside; expected .safetensors or a file of tensors only, as "
            "torch.save(net.state_dict(), FILE) writes it"
        ) from error
    data = unwrapped(data)
    named = data.items() if isinstance(data, dict) else ()
    weights = {name: tensor for name, tensor in named if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not isinstance(data, dict) or (data and not weights):
        keys = f" of {', '.join(map(str, list(data)[:5]))}" if isinstance(data, dict) else ""
        got = shown(f"{type(data).__name__}{keys}")
        raise RequestError(f"{path}: no named weights inside, got a {got}; expected a state dict")
    for name, tensor in weights.items():
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided or tensor.is_meta:
            got = f"{tensor.dtype} as {tensor.layout} on {tensor.device}"
            raise RequestError(f"{path}: {name!r:.200} is not a plain weight, got {got}; expected dense real numbers")
    weights.pop("n_averaged", None)  # a count of torch's AveragedModel
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}


def _safetensors_content(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def torch_content(path: Path, map_location: Any = "cpu") -> Any:
    """Return the tensors, numbers and text in a PyTorch file; nothing in it is executed.

    Raises:
        Exception: One of `UNREADABLE` if it is damaged, or would execute code.
    """
    content = io.BytesIO(path.read_bytes())  # from a path, a cut-off file raises OSError, as a bad disk would
    return torch.load(content, map_location=map_location, weights_only=True)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    subject: str,
    optional: tuple[str, ...] = (),
    in_same_order: bool = False,
) -> None:
    """Copy all weights into `model`.

    Args:
        model: Modified.
        weights: By parameter name, or by another library's; see `classify.naming.renamed`.
        subject: Where they come from, for the error.
        optional: Name prefixes (a head) that may be missing or have another shape; the model keeps its own.
        in_same_order: See `classify.naming.renamed`.

    Raises:
        RequestError: If a name or shape differs, or a weight is not a finite number of its kind.
    """
    own = model.state_dict()
    fits = _fitting(model, {**_selecting_all(model), **renamed(weights, own, in_same_order)}, subject, optional)
    for name, tensor in fits.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise RequestError(f"{subject}: weight {name} has no fractions, got {tensor.dtype}; expected real numbers")
        if tensor.is_floating_point() and not own[name].is_floating_point() and not tensor.equal(tensor.round()):
            raise RequestError(f"{subject}: weight {name} has fractions, got {tensor.dtype}; expected whole numbers")
        if name.endswith("running_var") and (tensor < 0).any():
            raise RequestError(f"{subject}: weight {name} is no variance, got numbers below 0; expected none")
    fits = {name: tensor.to(own[name].dtype) for name, tensor in fits.items()}
    check_finite(subject, fits, "train again")
    model.load_state_dict(fits, strict=False)


def _selecting_all(model: nn.Module) -> dict[str, Tensor]:
    """Return the indices of selections that pass on all channels: others' weights of dense networks lack them."""
    selections = {name: module for name, module in model.named_modules() if isinstance(module, ChannelSelection)}
    return {f"{name}.index": one.index for name, one in selections.items() if len(one.index) == one.num_in}


def check_weights(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], subject: str) -> None:
    """Check that weights fit a network before its memory is taken: a damaged card may describe one of any size.

    Args:
        build: Makes the network; called where tensors take no memory.
        weights: By parameter name.
        subject: Where they come from, for the error.

    Raises:
        RequestError: If a name or shape differs.
    """
    with weightless():
        _fitting(build(), weights, subject, ())


def _fitting(
    model: nn.Module, weights: Mapping[str, Tensor], subject: str, optional: tuple[str, ...]
) -> dict[str, Tensor]:
    own = model.state_dict()
    fits = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    wrong = [n for n in (own.keys() | weights.keys()) - fits.keys() if not n.startswith(optional or ("\0",))]
    wrong = sorted(n for n in wrong if not n.endswith("num_batches_tracked"))
    if wrong:
        found = [
            f"{shown(name)} got {_shape(weights, name, 'nothing')}; expected {_shape(own, name, 'no such layer')}"
            for name in wrong[:_LISTED]
        ]
        more = f" (and {len(wrong) - _LISTED} more)" if len(wrong) > _LISTED else ""
        more += f"; its names begin with {next(iter(weights))!r:.100}" if weights and not fits else ""
        raise RequestError(f"{subject}: of another architecture, {', '.join(found)}{more}")
    return fits


def _shape(weights: Mapping[str, Tensor], name: str, otherwise: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else otherwise


def load_classifier(path: str | Path, backbone: str | None = None) -> tuple[nn.Module, ModelCard]:
    """Rebuild a classifier from its file alone, and the code that makes its network if that is not ours.

    Args:
        path: Model file.
        backbone: Your own code, `package.module:function`; it is run. The file must say the same.

    Raises:
        RequestError: If the file holds something else, or a network of code that the user has not named.
    """
    card = read_card(path)
    if card.kind != "classifier":
        raise RequestError(f"{path}: holds a {card.kind}; expected a classifier")
    if len(card.classes) != card.backbone.num_classes:
        got = f"{len(card.classes)} classes for {card.backbone.num_classes} scores"
        raise RequestError(f"{path}: its card is damaged, got {got}; expected a file written by espalier")
    name_own(card, path, backbone)
    weights = read_weights(path)
    check_weights(lambda: build_classifier(card.backbone), weights, str(path))
    model = build_classifier(card.backbone)
    load_weights(model, weights, str(path))
    return model.eval(), card


def name_own(card: ModelCard, path: str | Path, backbone: str | None) -> None:
    """Name the code that makes a model file's network, where it is the user's own.

    Args:
        card: Of the file.
        path: Of the file, for the error.
        backbone: The user's words; None where they were said before, in this process.

    Raises:
        RequestError: If the file says something else.
    """
    if backbone:
        name_backbone(backbone)
        if backbone != card.backbone.name:
            raise RequestError(f"{path}: made by another network, got {shown(card.backbone.name)!r}; not {backbone}")
    check_named(card.backbone.name, path)


def check_classes(model: str | Path, card: ModelCard, classes: tuple[str, ...]) -> None:
    """Raise RequestError unless the data's classes are those of the model file, in order; see `is_same_order`."""
    if not is_same_order(card.classes, classes):
        got, expected = (f"{len(names)} ({', '.join(names[:3])} ...)" for names in (classes, card.classes))
        raise RequestError(f"{model}: knows other classes than the data has, got {got}; expected {expected}")
