"""How long the detectors of an experiment are trained beside each other.

- `paper`: as published. `transfer_prune` alone has both `detection.train` and `detection.finetune`.
- `equal_iterations`: every detector sees as many images as that of the longest `transfer_prune`. Where there is one
  training, `detection.train` is stretched; in a shorter `transfer_prune` its last one is.
- `equal_macs`: dense as in `equal_iterations`. The last training of every other row is stretched until all trainings
  that its weights went through, classification too, have as many multiply-adds as those of dense: to the nearest
  epoch, and never below `paper`. The epochs follow from the slim network, so they are found when it is trained
  (`experiment.train_macs.affordable`).
"""

from classify.schedule import Schedule
from experiment.config import ExperimentConfig
from experiment.cuts import Pruning

__all__ = ["on_terms"]


def on_terms(config: ExperimentConfig, ordering: str, pruning: Pruning | None) -> ExperimentConfig:
    """Return the experiment with the detector's trainings as its `terms` have them for one row.

    Args:
        config: The experiment.
        ordering: Of the row.
        pruning: Of the row; None in the dense one.
    """
    if not config.detection or config.terms == "paper" or (config.terms == "equal_macs" and pruning):
        return config
    most = max(_after_train(config, one) for one in config.prunings.values())
    train, finetune = config.detecting.train, config.detecting.finetune
    if ordering == "transfer_prune":
        return _with(config, finetune=_longer(finetune, most - _after_train(config, pruning)))
    return _with(config, train=_longer(train, most))


def _after_train(config: ExperimentConfig, pruning: Pruning | None) -> int:
    """Return the epochs of detection that `transfer_prune` has besides `detection.train`."""
    learning = config.learning_of("detection", pruning)
    between = (pruning.steps - 1) * pruning.epochs_per_step if pruning else 0
    return config.detecting.finetune.epochs + between + (learning.epochs if learning else 0)


def _longer(schedule: Schedule, epochs: int) -> Schedule:
    return schedule.stretched(schedule.epochs + epochs)


def _with(config: ExperimentConfig, **schedules: Schedule) -> ExperimentConfig:
    return config.model_copy(update={"detection": config.detecting.model_copy(update=schedules)})
