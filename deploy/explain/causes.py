"""Pairs the layers of a dense and a slim ONNX file, with their times, and finds why some gain too little.

Terms and thresholds are those of `prune.explain`, which predicts from shapes; here times are measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from command.errors import RequestError
from deploy.explain.node_times import NodeTime
from deploy.explain.onnx_layers import LAYOUT, OnnxGraph, OnnxLayer
from prune.layer_rows import GRID, LAG, LayerRow

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = [
    "CAUSES",
    "MEANS",
    "SHORT",
    "STAGES",
    "Cause",
    "Ceilings",
    "LayerMs",
    "MeasuredLayer",
    "Reason",
    "RemovedLayer",
    "Split",
    "is_memory_bound",
    "is_short",
    "lags",
    "paired_layers",
    "reasons",
    "removed_layers",
    "row_of",
    "split_of",
    "stages_of",
    "type_of",
]

Cause = Literal["misaligned", "memory_bound", "half_cut", "uncut", "overhead", "layout", "unexplained"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
MEANS: dict[Cause, str] = {
    "misaligned": f"channel counts that are no multiples of {GRID} are padded, or run by a slower routine",
    "memory_bound": "limited by moving its inputs, outputs and weights, which fell less than its MACs",
    "half_cut": "cut on one side only: the data moved on the other side stayed the same",
    "uncut": "not pruned, as slow as before",
    "overhead": "starting it takes at least a third of its time",
    "layout": "its channels are reordered before and after it",
    "unexplained": "no cause in its shapes and times; this machine runs smaller layers less efficiently",
}

STAGES = ("backbone", "neck", "rpn", "roi_head", "postprocessing")
NETWORK = "network"
"""The only stage of a file that is not an Espalier detector."""
_PARTS = {
    "backbone.": "backbone",
    "neck.": "neck",
    "proposals.head.": "rpn",
    "detections.roi_align.": "roi_head",
    "detections.head.": "roi_head",
}
"""Prefix of weight names in `detect.fixed_shape` -> stage."""
_ROI_ALIGN = ("GridSample", "RoiAlign")
_BOXES = ("rpn", "roi_head")  # what follows these is arithmetic on boxes, until the next of them

_EXPECTED = "expected a dense network and the slim one pruned from it, in this order"
SHORT = 3
"""A node is limited by its start if it takes at most this many times as long as the shortest one."""
_MEMORY_SHARE = 1 / 3  # a layer can be limited by memory if moving its bytes takes at least this share of its time
_MUCH_LAYOUT = 0.1  # share of the layer's own time


@dataclass
class LayerMs:
    """Times of a layer in one of the files."""

    ms: float = 0.0
    layout_ms: float = 0.0
    """Half of every layout change right before or after it."""
    is_alone: bool = True
    """Whether it was timed alone; else a node computed several layers, and its time is shared by their MACs."""


@dataclass
class Split:
    """The times of one file's nodes, by layer and by stage."""

    layers: dict[str, LayerMs] = field(default_factory=dict)
    rest_ms: dict[str, float] = field(default_factory=dict)
    """By stage, the time outside the layers."""
    layout_ms: float = 0.0
    nodes_ms: tuple[float, ...] = ()

    @property
    def total_ms(self) -> float:
        """The time of all nodes."""
        return sum(self.nodes_ms)

    def short_ms(self, shortest_ms: float) -> float:
        """Time of the nodes that are limited by their start."""
        return sum(ms for ms in self.nodes_ms if ms <= SHORT * shortest_ms)


@dataclass(frozen=True)
class Ceilings:
    """The limits of the machine, measured in the same run as the layers."""

    macs_per_ms: float
    """Peak throughput."""
    bytes_per_ms: float
    shortest_ms: float
    """Time of the shortest node: the cost of starting one."""

    @property
    def macs_per_byte(self) -> float:
        """The balance: layers with fewer MACs per byte are limited by memory, unless their data are in a cache."""
        return self.macs_per_ms / self.bytes_per_ms


