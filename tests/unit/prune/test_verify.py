import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

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
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.c(self.b(torch.cat([x, self.a(x)], 1)))

    assert obstacle_of(Net(), x) == "tied to the model's input or to a constant"


def test_number_that_depends_on_the_width_is_found_when_it_runs(x):
    net = Between(lambda x: x / math.sqrt(x.numpy().shape[1]))
    message = r"model: its slim copy computes something else, its outputs differ .* first difference is in b; skip a$"
    with pytest.raises(ValueError, match=message):
        prune_model(net, (x,), 0.5)
    assert prune_model(net, (x,), 0.5, verify=False).model.a.out_channels == 2
    assert prune_model(net, (x,), 0.5, skip=["a"]).model.a.out_channels == 4


def test_size_written_into_the_forward_pass_is_found_when_it_runs(x):
    net = Between(lambda x: x if x.numpy().shape[1] == 4 else x.view(3, 5))
    with pytest.raises(ValueError, match=r"model: its slim copy does not run, shape .*; the first .* in b; skip a$"):
        prune_model(net, (x,), 0.5)


def test_only_the_layer_at_fault_is_named(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.good, self.bad, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.bad(self.good(x))
            return self.c(y * y.numpy().shape[1])

    with pytest.raises(ValueError, match=r"; the first difference is in c; skip bad$"):
        prune_model(Two(), (x,), 0.5)


def test_layer_that_no_group_alone_breaks_is_named_with_what_it_reads(x):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            a = self.a(x)
            b = self.b(a)
            return self.c(b + (a.numpy().shape[1] == b.numpy().shape[1] == 2))

    with pytest.raises(ValueError, match=r"; the first difference is in c; skip b$"):
        prune_model(Both(), (x,), 0.5)


def test_difference_after_the_last_layer_is_said_so(x):
    class Scaled(Between):
        def forward(self, x):
            return super().forward(x) * self.a(x).numpy().shape[1]

    with pytest.raises(ValueError, match=r"; its layers agree in eval mode, what follows them differs; skip a$"):
        prune_model(Scaled(nn.ReLU()), (x,), 0.5)


def chaotic(x):
    """Double, fold and shift numbers 20 times: rounding grows a millionfold."""
    for _ in range(20):
        x = 1 - 2 * (x - x.round()).abs()
    return x


def test_rounding_of_float32_is_decided_in_float64(x):
    def rounded(x):
        large = 1e5 * math.log(x.shape[1])  # a float32 near it has steps of 1/128
        return (x + large) - large

    net = Between(rounded)
    pruned = prune_model(net, (x,), 0.5)
    twin = masked_by_hand(net, pruned.model)
    assert (pruned.model(x) - twin(x)).abs().max() > 1e-3
    assert (pruned.model.double()(x.double()) - twin.double()(x.double())).abs().max() < 1e-6


def masked_by_hand(net, slim):
    """Return the net without what its second layer reads of the channels that the first one lost."""
    twin = copy.deepcopy(net)
    removed = [i for i, row in enumerate(net.a.weight) if not any(torch.equal(row, kept) for kept in slim.a.weight)]
    assert len(removed) == 2
    with torch.no_grad():
        twin.b.weight[:, removed] = 0
    return twin


def test_chaos_does_not_hide_a_fault(x):
    class Chaotic(Between):
        def forward(self, x):
            return chaotic(super().forward(x))

    with pytest.raises(ValueError, match=r"computes something else, .* the first difference is in b; skip a$"):
        prune_model(Chaotic(lambda x: x + 1e-3 * x.numpy().shape[1]), (x,), 0.5)


def test_small_fault_is_seen_in_bfloat16(x):
    net = Between(lambda x: x * (1 + 0.005 * x.float().numpy().shape[1])).bfloat16()
    with pytest.raises(ValueError, match=r"computes something else, .* skip a$"):  # 1 % is below what bfloat16 resolves
        prune_model(net, (x.bfloat16(),), 0.5)


def test_model_that_refuses_float64_is_judged_in_float32(x):
    class Strict(Between):
        def forward(self, x):
            if x.dtype != torch.float32:
                raise TypeError("expected float32")
            return super().forward(x)

    assert prune_model(Strict(torch.relu), (x,), 0.5).model.a.out_channels == 2
    with pytest.raises(ValueError, match=r"computes something else, .* the first difference is in b; skip a$"):
        prune_model(Strict(lambda x: x * x.numpy().shape[1]), (x,), 0.5)


def test_model_out_of_range_on_noise_is_compared_on_the_example(x):
    class Positive(Between):
        def forward(self, x):
            if x.min() < 0:
                raise ValueError("expected an image in [0, 1]")
            return super().forward(x)

    assert prune_model(Positive(torch.relu), (x.abs(),), 0.5).model.a.out_channels == 2
    with pytest.raises(ValueError, match=r"computes something else, .* skip a$"):
        prune_model(Positive(lambda x: x * x.numpy().shape[1]), (x.abs(),), 0.5)


def test_outputs_without_a_finite_number_are_no_proof(x):
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.b(self.a(x / 0.0))

    with pytest.raises(ValueError, match=r"model: its slim copy gives no finite number, so that nothing can be"):
        prune_model(Infinite(), (x,), 0.5)


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
    with pytest.raises(ValueError, match="its forward pass fails on the example input"):
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


def test_channels_that_nothing_reads_stay(x):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            self.a(x)
            return self.b(x)

    assert obstacle_of(Aside(), x) == "read by no layer that could be cut with it"
