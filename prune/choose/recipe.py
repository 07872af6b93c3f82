"""Recipe: how much is cut, by which criterion, where, and how it is distributed among layers."""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import numpy as np
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from torch import Tensor

from command.bounds import Bounds
from command.errors import RequestError
from command.files import shown
from prune.choose.criteria import REDUCTIONS, Criterion, criterion_kind
from prune.follow.groups import Group

__all__ = ["LIMITS", "RANKINGS", "Ranking", "Recipe", "check_ratio", "resolved"]

Ranking = Literal["uniform", "global"]
RANKINGS: tuple[Ranking, ...] = ("uniform", "global")
LIMITS = {"max_macs": "macs", "max_params": "params", "max_activations": "activations"}
"""Name of a limit -> the cost it is on."""
_PATTERNS = "a list of patterns"
_WORDS = {"is_instance_of": _PATTERNS, "sequence_str": _PATTERNS, "dict_type": "a dict of patterns"}
"""Kind of pydantic's fault -> what is expected, where its own words are of Python's types."""


def check_ratio(prune_ratio: float, subject: str = "prune_ratio") -> None:
    """Raise RequestError unless `prune_ratio`, the share of channels removed, lies in [0, 1)."""
    if not 0 <= prune_ratio < 1:
        fault = "would remove all channels or more" if prune_ratio >= 1 else "out of range"
        raise RequestError(f"{subject}: {fault}, got {prune_ratio}; expected a share in [0, 1)")


def _plain(value: object) -> object:
    """Return a value, Python's own number in place of numpy's; pydantic would take a tensor for the number in it."""
    if isinstance(value, Tensor):
        raise ValueError("Input should be a number of Python or numpy")
    return value.item() if isinstance(value, np.generic) else value


Share = Annotated[float, BeforeValidator(_plain)]
"""Share of channels removed, [0, 1)."""
Whole = Annotated[int, BeforeValidator(_plain)]


