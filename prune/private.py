"""A model run in private: on a copy that shares its parameters, with modes, buffers and random numbers of its own.

The given model is never written, not even for a moment: others may run or prune it at the same time.
"""

import copy
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from command.errors import RequestError
from prune.copies import copied
from prune.held_tensors import modules_of, operands, stored, tensors_in
from prune.modes import first_line
from prune.shapes import is_elementwise, shape_alone

__all__ = ["Call", "Inputs", "PrivateModel", "Run", "Watch", "bookkeeping"]

_ONE_AT_A_TIME = threading.RLock()
"""Held while Python's random numbers are ours: they are one for all threads."""


@dataclass(frozen=True)
class Call:
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: "Inputs", kwargs: Mapping[str, Any] | None = None) -> "Call":
        """Return the call with these positional arguments, or the call itself."""
        if isinstance(inputs, Call):
            return inputs
        if not isinstance(inputs, Tensor | tuple | list):
            got = type(inputs).__name__
            raise RequestError(f"example_inputs: not a call, got {got}; expected a tuple of positional arguments")
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), kwargs or {})

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return a copy with every tensor changed."""
        changed = {id(tensor): change(tensor.detach()) for tensor in self.tensors()}
        try:
            return copy.deepcopy(self, changed)  # its memo: these tensors are used in place of the originals' copies
        except (TypeError, RuntimeError) as error:
            raise RequestError(f"example_inputs: cannot be copied, {first_line(error)}") from error

    def tensors(self) -> list[Tensor]:
        """Return every tensor in the arguments, however deep it lies."""
        return tensors_in((self.args, dict(self.kwargs)))

    def noise(self) -> "Call":
        """Return the call with normal noise in place of every floating tensor; others, such as indices, stay."""
        generator = torch.Generator().manual_seed(0)

        def drawn(tensor: Tensor) -> Tensor:
            new = torch.randn(tensor.shape, generator=generator, device="cpu", dtype=torch.float32)
            return new.to(tensor) if tensor.is_floating_point() else tensor.clone()

        return self.map(drawn)

    def doubled(self) -> "Call":
        """Return the call with twice the batch: a BatchNorm that trains needs more than one value per channel."""
        batch = self._batch_size()
        return self.map(lambda t: torch.cat([t, t]) if t.ndim and len(t) == batch else t.clone())

    def single(self) -> "Call":
        """Return the call with the first of the batch alone."""
        batch = self._batch_size()
        return self.map(lambda t: t[:1] if t.ndim and len(t) == batch else t)

    def smaller(self) -> "Call":
        """Return the call with smaller images: every second place, until the shorter side is below 128."""
        return self.map(_smaller)

    def _batch_size(self) -> int:
        return next((len(tensor) for tensor in self.tensors() if tensor.ndim), 0)


def _smaller(tensor: Tensor) -> Tensor:
    while tensor.ndim > 3 and tensor.is_floating_point() and min(tensor.shape[-2:]) >= 128:
        tensor = tensor[..., ::2, ::2]
    return tensor


Inputs = tuple[Any, ...] | Call
"""Positional arguments, or a whole call."""


class PrivateModel:
    """A copy of a model, to be run in its place; in eval mode at first.

    Parameters share the memory of the given ones as long as no operation writes to them.

    Args:
        model: It is only read.
        device: "meta" for a copy that has shapes but no numbers.

    Raises:
        RequestError: If the model cannot be copied.
    """

    def __init__(self, model: nn.Module, device: str | None = None) -> None:
        modules = modules_of(model)
        parameters = {id(t): t for m in modules.values() for t in m._parameters.values() if t is not None}
        own = {**parameters, **{id(t): t for m in modules.values() for t in m._buffers.values() if t is not None}}
        held = {id(t): t for *_, tensors in stored(modules) for t in tensors} if device else {}
        with bookkeeping():
            self.model = copied(model, {key: _stand_in(tensor, device) for key, tensor in {**held, **own}.items()})
        self.modules = modules_of(self.model)
        for module in self.modules.values():
            module.training = False
        self.is_meta = device == "meta"
        self.operations: list[tuple[Any, ...]] = []
        """Those of the last forward pass, in their order, each with the names of the parameters and buffers that it
        uses, and the numbers that are computed with."""
        self.flow: list[tuple[Any, ...]] = []
        """What else an operation of the last forward pass was given: sizes, and without numbers which operation made
        each of its tensors."""
        self._made: dict[int, tuple[int, Tensor]] = {}  # their tensors are kept, so that no other gets the same id
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        self._names = {id(tensor): name for name, tensor in named}
        self.device = next((tensor.device for tensor in own.values()), torch.get_default_device())
        """That of the given model."""
        self._given = own  # kept alive, so that no other tensor gets its id
        self._shared = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()} - {0}

    def train(self) -> "PrivateModel":
        """Take the model's own training mode; return it.

        Layers of libraries differ in training by noise and statistics alone: they stay in eval mode.
        """
        self.model.train()
        for module in self.model.modules():
            if _computes_as_a_library(type(module)):  # type: ignore[arg-type]  # classes can be hashed
                module.training = False
        return self

    def run(self, call: Call, *modes: AbstractContextManager[Any], watch: "Watch | None" = None) -> list[Tensor]:
        """Return every tensor of the model's output, lazily computed ones and those left in its arguments too.

        Args:
            call: Its tensors are copied.
            modes: Entered around the forward pass, the last one innermost.
            watch: Told of every operation.
        """
        watch = watch or Watch()
        try:
            return self._run(call, modes, watch)
        except _WriteError:
            for parameter in self.model.parameters():
                parameter.data = parameter.detach().clone()
            self._shared = set()
            return self._run(call, modes, watch)

    def trained_by(self, outputs: list[Tensor]) -> list[str]:
        """Return the names of the parameters that a gradient of these outputs reaches."""
        left = [tensor.grad_fn for tensor in outputs if tensor.grad_fn]
        seen = set(left)
        while left:
            new = {function for function, _ in left.pop().next_functions if function} - seen
            seen |= new
            left += new
        leaves = {id(getattr(function, "variable", None)) for function in seen}
        return [name for parameter, name in self._names.items() if parameter in leaves]

    def _run(self, call: Call, modes: tuple[AbstractContextManager[Any], ...], watch: "Watch") -> list[Tensor]:
        self.operations, self.flow, self._made = [], [], {}
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(_own_random_numbers())
            call = call.map((lambda tensor: tensor.to("meta")) if self.is_meta else Tensor.clone)
            given = {id(tensor): tensor for tensor in call.tensors()}
            own = _WithNumbers(self.device) if self.is_meta else _Exports(self)
            for mode in (own, _Guard(self, watch), *modes):
                stack.enter_context(mode)
            result = tensors_in(self.model(*call.args, **call.kwargs))
            self._made = {}
            return result + [tensor for tensor in call.tensors() if id(tensor) not in given]

    def check(self, operation: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Note an operation before it computes.

        Raises:
            RequestError: If the copy runs the given model's own layers.
        """
        others = [value for value in (*args, *kwargs.values()) if not _holds_tensors(value)]
        numbers = [value for value in others if type(value) in (int, float, bool)] if is_elementwise(operation) else []
        self.operations.append((operation, *(self._names[id(t)] for t in tensors if id(t) in self._names), *numbers))
        self.flow.append((*(self._made.get(id(tensor), (None,))[0] for tensor in tensors), *others))
        for tensor in tensors:
            if id(tensor) in self._given:
                raise RequestError(
                    f"model: a copy of it still uses its own tensors, got one of shape {tuple(tensor.shape)}; "
                    "expected a forward pass that finds its layers through `self`"
                )
        if operation._schema.is_mutable:
            self.check_shared(tensors)

    def note(self, out: Any) -> None:
        """Note what an operation has made; numbers would take memory."""
        if self.is_meta:
            for tensor in out if isinstance(out, tuple | list) else (out,):
                self._made[id(tensor)] = (len(self.flow), tensor)

    def check_shared(self, tensors: list[Tensor]) -> None:
        """Let the model run again, with parameters of its own, if any of these that may be written is shared."""
        if self._shared and any(tensor.untyped_storage().data_ptr() in self._shared for tensor in tensors):
            raise _WriteError


