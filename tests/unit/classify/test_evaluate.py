import pytest
import torch
from torch import nn

from classify.augmentation import centre_crops
from classify.data import image_folder
from classify.evaluate import evaluate_classifier


class Brightest(nn.Module):
    """Scores of three classes: the mean of each colour channel."""

    def forward(self, images):
        return images.mean((2, 3))


@pytest.fixture
def coloured(pairs):
    """Four images that are pure red, green, blue and blue; a normalised channel is brightest where it is 255."""
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for i, channel in enumerate((0, 1, 2, 2)):
        images[i, channel] = 255

    return lambda labels: pairs(images, labels)


@pytest.mark.parametrize(
    ("labels", "top1"), [([0, 1, 2, 2], 1.0), ([0, 1, 2, 0], 0.75), ([0, 0, 0, 0], 0.25), ([1, 2, 0, 1], 0.0)]
)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_top1_is_the_share_of_right_answers(coloured, tmp_path, labels, top1, batch_size):
    assert evaluate_classifier(Brightest(), coloured(labels), tmp_path, batch_size)["top1"] == top1


def test_top5_counts_labels_among_the_five_best(tmp_path):
    class Ranks(nn.Module):
        def forward(self, x):
            return -torch.arange(7.0).expand(len(x), 7)  # class 0 first

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    found = evaluate_classifier(Ranks(), list(zip(images, (0, 4, 5, 6), strict=True)), tmp_path)
    assert found == {"top1": 0.25, "top5": 0.5}


def test_net_is_not_changed(shapes, tiny_net, tmp_path):
    net, untouched = tiny_net().train(), tiny_net()
    net.bn1.eval()
    evaluate_classifier(net, image_folder(shapes, "val", centre_crops(32)), tmp_path)
    pairs = zip(net.state_dict().values(), untouched.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [name for name, layer in net.named_modules() if not layer.training] == ["bn1"]


def test_evaluation_is_repeatable_and_in_eval_mode(shapes, tiny_net, tmp_path):
    net, data = tiny_net().train(), image_folder(shapes, "val", centre_crops(32))
    figures = [evaluate_classifier(net, data, tmp_path / str(size), size) for size in (1, 5, 12)]
    assert figures[0] == figures[1] == figures[2]  # batch statistics would differ by batch size


def test_nothing_is_printed(coloured, tmp_path, capfd):
    evaluate_classifier(Brightest(), coloured([0, 1, 2, 2]), tmp_path)
    assert capfd.readouterr().out == ""
