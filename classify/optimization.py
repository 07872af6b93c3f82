"""How a schedule's steps are taken: mmengine's optimizer wrapper and its learning rates."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from classify.schedule import Schedule
from command.errors import RequestError

__all__ = ["BFloat16Wrapper", "Float16Wrapper", "Float32Wrapper", "optim_wrapper", "param_scheduler"]


class _UnreadClipping(OptimWrapper):
    """Clips gradients without reading their norm, for which mmengine waits for the GPU in every step."""

    def _clip_grad(self) -> None:
        self.clip_func([one for one in _parameters(self) if one.grad is not None], **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class Float32Wrapper(_UnreadClipping):
    """Computes everything in float32."""


@OPTIM_WRAPPERS.register_module()
class Float16Wrapper(_UnreadClipping, AmpOptimWrapper):
    """Computes convolutions and matrix products in float16, and scales the loss; on GPUs only."""


@OPTIM_WRAPPERS.register_module()
class BFloat16Wrapper(_UnreadClipping):
    """Computes convolutions and matrix products in bfloat16, whose range needs no scaling of the loss; on CPUs too."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the block in it."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def _parameters(wrapper: OptimWrapper) -> Iterator[nn.Parameter]:
    return (parameter for group in wrapper.param_groups for parameter in group["params"])


def optim_wrapper(schedule: Schedule) -> dict[str, Any]:
    """Return mmengine's settings of the optimizer.

    Raises:
        RequestError: For fp16 without a GPU.
    """
    optimizer = {"type": schedule.optimizer, "lr": schedule.peak_lr, "weight_decay": schedule.weight_decay}
    if schedule.optimizer == "SGD":
        optimizer["momentum"] = schedule.momentum
    clip = {"max_norm": schedule.max_grad_norm} if schedule.max_grad_norm is not None else None
    settings = {"optimizer": optimizer, "clip_grad": clip, "accumulative_counts": schedule.accumulate}
    if schedule.amp == "fp16" and not torch.cuda.is_available():
        raise RequestError("amp: fp16 is for GPUs, got a CPU; expected bf16 or None")
    types = {None: Float32Wrapper, "bf16": BFloat16Wrapper, "fp16": Float16Wrapper}
    return {
        "type": types[schedule.amp].__name__,
        **settings,
        **({"dtype": "float16"} if schedule.amp == "fp16" else {}),
    }


def param_scheduler(schedule: Schedule) -> list[dict[str, Any]]:
    """Return mmengine's settings of the learning rates."""
    warmup = []
    if schedule.warmup_iters > 1:  # mmengine's LinearLR refuses 0, and at 1 never leaves the start factor
        end = schedule.warmup_iters * schedule.accumulate  # mmengine counts parts of batches
        warmup = [{"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": end}]
    if schedule.milestones:
        return [*warmup, {"type": "MultiStepLR", "milestones": list(schedule.decay_epochs), "gamma": 0.1}]
    cosine = {"type": "CosineAnnealingLR", "T_max": schedule.epochs, "eta_min": 0.0, "convert_to_iter_based": True}
    return [*warmup, cosine]