@dataclass(frozen=True)
class Reason:
    """Why a layer gained nothing, or less than its MACs predict."""

    cause: Cause
    text: str


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer of both files, and its times in each."""

    row: LayerRow
    stage: str
    calls: int
    dense: LayerMs
    slim: LayerMs
    reasons: tuple[Reason, ...] = ()

    @property
    def speedup(self) -> float | None:
        """Dense / slim time; None if one is not known."""
        return self.dense.ms / self.slim.ms if self.dense.ms and self.slim.ms else None

    @property
    def mac_reduction(self) -> float:
        """Dense MACs / slim MACs."""
        return self.row.dense_macs / self.row.macs

    @property
    def lost_ms(self) -> float:
        """How much longer the slim layer takes than if its time had fallen in proportion to its MACs."""
        return self.slim.ms - self.dense.ms / self.mac_reduction

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        predicted = ("reason", "findings", "slow", "runs_as_before")
        row = {name: value for name, value in self.row.to_dict().items() if name not in predicted}
        measured = {name: value for name, value in asdict(self).items() if name != "row"}
        derived = {name: getattr(self, name) for name in ("speedup", "mac_reduction", "lost_ms")}
        return {**row, **measured, **derived}


@dataclass(frozen=True)
class RemovedLayer:
    """A layer that only the dense file has, and what it costs there."""

    layer: OnnxLayer
    stage: str
    dense: LayerMs

    def to_dict(self) -> dict[str, Any]:
        """Return its figures as JSON values."""
        layer = self.layer
        shape = {"channels_in": layer.channels_in, "channels_out": layer.channels_out}
        about = {"name": layer.name, "type": type_of(layer), "stage": self.stage, **shape}
        return {**about, "dense_macs": layer.macs, "dense": asdict(self.dense)}


def paired_layers(dense: OnnxGraph, slim: OnnxGraph, subject: str) -> list[tuple[OnnxLayer, OnnxLayer]]:
    """Return the layers of both files, matched by name, or by order if they have no name in common.

    Args:
        dense: The file before pruning.
        slim: The same layers, some of them narrower, or without some; see `removed_layers`.
        subject: Begins the error message.

    Raises:
        RequestError: If there are no layers, or the files are of two networks.
    """
    if not dense.layers or not slim.layers:
        raise RequestError(f"{subject}: nothing to explain, got no layers with weights; {_EXPECTED}")
    by_order = not dense.layers.keys() & slim.layers.keys()
    partners = dict(zip(dense.layers, slim.layers.values(), strict=False)) if by_order else slim.layers
    removed = {layer.name for layer in removed_layers(dense, slim)}
    odd = sorted((dense.layers.keys() ^ partners.keys()) - removed)
    if odd or len(dense.layers) - len(removed) != len(slim.layers):
        nums = f"{len(dense.layers)} and {len(slim.layers)} layers"
        got = f"{nums}, {odd[0]} in only one of them" if odd else nums
        raise RequestError(f"{subject}: different networks, got {got}; {_EXPECTED}")
    pairs = [(layer, partners[name]) for name, layer in dense.layers.items() if name not in removed]
    for before, after in pairs:
        if not _could_be_cut(before, after):
            got = " and ".join(f"{type_of(one)} {one.channels_in} to {one.channels_out}" for one in (before, after))
            raise RequestError(f"{subject}: different networks, got {before.name} as {got}; {_EXPECTED}")
    return pairs


def removed_layers(dense: OnnxGraph, slim: OnnxGraph) -> list[OnnxLayer]:
    """Return the layers that the slim file does not have, as those of removed blocks; the last one is always there."""
    if [*dense.layers][-1] not in slim.layers:
        return []
    return [layer for name, layer in dense.layers.items() if name not in slim.layers]


def _could_be_cut(dense: OnnxLayer, slim: OnnxLayer) -> bool:
    kinds = [(layer.operator in ("Gemm", "MatMul"), layer.kernel) for layer in (dense, slim)]
    return kinds[0] == kinds[1] and slim.channels_in <= dense.channels_in and slim.channels_out <= dense.channels_out


def row_of(dense: OnnxLayer, slim: OnnxLayer) -> LayerRow:
    """Return both as a row of `prune.explain`; costs are for the whole batch, bytes in the files' precision."""
    return LayerRow(
        name=dense.name,
        type=type_of(slim),
        dense_channels_in=dense.channels_in,
        channels_in=slim.channels_in,
        dense_channels_out=dense.channels_out,
        channels_out=slim.channels_out,
        groups=slim.groups,
        dense_macs=dense.macs,
        macs=slim.macs,
        dense_activations=dense.activations,
        activations=slim.activations,
        dense_params=dense.params,
        params=slim.params,
        dense_bytes=dense.bytes,
        bytes=slim.bytes,
        reason=None,
    )