@cache
def _computes_as_a_library(kind: Any) -> bool:
    """Return whether the forward pass of such a module is that of a layer known to train as it evaluates."""
    own = next((base for base in kind.__mro__ if "forward" in vars(base)), nn.Module)
    return own is not nn.Module and own.__module__.startswith(_LIBRARIES)


_LIBRARIES = ("torch.nn.", "torchvision.ops.", "timm.layers.drop", "timm.layers.norm_act", "mmcv.cnn.bricks.drop")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (type(value) is list and any(isinstance(item, Tensor) for item in value))


class _WriteError(BaseException):
    """An operation writes to parameters that are shared; not an Exception, which a forward pass may catch."""


@dataclass(frozen=True)
class Run:
    """What a forward pass did."""

    operations: list[tuple[Any, ...]]
    """See `PrivateModel.operations`."""
    shapes: list[torch.Size]
    """Of its outputs."""


class Watch:
    """What is done at every operation of a forward pass; nothing by default."""

    def before(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments that the operation gets."""
        return args, kwargs

    def after(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Take note of what the operation gives."""


class _WithNumbers(TorchFunctionMode):
    """Gives new tensors their numbers where nothing else has any: a function may keep them for its next call.

    Args:
        device: Where they would be.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        is_filled = name.startswith(("new_", "zeros", "ones", "full")) and name != "new_empty"
        is_new = is_filled or not (operands(args, {}) or name.startswith("empty"))
        wanted = kwargs.get("device", "meta" if is_filled and operands(args[:1], {}) else None)
        if is_new and wanted is not None and torch.device(wanted).type == "meta":
            kwargs = {**kwargs, "device": self._device}
        return func(*args, **kwargs)


def _without_numbers(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> tuple[Any, Any, list[Tensor]]:
    """Return an operation's arguments with tensors of shapes alone in place of those that have numbers.

    Raises:
        NotImplementedError: If it writes to one of those.
    """
    if all(tensor.is_meta for tensor in tensors):
        return args, kwargs, tensors
    if func._schema.is_mutable and not tensors[0].is_meta:
        raise NotImplementedError("writes what has no numbers to a tensor that has some")
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    return args, kwargs, operands(args, kwargs)


class _Exports(TorchFunctionMode):
    """Stops where the memory of a tensor leaves torch: nobody sees what is written to it then."""

    def __init__(self, private: PrivateModel) -> None:
        super().__init__()
        self._private = private

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EXPORTS:
            with torch._C.DisableTorchFunction():
                self._private.check_shared(operands(args, {}))
        return func(*args, **kwargs or {})


_EXPORTS = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage)


class _Guard(TorchDispatchMode):
    """Checks the tensors of every operation, and gives random ones numbers of their own."""

    def __init__(self, private: PrivateModel, watch: Watch) -> None:
        super().__init__()
        self._private, self._watch = private, watch
        self._num_drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = operands(args, kwargs)
        self._private.check(func, args, kwargs, tensors)
        with torch._C.DisableTorchFunction():
            args, kwargs = self._watch.before(func, args, kwargs)
            out = self._computed(func, args, kwargs, tensors)
            self._private.note(out)
            self._watch.after(func, args, kwargs, out)
        return out

    def _computed(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        if self._private.is_meta and any(tensor.is_meta for tensor in tensors):
            args, kwargs, tensors = _without_numbers(func, args, kwargs, tensors)
            if (result := shape_alone(func, args, kwargs, tensors)) is not None:
                return result
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self._num_drawn += 1
        devices = {tensor.get_device() for tensor in tensors if tensor.is_cuda}
        with torch.random.fork_rng(devices):  # for one operation only: threads beside may draw numbers too
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
                generator.manual_seed(self._num_drawn)
            return func(*args, **kwargs)


@contextmanager
def bookkeeping() -> Iterator[None]:
    """Leave the caller's default device and modes aside: they are for the model, and our own small tensors are not."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch._C.DisableTorchFunction(),
        torch._C._DisableTorchDispatch(),
    ):
        yield


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Give Python and numpy a seed; the caller's random state returns afterwards.

    Torch's own is changed by a forward pass that sets a seed alone: the guard sees to all that draws numbers.
    """
    with _ONE_AT_A_TIME:
        of_python, of_numpy = random.getstate(), np.random.get_state()
        seed, of_torch = torch.initial_seed(), torch.get_rng_state()
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
            if torch.initial_seed() != seed or threading.active_count() == 1:  # other threads may have drawn numbers
                torch.set_rng_state(of_torch)


def _stand_in(tensor: Tensor, device: str | None) -> Tensor:
    is_parameter = isinstance(tensor, nn.Parameter)
    new = tensor.detach()
    if device:
        new = torch.empty_like(new, device=device)
    elif not is_parameter or new.is_inference():
        new = new.clone()
    return nn.Parameter(new, tensor.requires_grad) if is_parameter else new
