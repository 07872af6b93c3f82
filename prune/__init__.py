"""What to cut and how. Knows tensors and layers: no data set, no training loop, no detector."""

from typing import TYPE_CHECKING

from command.lazy import lazy_names

if TYPE_CHECKING:
    from prune.choose.criteria import CRITERIA
    from prune.choose.presets import PRESETS
    from prune.choose.recipe import Recipe
    from prune.cost import Cost, LayerCost, cost_of
    from prune.cut.spec import LayerCut, PruneSpec
    from prune.cut.surgery import masked_model, narrowed_model, slim_model
    from prune.follow.groups import Group, Member, find_groups
    from prune.pruning import Decision, Pruned, prune_model
    from prune.recalibration import recalibrating
    from prune.refitting import refit_model
    from prune.slim_file import load_slim, save_slim

__all__ = [
    "CRITERIA",
    "PRESETS",
    "Cost",
    "Decision",
    "Group",
    "LayerCost",
    "LayerCut",
    "Member",
    "PruneSpec",
    "Pruned",
    "Recipe",
    "cost_of",
    "find_groups",
    "load_slim",
    "masked_model",
    "narrowed_model",
    "prune_model",
    "recalibrating",
    "refit_model",
    "save_slim",
    "slim_model",
]

__getattr__ = lazy_names(__name__, __file__)
