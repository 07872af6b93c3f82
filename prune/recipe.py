"""Recipe: how much is cut, where, and how it is shared out."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prune.groups import Group

__all__ = ["LIMITS", "RANKINGS", "Ranking", "Recipe", "check_ratio"]

Ranking = Literal["uniform", "global"]
RANKINGS: tuple[Ranking, ...] = ("uniform", "global")
LIMITS = {"max_macs": "macs", "max_params": "params", "max_activations": "activations"}
"""Name of a limit -> the cost it is on."""


def check_ratio(prune_ratio: float, subject: str = "prune_ratio") -> None:
    """Raise ValueError unless `prune_ratio`, the share of channels removed, lies in [0, 1)."""
    if not 0 <= prune_ratio < 1:
        raise ValueError(f"{subject}: would remove all channels or more, got {prune_ratio}; expected a share in [0, 1)")


@dataclass(frozen=True)
class Recipe:
    """What `prune_model` is asked for: a ratio or one limit, and what differs from layer to layer.

    A group is named by any layer that writes its channels; patterns are as in file names (`layer1.*`).
    """

    prune_ratio: float | None = None
    """Share of channels removed, [0, 1): of each group (uniform), or of all groups together (global)."""
    max_macs: int | None = None
    """Limit for one image instead of a ratio; as much is kept as fits."""
    max_params: int | None = None
    max_activations: int | None = None
    """Limit on the outputs' elements of all convolutions and linear layers."""
    ranking: Ranking = "uniform"
    """`uniform`: the same share from every group; `global`: the lowest scores of all groups together."""
    round_to: int = 1
    """Kept channels are moved to the nearest multiple of it."""
    min_channels: int = 1
    """Every layer keeps at least so many, where it has them."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Pattern -> its own ratio; the first match counts."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Pattern -> channels kept, exactly; the first match counts, before `ratios`."""
    skip: Sequence[str] = ()
    """Patterns whose groups stay whole."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        asked = [name for name in ("prune_ratio", *LIMITS) if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(
                f"budget: not clear, got {' and '.join(asked) or 'none'}; "
                f"expected one of prune_ratio, {', '.join(LIMITS)}"
            )
        if self.ranking not in RANKINGS:
            raise ValueError(f"ranking: unknown, got {self.ranking!r}; expected one of {list(RANKINGS)}")
        for name in ("round_to", "min_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: too small, got {getattr(self, name)}; expected 1 or more")
        if self.prune_ratio is not None:
            check_ratio(self.prune_ratio)
        for pattern, ratio in self.ratios.items():
            check_ratio(ratio, f"ratios[{pattern!r}]")

    @property
    def limit(self) -> tuple[str, int] | None:
        """The limit's name and value, or None where a ratio is asked for."""
        return next(((name, value) for name in LIMITS if (value := getattr(self, name)) is not None), None)

    def own_ratio(self, group: Group) -> float | None:
        """Return the ratio that `ratios` has for the group, if any."""
        return next((ratio for pattern, ratio in self.ratios.items() if _matches(group, pattern)), None)

    def own_width(self, group: Group) -> int | None:
        """Return how many of the group's channels `widths` keeps, if it says so.

        Raises:
            ValueError: If the group cannot have that width.
        """
        for pattern, width in self.widths.items():
            if _matches(group, pattern):
                if not 0 < width <= group.width or width % group.unit:
                    step = f" in steps of {group.unit}" if group.unit > 1 else ""
                    raise ValueError(
                        f"widths[{pattern!r}]: does not fit {group.name}, got {width}; "
                        f"expected 1 to {group.width}{step}"
                    )
                return width // group.unit
        return None

    def skip_reason(self, group: Group) -> str | None:
        """Return why the group stays whole, if it was asked to."""
        return next((f"skipped as asked ({pattern})" for pattern in self.skip if _matches(group, pattern)), None)

    def check_patterns(self, groups: Sequence[Group]) -> None:
        """Raise ValueError if a pattern matches no layer; it says which names are near."""
        names = [name for group in groups for name in (group.producers or (group.name,))]
        for pattern in (*self.ratios, *self.widths, *self.skip):
            if not fnmatch.filter(names, pattern):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                raise ValueError(
                    f"{pattern}: no layer of the model matches; nearest names: {', '.join(near) or 'none'}"
                )


def _matches(group: Group, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (group.name, *group.producers))
