from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from prune import PruneSpec, Recipe, find_groups, load_slim, prune_model, refit_model, save_slim, slim_model
from prune.refit.responses import Responses
from prune.refitting import METHODS

SIDE = 8
IMAGES = torch.randn(150, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
EXAMPLE = (IMAGES[:1],)
refit = partial(refit_model, num_positions=SIDE * SIDE)
each_method = pytest.mark.parametrize("method", METHODS)


def batches():
    return IMAGES.split(60)


def normed(num_in, num_out):
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU())


def vgg():
    torch.manual_seed(0)
    return nn.Sequential(
        *(normed(3, 8), normed(8, 10), nn.MaxPool2d(2), normed(10, 12)),
        *(nn.AvgPool2d(2), nn.Flatten(1), nn.Linear(12 * 4, 5)),
    )


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x):
        out = relu(self.bn1(self.conv1(x)))
        out = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x
        return relu(out, inplace=True)


def resnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), Block(6, 8), Block(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 4)
    )


def kept(pruned):
    return {d.group: d.num_kept for d in pruned.decisions}


def run(model, images=IMAGES):
    with torch.no_grad():
        return model.eval()(images)


@each_method
@pytest.mark.parametrize("build", [vgg, resnet])
def test_refitted_net_is_nearer_to_the_original_than_its_cut(build, method, randomize):
    net = randomize(build())
    pruned = refit(net, EXAMPLE, batches, 0.4, method=method)
    expected, cut = run(net), run(slim_model(net, pruned.spec))
    assert (run(pruned.model) - expected).norm() < 0.9 * (cut - expected).norm()


@each_method
@pytest.mark.parametrize("build", [vgg, resnet])
def test_original_is_unchanged_even_when_the_slim_one_is_trained(build, method, randomize, same_state):
    net, untouched = randomize(build()).train(), randomize(build())

    def train(slim, group):
        for parameter in slim.parameters():
            parameter.data += 1e-3

    refit(net, EXAMPLE, batches, 0.4, method=method, between=train)
    assert same_state(net, untouched)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@each_method
def test_same_seed_gives_the_same_bytes(method, randomize, same_state):
    models = [
        refit_model(randomize(vgg()), EXAMPLE, batches, 0.4, method=method, num_positions=14, seed=seed).model
        for seed in (3, 3, 4)
    ]
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])


@each_method
def test_channel_that_never_contributes_goes_though_its_filter_is_large(method, randomize):
    net = randomize(vgg())
    net[0][0].weight.data[2] *= 100
    net[0][1].weight.data[2], net[0][1].bias.data[2] = 0, -1  # ReLU never lets it through
    widths = {"0.0": 7, "1.0": 10, "3.0": 12}
    pruned = refit(net, EXAMPLE, batches, 0.0, widths=widths, method=method)
    assert pruned.spec.layers["0.0"].kept_out == (0, 1, 3, 4, 5, 6, 7)
    assert 2 in prune_model(net, EXAMPLE, 0.0, widths=widths).spec.layers["0.0"].kept_out
    torch.testing.assert_close(run(pruned.model), run(net), rtol=1e-3, atol=1e-4)


@each_method
def test_one_of_two_equal_channels_goes_without_loss(method, randomize):
    net = randomize(vgg())
    with torch.no_grad():
        for tensor in (*net[0][0].parameters(), *net[0][1].parameters(), *net[0][1].buffers()):
            if tensor.ndim:
                tensor[5] = tensor[1]
        net[1][0].weight[:, 1] *= 0.01  # the weakest two, so that backward growth takes one of them first
        net[1][0].weight[:, 5] = net[1][0].weight[:, 1]
    pruned = refit(net, EXAMPLE, batches, 0.0, widths={"0.0": 7}, method=method)
    assert len({1, 5} & set(pruned.spec.layers["0.0"].kept_out)) == 1
    torch.testing.assert_close(run(pruned.model), run(net), rtol=1e-3, atol=1e-4)


def test_each_number_of_channels_is_that_of_the_recipe():
    recipe = Recipe(prune_ratio=0.3, round_to=4, skip=("3.0",))
    pruned = refit(vgg(), EXAMPLE, batches, recipe)
    # 8 and 10 channels: floor(5.6) = 5 and 7, the nearest multiples of 4 are 4 and 8
    assert kept(pruned) == {"0.0": 4, "1.0": 8, "3.0": 12, "6": 5}
    assert pruned.num_rounded == (4 - 5) + (8 - 7)


