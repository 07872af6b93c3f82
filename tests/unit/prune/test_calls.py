"""Any call: inputs by name and nested, default devices and dtypes, kinds of modules that cannot be cut."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from prune import cost_of, find_groups, prune_model


def two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = two()

    def forward(self, x, *, mask, more=()):
        return self.net(x["image"] * mask) + sum(more)


def equals_masked(net, slim, *args, **kwargs):
    """Compare with the dense net whose last layer does not read the removed channels."""
    rows = [row for row in range(4) if not any(torch.equal(net[0].weight[row], kept) for kept in slim[0].weight)]
    assert len(rows) == 2
    read = net[2].weight.detach().clone()
    read[:, rows] = 0
    with torch.no_grad():
        twin = torch.func.functional_call(net.eval(), {"2.weight": read}, args, kwargs)
        tolerance = torch.finfo(twin.dtype).eps ** 0.5
        return torch.allclose(slim.eval()(*args, **kwargs), twin, atol=tolerance, rtol=tolerance)


def test_inputs_by_name_and_nested(x):
    net, mask = Masked(), torch.ones(2, 1, 8, 8)
    pruned = prune_model(net, ({"image": x},), 0.5, example_kwargs={"mask": mask, "more": [torch.ones(1)]})
    assert pruned.model.net[0].out_channels == 2
    assert cost_of(net, ({"image": x[:1]},), {"mask": mask[:1]}).macs == 64 * (3 * 4 + 4 * 2)
    assert len(find_groups(net, ({"image": x},), {"mask": mask})) == 2


def test_inputs_by_name_alone_with_a_limit(x):
    net, kwargs = Masked(), {"x": {"image": x}, "mask": torch.ones(2, 1, 8, 8)}
    assert prune_model(net, (), max_macs=64 * 10, example_kwargs=kwargs).model.net[0].out_channels == 2


def test_inputs_in_an_object_of_their_own(x):
    @dataclass
    class Batch:
        image: torch.Tensor

    class Takes(nn.Sequential):
        def forward(self, batch):
            return super().forward(batch.image)

    assert prune_model(Takes(*two()), (Batch(x),), 0.5).model[0].out_channels == 2


def test_layer_called_by_name(x):
    class ByName(nn.Sequential):
        def forward(self, x):
            return self[2](input=self[1](input=self[0](input=x)))

    assert cost_of(ByName(*two()), (x[:1],)).macs == 64 * (3 * 4 + 4 * 2)
    assert prune_model(ByName(*two()), (x,), 0.5).model[0].out_channels == 2


@pytest.fixture
def default_device():
    yield torch.set_default_device
    torch.set_default_device(None)


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def test_default_device_is_left_to_the_model(x, default_device):
    net = two()
    default_device("meta")
    pruned = prune_model(net, (x,), 0.5, max_macs=None)
    assert {parameter.device.type for parameter in pruned.model.parameters()} == {"cpu"}
    default_device(None)
    assert equals_masked(net, pruned.model, x)


def test_default_dtype_of_float64(x, default_dtype):
    default_dtype(torch.float64)
    net = two()
    assert equals_masked(net, prune_model(net, (x.double(),), 0.5).model, x.double())


def test_model_in_bfloat16(x):
    net = two().bfloat16()
    pruned = prune_model(net, (x.bfloat16(),), 0.5)
    assert pruned.model[0].weight.dtype == torch.bfloat16
    assert equals_masked(net, pruned.model, x.bfloat16())


def test_model_without_numbers_is_refused(x):
    with pytest.raises(ValueError, match=r"^0.weight: has no numbers, it is on the meta device; expected a model with"):
        prune_model(two().to("meta"), (x,), 0.5)


def test_parameters_made_under_inference_mode(x):
    with torch.inference_mode():
        net = two()
        inside = prune_model(net, (x + 0,), 0.5)
    outside = prune_model(net, (x,), 0.5)
    assert inside.spec == outside.spec
    for slim in (inside.model, outside.model):
        assert not any(parameter.is_inference() for parameter in slim.parameters())
        slim.train()(x).sum().backward()


def test_pruning_under_no_grad(x):
    with torch.no_grad():
        slim = prune_model(two(), (x,), 0.5).model
    slim(x).sum().backward()
    assert slim[0].weight.grad is not None


def traced(net, x):
    return torch.jit.trace(net, x)


def scripted_part(net, x):
    return nn.Sequential(torch.jit.script(net[0]), net[2])


def exported(net, x):
    return torch.export.export(net.eval(), (x,)).module()


def compiled(net, x):
    return torch.compile(net)


def compiled_part(net, x):
    return nn.Sequential(torch.compile(net[0]), net[2])


def dynamically_quantised(net, x):
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(net, nn.Linear(8, 2)), {nn.Linear})


FOREIGN = {
    traced: r"model: cannot be cut, got TorchScript",
    scripted_part: r"0: cannot be cut, got TorchScript",
    exported: r"model: cannot be cut, got an exported program",
    compiled: r"model: cannot be cut, got a compiled module",
    compiled_part: r"0: cannot be cut, got a compiled module",
    dynamically_quantised: r"1: cannot be cut, got a quantised layer",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_module_of_a_foreign_kind_is_refused(kind, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = kind(two(), x)
    with pytest.raises(ValueError, match=rf"^{FOREIGN[kind]}; expected the module it was made from$"):
        prune_model(net, (x,), 0.5)


def test_what_is_no_module_is_refused(x):
    program = torch.export.export(two().eval(), (x,))
    with pytest.raises(ValueError, match=r"^model: cannot be cut, got ExportedProgram; expected the module"):
        prune_model(program, (x,), 0.5)


def test_lazy_module_is_refused_until_it_has_run(x):
    net = nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"^0\.weight: has no size yet, got a lazy module; run the model once first$"):
        prune_model(net, (x,), 0.5)
    net(x)
    assert prune_model(net, (x,), 0.5).model[0].out_channels == 2


def test_hooks_of_the_user_run_and_stay(x):
    net, calls = two(), []
    net[0].register_forward_hook(lambda layer, inputs, output: calls.append(layer) or output * 2)
    slim = prune_model(net, (x,), 0.5).model
    assert calls
    assert net[0] not in calls  # on copies only
    assert len(net[0]._forward_hooks) == len(slim[0]._forward_hooks) == 1
    plain = two()
    assert torch.allclose(net.eval()[0](x), plain[0](x) * 2)
    assert equals_masked(net, slim, x)


class CalledByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        hidden = nn.functional.linear(input=x, weight=self.one.weight, bias=self.one.bias)
        return nn.functional.linear(hidden, weight=self.two.weight)


def test_functions_may_get_their_arguments_by_name():
    assert prune_model(CalledByName(), (torch.randn(3, 4),), 0.5).model.one.out_features == 4


class Scaled(CalledByName):
    def forward(self, x, weights, factor):
        return self.two(self.one(x * weights)) * factor


def test_a_limit_counts_one_of_the_batch_and_leaves_other_arguments_whole():
    kwargs = {"weights": torch.ones(4), "factor": torch.tensor(2.0)}
    pruned = prune_model(Scaled(), (torch.randn(3, 4),), example_kwargs=kwargs, max_macs=24)  # 6 a hidden channel
    assert pruned.model.one.out_features == 4
