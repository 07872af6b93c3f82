import pytest
import torch

from detect.annotations import read_annotations
from detect.data import CocoSet
from detect.losses import detector_losses
from detect.pruning import prune_detector
from detect.traced import PARTS
from prune.choose.criteria import make_criterion


def losses(detector, card, coco, seed=0, batch_size=4, num_batches=2):
    return [loss.item() for loss in detector_losses(card, coco, batch_size, num_batches, seed)(detector)]


def test_losses_depend_only_on_the_seed_and_keep_the_random_state(trained, scenes):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = losses(*trained, scenes)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert losses(*trained, scenes) == first
    assert losses(*trained, scenes, seed=1) != first


def test_it_is_the_loss_that_training_lowered(trained, tiny, scenes, train_loss):
    # the same eight scenes in another order, so that other RoIs are drawn
    (loss,) = losses(*trained, scenes, batch_size=8)
    assert loss == pytest.approx(train_loss(*trained).item(), rel=0.2)
    assert loss < 0.7 * losses(*tiny(), scenes, batch_size=8)[0]


def test_images_without_objects_are_left_out(trained, scenes, write_coco):
    data = read_annotations(scenes.annotations)
    kept = {image["id"] for image in data["images"][:3]}
    boxes = [row for row in data["annotations"] if row["image_id"] in kept]
    few = CocoSet(write_coco(**{**data, "annotations": boxes}).annotations, scenes.images)
    assert len(losses(*trained, few, batch_size=1, num_batches=99)) == 3


@pytest.mark.parametrize("name", ["taylor", "mean_activation", "average_rank"])
def test_a_criterion_measured_on_the_detector_ranks_every_part(trained, scenes, name):
    def pruned():
        criterion = make_criterion(name, detector, detector_losses(card, scenes, 2, 1))
        return prune_detector(detector, card, 0.5, parts=PARTS, criterion=criterion)[2]

    detector, card = trained
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    spec = pruned().spec
    assert spec == pruned().spec
    assert spec != prune_detector(detector, card, 0.5, parts=PARTS)[2].spec
    cut = {layer.split(".")[0] for layer, kept in spec.layers.items() if kept.kept_out}
    assert cut == {*PARTS} - {"bbox_head"}
    torch.testing.assert_close(detector.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in detector.parameters())
