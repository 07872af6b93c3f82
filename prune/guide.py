"""Pruning as architecture search: what one pruned network keeps, stage by stage, as ratios for another network.

Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, section 5: guided pruning, and transferred
guided pruning where networks or data sets differ.
"""

import bisect
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from command.errors import RequestError
from prune.choose.forecast import Forecast
from prune.choose.recipe import Recipe
from prune.cost import cost_of
from prune.layer_rows import LayerRow
from prune.pruning import Scored

__all__ = ["By", "guided_ratios", "random_widths", "stage_shares", "stages_of"]

By = Literal["position", "stage"]
"""What shares are averaged over: the layers of a stage with one place in their blocks (`conv1`), or all of a stage."""
Key = tuple[int, str]
_STEPS = 1000
"""Of the scale of a random network, from nothing kept to everything."""


def stages_of(rows: Sequence[LayerRow]) -> dict[str, int]:
    """Return the stage of each convolution: 0 where its feature map is the largest, then 1 where it is the next."""
    sizes = {row.name: row.dense_activations // row.dense_channels_out for row in rows if row.type != "linear"}
    places = sorted(set(sizes.values()), reverse=True)
    return {name: places.index(size) for name, size in sizes.items()}


def stage_shares(rows: Sequence[LayerRow], by: By = "position") -> dict[Key, float]:
    """Return the average kept share of output channels, by stage and place in a block ("" if all count)."""
    found: dict[Key, list[float]] = {}
    stages = stages_of(rows)
    for row in (row for row in rows if row.name in stages):
        key = _key(row.name, stages[row.name], by)
        found.setdefault(key, []).append(row.channels_out / row.dense_channels_out)
    return {key: sum(shares) / len(shares) for key, shares in found.items()}


def guided_ratios(source: Sequence[LayerRow], target: Sequence[LayerRow], by: By = "position") -> dict[str, float]:
    """Return `Recipe.ratios` that leave another network, stage by stage, the average share that a pruned one keeps.

    Args:
        source: Layers of the pruned network.
        target: Layers of the other network, dense. A place that the source does not have stays whole.
        by: What shares are averaged over.

    Raises:
        RequestError: If the networks have different numbers of stages, or nothing was cut in the source.
    """
    stages = stages_of(target)
    theirs, ours = (max(found.values(), default=-1) + 1 for found in (stages_of(source), stages))
    if theirs != ours:
        raise RequestError(
            f"stages: do not correspond, got {theirs} sizes of feature maps in the pruned network and {ours} in the "
            "other; expected as many"
        )
    shares = stage_shares(source, by)
    if all(share == 1 for share in shares.values()):
        raise RequestError("guide: nothing was cut in the pruned network; expected a slim one")
    ratios = {name: 1 - shares.get(_key(name, stage, by), 1.0) for name, stage in stages.items()}
    return _shortened({name: round(ratio, 6) for name, ratio in ratios.items() if ratio > 0}, stages)


def random_widths(dense: nn.Module, example: tuple[Tensor, ...], max_macs: int, seed: int) -> dict[str, int]:
    """Return `Recipe.widths` of a random network of at most so many MACs, as near as one scale for all shares gets.

    Every group that can be cut draws a share, and all shares are scaled alike.

    Raises:
        RequestError: If no network has so few.
    """
    scored = Scored.of(dense, example, Recipe(0.0))
    forecast = Forecast(scored.model, scored.free, scored.ranked, cost_of(dense, example))
    generator = random.Random(seed)
    drawn = {group.name: generator.random() for group in scored.free}

    def kept(step: int) -> dict[str, int]:
        # at half the steps shares are as drawn; towards both ends they go to none and to all
        power = (_STEPS - step) / max(step, 1e-9)
        return {group.name: max(1, round(group.num_channels * drawn[group.name] ** power)) for group in scored.free}

    def macs(step: int) -> int:
        return forecast.cost(kept(step))["macs"]

    fitting = bisect.bisect_right(range(_STEPS + 1), max_macs, key=macs) - 1
    if fitting < 0:
        raise RequestError(f"max_macs: below what can be reached, got {max_macs}; expected at least {macs(0)}")
    return {group.name: kept(fitting)[group.name] * group.unit for group in scored.free}


def _key(name: str, stage: int, by: By) -> Key:
    block, _, place = name.rpartition(".")
    if by == "stage" or place.isdecimal():
        return stage, ""
    return stage, f"*.{place}" if block else place  # the stem has no block


def _shortened(ratios: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return the ratios by patterns, with `*` for numbers in names, where all that matches is cut alike."""
    known, found = list(names), {}
    for name, ratio in ratios.items():
        pattern = re.sub(r"\.\d+(?=\.)", ".*", name)
        alike = {ratios.get(other) for other in known if fnmatchcase(other, pattern)} == {ratio}
        found[pattern if alike else name] = ratio
    return found