@dataclass(frozen=True)
class Recipe:
    """What `prune_model` does: a ratio or one limit, a criterion, and what differs from layer to layer.

    A group is named by any layer that writes its channels; patterns are as in file names (`layer1.*`).
    """

    amounts: ClassVar[tuple[str, ...]] = ("prune_ratio", *LIMITS)
    """Fields that set how much is cut: exactly one of them is given."""

    prune_ratio: Share | None = None
    """Share of channels removed, [0, 1): of each group (uniform), or of all groups together (global)."""
    max_macs: Whole | None = None
    """Limit for one image instead of a ratio; as much as possible is kept."""
    max_params: Whole | None = None
    max_activations: Whole | None = None
    """Limit on the outputs' elements of all convolutions and linear layers."""
    criterion: str = "l1"
    """What ranks the channels of a group: a key of `prune.choose.criteria.CRITERIA`, or `package.module:Class`, a
    criterion of your own."""
    reduction: str = "sum"
    """How the scores of layers that are cut together become one: sum, mean, max or first."""
    ranking: Ranking = "uniform"
    """`uniform`: the same share from every group; `global`: the lowest scores of all groups together."""
    round_to: Whole = 1
    """The kept channels of a group are moved to the nearest multiple of it."""
    min_channels: Whole = 1
    """Every layer keeps at least this many channels; a narrower one keeps all of its own."""
    ratios: Mapping[str, Share] = field(default_factory=dict)
    """Pattern -> ratio for its layers; the first match counts."""
    widths: Mapping[str, Whole] = field(default_factory=dict)
    """Pattern -> channels that the layer keeps, exactly; the first match counts, before `ratios`."""
    skip: Sequence[str] = ()
    """Patterns whose groups stay whole."""
    dense_widths: Mapping[str, Whole] = field(default_factory=dict)
    """Group of a slim model -> its width in the dense one, of which ratios are shares: steps of 0.2, 0.4 and 0.5 then
    end with the widths of a single one of 0.5. Of other groups they are shares of what is there."""
    unused: Sequence[str] = ()
    """Patterns of parameters that no forward pass ever uses; any other that the example does not reach may be fed with
    any channel, so that all stay."""
    within_groups: bool = False
    """Cut channels within the groups of a convolution, the same of every group, in place of whole groups. Steps are
    finer where groups are few; channels are chosen less freely, and kernels change their shape."""
    select_channels: bool = False
    """Let every reader behind a channel selection choose among the channels of a sum or concatenation, which stays
    whole; without this they go for all readers alike. See `prune.selection`."""
    norm_widths: bool = False
    """Also cut channels that are normalised together: by a LayerNorm, by a mean, deviation or norm over channels that
    keeps their dimension, within the groups of a GroupNorm (without this, whole groups go), or as inputs of a
    standardised weight. That changes what the norm computes: the slim model is no longer equal to the masked one:
    only shapes are checked, and the numbers of all other cuts."""

    def __post_init__(self) -> None:
        """Raise RequestError for values of a wrong kind, unknown names, numbers out of range, or not one amount."""
        for name, kind in _kinds().items():
            object.__setattr__(self, name, _of_kind(kind, name, getattr(self, name)))
        self._check_amount()
        criterion_kind(self.criterion)
        if self.reduction not in REDUCTIONS:
            raise RequestError(f"reduction: unknown, got {self.reduction!r}; expected one of {sorted(REDUCTIONS)}")
        for name in ("round_to", "min_channels"):
            Bounds(1, 65_536).check(name, getattr(self, name))
        for name in LIMITS:
            Bounds(0, 2**63).check(name, getattr(self, name) or 0)
        if self.prune_ratio is not None:
            check_ratio(self.prune_ratio)
        for pattern, ratio in self.ratios.items():
            check_ratio(ratio, f"ratios[{pattern!r}]")

    def _check_amount(self) -> None:
        amounts = [name for name in self.amounts if getattr(self, name) is not None]
        if len(amounts) != 1:
            raise RequestError(
                f"recipe: how much to cut is not clear, got {' and '.join(amounts) or 'none'}; "
                f"expected one of {', '.join(self.amounts)}"
            )

    @property
    def following(self) -> dict[str, bool]:
        """What decides how channels are followed, as options of `ChannelNodes`."""
        names = ("norm_widths", "within_groups", "select_channels")
        return {name: getattr(self, name) for name in names}

    @property
    def limit(self) -> tuple[str, int] | None:
        """The limit's name and value, or None where a ratio is given."""
        return next(((name, value) for name in LIMITS if (value := getattr(self, name)) is not None), None)

    def own_ratio(self, group: Group) -> float | None:
        """Return the ratio that `ratios` has for the group, if any."""
        return next((ratio for pattern, ratio in self.ratios.items() if _matches(group, pattern)), None)

    def own_width(self, group: Group) -> int | None:
        """Return how many of the group's channels `widths` keeps, or None if it has no entry for them.

        Raises:
            RequestError: If the group cannot have that width.
        """
        for pattern, width in self.widths.items():
            if _matches(group, pattern):
                unit = _unit(group, pattern)
                if not 0 < width <= group.num_channels * unit or width % unit:
                    step = f" in steps of {unit}" if unit > 1 else ""
                    raise RequestError(
                        f"widths[{pattern!r}]: does not fit {group.name}, got {width}; "
                        f"expected {unit} to {group.num_channels * unit}{step}"
                    )
                return width // unit
        return None

    def num_shared(self, group: Group) -> int:
        """Return how many channels of the group ratios are shares of."""
        return self.dense_widths.get(group.name, group.width) // group.unit

    def reason_whole(self, group: Group) -> str | None:
        """Return why the group stays whole, if it cannot be cut or is skipped."""
        skipped = (f"skipped by the recipe ({pattern})" for pattern in self.skip if _matches(group, pattern))
        return group.obstacle or next(skipped, None)

    def check_widths(self, groups: Sequence[Group]) -> None:
        """Raise RequestError if a width is given to a layer, by its own name, that cannot be cut: widths are exact."""
        for group in (group for group in groups if group.obstacle):
            for name in (name for name in group.producers if self.widths.get(name, group.width) != group.width):
                raise RequestError(f"widths[{name!r}]: cannot be cut, {group.obstacle}; expected {group.width} or none")

    def check_patterns(self, groups: Sequence[Group]) -> None:
        """Raise RequestError if a pattern matches no layer; the message lists the nearest names."""
        names = list(dict.fromkeys(name for group in groups for name in (group.producers or (group.name,))))
        for pattern in (*self.ratios, *self.widths, *self.skip):
            if not fnmatch.filter(names, pattern):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
                raise RequestError(
                    f"{pattern}: no layer of the model matches; nearest names: {', '.join(near) or 'none'}"
                )