@each_method
def test_spec_and_weights_make_the_same_net_again(method, tmp_path, randomize):
    pruned = refit(randomize(resnet()), EXAMPLE, batches, 0.4, method=method)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    again, spec = load_slim(tmp_path / "slim.safetensors", resnet)
    assert spec == pruned.spec
    assert torch.equal(run(again), run(pruned.model))


def test_training_between_layers_sees_them_in_forward_order_and_is_kept():
    seen = []

    def between(slim, group):
        seen.append((group, [slim[i].conv1.out_channels for i in (1, 2)], [slim[i].conv2.out_channels for i in (1, 2)]))
        slim[5].bias.data += 1

    net = resnet()
    pruned = refit(net, EXAMPLE, batches, 0.5, between=between)
    assert seen == [
        ("1.conv1", [4, 8], [8, 8]),
        ("1.conv2", [4, 8], [4, 8]),
        ("2.conv1", [4, 4], [4, 8]),
        ("2.conv2", [4, 4], [4, 4]),
    ]
    torch.testing.assert_close(pruned.model[5].bias, net[5].bias + 4)


def test_groups_are_cut_as_they_run_not_as_they_are_written():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.second, self.first = nn.Conv2d(6, 2, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.last(relu(self.second(relu(self.first(x)))))

    seen = []
    refit(Backwards(), EXAMPLE, batches, 0.5, between=lambda slim, group: seen.append(group))
    assert seen == ["first", "second"]


WHOLE = {
    "residual": {"a": "read by 2 layers, b, d"},
    "squeeze_excite": {"a": "read by 2 layers, down, b"},
    "grouped": {"0": "its channels are not read one by one"},
    "tied_weights": {"a": "read by 3 layers, b, c, d"},
    "concat": {"a": "c takes it together with other channels"},
    "group_norm": {"0": "its channels are not read one by one"},
    "transposed": {"0": "read by a ConvTranspose2d, expected a plain Conv2d or Linear"},
    "shared_layer": {"a": "read by 2 layers, b, c"},
}


@pytest.mark.parametrize(("name", "reasons"), WHOLE.items(), ids=WHOLE)
def test_group_that_cannot_be_refitted_stays_whole_with_its_reason(name, reasons, tiny):
    pruned = refit(tiny(name), EXAMPLE, batches, 0.5)
    found = {d.group: d.reason for d in pruned.untouched}
    assert {group: found[group] for group in reasons} == {
        group: f"cannot be refitted: {reason}" for group, reason in reasons.items()
    }


@each_method
@pytest.mark.parametrize("name", ["depthwise", "prelu", "free_parameter", "channels_last"])
def test_channels_passed_on_are_refitted_where_they_are_read(name, method, tiny):
    net = tiny(name)
    pruned = refit(net, EXAMPLE, batches, 0.5, method=method)
    group = find_groups(net, EXAMPLE)[0]
    assert kept(pruned)[group.name] == group.num_channels // 2
    expected, cut = run(net), run(slim_model(net, pruned.spec))
    assert (run(pruned.model) - expected).norm() < (cut - expected).norm()


def test_layer_that_runs_twice_stays_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            maps = self.a(x)
            return self.c(self.b(maps) + self.b(2 * maps))

    reason = {d.group: d.reason for d in refit(Twice(), EXAMPLE, batches, 0.5).untouched}["a"]
    assert reason == "cannot be refitted: b, which reads it, runs more than once"


def test_width_of_a_group_that_cannot_be_refitted_is_refused():
    with pytest.raises(ValueError, match=r"^widths\['0'\]: cannot be cut, cannot be refitted: read by 3 layers"):
        refit(resnet(), EXAMPLE, batches, 0.0, widths={"0": 3})


def test_residual_target_makes_up_for_the_error_of_the_shortcut(randomize):
    net = randomize(resnet())
    changed = randomize(resnet())
    changed[1].bn3.bias.data += 0.3  # so that the second block's shortcut is another
    responses = Responses(net, ["2.conv3", "1.conv2"], batches, 5, 0, residual=True)
    assert responses.factors("1.conv2") is None
    norm = changed[2].bn3
    factors = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(responses.factors("2.conv3"), factors.detach())
    for (rows, targets), images in zip(responses.rows(changed, "2.conv3"), batches(), strict=True):
        trunk = [run(model[:2], images) for model in (net, changed)]
        branch = run(nn.Sequential(*list(net[2].children())[:2], nn.ReLU()), trunk[0])
        branch = run(nn.Sequential(net[2].conv2, net[2].bn2, nn.ReLU(), net[2].conv3, net[2].bn3), branch)
        wanted = branch + trunk[0] - trunk[1]  # Y1 + Y2 - Y2', as the sum sees it
        wanted = (wanted - norm.bias[:, None, None]) / factors[:, None, None] + norm.running_mean[:, None, None]
        wanted_by_place = wanted.detach().flatten(2).transpose(1, 2).flatten(0, 1)
        assert len(rows) == len(targets) == 5 * len(images)
        distances = torch.cdist(targets, wanted_by_place).amin(1)
        assert distances.max() < 1e-3


def test_residual_option_refits_whole_nets(randomize):
    net = randomize(resnet())
    pruned = refit(net, EXAMPLE, batches, 0.4, method="lasso", residual=True)
    expected, cut = run(net), run(slim_model(net, pruned.spec))
    assert (run(pruned.model) - expected).norm() < 0.9 * (cut - expected).norm()


def test_ratio_zero_needs_no_data(same_state):
    pruned = refit(vgg(), EXAMPLE, list, 0.0)
    assert pruned.spec == PruneSpec({})
    assert same_state(pruned.model, vgg())


class Shuffled:
    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return [IMAGES.roll(self.times, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "thinnet"}, r"^method: unknown, got 'thinnet'; expected one of \['thinet', "),
        ({"num_positions": 0}, "^num_positions: no number of places, got 0; expected a whole one, 1 or more"),
        ({"num_positions": 2.5}, "^num_positions: no number of places, got 2.5; "),
        ({"batches": lambda: None}, "^batches: gives no batches, got NoneType; expected them one after another"),
        ({"batches": lambda: None, "method": "lasso"}, "^batches: gives no batches, got NoneType; "),
        ({"batches": lambda: [None]}, "^batches: batch 1 is no input, got NoneType; expected a tensor or a tuple"),
        ({"batches": lambda: [IMAGES, IMAGES[:0]]}, "^batches: batch 2 is empty, got 0 images; expected at least one"),
        ({"batches": lambda: [IMAGES[:0]], "method": "lasso"}, "^batches: batch 1 is empty, got 0 images; "),
        ({"batches": [IMAGES]}, "^batches: cannot be called, got list; expected `lambda: images`"),
        ({"batches": list}, "^batches: no batch to sample from, got 0"),
        ({"batches": list, "method": "lasso"}, "^batches: no batch to sample from, got 0"),
        ({"batches": Shuffled(), "method": "lasso"}, "^batches: batch 1 is not the same as the first time"),
        (
            {"batches": lambda: [IMAGES[:30]], "num_positions": 1, "method": "lasso"},
            r"^batches: too few rows to refit 1\.0, got 30 for 36 unknowns; .*, or skip 0\.0$",
        ),
        (
            {"batches": lambda: [[IMAGES, IMAGES]]},
            "^batches: the model fails on one, .*; expected inputs like the example",
        ),
        ({"batches": lambda: [IMAGES * torch.nan]}, "^1.0: what it reads is not finite"),
        ({"batches": lambda: [IMAGES * torch.nan], "method": "lasso"}, "^1.0: what it reads is not finite"),
    ],
)
def test_unfit_request_is_refused(options, message):
    options = {"batches": batches, "num_positions": 16, **options}
    with pytest.raises(ValueError, match=message):
        refit_model(vgg(), EXAMPLE, recipe=Recipe(prune_ratio=0.5), **options)


