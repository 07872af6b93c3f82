"""How many processes load images, and what is tracked, changes no result, and may change when a training goes on."""

import pytest
import torch

from classify.config import ClassifierTraining
from classify.objective import Objective, TrainedClassifier
from classify.provenance import origin, what_counts
from classify.schedule import Schedule
from classify.train import train_classifier
from command.config import read_config

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


class KilledError(Exception):
    pass


@pytest.fixture
def trained(pairs, tiny_net, tmp_path):
    """Train a network with dropout on mixed images; return its weights."""

    def train(name, num_workers, kill_at=None):
        def follow(done, *_):
            if done == kill_at:
                raise KilledError

        images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        net, schedule = tiny_net(3), Schedule(2, 6, 0.01, num_workers=num_workers)
        model = TrainedClassifier(net, Objective(mixup=0.5))
        train_classifier(net, pairs(images, [0, 1, 2] * 4), schedule, tmp_path / name, 0, follow, model)
        return net.state_dict()

    return train


def test_loading_by_other_processes_changes_no_weight(trained):
    alone = trained("alone", 0)
    with pytest.raises(KilledError):
        trained("killed", 0, kill_at=3)
    for found in (trained("loaded", 2), trained("killed", 1)):
        assert all(torch.equal(alone[name], found[name]) for name in alone)


@pytest.mark.parametrize(
    ("setting", "counts"),
    [("schedule.num_workers=3", False), ("tracking=('tensorboard',)", False), ("schedule.lr=0.5", True)],
)
def test_what_changes_no_result_does_not_block_a_resume(setting, counts):
    plain, other = (
        what_counts(origin(read_config("resnet18_shapes", sets, ClassifierTraining), None)) for sets in ((), (setting,))
    )
    assert (plain != other) == counts
