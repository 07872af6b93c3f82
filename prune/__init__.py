"""What to cut and how. Knows tensors and layers: no data set, no training loop, no detector."""

from prune.cost import Cost, LayerCost, cost_of
from prune.groups import Group, Member, find_groups
from prune.presets import PRESETS
from prune.pruning import Decision, Pruned, prune_model
from prune.recipe import Recipe
from prune.spec import LayerCut, PruneSpec
from prune.surgery import masked_model, narrowed_model, slim_model

__all__ = [
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
    "masked_model",
    "narrowed_model",
    "prune_model",
    "slim_model",
]
