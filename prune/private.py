"""A model run in private: on a copy that shares its parameters, with modes, buffers and random numbers of its own.

The given model is never written, not even for a moment: others may run or prune it at the same time.
"""

import copy
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode

from command.errors import RequestError
from prune.follow.nodes import tensors_in
from prune.modes import FORWARD_ERRORS, first_line

__all__ = ["Call", "Inputs", "PrivateModel", "bookkeeping", "copied", "operands"]

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
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), kwargs or {})

    def map(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return a copy with every tensor changed, however deep it lies."""
        changed = {id(tensor): change(tensor.detach()) for tensor in tensors_in((self.args, dict(self.kwargs)))}
        try:
            return copy.deepcopy(self, changed)  # its memo: these tensors are used in place of the originals' copies
        except (TypeError, RuntimeError) as error:
            raise RequestError(f"example_inputs: cannot be copied, {first_line(error)}") from error

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

    def _batch_size(self) -> int:
        return next((len(tensor) for tensor in tensors_in((self.args, dict(self.kwargs))) if tensor.ndim), 0)


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
        own = (*model.parameters(), *model.buffers())
        stored = _stored(model) if device else []
        with bookkeeping():
            self.model = copied(model, {id(tensor): _stand_in(tensor, device) for tensor in (*stored, *own)})
        self.model.eval()
        self.used: set[str] = set()
        """Names of the parameters that operations have used."""
        self.operations: list[Any] = []
        """Those of the last forward pass, in their order."""
        self._idle: set[str] = set()
        self._busy: set[str] = set()
        self._given = {id(tensor): tensor for tensor in own}  # kept alive, so that no other tensor gets its id
        self._names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._shared = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}

    def train(self, noise: Set[str] = frozenset()) -> "PrivateModel":
        """Take the model's own training mode; return it.

        Layers of torch itself, and batch normalisation, differ in training by noise and statistics alone: they stay in
        eval mode.

        Args:
            noise: Names of other modules that stay in it; see `noise`.
        """
        self.model.train()
        for name, module in self.model.named_modules():
            if type(module).__module__.startswith("torch.nn.") or isinstance(module, _NormBase) or name in noise:
                module.training = False
        return self

    def watch_noise(self) -> None:
        """Note, from now on, which modules add noise in training, if anything."""
        for name, module in self.model.named_modules():
            if not any(True for _ in module.parameters()):
                module.register_forward_hook(partial(self._watch_noise, name))

    def _watch_noise(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        (self._idle if inputs and output is inputs[0] else self._busy).add(name)

    @property
    def noise(self) -> set[str]:
        """Names of the modules without parameters that have always returned, in eval mode, what they were given."""
        return self._idle - self._busy

    def run(self, call: Call, *modes: AbstractContextManager[Any]) -> list[Tensor]:
        """Return every tensor of the model's output, lazily computed ones too.

        Args:
            call: Its tensors are copied.
            modes: Entered around the forward pass, the last one innermost.
        """
        try:
            return self._run(call, modes)
        except _WriteError:
            for parameter in self.model.parameters():
                parameter.data = parameter.detach().clone()
            self._shared = set()
            return self._run(call, modes)

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

    @property
    def unused(self) -> list[str]:
        """Names of the parameters that no operation has used yet."""
        return [name for name in self._names.values() if name not in self.used]

    def _run(self, call: Call, modes: tuple[AbstractContextManager[Any], ...]) -> list[Tensor]:
        self.operations = []
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(_own_random_numbers())
            call = call.map(Tensor.clone)
            for mode in (_Guard(self), *modes):
                stack.enter_context(mode)
            return tensors_in(self.model(*call.args, **call.kwargs))

    def check(self, operation: Any, tensors: list[Tensor]) -> None:
        """Note an operation and the parameters that it uses, before it does.

        Raises:
            RequestError: If the copy runs the given model's own layers.
        """
        self.operations.append(operation)
        for tensor in tensors:
            if id(tensor) in self._given:
                raise RequestError(
                    f"model: a copy of it still uses its own tensors, got one of shape {tuple(tensor.shape)}; "
                    "expected a forward pass that finds its layers through `self`"
                )
            if id(tensor) in self._names:
                self.used.add(self._names[id(tensor)])
        is_written = operation._schema.is_mutable
        if is_written and any(tensor.untyped_storage().data_ptr() in self._shared for tensor in tensors):
            raise _WriteError


class _WriteError(BaseException):
    """An operation writes to parameters that are shared; not an Exception, which a forward pass may catch."""


class _Guard(TorchDispatchMode):
    """Checks the tensors of every operation, and gives random ones numbers of their own."""

    def __init__(self, private: PrivateModel) -> None:
        super().__init__()
        self._private = private
        self._num_drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = operands(args, kwargs)
        self._private.check(func, tensors)
        if "_norm" in func.overloadpacket.__name__ and args[0].is_meta:  # torch's own way takes a millisecond
            return (torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in func._schema.returns[1:]))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self._num_drawn += 1
        devices = {tensor.get_device() for tensor in tensors if tensor.is_cuda}
        with torch.random.fork_rng(devices):  # for one operation only: threads beside may draw numbers too
            for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
                generator.manual_seed(self._num_drawn)
            return func(*args, **kwargs)


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments."""
    values = (*args, *kwargs.values())
    return [t for value in values for t in (value if isinstance(value, list) else (value,)) if isinstance(t, Tensor)]


def copied(model: nn.Module, replaced: Mapping[int, Tensor]) -> nn.Module:
    """Return a deep copy that has other tensors in place of some, given by their id.

    Raises:
        RequestError: If something in the model cannot be copied.
    """
    computed = [tensor for tensor in _stored(model) if not tensor.is_leaf or tensor.is_inference()]
    memo: dict[int, Any] = {**{id(tensor): tensor.detach().clone() for tensor in computed}, **replaced}
    plain = [module for module in model.modules() if _copies_plainly(type(module))]
    memo |= {id(module): object.__new__(type(module)) for module in plain}
    try:
        for module in plain:
            state = {key: _copied(value, memo) for key, value in module.__getstate__().items()}
            memo[id(module)].__setstate__(state)
        return copy.deepcopy(model, memo)
    except FORWARD_ERRORS as error:
        raise RequestError(
            f"model: cannot be copied, {first_line(error)}; expected a module that copy.deepcopy takes"
        ) from error


def _copies_plainly(kind: type[nn.Module]) -> bool:
    """Return whether such a module is made again from copies of its attributes, as nn.Module is."""
    own = {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"}
    return not any(own & vars(base).keys() for base in kind.__mro__ if base not in (nn.Module, object))


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy; Python's own is slow on what modules have most of: numbers, and dictionaries of few items."""
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if type(value) not in (dict, OrderedDict) or id(value) in memo:
        return copy.deepcopy(value, memo)
    memo[id(value)] = new = type(value)()
    for key, item in value.items():
        new[_copied(key, memo)] = _copied(item, memo)
    return new


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
    """Give Python and numpy a seed; the caller's random state returns afterwards."""
    with _ONE_AT_A_TIME:
        of_python, of_numpy = random.getstate(), np.random.get_state()
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def _stored(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold beside their parameters and buffers."""
    registered = ("_parameters", "_buffers", "_modules")
    values = [value for m in model.modules() for key, value in vars(m).items() if key not in registered]
    return tensors_in([v for v in values if isinstance(v, Tensor) or (isinstance(v, list | tuple | dict) and v)])


def _stand_in(tensor: Tensor, device: str | None) -> Tensor:
    is_parameter = isinstance(tensor, nn.Parameter)
    new = tensor.detach()
    if device:
        new = torch.empty_like(new, device=device)
    elif not is_parameter or new.is_inference():
        new = new.clone()
    return nn.Parameter(new, tensor.requires_grad) if is_parameter else new
