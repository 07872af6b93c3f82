"""Pruning methods that act while a network trains: their settings, and what calls them in every step and epoch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from classify.backbones import initialize
from classify.schedule import Schedule
from command.config import Part
from command.errors import RequestError
from command.notes import note
from prune.choose.recipe import Recipe, check_ratio
from prune.learn.early_bird import EarlyBird
from prune.learn.magnitude import (
    HeldMasks,
    Masks,
    Scale,
    Scope,
    magnitude_masks,
    nonzero_masks,
    redraw,
    two_of_four_masks,
)
from prune.learn.method import Learned, Method
from prune.learn.slimming import NetworkSlimming, Shift
from prune.learn.soft_filters import SoftFilterPruning
from prune.learn.structure_selection import StructureSelection

__all__ = [
    "AnyLearning",
    "EarlyTicket",
    "Learning",
    "Magnitude",
    "MethodHook",
    "Slimming",
    "SoftFilters",
    "Structures",
    "check_schedule",
]

_METHOD = "method"
"""The name of a method's state in a checkpoint."""


def _checked(prune_ratio: float) -> float:
    check_ratio(prune_ratio)
    return prune_ratio


Share = Annotated[float, AfterValidator(_checked)]
"""Of what is removed, in [0, 1)."""


class Learning(Part, ABC):
    """A method and its settings."""

    def draw(self, net: nn.Module, seed: int) -> None:
        """Give the network of a model file random weights, in place, for a start from scratch."""
        initialize(net)

    @abstractmethod
    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method, made on a network.

        Args:
            net: It may be changed.
            example: Its positional arguments, batch first.

        Raises:
            RequestError: If the settings do not fit the network.
        """

    def slim(self, method: Method, net: nn.Module) -> Learned | None:
        """Return what comes of the trained network; None where nothing is cut."""
        return None

    def after_cut(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method | None:
        """Return what acts on the slim network, where a settled method stopped the training of the dense one."""
        return None

    def figures(self, method: Method) -> dict[str, int | None]:
        """Return what the method has found, by names of their own among the figures of the model."""
        return {}


class _Cutting(Learning):
    prune_ratio: Share = 0.5
    """Share of channels removed after training, [0, 1)."""
    skip: tuple[str, ...] = ()
    """Patterns of layers that stay whole."""
    round_to: int = Field(1, ge=1, le=65_536)
    """Kept channels are moved to the nearest multiple of it."""

    @property
    def _recipe(self) -> Recipe:
        return Recipe(prune_ratio=self.prune_ratio, skip=self.skip, round_to=self.round_to)


class Slimming(_Cutting):
    """Network Slimming: a penalty on the scales of BatchNorm while training, then a cut of the smallest of all."""

    type: Literal["slimming"]
    penalty: float = Field(1e-4, gt=0, le=1e6)
    """Weight of the scales' sum in the loss; the paper has 1e-4 for VGG, 1e-5 for ResNet and DenseNet."""
    shift: Shift = "zeroed"
    """What becomes of the shift of a cut channel: `zeroed` as in the authors' code, or `folded` into the next layer."""

    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method."""
        return NetworkSlimming(net, example, self._recipe, self.penalty, self.shift)

    def slim(self, method: Method, net: nn.Module) -> Learned | None:
        """Return the slim network."""
        assert isinstance(method, NetworkSlimming)
        return method.slim(net)


class EarlyTicket(_Cutting):
    """Early-bird ticket: slimming until its choice of channels settles; then the cut, and the rest of the training."""

    type: Literal["early_bird"]
    ratios: tuple[Share, ...] = ()
    """Shares of channels whose tickets are watched besides that of `prune_ratio`; only the latter is cut."""
    penalty: float = Field(1e-4, gt=0, le=1e6)
    """Weight of the BatchNorm scales' sum in the loss, before the cut and after it."""
    window: int = Field(5, ge=2, le=1000)
    """Masks of as many epochs are compared."""
    tolerance: float = Field(0.1, ge=0, le=1)
    """Largest share of channels in which the newest mask may differ from each of the others."""

    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method."""
        watched = sorted({self.prune_ratio, *self.ratios})
        return EarlyBird(net, example, self._recipe, watched, self.window, self.tolerance, self.penalty)

    def slim(self, method: Method, net: nn.Module) -> Learned | None:
        """Return the slim network; one line says when it was cut."""
        assert isinstance(method, EarlyBird)
        found = method.drawn.get(self.prune_ratio)
        when = "not found, cut at the end" if found is None else f"found after epoch {found + 1}, cut there"
        if is_main_process():
            note(f"early_bird: the ticket of {self.prune_ratio:g} was {when}")
        return method.slim(net)

    def after_cut(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method | None:
        """Return the penalty: it stays on, as in the authors' code."""
        return NetworkSlimming(net, example, Recipe(prune_ratio=0.0, skip=self.skip), self.penalty)

    def figures(self, method: Method) -> dict[str, int | None]:
        """Return the epoch, counted from 1, after which each ticket was found; None where the training ended before."""
        assert isinstance(method, EarlyBird)
        drawn = method.drawn
        return {f"ticket_{ratio:g}": drawn[ratio] + 1 if ratio in drawn else None for ratio in method.ratios}


