"""Early-bird tickets: the channels that slimming would keep settle long before the training ends."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.choose.recipe import Recipe, check_ratio
from prune.learn.method import Learned
from prune.learn.slimming import NetworkSlimming
from prune.private import Inputs

__all__ = ["EarlyBird", "mask_distances"]


def mask_distances(masks_KC: Tensor) -> Tensor:
    """Return the share of places in which the last mask differs from each of those before it, in their order."""
    return (masks_KC[:-1] != masks_KC[-1]).double().mean(1)


class EarlyBird(NetworkSlimming):
    """Network Slimming that watches, for several ratios at once, whether its choice of channels still changes.

    After every epoch a mask is drawn for each ratio: the BatchNorm scales strictly above the value at int(N * ratio) of
    all N, sorted. A ticket is drawn as soon as the newest mask differs from each of the ones before it, `window` with
    itself, in no more than the tolerance. Cut the network then (`slim`) and train on; the penalty stays on.

    Args:
        model: As for `NetworkSlimming`, like all that is not named here.
        example_inputs: As there.
        recipe: As there; the method is settled once the ticket of its ratio is drawn, where that is watched.
        ratios: Shares of channels removed that are watched, all different.
        window: Masks that are compared, at least 2.
        tolerance: Largest distance, of all places, [0, 1].
        penalty: As there.

    Raises:
        RequestError: As there, or if one of these is out of its range.

    Source: You et al., Drawing Early-Bird Tickets, ICLR 2020, sec. 3 and its code, class EarlyBird.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        recipe: Recipe,
        ratios: Sequence[float] = (0.3, 0.5, 0.7),
        window: int = 5,
        tolerance: float = 0.1,
        penalty: float = 1e-4,
    ) -> None:
        _check(ratios, window, tolerance)
        super().__init__(model, example_inputs, recipe, penalty)
        self.ratios, self.window, self.tolerance = tuple(ratios), window, tolerance
        self._drawn = torch.full((len(self.ratios),), -1)
        num_scales = sum(len(scale) for scale in self.scales(model))
        self._masks_RKC = torch.zeros(len(self.ratios), 0, num_scales, dtype=torch.bool)

    @property
    def drawn(self) -> dict[float, int]:
        """Ratio -> the epoch after which its ticket was drawn, for those that were."""
        return {ratio: epoch for ratio, epoch in zip(self.ratios, self._drawn.tolist(), strict=True) if epoch >= 0}

    @property
    def is_settled(self) -> bool:
        """Whether the ticket of the recipe's ratio is drawn."""
        return self.recipe.prune_ratio in self.drawn

    def distance(self, ratio: float) -> float:
        """Return in what share of places the newest mask of a watched ratio differs most from one before it."""
        return mask_distances(self._masks_RKC[self.ratios.index(ratio)]).max().item()

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Draw this epoch's masks, and compare them with those of the last epochs."""
        scales_C = torch.cat([scale.detach().abs() for scale in self.scales(model)]).cpu()
        in_order = scales_C.sort().values
        thresholds = [in_order[int(len(scales_C) * Fraction(str(ratio)))] for ratio in self.ratios]
        newest_RC = torch.stack([scales_C > threshold for threshold in thresholds])
        self._masks_RKC = torch.cat([self._masks_RKC, newest_RC[:, None]], 1)[:, -self.window :]
        for place, masks_KC in enumerate(self._masks_RKC if self._masks_RKC.shape[1] == self.window else ()):
            if self._drawn[place] < 0 and (mask_distances(masks_KC) <= self.tolerance).all():
                self._drawn[place] = epoch

    def slim(self, model: nn.Module, **fields: Any) -> Learned:
        """Return the slim copy of the model, cut by its scales as they are now: `prune_ratio=` one that was drawn."""
        return super().slim(model, **fields)

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of the last epochs, and when tickets were drawn."""
        ratios = torch.tensor(self.ratios, dtype=torch.float64)
        return {"ratios": ratios, "masks": self._masks_RKC.clone(), "drawn": self._drawn.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks and tickets."""
        super().load_state_dict(state)
        own, other = ((one["ratios"].tolist(), one["masks"].shape[-1]) for one in (self.state_dict(), state))
        if own != other:
            raise RequestError(
                f"EarlyBird: the state has other ratios or another number of channels, got {other}; expected {own}"
            )
        self._masks_RKC, self._drawn = state["masks"].cpu().clone(), state["drawn"].cpu().clone()


def _check(ratios: Sequence[float], window: int, tolerance: float) -> None:
    for ratio in ratios:
        check_ratio(ratio, "ratios")
    if not ratios or len({*ratios}) < len(ratios):
        raise RequestError(f"ratios: none, or one twice, got {ratios}; expected one or more different ones")
    if not isinstance(window, int) or window < 2:
        raise RequestError(f"window: no number of masks to compare, got {window!r}; expected a whole one, 2 or more")
    if not 0 <= tolerance <= 1:
        raise RequestError(f"tolerance: out of range, got {tolerance}; expected a share in [0, 1]")
