"""Images -> labels: classification backbones, their data, training, evaluation and model files."""

from typing import TYPE_CHECKING

from command.lazy import lazy_names

if TYPE_CHECKING:
    from classify.backbones import BACKBONES, Architecture, build_classifier, build_trunk
    from classify.checkpoint import ModelCard, load_classifier, read_card, read_weights, save_model
    from classify.own_backbone import OwnBackbone
    from classify.pruning import prune_classifier

__all__ = [
    "BACKBONES",
    "Architecture",
    "ModelCard",
    "OwnBackbone",
    "build_classifier",
    "build_trunk",
    "load_classifier",
    "prune_classifier",
    "read_card",
    "read_weights",
    "save_model",
]

__getattr__ = lazy_names(__name__, __file__)
