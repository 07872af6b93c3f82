import pytest
import torch
from torch import nn

from prune import recalibrating

BATCHES = torch.randn(3, 4, 2, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
"""Three batches of four maps with two channels."""


class Net(nn.Module):
    """Two normalised layers, one of which no batch reaches, and a dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)
        self.unused = nn.BatchNorm2d(3)
        self.unused.running_mean.fill_(7)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)))


def recalibrated(net, batches=BATCHES):
    with recalibrating(net):
        for images in batches:
            net(images)
    return net


def test_statistics_become_the_mean_of_those_of_the_batches():
    net = Net()
    maps = net.conv(BATCHES.flatten(0, 1)).detach().unflatten(0, (3, 4)).transpose(1, 2).flatten(2)  # batch, C, values
    recalibrated(net)
    torch.testing.assert_close(net.norm.running_mean, maps.mean(2).mean(0))
    torch.testing.assert_close(net.norm.running_var, maps.var(2).mean(0))


def test_statistics_of_before_do_not_matter_and_the_weights_stay():
    one, other = Net(), Net()
    other.norm.running_mean.fill_(50)
    other.norm.running_var.fill_(9)
    for net in (one, other):
        recalibrated(net)
        assert all(tensor.equal(dict(Net().named_parameters())[name]) for name, tensor in net.named_parameters())
        assert all(parameter.grad is None for parameter in net.parameters())
    assert one.norm.running_mean.equal(other.norm.running_mean)
    assert one.norm.running_var.equal(other.norm.running_var)


def test_layer_that_no_batch_reaches_keeps_its_statistics():
    net = recalibrated(Net())
    assert net.unused.running_mean.tolist() == [7, 7, 7]
    assert net.unused.num_batches_tracked == 0


def test_only_batch_norm_is_in_training_mode_and_all_modes_return():
    net = Net().train()
    net.unused.eval()
    with recalibrating(net):
        assert (net.norm.training, net.drop.training, net.training) == (True, False, False)
        net(BATCHES[0])
    assert (net.norm.training, net.drop.training, net.training, net.unused.training) == (True, True, True, False)
    assert net.norm.momentum == 0.3


def test_net_without_statistics_is_refused():
    for norm in (nn.GroupNorm(2, 2), nn.BatchNorm2d(2, track_running_stats=False)):
        with (
            pytest.raises(ValueError, match=r"^recalibration: nothing to estimate, got Sequential without BatchNorm"),
            recalibrating(nn.Sequential(norm)),
        ):
            pass


def test_batch_with_one_value_per_channel_is_refused():
    with pytest.raises(ValueError, match=r"^recalibration: Expected more than 1 value per channel .*; expected more"):
        recalibrated(Net(), BATCHES[:, :1, :, :1, :1])


def test_other_errors_in_the_block_stay_what_they_are():
    net = Net()
    with pytest.raises(ValueError, match=r"^mine$"), recalibrating(net):
        raise ValueError("mine")
    assert net.norm.momentum == 0.3
