"""Rows sampled from the data: what one output of a layer reads, at random places of its map.

Shape letters: R rows, D numbers that one output reads, O output channels, N images.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from command.errors import RequestError
from prune.modes import FORWARD_ERRORS, first_line
from prune.private import Call, PrivateModel

__all__ = [
    "Batches",
    "Drawn",
    "ReachedError",
    "Rows",
    "calls_of",
    "check_finite",
    "check_rows",
    "maps_of",
    "rows_read",
    "run_on",
]

Batches = Callable[[], Iterable[Any]]
"""Gives the model's inputs, one batch after another: a tensor, or a tuple of positional arguments, batch first.

It is called again for every layer.
"""


class ReachedError(BaseException):
    """Ends a forward pass; not an Exception, which it may catch."""


class Drawn:
    """Random numbers for one batch that a layer reads: the same for the same seed, layer and batch."""

    def __init__(self, seed: int, layer: str, batch: int) -> None:
        self._generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {layer} {batch}".encode()))

    def numbers(self, below: int, num: int) -> Tensor:
        """Return so many whole numbers below a limit; one may come again."""
        return torch.randint(below, (num,), generator=self._generator)

    def places(self, num_images: int, num_places: int, num: int) -> tuple[Tensor, Tensor]:
        """Return the images and places of at most `num` different places in each image."""
        order_NP = torch.rand(num_images, num_places, generator=self._generator)
        places = order_NP.topk(min(num, num_places)).indices
        return torch.arange(num_images).repeat_interleave(places.shape[1]), places.flatten()


class Rows:
    """What one layer reads of one batch, from which rows are taken.

    Args:
        layer: A Conv2d or Linear layer.
        read: Its input.
    """

    def __init__(self, layer: nn.Module, read: Tensor) -> None:
        self._kernel = self._stride = self._dilation = (1, 1)
        self._maps_NCHW = maps_of(layer, read)
        if isinstance(layer, nn.Conv2d):
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            self._maps_NCHW = functional.pad(self._maps_NCHW, layer._reversed_padding_repeated_twice, mode)
            self._kernel, self._stride, self._dilation = layer.kernel_size, layer.stride, layer.dilation  # type: ignore[assignment]  # pairs
        spans = (dilation * (kernel - 1) for kernel, dilation in zip(self._kernel, self._dilation, strict=True))
        sizes = zip(self._maps_NCHW.shape[-2:], spans, self._stride, strict=True)
        self._height, self._width = ((size - span - 1) // stride + 1 for size, span, stride in sizes)
        self.num_images, self.num_places = len(self._maps_NCHW), self._height * self._width

    def at(self, images_R: Tensor, places_R: Tensor) -> Tensor:
        """Return the rows (R, D) of these images at these places of the layer's output, counted row by row."""
        corners = (places_R // self._width, places_R % self._width)
        indices = (
            (corner[:, None] * stride + dilation * torch.arange(kernel)).to(self._maps_NCHW.device)
            for corner, kernel, stride, dilation in zip(
                corners, self._kernel, self._stride, self._dilation, strict=True
            )
        )
        down_RH, across_RW = indices
        images = images_R.to(self._maps_NCHW.device)[:, None, None]
        found_RHWC = self._maps_NCHW.permute(0, 2, 3, 1)[images, down_RH[:, :, None], across_RW[:, None, :]]
        return found_RHWC.permute(0, 3, 1, 2).flatten(1).float()


def maps_of(layer: nn.Module, tensor: Tensor) -> Tensor:
    """Return what a Conv2d or Linear layer reads or writes as maps (N, C, H, W); positions of Linear are a column."""
    if isinstance(layer, nn.Linear):
        return tensor.reshape(len(tensor), -1, tensor.shape[-1]).transpose(1, 2)[..., None]
    return tensor.reshape(-1, *tensor.shape[-3:])


def rows_read(model: nn.Module, layer: str, batches: Batches) -> Iterator[Rows]:
    """Yield what a layer reads of each batch, in eval mode; the model runs no further than that.

    Raises:
        RequestError: If no batch comes, one does not reach the layer, or what the layer reads is not finite.
    """
    private = PrivateModel(model)
    read: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read[:] = [*args, *kwargs.values()][:1]
        raise ReachedError

    own = private.modules[layer]
    own.register_forward_pre_hook(stop, with_kwargs=True)
    for call in calls_of(batches):
        read.clear()
        with suppress(ReachedError):
            run_on(private, call)
        check_finite(layer, read)
        yield Rows(own, read[0])


def run_on(private: PrivateModel, call: Call, *modes: AbstractContextManager[Any]) -> None:
    """Run a model on copies of a batch, without gradients.

    Args:
        private: The model; where it is to run again with parameters of its own, its hooks are called twice.
        call: The batch.
        modes: Entered around the forward pass.

    Raises:
        RequestError: If its forward pass fails.
    """
    try:
        private.run(call, torch.no_grad(), *modes)
    except FORWARD_ERRORS as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(
            f"batches: the model fails on one, {first_line(error)}; expected inputs like the example"
        ) from error


def check_finite(layer: str, seen: Sequence[Tensor]) -> None:
    """Raise RequestError if a batch has not reached a layer, or what it reads or gives is not finite."""
    if not seen:
        raise RequestError(f"batches: do not reach {layer}, which the example input does; expected inputs like it")
    if not seen[0].isfinite().all():
        raise RequestError(f"{layer}: what it reads is not finite, got NaN or inf; expected finite weights and data")


def calls_of(batches: Batches) -> Iterator[Call]:
    """Yield the call of each batch.

    Raises:
        RequestError: If there is none, or one is no input of a model or has no images.
    """
    found = batches()
    if not isinstance(found, Iterable):
        raise RequestError(f"batches: gives no batches, got {type(found).__name__}; expected them one after another")
    num = 0
    for num, batch in enumerate(found, 1):
        if not isinstance(batch, Tensor | tuple | list | Call):
            raise RequestError(
                f"batches: batch {num} is no input, got {type(batch).__name__}; expected a tensor or a tuple"
            )
        call = Call.of(batch)  # type: ignore[arg-type]  # it takes tensors and lists too
        if any(tensor.ndim and not len(tensor) for tensor in call.tensors()[:1]):
            raise RequestError(f"batches: batch {num} is empty, got 0 images; expected at least one")
        yield call
    if not num:
        raise RequestError("batches: no batch to sample from, got 0; expected at least one, each time it is called")


def check_rows(layer: str, group: str, num_rows: int, num_unknown: int) -> None:
    """Raise RequestError unless there are more rows than unknowns in the fit of a layer that reads a group."""
    if num_rows <= num_unknown:
        raise RequestError(
            f"batches: too few rows to refit {layer}, got {num_rows} for {num_unknown} unknowns; "
            f"expected more images or num_positions, or skip {group}"
        )
