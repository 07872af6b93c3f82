"""A layer before and after pruning: channels, costs, and the thresholds that predict its speed on a GPU.

Both the prediction from shapes (`prune.explain`) and the measurement of files (`deploy.explain`) use these rows; they
need neither torch nor a model.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["CAUSES", "GRID", "LAG", "MEMORY_BOUND", "MULTIPLES", "Cause", "Finding", "LayerRow", "padded"]

Cause = Literal["misaligned", "memory_bound", "half_cut", "uncut"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

GRID = 8
"""Half precision runs on multiples of this many channels; others are padded with zeros up to the next one.

Source: NVIDIA, Convolutional Layers User's Guide, "Channels In And Out"; cuDNN pads since version 7.6.3.
"""
MULTIPLES = (32, 16, 8)
MEMORY_BOUND = 69
"""MACs per byte below which moving data takes longer than computing.

Source: NVIDIA, GPU Performance Background User's Guide: a V100 does 125e12 operations in half precision and moves 900e9
bytes a second, 139 operations or 69 MACs per byte. An A100 or H100 does more per byte: more layers are bound there.
"""
LAG = 0.75
"""A layer gains too little if its time, or what it moves, falls by less than this share of the fall of its MACs.

Bytes fall as MACs do in a depthwise layer, and where weights outweigh activations. Where activations outweigh weights
they fall half as much if one side was cut, or both by little. The threshold is halfway. Nets cut inside their blocks
only, on one side of most layers, gain less at equal MACs: Liu et al., Group Fisher Pruning, ICML 2021, 1.30x against
1.79x.
"""


@dataclass(frozen=True)
class Finding:
    """Why a layer will gain less than its MACs suggest, or nothing."""

    cause: Cause
    text: str


@dataclass(frozen=True)
class LayerRow:
    """A convolution or linear layer, dense and slim; costs are for one image."""

    name: str
    type: str
    dense_channels_in: int
    channels_in: int
    dense_channels_out: int
    channels_out: int
    groups: int
    """Of the slim convolution; 1 for a linear layer."""
    dense_macs: int
    macs: int
    dense_activations: int
    activations: int
    """Elements of the output, as in `prune.cost`."""
    dense_params: int
    params: int
    dense_bytes: int
    bytes: int
    """Input, output and weights in half precision, each moved once per call."""
    reason: str | None
    """Why its outputs are untouched, or None."""
    findings: tuple[Finding, ...] = ()

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Dense and slim channels of the sides "in" and "out"."""
        return {
            "in": (self.dense_channels_in, self.channels_in),
            "out": (self.dense_channels_out, self.channels_out),
        }

    @property
    def sides_cut(self) -> tuple[str, ...]:
        """Which of "in" and "out" lost channels."""
        return tuple(side for side, (dense, slim) in self.widths.items() if slim < dense)

    @property
    def multiple_of(self) -> int:
        """The largest of 32, 16 and 8 that divides the output channels, else 1."""
        return next((multiple for multiple in MULTIPLES if self.channels_out % multiple == 0), 1)

    @property
    def padding(self) -> float:
        """Share of its work spent on zeros, where pruning took the channels off the grid of 8."""
        return 1 - math.prod(num / padded(num) for _, num in self.off_grid)

    @property
    def runs_as_before(self) -> bool:
        """Whether it runs with as many channels as the dense layer: it was not cut, or padding undoes the cut."""
        return all(padded(slim) == dense for dense, slim in self.widths.values() if slim < dense)

    @property
    def off_grid(self) -> tuple[tuple[str, int], ...]:
        """Side and channels where these are no longer a multiple of 8."""
        sides = ("in", "out") if self.groups == 1 else ("out",)  # a grouped one's inputs are counted by its groups
        widths = [(side, *self.widths[side]) for side in sides]
        return tuple((side, slim) for side, dense, slim in widths if slim % GRID and dense % GRID == 0)

    @property
    def macs_per_byte(self) -> float:
        """How much it computes per byte moved."""
        return self.macs / self.bytes

    @property
    def slow(self) -> str | None:
        """Why it will gain less than its MACs suggest, or nothing; None if its shapes show no cause."""
        return "; ".join(finding.text for finding in self.findings) or None

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON types."""
        derived = ("multiple_of", "padding", "macs_per_byte", "runs_as_before", "slow")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def padded(num: int) -> int:
    """Return the number of channels that `num` channels run as, with padding."""
    return -(-num // GRID) * GRID
