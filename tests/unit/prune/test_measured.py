import pytest
import torch
from torch import nn

from prune import Group, Member
from prune.choose.criteria import group_scores, make_criterion

DATA_DRIVEN = ["taylor", "mean_activation", "average_rank"]


def member(layer, num, side):
    return Member(layer, side, torch.arange(num), torch.arange(num))


def batches_of(*batches, loss=torch.sum):
    """Losses of the model's outputs on these batches."""
    return lambda model: (loss(model(batch)) for batch in batches)


def side_scores(name, model, losses, layer, num):
    """Score the first channels of the side of a layer that the criterion looks at."""
    group = Group(layer, num, (member(layer, num, "out" if name == "taylor" else "in"),))
    return group_scores(make_criterion(name, model, losses), model, group).tolist()


def maps(*channels):
    """One image from its channels' maps."""
    return torch.stack([torch.as_tensor(channel, dtype=torch.float32) for channel in channels])[None]


@pytest.fixture
def two_filters():
    """Its loss is y0 + 10 y1, so that the gradient of filter o is 1 or 10 times the input."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    return net, lambda outputs: (outputs * torch.tensor([1.0, 10.0])).sum()


def test_taylor_is_the_batch_mean_of_absolute_gradient_times_weight(two_filters):
    net, loss = two_filters
    losses = batches_of(torch.tensor([[1.0, 1.0]]), torch.tensor([[-2.0, -2.0]]), loss=loss)
    # filter 0: 1 (1 + 2) = 3, then 1 (-2 - 4) = -6; filter 1: 10 (3 - 4) = -10, then 10 (-6 + 8) = 20
    assert side_scores("taylor", net, losses, "0", 2) == [4.5, 15.0]


def test_taylor_sums_filter_and_batch_before_the_absolute_value(two_filters):
    net, loss = two_filters
    losses = batches_of(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), loss=loss)
    # images together are (2, 0): filter 0: 2 * 1, filter 1: 10 * 2 * 3
    assert side_scores("taylor", net, losses, "0", 2) == [2.0, 60.0]


def test_taylor_counts_a_batch_that_misses_the_layer_as_no_change(two_filters):
    net, loss = two_filters
    net.aside = nn.Parameter(torch.ones(()))

    def losses(model):
        yield loss(model[0](torch.tensor([[1.0, 1.0]])))
        yield model.aside * 2

    assert side_scores("taylor", net, losses, "0", 2) == [1.5, 5.0]


def test_taylor_of_a_transposed_convolution_follows_its_outputs():
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]).view(4, 2, 1, 1))
    per_output = torch.tensor([1.0, -10.0, 100.0, 0.0]).view(4, 1, 1)
    losses = batches_of(torch.ones(1, 4, 1, 1), loss=lambda outputs: (outputs * per_output).sum())
    # a linear layer without bias: gradient x weight of a filter is its share of the loss, here 4, 6, 12, 14 weighted
    assert side_scores("taylor", net, losses, "0", 4) == [4.0, 60.0, 1200.0, 0.0]


def test_taylor_works_without_gradients_around_and_on_frozen_weights(two_filters):
    net, loss = two_filters
    net.requires_grad_(False)
    with torch.no_grad():
        assert side_scores("taylor", net, batches_of(torch.tensor([[1.0, 1.0]]), loss=loss), "0", 2) == [3.0, 10.0]


def test_mean_activation_is_the_mean_absolute_input_per_image():
    net = nn.Sequential(nn.Conv2d(2, 1, 1))
    one = maps([[1.0, -1.0], [1.0, -1.0]], [[0.0, 0.0], [0.0, 8.0]])  # means 1 and 2
    two = maps([[3.0, 3.0], [-3.0, -3.0]], [[0.0] * 2] * 2)  # 3 and 0
    three = maps([[8.0] * 2] * 2, [[-4.0] * 2] * 2)  # 8 and 4
    # the small last batch counts as one image of three: (1 + 3 + 8) / 3 and (2 + 0 + 4) / 3
    losses = batches_of(torch.cat([one, two]), three)
    assert side_scores("mean_activation", net, losses, "0", 2) == [4.0, 2.0]


def test_mean_activation_is_what_the_next_layer_reads():
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1))
    net[0].weight.data.copy_(torch.tensor([2.0, -2.0]).view(2, 1, 1, 1))
    # x = 1 and -3: channel 0 reads 2 and 0, channel 1 reads 0 and 6
    assert side_scores("mean_activation", net, batches_of(maps([[1.0, -3.0]])), "2", 2) == [1.0, 3.0]


def test_mean_activation_of_a_shared_layer_is_over_all_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.head(x).sum() + self.head(input=3 * x).sum()

    assert side_scores("mean_activation", Twice(), batches_of(maps([[1.0, -1.0]])), "head", 1) == [2.0]


def test_mean_activation_of_a_linear_layer_is_over_all_positions():
    net = nn.Sequential(nn.Linear(2, 1))
    tokens = torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [3.0, 4.0], [2.0, 0.0]]])
    assert side_scores("mean_activation", net, batches_of(tokens), "0", 2) == [2.0, 1.0]


def test_average_rank_is_the_mean_rank_of_the_maps():
    net = nn.Sequential(nn.Conv2d(4, 1, 1))
    identity, ones, zeros = torch.eye(3, 4), torch.ones(3, 4), torch.zeros(3, 4)
    rank_two = torch.tensor([[1.0, 2, 3, 4], [0, 1, 0, 1], [1, 3, 3, 5]])  # its last row is the sum of the others
    losses = batches_of(maps(identity, ones, zeros, rank_two), maps(identity, zeros, zeros, ones))
    assert side_scores("average_rank", net, losses, "0", 4) == [3.0, 0.5, 0.0, 1.5]


def test_average_rank_of_a_linear_input_is_its_share_of_nonzeros():
    net = nn.Sequential(nn.Linear(3, 1))
    inputs = torch.tensor([[5.0, 0.0, 0.0], [1.0, 0.0, -1e-3]])
    assert side_scores("average_rank", net, batches_of(inputs), "0", 3) == [1.0, 0.0, 0.5]


def test_channels_of_a_grouped_convolution_are_all_its_inputs():
    net = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2))
    losses = batches_of(maps([[1.0]], [[2.0]], [[3.0]], [[-4.0]]))
    assert side_scores("mean_activation", net, losses, "0", 4) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("conv", "num_dims"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
def test_one_image_without_a_batch_axis_is_one_image(conv, num_dims):
    net = nn.Sequential(conv(2, 1, 1))
    image = torch.stack([torch.full([3] * num_dims, 2.0), torch.full([3] * num_dims, -1.0)])
    assert side_scores("mean_activation", net, batches_of(image), "0", 2) == [2.0, 1.0]
    assert side_scores("average_rank", net, batches_of(image), "0", 2) == [1.0, 1.0]


def half_frozen():
    """In train mode except one BatchNorm, with frozen weights, a gradient, and a Dropout."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net.train()
    net[1].eval()
    net[0].requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    return net


