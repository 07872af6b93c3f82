"""What a study of lottery tickets trains and compares."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from classify.augmentation import Augmentation, CropShare
from classify.backbones import Architecture
from classify.config import Backbone
from classify.image_data import AnyImages
from classify.schedule import Schedule
from command.config import Part, Seed, Threads
from command.errors import RequestError
from experiment.cuts import PruneConfig, Ratio, check_once

__all__ = ["ChannelRounds", "Iterative", "LotteryConfig"]

Rounds = Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], AfterValidator(check_once)]


def _without_data(cut: PruneConfig) -> PruneConfig:
    if cut.needs_data:
        raise RequestError(f"{cut.chosen_by} needs data, got it; expected criteria that need none, as l1")
    return cut


ChannelCut = Annotated[PruneConfig, AfterValidator(_without_data)]


class Iterative(Part):
    """Pruning in rounds: train, remove a share of the weights that are left, rewind, and again."""

    share: Ratio = 0.2
    """Share of the weights left that goes in each round."""
    rounds: Rounds = Field(min_length=1)
    """Rounds whose tickets are compared with their controls; n of them leave (1 - share)^n of the weights."""

    @field_validator("share")
    @classmethod
    def _removes(cls, share: float) -> float:
        if not share:
            raise RequestError("removes nothing, got 0; expected a share above 0, below 1")
        return share


class ChannelRounds(Part):
    """Whole channels in rounds: train, cut what is left once more, rewind, and again."""

    cut: ChannelCut
    """What each round cuts of the slim network that the round before left, by a ratio."""
    rounds: Rounds = Field(min_length=1)
    """Rounds whose tickets are compared with their controls."""

    @field_validator("cut")
    @classmethod
    def _is_a_share(cls, cut: PruneConfig) -> PruneConfig:
        if cut.preset or cut.limit or cut.widths or not (cut.prune_ratio or cut.ratios):
            raise RequestError(
                f"not to be cut in rounds, got {cut.label}; expected a prune_ratio or ratios, above 0, of what is left"
            )
        return cut


class LotteryConfig(Part):
    """What `espalier prune lottery` does: each cut x (ticket, control) x (dense, sparse) scale x rate x seed."""

    backbone: Backbone
    """Without `weights`: a ticket is what the network began with."""
    data: Annotated[AnyImages, Field(discriminator="type")]
    image_size: int = Field(224, ge=32, le=4096)
    """Side of the crops in pixels."""
    crop_share: CropShare = 1.0
    """Side of the crop to evaluate on, as a share of the scaled image's shorter side."""
    augmentation: Augmentation = Augmentation()
    """How training images are drawn."""
    schedule: Schedule
    """Of every training, dense or not, from its first iteration on."""
    lrs: Annotated[tuple[Annotated[float, Field(gt=0, le=1e30)], ...], AfterValidator(check_once)] = ()
    """Learning rates that are compared, each in the place of the schedule's; none = the schedule's alone."""
    one_shot: Annotated[tuple[Ratio, ...], AfterValidator(check_once)] = ()
    """Shares of the convolutions' weights that go at once, the smallest of all layers together."""
    iterative: Iterative | None = None
    """The same in rounds."""
    channels: tuple[ChannelCut, ...] = ()
    """What is cut, as for `espalier prune`: slim networks, by criteria that need no data."""
    channel_rounds: tuple[ChannelRounds, ...] = ()
    """The same in rounds."""
    rewind_iterations: int = Field(0, ge=0, le=10**9)
    """Steps of the dense training after which tickets take their weights; 0 = those it began with."""
    rewind_epochs: int = Field(0, ge=0, le=100_000)
    """The same in epochs; one of the two."""
    seeds: Annotated[tuple[Seed, ...], AfterValidator(check_once)] = Field((0,), min_length=1)
    num_threads: Threads = 1
    """CPU threads of torch; the weights depend on it."""

    @field_validator("backbone")
    @classmethod
    def _from_random(cls, backbone: Backbone) -> Backbone:
        if backbone.weights:
            raise RequestError(f"weights: not used, got {backbone.weights}; expected none, it begins with random ones")
        return backbone

    @field_validator("channels")
    @classmethod
    def _differ(cls, cuts: tuple[PruneConfig, ...]) -> tuple[PruneConfig, ...]:
        check_once(tuple(cut.label for cut in cuts))
        return cuts

    @field_validator("channel_rounds")
    @classmethod
    def _rounds_differ(cls, rounds: tuple[ChannelRounds, ...]) -> tuple[ChannelRounds, ...]:
        check_once(tuple(one.cut.label for one in rounds))
        return rounds

    @field_validator("rewind_epochs")
    @classmethod
    def _one_of_both(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs and info.data.get("rewind_iterations"):
            raise RequestError(f"not used with rewind_iterations, got {epochs}; expected one of the two")
        return epochs

    @model_validator(mode="after")
    def _compares(self) -> "LotteryConfig":
        if not (self.one_shot or self.iterative or self.channels or self.channel_rounds):
            raise RequestError(
                "nothing is cut, got no one_shot, iterative, channels or channel_rounds; expected one or more"
            )
        return self

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates."""
        return self.lrs or (self.schedule.lr,)

    def architecture(self, num_classes: int) -> Architecture:
        """Return the dense network's."""
        return Architecture(self.backbone.name, num_classes, self.backbone.base_channels)

    def check_rewinding(self, num_images: int) -> None:
        """Raise RequestError if the training of so many images ends before the weights of the tickets are there."""
        num_steps = max(1, num_images // self.schedule.batch_size)  # in an epoch, at least
        for name, number, end in (
            ("rewind_iterations", self.rewind_iterations, num_steps * self.schedule.epochs),
            ("rewind_epochs", self.rewind_epochs, self.schedule.epochs),
        ):
            if number >= end:
                raise RequestError(
                    f"{name}: not before the end of the training, got {number}; expected fewer than {end}"
                )
