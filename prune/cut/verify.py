"""Proof that a slim model computes what it should: it is compared with the dense one without the removed channels.

Constants in a forward pass (sizes of a view, indices, a table) that no longer fit are found only by running it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.cut.spec import PruneSpec, layer_of
from prune.cut.surgery import cut_tensors, removed_of
from prune.follow.nodes import tensors_in
from prune.modes import FORWARD_ERRORS, evaluating, first_line

__all__ = ["fault_of", "finite_weights"]


def finite_weights(model: nn.Module) -> None:
    """Raise RequestError if a parameter or running statistic is NaN or infinite, as channels cannot be ranked by it."""
    measured = [(name, buffer) for name, buffer in model.named_buffers() if "running_" in name]  # a mask may hold inf
    for name, tensor in (*model.named_parameters(), *measured):
        if not tensor.sum().isfinite() and not tensor.isfinite().all():  # a sum takes no memory, but may overflow
            bad = tensor[~tensor.isfinite()][0].item()
            raise RequestError(f"{name}: a weight is not finite, got {bad}; expected a trained model")


def fault_of(model: nn.Module, slim: nn.Module, spec: PruneSpec, example_inputs: tuple[Any, ...]) -> str | None:
    """Return what is wrong with the slim model in words, or None if it computes what it should.

    Both get the same random numbers in the example's shapes, in eval mode. Outputs that are not floating, and models
    that give no finite ones, are not compared. The model's weights are changed while it runs, and restored.

    Args:
        model: The dense model.
        slim: `slim_model(model, spec)`.
        spec: What was cut.
        example_inputs: Positional arguments of both.
    """
    inputs = _random(example_inputs)
    with _unread(model, spec):
        expected = _outputs(model, inputs)
    try:
        actual = _outputs(slim, inputs)
    except FORWARD_ERRORS as error:
        return f"does not run, {first_line(error)}"
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return "gives outputs of other shapes"
    for one, other in zip(expected, actual, strict=True):
        scale, difference = one.abs().max().item(), (one - other).abs().max().item()
        if torch.isfinite(one).all() and not difference <= torch.finfo(one.dtype).eps ** 0.5 * max(scale, 1e-30):
            return f"computes something else, its outputs differ by {difference:.2g} where the largest is {scale:.2g}"
    return None


@contextmanager
def _unread(model: nn.Module, spec: PruneSpec) -> Iterator[None]:
    """Zero, in place and while the block runs, the weights with which layers read removed channels."""
    saved: list[tuple[Tensor, int, Tensor, Tensor]] = []
    try:
        for name, cut in spec.layers.items():
            kept_in = None if cut.kept_in is None else torch.tensor(cut.kept_in, dtype=torch.long)
            for tensor, kept_by_dim in cut_tensors(layer_of(model, name), kept_in, None):
                for dim, kept in kept_by_dim.items():
                    removed = removed_of(tensor, dim, kept)
                    saved.append((tensor.data, dim, removed, tensor.data.index_select(dim, removed)))
                    tensor.data.index_fill_(dim, removed, 0)
        yield
    finally:
        for data, dim, removed, values in reversed(saved):  # a tensor that two layers share was saved twice
            data.index_copy_(dim, removed, values)


def _random(example_inputs: tuple[Any, ...]) -> Any:
    """Return normal noise in place of every floating tensor; all others (indices, for example) stay."""
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    return torch.utils._pytree.tree_map(noise, example_inputs)


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)  # for models that draw numbers even in eval mode
        return [tensor for tensor in tensors_in(model(*inputs)) if tensor.is_floating_point() and tensor.numel()]
