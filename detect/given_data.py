"""The data sets of a user's config of mmdet: checked before the work, read as the config says while it runs."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from pydantic import Field

from classify.mmengine_runner import silent
from command.errors import RequestError
from detect.config import CocoData
from detect.data import CocoSet, GivenSet, check_coco, fingerprint
from detect.given_model import reason_of
from detect.openmmlab import DATASETS, CocoDataset, DefaultScope
from detect.train import CheckedCoco

__all__ = ["GivenData", "given_fingerprint", "given_set"]


class GivenData(CocoData):
    """The sets of a config of mmdet; the paths are those of the first of each split."""

    type: Literal["coco"] = "coco"
    settings: Any = Field(exclude=True, repr=False)
    """The config."""

    @classmethod
    def of(cls, settings: Config) -> "GivenData":
        """Return those of a config; raise RequestError if it has none that can be read."""
        train, val = given_set(settings, "train"), given_set(settings, "val")
        return cls(
            root=train.images.parent,
            train_annotations=train.annotations.absolute(),
            train_images=train.images.absolute(),
            val_annotations=val.annotations.absolute(),
            val_images=val.images.absolute(),
            settings=settings,
        )

    @property
    def train(self) -> GivenSet:
        """What detectors learn from."""
        return given_set(self.settings, "train")

    @property
    def val(self) -> GivenSet:
        """What they are evaluated on."""
        return given_set(self.settings, "val")

    def check(self) -> tuple[str, ...]:
        """Check all sets; return the class names in the order of their labels.

        Raises:
            MissingFileError: As `check_coco`.
            RequestError: As `check_coco`, or if a file has other classes than the config.
        """
        train, val = self.train, self.val
        if train.classes != val.classes:
            got, expected = _some(val.classes), _some(train.classes)
            raise RequestError(
                f"{self.settings.filename}: val_dataloader: other classes, got {got}; expected {expected}"
            )
        for one in dict.fromkeys((*train.sets, *val.sets)):
            if (names := check_coco(one)) != train.classes:
                raise RequestError(
                    f"{one.annotations}: other classes than the config's metainfo has, got {_some(names)}; "
                    f"expected {_some(train.classes)}, all of them in the same order"
                )
        return train.classes


_CHECKED = "CheckedSet"


@DATASETS.register_module(name=_CHECKED)
def _checked_set(kind: Any, **settings: Any) -> Any:
    """Return a data set of the config's class, with the annotations that were checked, as `CheckedCoco` has them."""
    dataset = DATASETS.build({**settings, "type": kind, "lazy_init": True})
    dataset.COCOAPI = CheckedCoco.COCOAPI
    dataset.full_init()
    return dataset


def given_set(settings: Config, split: Literal["train", "val"]) -> GivenSet:
    """Return what a config's loader of a split reads.

    Raises:
        RequestError: If there is no such loader, its sets are not of COCO's format, or their classes differ.
    """
    where, loader = f"{settings.filename}: {split}_dataloader", settings.get(f"{split}_dataloader")
    if not isinstance(loader, Mapping) or not isinstance(loader.get("dataset"), Mapping):
        raise RequestError(f"{where}: no dataset, got {loader}; expected dict(dataset=dict(type=...), ...)")
    leaves = [_opened(where, leaf) for leaf in _leaves(loader["dataset"])]
    found = dict.fromkeys(CocoSet(Path(leaf.ann_file), Path(leaf.data_prefix.get("img", ""))) for leaf in leaves)
    classes = {tuple(leaf.metainfo["classes"]) for leaf in leaves}
    if len(classes) > 1:
        raise RequestError(f"{where}: sets of other classes, got {' and '.join(map(str, classes))}; expected the same")
    if split == "val" and len(leaves) != 1:
        raise RequestError(f"{where}: evaluated on one set, got {len(leaves)}; expected one annotation file")
    dataset, first = _with_checked_leaves(loader["dataset"]), next(iter(found))
    return GivenSet(first.annotations, first.images, {**loader, "dataset": dataset}, (*found,), classes.pop())


def given_fingerprint(coco: GivenSet) -> str:
    """Return a hash of the content of all sets."""
    return hashlib.sha256(json.dumps([fingerprint(one) for one in coco.sets]).encode()).hexdigest()


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"


def _inner(dataset: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a wrapper of sets that hold what it wraps."""
    return ((name, dataset[name]) for name in ("dataset", "datasets") if name in dataset)


def _leaves(dataset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the sets that are wrapped in others: concatenated, repeated, mixed or balanced by class."""
    inner = [part for _, value in _inner(dataset) for part in (value if isinstance(value, list | tuple) else [value])]
    return [leaf for part in inner for leaf in _leaves(part)] if inner else [dataset]


def _with_checked_leaves(dataset: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        name: [*map(_with_checked_leaves, value)] if isinstance(value, list | tuple) else _with_checked_leaves(value)
        for name, value in _inner(dataset)
    }
    return {**dataset, **inner} if inner else {**dataset, "type": _CHECKED, "kind": dataset["type"]}


def _opened(where: str, leaf: Mapping[str, Any]) -> Any:
    """Return a set before it reads its annotations: it joins the paths."""
    try:
        with DefaultScope.overwrite_default_scope("mmdet"), silent():
            dataset = DATASETS.build({**leaf, "lazy_init": True, "pipeline": []})
    except Exception as error:
        raise RequestError(f"{where}: cannot be built, got {reason_of(error)}; expected a set of mmdet") from error
    if not isinstance(dataset, CocoDataset):
        raise RequestError(f"{where}: not of COCO's format, got {type(dataset).__name__}; expected CocoDataset")
    return dataset
