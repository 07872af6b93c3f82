"""The responses of the original network that a pruned layer is fitted to, at the places where its rows are sampled."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.private import Call, PrivateModel, bookkeeping
from prune.refit.residual_sums import ResidualSums
from prune.refit.rows import Batches, Drawn, ReachedError, Rows, calls_of, check_finite, maps_of, rows_read, run_on

__all__ = ["Responses"]


@dataclass(frozen=True, eq=False)
class _Response:
    """Of one layer to one batch."""

    values: Tensor
    """What it writes, or the residual sum that it feeds, (R, O)."""
    factors: Tensor | None = None
    """Of the layer's output in the sum, or None where it is its own target."""


class Responses:
    """Responses of a model that stays as it is; they take 4 bytes for each row and output channel of all layers.

    Args:
        model: The original network; it is only read.
        layers: Conv2d and Linear layers.
        batches: The data; it must come in the same order each time.
        num_positions: Places per image.
        seed: Of the places.
        residual: Where a layer's output goes into a residual sum, at once or through a BatchNorm, the sum is the
            target.

    Raises:
        RequestError: If no batch comes, or a layer is not reached.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        batches: Batches,
        num_positions: int,
        seed: int,
        residual: bool = False,
    ) -> None:
        self._batches, self._num_positions, self._seed = _SameEachTime(batches), num_positions, seed
        self._of: dict[str, list[_Response]] = {layer: [] for layer in layers}
        private = PrivateModel(model)
        sums = ResidualSums(self._note_sum) if residual else None
        for name in layers:
            hook = partial(self._note, name, sums)
            private.modules[name].register_forward_hook(hook, with_kwargs=True)
        for batch, call in enumerate(calls_of(self._batches)):
            self._batch, self._seen = batch, dict[str, _Response]()
            run_on(private, call, *([sums] if sums else []))
            for name in layers:
                check_finite(name, [self._seen[name].values] if name in self._seen else [])
                self._of[name].append(self._seen[name])

    def num_rows(self, layer: str) -> int:
        """Return how many rows there are for a layer."""
        return sum(len(response.values) for response in self._of[layer])

    def factors(self, layer: str) -> Tensor | None:
        """Return what BatchNorm multiplies each output by before the residual sum that is its target, or None."""
        return self._of[layer][0].factors

    def rows(self, model: nn.Module, layer: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what a layer reads of each batch in the pruned network (R, D), and what it should write then (R, O).

        That is the original response; or what lets the residual sum be the original one, whatever the pruned network
        adds to it: Y1 + Y2 - Y2' of He et al., sec. 3.3.
        """
        if self._of[layer][0].factors is None:
            for batch, rows in enumerate(rows_read(model, layer, self._batches)):
                places = self._places(layer, batch, rows.num_images, rows.num_places)
                yield rows.at(*places).cpu(), self._of[layer][batch].values
            return
        for batch, (rows, written, total, scale_O) in enumerate(_sums_of(model, layer, self._batches)):
            places = self._places(layer, batch, rows.num_images, rows.num_places)
            missing_RO = self._of[layer][batch].values - _at(total, *places)
            yield rows.at(*places).cpu(), _at(written, *places) + (missing_RO / scale_O).nan_to_num(posinf=0, neginf=0)

    def _places(self, layer: str, batch: int, num_images: int, num_places: int) -> tuple[Tensor, Tensor]:
        return Drawn(self._seed, layer, batch).places(num_images, num_places, self._num_positions)

    def _at_places(self, name: str, maps_NCHW: Tensor) -> Tensor:
        with bookkeeping():  # the places are not among the random numbers of the model
            places = self._places(name, self._batch, len(maps_NCHW), maps_NCHW[0, 0].numel())
            return _at(maps_NCHW, *places)

    def _note(
        self, name: str, sums: ResidualSums | None, layer: nn.Module, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        self._seen[name] = _Response(self._at_places(name, maps_of(layer, output)))
        if sums:
            sums.follow(name, layer, output)

    def _note_sum(self, name: str, layer: nn.Module, total: Tensor, scale_O: Tensor) -> None:
        self._seen[name] = _Response(self._at_places(name, maps_of(layer, total)), scale_O)


def _at(maps_NCHW: Tensor, images_R: Tensor, places_R: Tensor) -> Tensor:
    """Return the numbers of all channels at these places, (R, C), float32 on the CPU."""
    return maps_NCHW.flatten(2)[images_R.to(maps_NCHW.device), :, places_R.to(maps_NCHW.device)].float().cpu()


def _sums_of(model: nn.Module, layer: str, batches: Batches) -> Iterator[tuple[Rows, Tensor, Tensor, Tensor]]:
    """Yield, for each batch, what a layer reads, what it writes, the sum it feeds and its factor in that sum."""
    private = PrivateModel(model)
    own, seen = private.modules[layer], list[Tensor]()

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
        read = next(iter((*args, *kwargs.values())))
        seen[:] = read.clone(), maps_of(own, output).clone()  # what follows may write to them
        sums.follow(layer, own, output)

    def stop(name: str, module: nn.Module, total: Tensor, scale_O: Tensor) -> None:
        seen.extend((maps_of(module, total), scale_O))
        raise ReachedError

    sums = ResidualSums(stop)
    own.register_forward_hook(note, with_kwargs=True)
    for call in calls_of(batches):
        seen.clear()
        with suppress(ReachedError):
            run_on(private, call, sums)
        check_finite(layer, seen if len(seen) == 4 else [])
        yield Rows(own, seen[0]), seen[1], seen[2], seen[3]


class _SameEachTime:
    """Batches that are refused when they change from one time to the next.

    Args:
        batches: The data.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._known: list[list[float]] | None = None

    def __call__(self) -> Iterator[Call]:
        """Yield the batches."""
        seen: list[list[float]] = []
        for call in calls_of(self._batches):
            by_image = [torch.atleast_1d(tensor)[:, None].flatten(1).double() for tensor in call.tensors()]
            seen.append([number for tensor in by_image for number in tensor.sum(1).tolist()])
            self._check(seen, len(seen))
            yield call
        self._check(seen, None)
        self._known = seen

    def _check(self, seen: list[list[float]], num: int | None) -> None:
        if self._known is not None and seen != self._known[:num]:
            raise RequestError(
                f"batches: batch {len(seen)} is not the same as the first time; "
                "expected the same images in the same order each time: no shuffling, no random changes"
            )