def resolved(
    recipe: Recipe | float | None, criterion: Criterion | str | None, given: Mapping[str, Any]
) -> tuple[Recipe, Criterion | None]:
    """Return the recipe and the criterion object, if there is one, that a public pruning function was given.

    Args:
        recipe: One, or the `prune_ratio` of one whose other fields are given by name.
        criterion: An object made on the model, in place of the recipe's; or the recipe's by name.
        given: Fields of `Recipe`, where none is given.

    Raises:
        RequestError: If fields are unknown, given beside a recipe, or do not fit together.
    """
    if isinstance(criterion, str):
        criterion, given = None, {**given, "criterion": criterion}
    if criterion is not None and not hasattr(criterion, "member_scores"):
        raise RequestError(
            f"criterion: ranks no channels, got {shown(repr(criterion))}; expected a Criterion or a name"
        )
    names = [one.name for one in fields(Recipe)]
    for name in given:
        if name not in names:
            near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4)) or "none"
            raise RequestError(f"{name}: no field of Recipe, got {shown(repr(given[name]))}; nearest names: {near}")
    if isinstance(recipe, Recipe) and given:
        raise RequestError(f"{next(iter(given))}: given beside a recipe; expected it in the recipe")
    if isinstance(recipe, Recipe):
        return recipe, criterion
    if recipe is not None and "prune_ratio" in given:
        raise RequestError(f"prune_ratio: given twice, got {given['prune_ratio']!r} beside {recipe!r}; expected one")
    return Recipe(**(given if recipe is None else {"prune_ratio": recipe, **given})), criterion


@cache
def _kinds() -> dict[str, TypeAdapter[Any]]:
    """Return what checks each field of a recipe."""
    hints = get_type_hints(Recipe, include_extras=True)
    return {one.name: TypeAdapter(hints[one.name]) for one in fields(Recipe)}


def _of_kind(kind: TypeAdapter[Any], name: str, value: Any) -> Any:
    """Return the value of a field with Python's own numbers.

    Raises:
        RequestError: If it is of another kind.
    """
    try:
        return kind.validate_python(dict(value) if isinstance(value, Mapping) else value, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
    where = f"{name}[{fault['loc'][0]!r}]" if fault["loc"] else name
    expected = _WORDS.get(fault["type"], fault["msg"].rpartition("Input should be ")[2])
    raise RequestError(f"{where}: wrong, got {shown(repr(fault['input']))}; expected {expected}")


def _unit(group: Group, pattern: str) -> int:
    """Return how many channels of the layer that the pattern names go with one channel of the group.

    A grouped convolution may write more than it reads, and both sides are in one group.
    """
    layers = (m for m in group.members if m.side == "out" and fnmatch.fnmatchcase(m.layer, pattern))
    return next((len(member.channels) // group.num_channels for member in layers), 0) or group.unit


def _matches(group: Group, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (group.name, *group.producers))
