"""Checkpoints whose hash is right and whose content is of no such training, and hashes that are left over."""

import pytest
import torch
from torch import nn

from classify.schedule import Schedule
from classify.train import train_classifier
from command.errors import WorkError
from command.files import sha256_of

SCHEDULE = Schedule(epochs=4, batch_size=4, lr=0.1, optimizer="SGD", warmup_iters=0)

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


class KilledError(Exception):
    pass


@pytest.fixture
def train(pairs, tmp_path):
    """Train on eight images, two iterations an epoch."""

    def run(kill_at=None):
        def follow(done, *_):
            if done == kill_at:
                raise KilledError

        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        data = pairs(torch.zeros(8, 3, 2, 2, dtype=torch.uint8), [0, 1] * 4)
        train_classifier(net, data, SCHEDULE, tmp_path, 0, follow)

    return run


def place(**values):
    return lambda checkpoint: checkpoint["meta"].update(values)


def momentum(value):
    return lambda checkpoint: checkpoint["optimizer"]["state"][0].update(momentum_buffer=value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (place(epoch=-1), "epoch -1 of 4, iteration 4"),
        (place(epoch=0, iter=0), "epoch 0 of 4, iteration 0"),
        (place(epoch=5, iter=10), "epoch 5 of 4, iteration 10"),
        (place(iter=10**9), "epoch 2 of 4, iteration 1000000000"),
        (momentum(torch.zeros(3, 5)), "state of other weights in its optimizer"),
        (momentum("a"), "'str' object has no attribute"),
    ],
)
def test_a_checkpoint_of_no_such_training_is_refused_in_a_line(train, tmp_path, change, what):
    with pytest.raises(KilledError):
        train(kill_at=5)
    path = tmp_path / "epoch_2.pth"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    path.with_name("epoch_2.pth.sha256").write_text(sha256_of(path))
    with pytest.raises(WorkError, match=rf"epoch_2\.pth: not a checkpoint of this training, got {what}") as refused:
        train()
    assert "\n" not in str(refused.value)


def test_hashes_of_deleted_checkpoints_are_deleted(train, tmp_path):
    train()
    left = sorted(path.name for path in tmp_path.glob("epoch_*"))
    assert left == ["epoch_3.pth", "epoch_3.pth.sha256", "epoch_4.pth", "epoch_4.pth.sha256"]
