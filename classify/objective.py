"""What a classifier is trained for: the labels, smoothed or mixed, and the scores of a teacher."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from classify.backbones import default_normalisation
from classify.checkpoint import ModelCard, check_classes, load_classifier
from classify.classifier_model import ClassifierModel
from classify.own_backbone import normalisation_of
from command.bounds import Bounds
from command.errors import RequestError

__all__ = ["Objective", "TrainedClassifier"]


@dataclass(frozen=True)
class Objective:
    """What is learnt besides the labels themselves; the defaults are the paper's: nothing."""

    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes (Szegedy et al. 2016)."""
    mixup: float = 0.0
    """Alpha of the Beta distribution from which the share of a second image is drawn, once a batch (Zhang et al. 2018);
    0 = images are not mixed."""
    teacher: Path | None = None
    """Model file of a classifier of the same classes, such as the dense one, whose scores are learnt too (Hinton et al.
    2015)."""
    teacher_share: float = 0.5
    """Share of the loss that compares with the teacher; the labels have the rest."""
    temperature: float = 4.0
    """Divides the scores of both before they are compared."""

    def __post_init__(self) -> None:
        """Raise RequestError for a number out of range."""
        for name, bounds in _BOUNDS.items():
            bounds.check(name, getattr(self, name))

    def effective(self) -> dict[str, Any]:
        """Return the settings that have an effect, as JSON values."""
        of_teacher = ("teacher", "teacher_share", "temperature")
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return {name: value for name, value in settings.items() if value and (self.teacher or name not in of_teacher)}

    def scores_of_teacher(self, student: ModelCard) -> Callable[[Tensor], Tensor] | None:
        """Return what the teacher scores normalised images with, None without one.

        Raises:
            MissingFileError: If there is no such file.
            RequestError: If it is no classifier of the student's classes, or of images normalised as theirs.
        """
        if self.teacher is None:
            return None
        teacher, card = load_classifier(self.teacher)
        check_classes(self.teacher, card, student.classes)
        if normalisation_of(teacher) != default_normalisation(student.backbone.name):
            raise RequestError(
                f"objective.teacher: sees other images, got {card.backbone.name} with another mean and deviation than "
                f"{student.backbone.name}; expected the same"
            )
        if not self.teacher_share:
            raise RequestError("objective.teacher_share: 0 with a teacher; expected above 0, or no teacher")

        @torch.no_grad()
        def scores(images: Tensor) -> Tensor:
            return teacher.to(images.device)(images)

        return scores


_BOUNDS = {
    "label_smoothing": Bounds(0, 1),
    "mixup": Bounds(0, 100),
    "teacher_share": Bounds(0, 1),
    "temperature": Bounds(1e-3, 1e3),
}


class TrainedClassifier(ClassifierModel):
    """A classification network that is trained for an objective.

    Args:
        net: The network.
        objective: What it is trained for.
        teacher: Scores of normalised images; None without a teacher.
    """

    def __init__(self, net: nn.Module, objective: Objective, teacher: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(net)
        self.objective, self.teacher = objective, teacher  # a function: its weights are not the model's

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str = "tensor") -> Any:
        """Return {"loss"} in mode "loss", else what ClassifierModel does."""
        if mode != "loss":
            return super().forward(inputs, data_samples, mode)
        images, others, share = self._mixed(inputs, data_samples)
        scores = self.net(images)
        smoothing = self.objective.label_smoothing
        losses = (cross_entropy(scores, labels, label_smoothing=smoothing) for labels in (data_samples, others))
        loss = next(losses) * (1 - share) + (next(losses) * share if share else 0.0)
        if self.teacher is None:
            return {"loss": loss}
        of_teacher = self.objective.teacher_share
        distance = _distance(scores, self.teacher(images), self.objective.temperature)
        return {"loss": (1 - of_teacher) * loss + of_teacher * distance}

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the images, each mixed with another of the batch; the labels of the others; and their share."""
        alpha = self.objective.mixup
        if not alpha:
            return images, labels, 0.0
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        return images.lerp(images.flip(0), share), labels.flip(0), share


def _distance(scores: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Return the Kullback-Leibler divergence of softened scores, times the temperature squared (Hinton et al. 2015)."""
    ours, theirs = ((s / temperature).log_softmax(1) for s in (scores, expected))
    return kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