class Rescaling(nn.Module):
    """Writes to its input, and draws random numbers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.net = vgg()

    def forward(self, x):
        x -= 0.5
        x /= 0.25
        return self.net(nn.functional.dropout(x, 0.1))


@each_method
@pytest.mark.parametrize("residual", [False, True])
def test_images_and_random_states_of_the_caller_stay(method, residual, same_state):
    images, net = IMAGES.clone(), Rescaling()
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()[1:3]
    models = [
        refit(net, EXAMPLE, lambda: images.split(60), 0.4, method=method, residual=residual).model for _ in range(2)
    ]
    assert torch.equal(images, IMAGES)
    assert same_state(*models)
    assert torch.equal(torch.get_rng_state(), of_torch)
    assert all(map(np.array_equal, np.random.get_state()[1:3], of_numpy))


@pytest.mark.parametrize("of_images", [torch.zeros_like, torch.ones_like, lambda images: images])
def test_lasso_refits_what_gives_constants(of_images, randomize):
    net = randomize(vgg())
    net[0][1].weight.data.zero_()  # all that the second convolution reads is constant but for the border
    images = of_images(IMAGES)
    pruned = refit(net, EXAMPLE, lambda: images.split(60), 0.4, method="lasso")
    assert kept(pruned)["0.0"] == 4
    assert all(tensor.isfinite().all() for tensor in pruned.model.state_dict().values())
    torch.testing.assert_close(run(pruned.model, images), run(net, images), rtol=1e-3, atol=1e-3)
