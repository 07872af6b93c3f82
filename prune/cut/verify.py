"""Proof that a slim model computes what it should: it is compared with the dense one without the removed channels.

Constants in a forward pass (sizes of a view, indices, a table) that no longer fit are found only by running it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from command.errors import RequestError
from prune.cut.difference import NOTHING, OTHER_SHAPES, difference_of, shapes_of, wide
from prune.cut.spec import PruneSpec, layer_of
from prune.cut.surgery import cut_tensors
from prune.follow.layers import is_producer
from prune.held_tensors import modules_of, operands
from prune.modes import FORWARD_ERRORS, first_line
from prune.private import Call, Inputs, PrivateModel, Run, Watch, bookkeeping

__all__ = ["InDouble", "fault_of", "finite_weights", "first_layer_apart"]


def finite_weights(model: nn.Module) -> None:
    """Raise RequestError if a parameter or running statistic is NaN or infinite, as channels cannot be ranked by it."""
    measured = [(name, buffer) for name, buffer in model.named_buffers() if "running_" in name]  # a mask may hold inf
    for name, tensor in (*model.named_parameters(), *measured):
        if tensor.is_meta:
            raise RequestError(f"{name}: has no numbers, it is on the meta device; expected a model with its weights")
        if not tensor.sum().isfinite() and not tensor.isfinite().all():  # a sum takes no memory, but may overflow
            bad = tensor[~tensor.isfinite()][0].item()
            raise RequestError(f"{name}: a weight is not finite, got {bad}; expected a trained model")


def fault_of(
    model: nn.Module,
    slim: nn.Module,
    spec: PruneSpec,
    example_inputs: Inputs,
    *,
    eval_run: Run | None = None,
    shapes_only: bool = False,
    trains_alike: bool = False,
) -> str | None:
    """Return what is wrong with the slim model in words, or None if it computes what it should.

    Copies of both get the same random numbers in the example's shapes, in eval mode, and their outputs are compared:
    where none is a finite number, with the example itself, and then those of their layers. Images are made smaller
    where the model runs the same operations on them, and only shapes are compared at full size then. Where float32
    disagrees, or the model is coarser, float64 decides if the model runs in it. Then both run in training mode, if the
    dense one does: the outputs have the same shapes, and gradients reach the same parameters.

    Args:
        model: The dense model.
        slim: `slim_model(model, spec)`.
        spec: What was cut.
        example_inputs: Positional arguments of both, or a `Call`.
        eval_run: Of the dense model in eval mode, if it runs without numbers.
        shapes_only: Do not compare numbers.
        trains_alike: Training mode is known to do the same as eval mode: the slim model must, too.
    """
    call = Call.of(example_inputs)
    of_slim = PrivateModel(slim, "meta") if eval_run else None
    if shapes_only or not (eval_run and of_slim) or not _equals_on_less(model, slim, spec, call, eval_run, of_slim):
        twins = _Twins(model, slim, spec)
        fault = twins.fault_in_shapes(call) if shapes_only else twins.fault(call)
        # where two activations are multiplied, no weight reads the removed channels: they are zero themselves
        if fault and (shapes_only or _Twins(model, slim, spec, is_zero=True).fault(call)):
            return fault
    if trains_alike and eval_run and of_slim and _does_as(of_slim.train(), call, eval_run):
        return None
    return _fault_in_training(model, slim, call)


def _equals_on_less(
    model: nn.Module, slim: nn.Module, spec: PruneSpec, call: Call, eval_run: Run, of_slim: PrivateModel
) -> bool:
    """Return whether smaller images show that the slim model is right; it does the same at full size then."""
    less = call.smaller()
    if all(one.shape == other.shape for one, other in zip(call.tensors(), less.tensors(), strict=True)):
        return False
    twins = _Twins(model, slim, spec)
    with suppress(*FORWARD_ERRORS):
        if twins.fault(less):
            return False
        dense = twins.dense if twins.dense.operations == eval_run.operations else PrivateModel(model, "meta")
        if dense is not twins.dense:  # with numbers, torch may compute the same by other operations
            dense.run(less, torch.no_grad())
        return dense.operations == eval_run.operations and _does_as(of_slim, call, eval_run)
    return False


def _does_as(slim: PrivateModel, call: Call, run: Run) -> bool:
    """Return whether the slim model runs the operations of a run of the dense one, and gives outputs of its shapes."""
    with suppress(*FORWARD_ERRORS):
        return shapes_of(slim.run(call, torch.no_grad())) == run.shapes and slim.operations == run.operations
    return False


def first_layer_apart(model: nn.Module, slim: nn.Module, spec: PruneSpec, example_inputs: Inputs) -> str | None:
    """Return the first layer, in the order of the forward pass, that the slim model computes otherwise or not at all.

    None if it computes all as it should: what differs comes after them. The arguments are those of `fault_of`.
    """
    twins, call = _Twins(model, slim, spec), Call.of(example_inputs)
    with suppress(*FORWARD_ERRORS):  # noise may be out of the model's range
        return twins.first_apart(call.noise())
    return twins.first_apart(call)


class _Twins:
    """The dense model without the removed channels, and the slim one, on copies."""

    def __init__(self, model: nn.Module, slim: nn.Module, spec: PruneSpec, is_zero: bool = False) -> None:
        self.dense, self._slim, self._spec = PrivateModel(model), PrivateModel(slim), spec
        with bookkeeping():
            self._masking = _Masking(self.dense.model, spec, is_zero)

    def fault(self, call: Call) -> str | None:
        """Return how the slim model's outputs differ, or None."""
        with suppress(*FORWARD_ERRORS):  # noise may be out of its range
            if (fault := self._fault(call.noise())) != NOTHING:
                return fault
        try:
            fault = self._fault(call)
        except FORWARD_ERRORS as error:
            raise RequestError(f"model: its forward pass fails on the example input, {first_line(error)}") from error
        if fault != NOTHING:
            return fault
        layer, has_numbers = self._compare_layers(call, in_double=False)
        if layer and (layer := self.first_apart(call)):
            return f"computes something else in {layer}"
        return None if has_numbers else NOTHING

    def fault_in_shapes(self, call: Call) -> str | None:
        """Return whether the slim model runs, and gives outputs of the dense one's shapes."""
        return self._difference(call, lambda one, other: None if shapes_of(one) == shapes_of(other) else OTHER_SHAPES)

    def _difference(
        self, call: Call, compare: Callable[[list[Tensor], list[Tensor]], str | None], in_double: bool = False
    ) -> str | None:
        expected = self._run(self.dense, call, in_double)
        try:
            return compare(expected, self._run(self._slim, call, in_double))
        except FORWARD_ERRORS as error:
            return f"does not run, {first_line(error)}"

    def _fault(self, call: Call) -> str | None:
        fault = self._difference(call, partial(difference_of, is_exact=True))
        if fault in (None, NOTHING, OTHER_SHAPES):
            return fault
        with suppress(*FORWARD_ERRORS):  # not every model runs in float64
            return self._difference(call, difference_of, in_double=True)
        return self._difference(call, difference_of)

    def first_apart(self, call: Call) -> str | None:
        """Return the first layer whose kept channels differ, or that the slim model does not run."""
        with suppress(*FORWARD_ERRORS):  # not every model runs in float64
            return self._compare_layers(call, in_double=True)[0]
        return self._compare_layers(call, in_double=False)[0]

    def _compare_layers(self, call: Call, in_double: bool) -> tuple[str | None, bool]:
        """Return the first layer that differs, and whether there was any finite number to compare."""
        dense = self._layers(self.dense, call, in_double)
        slim: list[tuple[str, Tensor]] = []
        with suppress(*FORWARD_ERRORS):
            self._layers(self._slim, call, in_double, slim)
        for place, (name, output) in enumerate(dense):
            if place >= len(slim) or name != slim[place][0] or self._is_apart(name, output, slim[place][1]):
                return name, True
        return None, any(wide(output).isfinite().any() for _, output in dense)

    def _run(self, private: PrivateModel, call: Call, in_double: bool = False) -> list[Tensor]:
        modes: list[AbstractContextManager[Any]] = [torch.no_grad()]
        if in_double:
            call = call.map(lambda t: t.double() if t.is_floating_point() else t.clone())
            modes.append(InDouble())
        if private is not self.dense:
            return private.run(call, *modes)
        return private.run(call, *modes, _MaskingInputs(self._masking), watch=self._masking)

    def _layers(
        self, private: PrivateModel, call: Call, in_double: bool, found: list[tuple[str, Tensor]] | None = None
    ) -> list[tuple[str, Tensor]]:
        """Return the outputs of the layers in the order in which they run; `found` has those before an error."""
        found = [] if found is None else found

        def note(name: str, output: Any) -> None:
            if isinstance(output, Tensor):
                found.append((name, output))

        hooks = [
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
            for name, module in modules_of(private.model).items()
            if is_producer(module) or name in self._spec.layers
        ]
        try:
            self._run(private, call, in_double)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _is_apart(self, layer: str, one: Tensor, other: Tensor) -> bool:
        cut = self._spec.layers.get(layer)
        for dim in [dim for dim, (size, left) in enumerate(zip(one.shape, other.shape, strict=False)) if size != left]:
            if not cut or not cut.kept_out or one.shape[dim] != cut.num_out:
                return True
            one = one.index_select(dim, torch.tensor(cut.kept_out, device=one.device))
        return difference_of([one], [other]) not in (None, NOTHING)


