"""What `espalier classify train` takes, checked before any work."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, with_config

from classify.augmentation import Augmentation, CropShare
from classify.backbones import check_backbone
from classify.budget import SCRATCH_B_CAP, Budget
from classify.image_data import AnyImages, FolderData, ShapesData
from classify.learning import AnyLearning, check_schedule
from classify.objective import Objective
from classify.schedule import Schedule
from classify.tracking import Backend
from command.config import Part, Seed, Threads
from command.own_code import is_own_code

__all__ = [
    "Backbone",
    "Cap",
    "ClassifierTraining",
    "Dense",
    "Finetune",
    "FolderData",
    "OwnCode",
    "Scratch",
    "ShapesData",
]

with_config(ConfigDict(extra="forbid"))(Schedule)

Cap = Annotated[float, Field(ge=1, le=1000)] | None
"""Most times the dense epochs that `scratch_b` trains; None = no limit."""


class Backbone(Part):
    """The classification network."""

    name: str = "resnet18"
    """One of `classify.backbones.BACKBONES`: torchvision's name, or a network for CIFAR. Or `package.module:function`,
    code of your own; see `classify.own_backbone`."""
    base_channels: int = Field(64, ge=8, le=512)
    """Channels of the stem; the stages follow in proportion."""
    weights: Path | None = None
    """Trained weights (.safetensors, or a PyTorch file of tensors); an experiment then trains no dense network."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_backbone(name)


OwnCode = Annotated[str, AfterValidator(check_backbone)] | None
"""The code of your own that makes the network of a model file, `package.module:function`; None for one of ours."""


class Dense(Backbone):
    """Start from a dense network, from its `weights` or random ones."""

    type: Literal["dense"] = "dense"

    @property
    def file(self) -> Path | None:
        """The file it starts from, if any; `file` is the name of this field in the other starts."""
        return self.weights

    @property
    def code(self) -> str | None:
        """The code of the user's own that makes the network, if it does."""
        return self.name if is_own_code(self.name) else None


class Finetune(Part):
    """Start from the weights of a model file, slim or dense."""

    type: Literal["finetune"]
    file: Path
    backbone: OwnCode = None

    @property
    def code(self) -> str | None:
        """As of `Dense`."""
        return self.backbone


class Scratch(Part):
    """Start from random weights in the architecture of a model file, slim or dense."""

    type: Literal["scratch"]
    file: Path
    backbone: OwnCode = None
    budget: Budget = "scratch_e"
    """`scratch_e`: the epochs of the schedule, which are those of the dense network. `scratch_b`: as many as are the
    same computation in the slim one; decay points move in proportion."""
    scratch_b_cap: Cap = SCRATCH_B_CAP
    """Most times the dense epochs that `scratch_b` trains: 2 as the paper on ImageNet, None = no limit as on CIFAR."""
    finetune_epochs: int = Field(0, ge=0, le=100_000)
    """Added to the epochs of the budget, in the strict comparison with a fine-tuning of that length."""

    @property
    def code(self) -> str | None:
        """As of `Dense`."""
        return self.backbone


class ClassifierTraining(Part):
    """What `espalier classify train` does."""

    start: Annotated[Dense | Finetune | Scratch, Field(discriminator="type")]
    """What is trained."""
    data: Annotated[AnyImages, Field(discriminator="type")]
    image_size: int = Field(224, ge=32, le=4096)
    """Side of the crops in pixels."""
    crop_share: CropShare = 1.0
    """Side of the crop to evaluate on, as a share of the scaled image's shorter side: 224 / 256 on ImageNet."""
    augmentation: Augmentation = Augmentation()
    """How training images are drawn."""
    schedule: Schedule
    objective: Objective = Objective()
    """What is learnt besides the labels."""
    method: Annotated[AnyLearning, Field(discriminator="type")] | None = None
    """A pruning method that acts while training; what it cuts is gone from the model file."""
    seed: Seed = 0
    num_threads: Threads = 1
    """CPU threads of torch; the weights depend on it."""
    validate_every: int = Field(0, ge=0, le=100_000)
    """Epochs between two evaluations during the training, of which the best weights are kept; 0 = in the end alone."""
    tracking: tuple[Backend, ...] = ()
    """Where losses, rates and figures are written while training, besides the curve."""

    @field_validator("method")
    @classmethod
    def _acts(cls, method: AnyLearning | None, info: ValidationInfo) -> AnyLearning | None:
        if method and "schedule" in info.data:
            check_schedule(method.type, info.data["schedule"])
        return method
