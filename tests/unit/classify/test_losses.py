import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, Preprocessing
from classify.data import MEAN, STD
from classify.image_data import FolderData
from classify.losses import calibration_batches, classifier_losses
from classify.synthetic import SHAPES


@pytest.fixture
def card():
    return ModelCard("classifier", Architecture("resnet18", 6), SHAPES, Preprocessing((32, 32)))


def test_the_loss_is_cross_entropy_on_images_cropped_for_evaluation(tiny_net, card, tmp_path):
    paths = [tmp_path / split / name / "a.png" for split in ("train", "val") for name in SHAPES]
    pictures = torch.randint(0, 256, (len(SHAPES), 3, 32, 48), dtype=torch.uint8)
    for path, picture in zip(paths, (*pictures, *pictures.flip(0)), strict=True):
        path.parent.mkdir(parents=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    net = tiny_net().eval()
    normal = (v2.CenterCrop(32)(pictures).float() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = torch.nn.functional.cross_entropy(net(normal), torch.arange(6))
    (loss,) = classifier_losses(card, FolderData(type="folder", root=tmp_path), batch_size=6, num_batches=1)(net)
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad


def test_the_losses_come_from_the_seed_alone_and_leave_the_random_state(tiny_net, card, shapes):
    images = FolderData(type="folder", root=shapes)

    def losses(seed):
        return [loss.item() for loss in classifier_losses(card, images, 4, 3, seed)(net)]

    net = tiny_net().eval()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = losses(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert losses(0) == first
    assert losses(1) != first
    assert len(first) == 3


def test_no_image_comes_twice_and_the_last_batch_may_be_smaller():
    batches = list(calibration_batches(10, 4, 99, seed=0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(place for batch in batches for place in batch) == list(range(10))
    assert batches[0] != [0, 1, 2, 3]


def test_no_more_batches_come_than_requested():
    assert [len(batch) for batch in calibration_batches(10, 4, 2, seed=0)] == [4, 4]