def _fault_in_training(model: nn.Module, slim: nn.Module, call: Call) -> str | None:
    """Run both as in training, for shapes alone where that works; None if the dense model does not run so."""
    fault = None
    for device, given in (("meta", call), ("meta", call.doubled()), (None, call), (None, call.doubled())):
        try:
            shapes, trained = _training(model, given, device)
        except FORWARD_ERRORS:
            continue
        try:
            slim_shapes, slim_trained = _training(slim, given, device)
        except FORWARD_ERRORS as error:
            fault = f"does not run in training mode, {first_line(error)}"
            continue
        lost = [name for name in trained if name not in slim_trained]
        if shapes != slim_shapes:
            return "gives outputs of other shapes in training mode"
        return f"has no gradient in {lost[0]}" if lost else None
    return fault


def _training(model: nn.Module, call: Call, device: str | None) -> tuple[list[Size], list[str]]:
    """Return the shapes of the outputs, and the parameters that their gradients reach."""
    private = PrivateModel(model, device).train()
    outputs = private.run(call, torch.enable_grad())
    return shapes_of(outputs), private.trained_by(outputs)


class _Masking(Watch):
    """Zeroes the weights with which layers read removed channels, in every operation that uses them.

    Args:
        model: The dense model.
        spec: What was cut.
        is_zero: Layers do not write these channels either.
    """

    def __init__(self, model: nn.Module, spec: PruneSpec, is_zero: bool) -> None:
        self.masks: dict[int, list[Tensor]] = {}
        """Id of a weight -> its masks."""
        self.left_out: Tensor | None = None
        """A weight that need not be masked now."""
        for name, cut in spec.layers.items():
            layer = layer_of(model, name)
            kept_out = cut.kept_out if is_zero and isinstance(layer, nn.Module) and not is_parametrized(layer) else None
            sides = (None if kept is None else torch.tensor(kept) for kept in (cut.kept_in, kept_out))
            for tensor, kept_by_dim in cut_tensors(layer, *sides):
                masks = [_mask(tensor, dim, kept) for dim, kept in kept_by_dim.items()]
                self.masks.setdefault(id(tensor), []).extend(masks)  # two layers may share it

    def before(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Give the operation masked weights."""
        if func._schema.is_mutable or not any(id(tensor) in self.masks for tensor in operands(args, kwargs)):
            return args, kwargs  # a weight that is written must be the tensor itself
        with torch._C._DisableTorchDispatch():
            return tuple(map(self._masked, args)), {key: self._masked(value) for key, value in kwargs.items()}

    def _masked(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._masked(item) for item in value]
        for mask in self.masks.get(id(value), ()) if value is not self.left_out else ():
            value = value * mask
        return value


class _MaskingInputs(TorchFunctionMode):
    """Zeroes what a layer reads instead of its weight, where that is less work."""

    def __init__(self, masking: _Masking) -> None:
        super().__init__()
        self._masking = masking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LAYERS or len(args) < 2:  # called by name
            return func(*args, **kwargs)
        read, weight = args[:2]
        masks = self._masking.masks.get(id(weight), [])
        if [mask.ndim for mask in masks] != [weight.ndim - 1]:  # not just of its inputs
            return func(*args, **kwargs)
        mask = masks[0]
        if read.shape[-mask.ndim] != len(mask) or read.numel() > weight.numel():
            return func(*args, **kwargs)
        self._masking.left_out = weight
        try:
            with torch._C._DisableTorchDispatch():
                read = read * mask
            return func(read, *args[1:], **kwargs)
        finally:
            self._masking.left_out = None


_LAYERS = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)


def _mask(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    """Return ones and zeros that the tensor is multiplied by: faster than to fill places with zeros."""
    is_kept = tensor.new_zeros(tensor.shape[dim]).index_fill_(0, kept.to(tensor.device), 1)
    return is_kept.view(-1, *(1,) * (tensor.ndim - dim - 1))


class InDouble(TorchFunctionMode):
    """Gives every torch function its numbers in float64, without a copy of the model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_in_place = name.startswith(("__i", "__set")) or (name.endswith("_") and not name.endswith("__"))
        given = {id(args[0])} if is_in_place else {id(kwargs.get("out"))}  # what is written must be the tensor itself

        def double(tensor: Tensor) -> Tensor:
            return tensor if id(tensor) in given or not tensor.is_floating_point() else tensor.double()

        args, kwargs = tree_map_only(Tensor, double, (args, kwargs))
        out = func(*args, **kwargs)
        return out if is_in_place else tree_map_only(Tensor, double, out)
