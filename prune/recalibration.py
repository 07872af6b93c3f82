"""New statistics for BatchNorm after a cut: those of the dense network no longer fit what its layers read."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from command.errors import RequestError
from prune.modes import evaluating

__all__ = ["check_has_statistics", "recalibrating"]


@contextmanager
def recalibrating(model: nn.Module) -> Iterator[None]:
    """Estimate BatchNorm's statistics anew from the batches that the model runs on in the block.

        with recalibrating(pruned.model):
            for images, _ in itertools.islice(loader, 100):
                pruned.model(images)

    They become the plain mean over the batches, so these should be as large as in training. All other layers are in
    eval mode, and there are no gradients. Layers that no batch reaches keep their statistics. Modes return afterwards.

    Args:
        model: Its running means and variances are modified.

    Raises:
        RequestError: If it has no such statistics, or a batch has a single value per channel.
    """
    norms = check_has_statistics(model)
    before = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise RequestError(f"recalibration: {error}; expected more images in each batch") from error
            raise
        finally:
            for norm, (momentum, buffers) in zip(norms, before, strict=True):
                norm.momentum = momentum
                if norm.num_batches_tracked == 0:
                    norm.load_state_dict(buffers, strict=False)


def check_has_statistics(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers with running statistics.

    Raises:
        RequestError: If there is none.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise RequestError(
            f"recalibration: nothing to estimate, got {type(model).__name__} without BatchNorm's running statistics; "
            "expected a network with them, or recalibrate=0"
        )
    return norms
