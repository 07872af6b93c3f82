"""Proof that a slim model computes what it should: it is compared with the dense one without the removed channels.

Constants in a forward pass (sizes of a view, indices, a table) that no longer fit are found only by running it.
"""

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from command.errors import RequestError
from prune.cut.spec import PruneSpec, layer_of
from prune.cut.surgery import cut_tensors
from prune.follow.nodes import is_producer
from prune.modes import FORWARD_ERRORS, first_line
from prune.private import Call, Inputs, PrivateModel, bookkeeping, operands

__all__ = ["fault_of", "finite_weights", "first_layer_apart"]

_NOTHING = "gives no finite number, so that nothing can be compared"
_OTHER_SHAPES = "gives outputs of other shapes"
_COARSE = (torch.float16, torch.bfloat16)


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
    shapes_only: bool = False,
    in_training: bool = True,
) -> str | None:
    """Return what is wrong with the slim model in words, or None if it computes what it should.

    Copies of both get the same random numbers in the example's shapes, in eval mode, and their outputs are compared:
    where none is a finite number, with the example itself, and then those of their layers. Where float32 disagrees, or
    the model is coarser, float64 decides if the model runs in it. Then both run in training mode, if the dense one
    does: the outputs have the same shapes, and gradients reach the same parameters.

    Args:
        model: The dense model.
        slim: `slim_model(model, spec)`.
        spec: What was cut.
        example_inputs: Positional arguments of both, or a `Call`.
        shapes_only: Do not compare numbers.
        in_training: Run both in training mode too.
    """
    call = Call.of(example_inputs)
    twins = _Twins(model, slim, spec)
    fault = twins.fault_in_shapes(call) if shapes_only else twins.fault(call)
    # where two activations are multiplied, no weight reads the removed channels: they are zero themselves
    if fault and (shapes_only or _Twins(model, slim, spec, is_zero=True).fault(call)):
        return fault
    return _fault_in_training(model, slim, call) if in_training else None


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
        self._dense, self._slim, self._spec = PrivateModel(model), PrivateModel(slim), spec
        with bookkeeping():
            self._masking = _Masking(self._dense.model, spec, is_zero)

    def fault(self, call: Call) -> str | None:
        """Return how the slim model's outputs differ, or None."""
        for given in (call.noise(), call):
            with nullcontext() if given is call else suppress(*FORWARD_ERRORS):  # noise may be out of its range
                if (fault := self._difference(given)) != _NOTHING:
                    return fault
        layer, has_numbers = self._compare_layers(call, in_double=False)
        if layer and (layer := self.first_apart(call)):
            return f"computes something else in {layer}"
        return None if has_numbers else _NOTHING

    def fault_in_shapes(self, call: Call) -> str | None:
        """Return whether the slim model runs, and gives outputs of the dense one's shapes."""
        expected = self._run(self._dense, call)
        try:
            actual = self._run(self._slim, call)
        except FORWARD_ERRORS as error:
            return f"does not run, {first_line(error)}"
        return None if [t.shape for t in expected] == [t.shape for t in actual] else _OTHER_SHAPES

    def _difference(self, call: Call) -> str | None:
        expected = self._run(self._dense, call)
        try:
            actual = self._run(self._slim, call)
        except FORWARD_ERRORS as error:
            return f"does not run, {first_line(error)}"
        fault = _difference(expected, actual)
        has_numbers = any(tensor.numel() for tensor in expected)
        if (fault and has_numbers) or any(tensor.dtype in _COARSE for tensor in expected):
            with suppress(*FORWARD_ERRORS):  # not every model runs in float64
                return _difference(*(self._run(private, call, in_double=True) for private in (self._dense, self._slim)))
        return fault

    def first_apart(self, call: Call) -> str | None:
        """Return the first layer whose kept channels differ, or that the slim model does not run."""
        with suppress(*FORWARD_ERRORS):  # not every model runs in float64
            return self._compare_layers(call, in_double=True)[0]
        return self._compare_layers(call, in_double=False)[0]

    def _compare_layers(self, call: Call, in_double: bool) -> tuple[str | None, bool]:
        """Return the first layer that differs, and whether there was any finite number to compare."""
        dense = self._layers(self._dense, call, in_double)
        slim: list[tuple[str, Tensor]] = []
        with suppress(*FORWARD_ERRORS):
            self._layers(self._slim, call, in_double, slim)
        for place, (name, output) in enumerate(dense):
            if place >= len(slim) or name != slim[place][0] or self._is_apart(name, output, slim[place][1]):
                return name, True
        return None, any(output.isfinite().any() for _, output in dense)

    def _run(self, private: PrivateModel, call: Call, in_double: bool = False) -> list[Tensor]:
        modes: list[AbstractContextManager[Any]] = [torch.no_grad()]
        if in_double:
            call = call.map(lambda t: t.double() if t.is_floating_point() else t.clone())
            modes.append(_InDouble())
        if private is self._dense:
            modes += [self._masking, _MaskingInputs(self._masking)]
        return private.run(call, *modes)

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
            for name, module in private.model.named_modules()
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
        return _difference([one], [other]) not in (None, _NOTHING)