def type_of(layer: OnnxLayer) -> str:
    """Return the layer type as `prune.explain` names it."""
    if not layer.kernel:
        return "linear"
    kernel = "x".join(map(str, layer.kernel))
    if layer.groups == 1:
        return f"transposed conv {kernel}" if layer.operator == "ConvTranspose" else f"conv {kernel}"
    return f"depthwise {kernel}" if layer.groups == layer.channels_in else f"conv {kernel} in {layer.groups} groups"


def stages_of(graph: OnnxGraph) -> dict[str, str]:
    """Return the stage of every node: that of its weight, or of the weights before and after it."""
    own = {name: _own(node) for name, node in graph.nodes.items()}
    if max(own.values(), default=-1) < 0:
        return dict.fromkeys(graph.nodes, NETWORK)
    before = dict(own)  # the last stage that a node depends on, -1 for none
    after = {name: stage if stage >= 0 else len(STAGES) for name, stage in own.items()}  # the first that needs it
    links = [
        (graph.producers[t], name) for name, node in graph.nodes.items() for t in node.input if t in graph.producers
    ]
    for producer, name in links:
        before[name] = max(before[name], before[producer])
    for producer, name in reversed(links):
        after[producer] = min(after[producer], after[name])
    return {name: _stage(own[name], before[name], after[name]) for name in graph.nodes}


def _own(node: "NodeProto") -> int:
    """Return the index of the stage that a node's weight belongs to, or -1."""
    if node.op_type in _ROI_ALIGN:
        return STAGES.index("roi_head")
    weight = "".join(node.input[1:2]).removeprefix("detector.")  # inside of a ScalingDetector
    return next((STAGES.index(stage) for prefix, stage in _PARTS.items() if weight.startswith(prefix)), -1)


def _stage(own: int, before: int, after: int) -> str:
    if own >= 0 or before == after:
        return STAGES[max(own, before)]
    if before < 0:  # preprocessing of the image or of its size
        return STAGES[after] if after == 0 else STAGES[-1]
    if STAGES[before] in _BOXES:
        return STAGES[-1]
    # the neck's maps are stacked for the RoIs; anything else ends a stage, such as the ReLU after its last layer
    return STAGES[after] if (before, after) == (STAGES.index("neck"), STAGES.index("roi_head")) else STAGES[before]


def split_of(times: Sequence[NodeTime], graph: OnnxGraph, stages: Mapping[str, str]) -> Split:
    """Assign the time of every node to a layer, to a stage or to layout changes.

    Args:
        times: In the order of execution.
        graph: The graph of the file that was timed.
        stages: The stages of its nodes.
    """
    split = Split({name: LayerMs() for name in graph.layers}, dict.fromkeys(stages.values(), 0.0))
    split.nodes_ms = tuple(time.time_ms for time in times)
    owners = {node: layer for layer in graph.layers.values() for node in layer.nodes}
    stage = next(iter(stages.values()))
    beside: list[list[OnnxLayer]] = []  # the layers of each node
    for time in times:
        sources = graph.sources(time.name, time.operator)
        stage = stages[sources[0]] if sources else stage  # an inserted node belongs to the stage that ran before it
        layers = list({owners[node].name: owners[node] for node in sources if node in owners}.values())
        beside.append(layers)
        if layers:
            _share(split, layers, time.time_ms)
        elif not sources and time.operator in LAYOUT:
            split.layout_ms += time.time_ms
        else:
            split.rest_ms[stage] += time.time_ms
    _share_layout(split, times, graph, beside)
    return split


def _share(split: Split, layers: Sequence[OnnxLayer], time_ms: float) -> None:
    macs = sum(layer.macs for layer in layers)
    for layer in layers:
        known = split.layers[layer.name]
        known.ms += time_ms * layer.macs / macs
        known.is_alone &= len(layers) == 1


