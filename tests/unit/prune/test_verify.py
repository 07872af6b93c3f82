import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from prune import PruneSpec, find_groups, masked_model, prune_model, slim_model
from prune.cut.verify import fault_of


class Between(nn.Module):
    """Two convolutions and what happens to the channels between them."""

    def __init__(self, between, num_read=4):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(num_read, 2, 1), between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def in_a_buffer(x):
    torch.add(x, 1.0, out=(buffer := x.new_empty(0)))
    return buffer


def transposed_in_place(x):
    x = x * 1.0
    x.transpose_(0, 1)
    return x.transpose(0, 1)


# what the channels between two convolutions may go through: cut, or left whole with a reason
CUT = {
    "padded in space": lambda x: functional.pad(x, (1, 1, 0, 2)),
    "pooled with indices": lambda x: functional.max_pool2d(x, 2, return_indices=True)[0],
    "largest along the width": lambda x: x.max(dim=3, keepdim=True).values,
    "spread named": lambda x: torch.var(x, dim=(2, 3), keepdim=True, correction=0),
    "sorted along the width": lambda x: torch.cumsum(x, dim=-1),
    "squeezed": lambda x: x.unsqueeze(1).squeeze(1),
    "squeezed everywhere": lambda x: x.unsqueeze(0).unsqueeze(3).squeeze().unsqueeze(3).squeeze(3),
}
WHOLE = {
    "sorted along its channels": lambda x: torch.sort(x, dim=1).values,
    "padded and cropped along its channels": lambda x: functional.pad(x, (0, 0, 0, 0, 1, -1)),
    "added up along its channels": lambda x: torch.cumsum(x, dim=1),
    "softmax by name": lambda x: functional.softmax(input=x, dim=1),
    "written through out": in_a_buffer,
    "transposed in place": transposed_in_place,
    "through numpy": lambda x: torch.from_numpy(np.tanh(x.numpy())),
    "mean of everything": lambda x: x - x.mean(),
}


def obstacle_of(net, x):
    return next(group for group in find_groups(net, (x,)) if group.name == "a").obstacle


@pytest.mark.parametrize("form", CUT)
def test_channels_are_followed_through(form, x):
    net = Between(CUT[form])
    pruned = prune_model(net, (x,), 0.5, verify=False)
    assert pruned.model.a.out_channels == 2
    assert torch.allclose(pruned.model(x), masked_model(net, pruned.spec)(x), atol=1e-5)
    assert fault_of(net, pruned.model, pruned.spec, (x,)) is None


@pytest.mark.parametrize("form", WHOLE)
def test_channels_stay_where_they_depend_on_each_other(form, x):
    assert obstacle_of(Between(WHOLE[form]), x)


def test_grouped_convolution_behind_a_constant_stays(x):
    net = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(6, 6, 1, groups=6), "c": nn.Conv2d(6, 2, 1)})
    net.forward = lambda x: net["c"](net["b"](torch.cat([x, net["a"](x)], 1)))
    assert obstacle_of(net, x) == "tied to the model's input or to a constant"


def test_number_that_depends_on_the_width_is_found_when_it_runs(x):
    net = Between(lambda x: x / math.sqrt(x.shape[1]))
    with pytest.raises(ValueError, match=r"model: its slim copy computes something else, its outputs differ .*skip a$"):
        prune_model(net, (x,), 0.5)
    assert prune_model(net, (x,), 0.5, verify=False).model.a.out_channels == 2
    assert prune_model(net, (x,), 0.5, skip=["a"]).model.a.out_channels == 4


def test_size_written_into_the_forward_pass_is_found_when_it_runs(x):
    net = Between(lambda x: functional.layer_norm(x.flatten(2), [64]).view(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"model: its slim copy does not run, shape .*skip a$"):
        prune_model(net, (x,), 0.5)


def test_only_the_layer_at_fault_is_named(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.bad(self.good(x))
            return self.c(y * y.shape[1])

    with pytest.raises(ValueError, match=r"skip bad$"):
        prune_model(Two(), (x,), 0.5)


def test_outputs_of_another_shape_are_a_fault(tiny, x):
    net = tiny("plain")
    assert fault_of(net, net[:2], PruneSpec({}), (x,)) == "gives outputs of other shapes"


def test_wrong_weights_are_a_fault(tiny, x):
    net = tiny("plain")
    pruned = prune_model(net, (x,), 0.5)
    with torch.no_grad():
        pruned.model[3].weight[0, 0] += 0.1
    assert fault_of(net, pruned.model, pruned.spec, (x,)).startswith("computes something else")


def test_check_leaves_every_weight_as_it_was(declared, x, same_state):
    net, _ = declared
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    prune_model(net, (x,), 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_check_leaves_every_weight_as_it_was_when_the_model_fails(tiny, x, same_state):
    net = tiny("tied_weights")
    spec = prune_model(net, (x,), 0.5).spec
    with pytest.raises(RuntimeError):
        fault_of(net, slim_model(net, spec), spec, (x[:, :2],))
    assert same_state(net, tiny("tied_weights"))


def test_check_leaves_the_callers_random_state(tiny, x):
    net = tiny("plain")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    prune_model(net, (x,), 0.5)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weight_that_is_not_finite_is_refused(tiny, x, bad):
    net = tiny("plain")
    with torch.no_grad():
        net[3].bias[1] = bad
    with pytest.raises(ValueError, match=rf"^3.bias: a weight is not finite, got {bad}; expected a trained model"):
        prune_model(net, (x,), 0.5)


def test_torchscript_is_refused(tiny, x):
    net = nn.Sequential(torch.jit.trace(nn.Conv2d(3, 4, 1), x), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match=r"^0: cannot be cut, got TorchScript; expected the module"):
        prune_model(net, (x,), 0.5)


def test_computed_weight_is_reported_as_such(tiny, x):
    net = tiny("plain")
    parametrizations.weight_norm(net[0])
    reasons = {decision.group: decision.reason for decision in prune_model(net, (x,), 0.5).decisions}
    assert reasons["0"] == "its weight is computed by a parametrization; remove that first"


def test_channels_that_nothing_reads_stay(x):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), None

        def forward(self, x):
            self.last = self.a(x)
            return self.b(x)

    assert obstacle_of(Aside(), x) == "read by no layer that could be cut with it"