def traces(net):
    """All that a measurement could leave behind, except weights."""
    hooks = [len(hooks) for m in net.modules() for hooks in (m._forward_pre_hooks, m._forward_hooks, m._backward_hooks)]
    gradients = [None if p.grad is None else p.grad.tolist() for p in net.parameters()]
    return hooks, gradients, [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]


@pytest.mark.parametrize("loss", [torch.mean, lambda outputs: outputs.mean() / 0], ids=["measured", "failed"])
@pytest.mark.parametrize("name", DATA_DRIVEN)
def test_measuring_leaves_nothing_behind(name, loss, x, same_state):
    torch.manual_seed(0)
    net = half_frozen()
    torch.manual_seed(0)
    untouched = half_frozen()
    modes = []

    def losses(model):
        modes.extend(module.training for module in model.modules())
        yield model(x).mean()
        yield loss(model(x))

    if loss is torch.mean:
        make_criterion(name, net, losses)
    else:
        with pytest.raises(ValueError, match=r"^losses: batch 2 gave no finite number, got "):
            make_criterion(name, net, losses)
    assert not any(modes)
    assert traces(net) == traces(untouched)
    assert same_state(net, untouched)


def test_backbone_that_freezes_itself_in_eval_is_measured_and_restored(two_filters):
    class Freezing(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def train(self, mode=True):
            super().train(mode)
            self.layer.requires_grad_(False)

        def forward(self, x):
            return self.layer(x)

    layer, loss = two_filters
    net = Freezing(layer[0])
    assert net.layer.weight.requires_grad
    assert side_scores("taylor", net, batches_of(torch.ones(1, 2), loss=loss), "layer", 2) == [3.0, 10.0]
    assert net.layer.weight.requires_grad


@pytest.mark.parametrize("name", DATA_DRIVEN)
@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (None, r"^criterion: {name} measures on data, got none; expected losses"),
        (lambda model: iter(()), "^losses: no batch to measure on, got 0; expected at least one"),
        (batches_of(torch.ones(1, 2), loss=lambda y: y.sum() * torch.nan), "^losses: batch 1 gave no .*, got nan; "),
        (batches_of(torch.ones(1, 2), loss=lambda y: y), r"^losses: batch 1 gave no .*, got shape \(1, 2\); "),
    ],
    ids=["no data", "no batch", "nan", "vector"],
)
def test_unfit_data_is_refused(two_filters, name, losses, message):
    with pytest.raises(ValueError, match=message.format(name=name)):
        make_criterion(name, two_filters[0], losses)


def test_loss_without_gradient_is_refused_by_taylor(two_filters):
    losses = batches_of(torch.ones(1, 2), loss=lambda outputs: outputs.detach().sum())
    with pytest.raises(ValueError, match=r"^losses: no gradient, got a loss cut off from the weights"):
        make_criterion("taylor", two_filters[0], losses)


@pytest.mark.parametrize("name", ["mean_activation", "average_rank"])
def test_layer_that_reads_what_is_not_finite_is_named(name):
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    net[0].bias.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"^1: what it reads is not finite"):
        make_criterion(name, net, batches_of(torch.ones(1, 1)))
    assert not net[0]._forward_pre_hooks


@pytest.mark.parametrize("name", DATA_DRIVEN)
def test_group_that_the_data_never_reached_is_refused(two_filters, name):
    net, loss = two_filters
    net.aside = nn.Linear(2, 2)
    losses = lambda model: iter([loss(model[0](torch.ones(1, 2)))])  # noqa: E731
    with pytest.raises(ValueError, match=r"^aside: .* cannot rank this group, got scores for 0 of its 2 channels"):
        side_scores(name, net, losses, "aside", 2)