def _share_layout(
    split: Split, times: Sequence[NodeTime], graph: OnnxGraph, beside: Sequence[Sequence[OnnxLayer]]
) -> None:
    for i, time in enumerate(times):
        if time.operator in LAYOUT and not graph.sources(time.name, time.operator):
            for layers in (beside[max(i - 1, 0)], beside[min(i + 1, len(times) - 1)]):
                for layer in layers:
                    split.layers[layer.name].layout_ms += time.time_ms / 2


def reasons(layer: MeasuredLayer, ceilings: Ceilings) -> list[Reason]:
    """Return why the layer gained clearly less than its MACs predict; empty if it did not, or was not timed alone."""
    row, dense, slim = layer.row, layer.dense, layer.slim
    if not row.sides_cut:
        return [Reason("uncut", f"left whole: {_ms(slim.ms)}, dense {_ms(dense.ms)}")]
    if not (dense.is_alone and slim.is_alone and dense.ms and slim.ms):
        return []
    found = []
    if slim.layout_ms > max(dense.layout_ms, _MUCH_LAYOUT * slim.ms):
        found.append(Reason("layout", f"{_ms(slim.layout_ms)} on top of {_ms(slim.ms)}, dense {_ms(dense.layout_ms)}"))
    if not lags(dense.ms / slim.ms, layer.mac_reduction):
        return found
    found += [*_shape_reasons(layer, ceilings)]
    if is_short(slim.ms / layer.calls, ceilings):
        text = f"{_ms(slim.ms / layer.calls)} per call, the shortest node takes {_ms(ceilings.shortest_ms)}"
        found.append(Reason("overhead", text))
    shares = [macs / ms / ceilings.macs_per_ms for macs, ms in ((row.dense_macs, dense.ms), (row.macs, slim.ms))]
    return found or [Reason("unexplained", f"{_percent(shares[1])} of the peak, dense {_percent(shares[0])}")]


def _shape_reasons(layer: MeasuredLayer, ceilings: Ceilings) -> Iterator[Reason]:
    row = layer.row
    if row.off_grid:
        widths = " and ".join(dict.fromkeys(str(num) for _, num in row.off_grid))
        padded = f"{_percent(row.padding)} of its work if padded"
        yield Reason("misaligned", f"{widths} channels, no multiple of {GRID}: {padded}")
    cuts = [_percent(1 - slim / dense) for dense, slim in ((row.dense_bytes, row.bytes), (row.dense_macs, row.macs))]
    fell = f"bytes moved fell by {cuts[0]}, MACs by {cuts[1]}"
    is_bound = is_memory_bound(row.macs, row.bytes, layer.slim.ms, ceilings)
    if is_bound and lags(_possible_speedup(row, ceilings), layer.mac_reduction):
        yield Reason("memory_bound", f"bound by memory at {row.macs_per_byte:.1f} MACs per byte: {fell}")
    elif len(row.sides_cut) == 1 and lags(row.dense_bytes / row.bytes, layer.mac_reduction):
        yield Reason("half_cut", f"cut on one side: {fell}")


def is_memory_bound(macs: int, num_bytes: int, ms: float, ceilings: Ceilings) -> bool:
    """Return whether a layer does few MACs per byte, and moving its bytes takes a good part of its time."""
    return macs / num_bytes < ceilings.macs_per_byte and num_bytes / ceilings.bytes_per_ms >= _MEMORY_SHARE * ms


def is_short(ms: float, ceilings: Ceilings) -> bool:
    """Return whether starting a node takes a good part of its time."""
    return ms <= SHORT * ceilings.shortest_ms


def lags(reduction: float, mac_reduction: float) -> bool:
    """Return whether a quantity fell clearly less than the MACs: as a share of its old value, or as a ratio."""
    return reduction < LAG * mac_reduction or 1 - 1 / reduction < LAG * (1 - 1 / mac_reduction)


def _possible_speedup(row: LayerRow, ceilings: Ceilings) -> float:
    """Return the speedup if computing or moving data, whichever takes longer, ran at the machine's limit."""
    costs = (row.dense_macs, row.dense_bytes), (row.macs, row.bytes)
    dense_ms, slim_ms = (max(macs / ceilings.macs_per_ms, num / ceilings.bytes_per_ms) for macs, num in costs)
    return dense_ms / slim_ms


def _ms(ms: float) -> str:
    return f"{ms:.3f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