def _difference(expected: list[Tensor], actual: list[Tensor]) -> str | None:
    """Compare the finite numbers; those that are not floating only where no others are."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return _OTHER_SHAPES
    pairs = [pair for pair in zip(expected, actual, strict=True) if pair[0].numel()]
    pairs = [pair for pair in pairs if _is_real(pair[0])] or pairs
    pairs = [(one[finite], other[finite]) for one, other in pairs if (finite := one.isfinite()).any()]
    for one, other in pairs:
        tolerance = _tolerance(one.dtype) * max(scale := one.abs().max().item(), 1e-30)
        if not (difference := (one.double() - other.double()).abs().max().item()) <= tolerance:
            return f"computes something else, its outputs differ by {difference:.2g} where the largest is {scale:.2g}"
    return None if pairs else _NOTHING


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tolerance(dtype: torch.dtype) -> float:
    """Return the largest difference of equal outputs, relative to the largest number."""
    if dtype == torch.float64:
        return 1e-6  # some numbers may have been rounded to float32 on the way
    return torch.finfo(dtype).eps ** 0.5 if dtype.is_floating_point or dtype.is_complex else 0.0


def _fault_in_training(model: nn.Module, slim: nn.Module, call: Call) -> str | None:
    """Run both as in training, for shapes alone where that works; None if the dense model does not run so."""
    fault = None
    for device, given in (("meta", call), (None, call), (None, call.doubled())):
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
    modes: list[AbstractContextManager[Any]] = [torch.enable_grad()]
    if device:
        call = call.map(lambda t: t.to(device))
        modes.append(torch.device(device))
    outputs = private.run(call, *modes)
    return [tensor.shape for tensor in outputs], private.trained_by(outputs)


class _Masking(TorchDispatchMode):
    """Zeroes the weights with which layers read removed channels, in every operation that uses them.

    Args:
        model: The dense model.
        spec: What was cut.
        is_zero: Layers do not write these channels either.
    """

    def __init__(self, model: nn.Module, spec: PruneSpec, is_zero: bool) -> None:
        super().__init__()
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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(id(tensor) in self.masks for tensor in operands(args, kwargs)):
            args, kwargs = tree_map_only(Tensor, self._masked, (args, kwargs))
        return func(*args, **kwargs)

    def _masked(self, tensor: Tensor) -> Tensor:
        for mask in self.masks.get(id(tensor), ()) if tensor is not self.left_out else ():
            tensor = tensor * mask
        return tensor


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
            return func(read * mask, *args[1:], **kwargs)
        finally:
            self._masking.left_out = None


_LAYERS = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)


def _mask(tensor: Tensor, dim: int, kept: Tensor) -> Tensor:
    """Return ones and zeros that the tensor is multiplied by: faster than to fill places with zeros."""
    is_kept = tensor.new_zeros(tensor.shape[dim]).index_fill_(0, kept.to(tensor.device), 1)
    return is_kept.view(-1, *(1,) * (tensor.ndim - dim - 1))


class _InDouble(TorchFunctionMode):
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
