"""The time of every node, from the profilers of ONNX Runtime and TensorRT.

Profiling costs time, most of all with many short nodes: total latencies are measured in latency.py instead.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from command.errors import WorkError
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.tensorrt import EngineRunner

__all__ = ["EngineProfiler", "NodeTime", "OnnxProfiler"]

Shapes = tuple[tuple[int, ...], ...]

_NODE = "_kernel_time"  # suffix of ONNX Runtime's node events
_RUN = "model_run"
_REFORMAT, _COPY = "Reformat", "Reformatting CopyNode"  # the second is TensorRT's name for the nodes it inserts


@dataclass(frozen=True)
class NodeTime:
    """One node as the runtime executes it, in the order of execution."""

    name: str
    """As the runtime names it; `onnx_layers.OnnxGraph.sources` finds the nodes of the file in it."""
    operator: str
    """As the runtime names it, such as FusedConv or ReorderInput. For an engine either Reformat or empty."""
    time_ms: float
    """Median over the rounds."""
    input_shapes: Shapes
    """May include padded channels; empty for an engine."""
    output_shapes: Shapes


class OnnxProfiler(OnnxRunner):
    """Runs an ONNX file as OnnxRunner does, and records the time of every node."""

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        self._folder = TemporaryDirectory(prefix="espalier-")
        self._log = Path(self._folder.name) / "nodes"
        super().__init__(path, num_threads=num_threads)

    def node_times(self, rounds: int) -> tuple[NodeTime, ...]:
        """Return the times of the last `rounds` passes, and end profiling.

        Raises:
            WorkError: If events were lost: ONNX Runtime keeps a million.
        """
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_bytes())
        nodes: dict[Any, dict[str, Any]] = {}
        logs = list(_onnx_runs(events, nodes))
        if len(logs) < rounds:
            raise WorkError(
                f"{self.file}: profile is incomplete, got {len(logs)} of {rounds} rounds; measure fewer rounds"
            )
        return tuple(
            NodeTime(
                name=event["name"].removesuffix(_NODE),
                operator=event["args"]["op_name"],
                time_ms=_median(logs[-rounds:], key),
                input_shapes=_shapes(event, "input_type_shape"),
                output_shapes=_shapes(event, "output_type_shape"),
            )
            for key, event in nodes.items()
        )


class EngineProfiler(EngineRunner):
    """Runs an engine as EngineRunner does, and records the time of every layer."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._log = _layer_log(importlib.import_module(self.runtime))
        self._context.profiler = self._log

    def node_times(self, rounds: int) -> tuple[NodeTime, ...]:
        """Return the times of the last `rounds` passes."""
        names = dict.fromkeys(name for run in self._log.passes for name in run)
        return tuple(
            NodeTime(name, _REFORMAT * name.startswith(_COPY), _median(self._log.passes[-rounds:], name), (), ())
            for name in names
        )

    def _launch(self) -> None:
        self._log.passes.append({})
        super()._launch()


def _onnx_runs(events: Sequence[dict[str, Any]], nodes: dict[Any, dict[str, Any]]) -> Iterator[dict[Any, float]]:
    """Yield the milliseconds of every node, run by run; `nodes` gets the first event of each."""
    times: dict[Any, float] = {}
    for event in events:
        if event["name"] == _RUN:  # logged at the end of the run
            yield times
            times = {}
        elif event["cat"] == "Node" and event["name"].endswith(_NODE):
            key = event["name"], event["args"].get("node_index")
            nodes.setdefault(key, event)
            times[key] = times.get(key, 0.0) + event["dur"] / 1000


def _median(runs: Sequence[Mapping[Any, float]], key: Any) -> float:
    return float(np.median([run.get(key, 0.0) for run in runs]))


def _shapes(event: dict[str, Any], which: str) -> Shapes:
    return tuple(tuple(shape) for typed in event["args"].get(which, ()) for shape in typed.values())


def _layer_log(trt: Any) -> Any:
    """Return a TensorRT profiler that records layer times in `passes`, a dictionary for each run."""

    class LayerLog(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind11 needs this explicit call
            self.passes: list[dict[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            run = self.passes[-1]
            run[layer_name] = run.get(layer_name, 0.0) + ms

    return LayerLog()