class SoftFilters(_Cutting):
    """Soft Filter Pruning: the smallest filters are zeroed after every epoch, may come back, and are cut at the end."""

    type: Literal["soft_filters"]

    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method."""
        return SoftFilterPruning(net, example, self._recipe)

    def slim(self, method: Method, net: nn.Module) -> Learned | None:
        """Return the slim network."""
        assert isinstance(method, SoftFilterPruning)
        return method.slim(net)


class Structures(Learning):
    """Sparse Structure Selection: factors on residual branches and on groups of channels are driven to zero.

    What has zero in the end is cut: residual blocks keep their shortcut.
    """

    type: Literal["structure_selection"]
    penalty: float = Field(0.01, gt=0, le=1e6)
    """Weight of the factors' sum in the loss: the higher, the more are zero. 0.01 in the authors' code."""
    prune_ratio: Share = 0.0
    """Least share of blocks, and of groups, that goes, [0, 1). With 0 those go whose factor is zero, as in the paper;
    if a ratio asks for more, those of the smallest factors follow."""
    skip: tuple[str, ...] = ()
    """Patterns of layers; blocks and groups with one of them stay."""

    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method; the network computes with its factors from now on."""
        return StructureSelection(net, example, penalty=self.penalty, prune_ratio=self.prune_ratio, skip=self.skip)

    def slim(self, method: Method, net: nn.Module) -> Learned | None:
        """Return the slim network."""
        assert isinstance(method, StructureSelection)
        return method.slim(net)


def check_schedule(method: str, schedule: Schedule) -> None:
    """Raise RequestError for settings of a training with which the method of that name does not work."""
    if method == "structure_selection" and schedule.sync_bn:
        raise RequestError("sync_bn: not with structure_selection, which acts on BatchNorms themselves; expected False")
    if method == "structure_selection" and schedule.amp == "fp16":
        raise RequestError("amp: not fp16 with structure_selection, whose factors are not scaled back; expected bf16")


class Magnitude(Learning):
    """Unstructured pruning: the smallest weights of the given network are zeroed and stay zero. Nothing is cut."""

    type: Literal["magnitude"]
    masks: Literal["smallest", "kept"] = "smallest"
    """`smallest`: the smallest weights are zeroed. `kept`: those that are zero in the model file stay so; a start from
    scratch draws the others anew."""
    scale: Scale = "sparse"
    """Of weights that are drawn anew: N(0, sqrt(2 / n)) with n weights for each input, all (`dense`) or those that are
    left (`sparse`)."""
    prune_ratio: Share = 0.5
    """Share of the convolutions' weights that go, [0, 1); not used with a pattern, or masks that are kept."""
    scope: Scope = "global"
    """`global`: of all layers together; `layer`: of each by itself."""
    pattern: Literal["2:4"] | None = None
    """`2:4`: of each four weights along the inputs the two smallest go, as GPUs with sparse tensor cores want it."""

    def on(self, net: nn.Module, example: tuple[Tensor, ...]) -> Method:
        """Return the method; the weights are zero from now on."""
        if self.masks == "kept":
            return HeldMasks(net, _kept(net))
        masks = two_of_four_masks(net) if self.pattern else magnitude_masks(net, self.prune_ratio, self.scope)
        return HeldMasks(net, masks)

    def draw(self, net: nn.Module, seed: int) -> None:
        """Draw the weights that are not zero anew, if the masks are kept."""
        masks = _kept(net) if self.masks == "kept" else {}
        initialize(net)
        redraw(net, masks, self.scale, seed)


def _kept(net: nn.Module) -> Masks:
    if masks := nonzero_masks(net):
        return masks
    raise RequestError(
        'method.masks: no weight of the network is zero, got "kept"; expected a model file made by the method magnitude'
    )


AnyLearning = Slimming | EarlyTicket | SoftFilters | Structures | Magnitude


class MethodHook(Hook):
    """Lets a method act on a network: around every step of the optimizer, when gradients are whole and unscaled."""

    def __init__(self, method: Method, net: nn.Module) -> None:
        self.method, self.net = method, net
        self._handles: Sequence[Any] = ()

    def before_train(self, runner: Runner) -> None:
        """Begin to act."""
        optimizer = runner.optim_wrapper.optimizer
        self._handles = (
            optimizer.register_step_pre_hook(lambda *_: self.method.after_backward(self.net)),
            optimizer.register_step_post_hook(
                lambda *_: self.method.after_step(self.net, optimizer.param_groups[0]["lr"])
            ),
        )
        runner.train_loop.stop_training = self.method.is_settled  # of a training that is resumed

    def after_train(self, runner: Runner) -> None:
        """Act no more."""
        for handle in self._handles:
            handle.remove()

    def after_train_epoch(self, runner: Runner) -> None:
        """Let it look at the network, or change it."""
        self.method.after_epoch(self.net, runner.epoch)
        runner.train_loop.stop_training = self.method.is_settled

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put its state into the checkpoint."""
        checkpoint[_METHOD] = self.method.state_dict()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take its state from the checkpoint."""
        self.method.load_state_dict(checkpoint[_METHOD])
