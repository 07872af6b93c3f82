import math

import pytest
import torch
from torch import nn

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, save_model
from classify.objective import Objective, TrainedClassifier
from command.errors import RequestError

SCORES = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 1])
BY_HAND = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
"""Cross entropy of these scores."""


def loss(objective, teacher=None, net=None):
    return float(TrainedClassifier(net or nn.Identity(), objective, teacher)(SCORES, LABELS, "loss")["loss"])


def test_the_plain_objective_is_cross_entropy():
    assert loss(Objective()) == pytest.approx(BY_HAND)
    assert Objective().effective() == {}


def test_smoothing_spreads_a_share_over_all_classes():
    # a tenth is spread over two classes: 0.05 of the other class's loss, which is higher by the scores' distance
    assert loss(Objective(label_smoothing=0.1)) == pytest.approx(BY_HAND + 0.05 * (2 + 1) / 2)


def test_images_and_labels_are_mixed_in_one_share(monkeypatch):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.25))
    mixed = [[1.5, 0.25], [0.5, 0.75]]
    expected = [
        0.75 * math.log(1 + math.exp(mixed[0][1] - mixed[0][0]))
        + 0.25 * math.log(1 + math.exp(mixed[0][0] - mixed[0][1])),
        0.75 * math.log(1 + math.exp(mixed[1][0] - mixed[1][1]))
        + 0.25 * math.log(1 + math.exp(mixed[1][1] - mixed[1][0])),
    ]
    assert loss(Objective(mixup=0.2)) == pytest.approx(sum(expected) / 2)


def test_evaluation_mixes_nothing():
    model = TrainedClassifier(nn.Identity(), Objective(mixup=0.2, label_smoothing=0.1))
    assert torch.equal(model(SCORES, LABELS), SCORES)


def test_a_teacher_of_equal_scores_adds_nothing():
    objective = Objective(teacher="a.safetensors", teacher_share=0.25)
    assert loss(objective, teacher=lambda images: images) == pytest.approx(0.75 * BY_HAND)


def test_the_distance_to_a_teacher_is_that_of_softened_scores():
    # temperature 2: (1, 0) against (0, 0), whose shares are a half each
    share = 1 / (1 + math.exp(-1))
    divergence = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    second = 1 / (1 + math.exp(-0.5))
    other = 0.5 * math.log(0.5 / second) + 0.5 * math.log(0.5 / (1 - second))
    objective = Objective(teacher="a.safetensors", teacher_share=1.0, temperature=2.0)
    assert loss(objective, teacher=torch.zeros_like) == pytest.approx(4 * (divergence + other) / 2)


def student(*classes):
    return ModelCard("classifier", Architecture("resnet18", len(classes), 8), classes)


def test_a_teacher_is_a_classifier_of_the_same_classes(tmp_path):
    arch, path = Architecture("resnet18", 2, 8), tmp_path / "teacher.safetensors"
    net = build_classifier(arch).eval()
    save_model(path, net, ModelCard("classifier", arch, ("a", "b")))
    objective, images = Objective(teacher=path), torch.rand(2, 3, 32, 32)
    assert torch.equal(objective.scores_of_teacher(student("a", "b"))(images), net(images))
    assert not objective.scores_of_teacher(student("a", "b"))(images).requires_grad
    with pytest.raises(RequestError, match="knows other classes than the data has"):
        objective.scores_of_teacher(student("a", "c"))


@pytest.mark.parametrize("fields", [{"label_smoothing": 1.5}, {"mixup": -1.0}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(RequestError, match=next(iter(fields))):
        Objective(**fields)
