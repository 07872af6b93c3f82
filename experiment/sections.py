"""The sections of an experiment's config: how networks learn to classify and to detect, and how time is taken."""

from pathlib import Path
from typing import Annotated, Any, Literal

from mmengine.config import Config
from pydantic import Field, model_validator

from classify.augmentation import Augmentation, CropShare
from classify.image_data import AnyImages
from classify.schedule import Schedule
from command.config import Part, Threads
from command.errors import RequestError
from detect.config import AnyBoxes
from detect.foreign import given_step, preprocessing_of
from detect.given_training import GivenSchedule, from_mmdet
from detect.model import DetectorSettings

__all__ = ["Classification", "CropsData", "Detection", "Timing"]


class CropsData(Part):
    """The annotated objects of the detection set, cut out: for pictures that no classification set resembles."""

    type: Literal["crops"]


class Classification(Part):
    """How the backbone learns to classify."""

    data: Annotated[AnyImages | CropsData, Field(discriminator="type")]
    image_size: int = Field(224, ge=32, le=4096)
    """Side of the crops in pixels."""
    crop_share: CropShare = 1.0
    """Side of the crop to evaluate on, as a share of the scaled image's shorter side."""
    augmentation: Augmentation = Augmentation()
    """How training images are drawn."""
    train: Schedule
    """Of the dense network, and of `scratch_e`; `scratch_b` stretches it, decay points included."""
    finetune: Schedule | None
    """Of the pruned network in `prune_transfer`. None, with `backbone.weights`: it is transferred as it was cut, and
    neither are images of classes read nor networks trained from scratch."""
    learning: Schedule | None = None
    """Of the training in which a method such as slimming acts, from the dense network's weights, or for early_bird from
    random ones; None = `train`."""


class Detection(Part):
    """How the detector learns."""

    data: Annotated[AnyBoxes, Field(discriminator="type")]
    model: DetectorSettings | None = None
    """The detector around the backbone; None only with `mmdet_config`."""
    train: Schedule
    """Of every detector that starts from a classifier."""
    finetune: Schedule
    """Of the detector pruned in `transfer_prune`."""
    learning: Schedule | None = None
    """Of the training in which a method such as slimming acts, in `transfer_prune`; None = `train`."""
    mmdet_config: Path | None = None
    """A user's config of mmdet instead of all these: its Faster R-CNN, on our backbone, its data sets and training."""
    mmdet_finetune: Path | None = None
    """Another one whose training is that of the detector pruned in `transfer_prune`; None = the same."""

    @model_validator(mode="before")
    @classmethod
    def _read_from_mmdet(cls, values: Any) -> Any:
        return from_mmdet(values) if isinstance(values, dict) and values.get("mmdet_config") else values

    @model_validator(mode="after")
    def _has_a_detector(self) -> "Detection":
        if self.model is None and self.given is None:
            raise RequestError("model: missing, got no detector; expected model=dict(...), or mmdet_config")
        if self.mmdet_finetune and not self.mmdet_config:
            raise RequestError(f"mmdet_finetune: not used without mmdet_config, got {self.mmdet_finetune}")
        return self

    @property
    def given(self) -> Config | None:
        """The config of mmdet, if there is one."""
        return self.train.settings if isinstance(self.train, GivenSchedule) else None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width that images are scaled to fit."""
        if self.given:
            return preprocessing_of(self.given, given_step(self.given), "val_dataloader").image_hw
        assert self.model is not None
        return self.model.image_size_hw


class Timing(Part):
    """How time is taken."""

    warmup: int = Field(10, ge=1, le=10**6)
    rounds: int = Field(50, ge=10, le=10**6)
    num_threads: Threads = 1
