import copy

import pytest
import torch
from torch import nn

from detect.evaluate import evaluate_detector
from detect.pruning import prune_detector
from detect.train import train_detector
from prune import masked_model, slim_model


def layers_with_channels(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_slim_output_equals_masked_dense_output(trained, slim, images):
    detector, (slim_detector, _, pruned) = trained[0], slim
    masked = masked_model(detector, pruned.spec).extract_feat(images)
    found = slim_detector.extract_feat(images)
    torch.testing.assert_close(found, masked, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], detector.extract_feat(images)[0], rtol=1e-2)


def test_the_necks_inputs_follow_the_stages(trained, slim):
    inputs = [[conv.conv.in_channels for conv in model.neck.lateral_convs] for model in (trained[0], slim[0])]
    assert inputs == [[8, 16, 32, 64], [4, 8, 16, 32]]


def test_half_of_every_backbone_layer_is_left(trained, slim):
    dense, slim_layers = (layers_with_channels(model.backbone) for model in (trained[0], slim[0]))
    assert len(dense) == 20  # ResNet-18: 17 convolutions and 3 shortcuts
    assert all(2 * slim_layers[name].out_channels == layer.out_channels for name, layer in dense.items())


def test_every_layer_is_decided_on(trained, slim):
    decided = [name for decision in slim[2].decisions for name in decision.layers]
    assert layers_with_channels(trained[0]).keys() <= set(decided)


def test_neck_and_heads_are_not_cut_and_the_report_has_the_reason(trained, slim):
    untouched = {name: d.reason for d in slim[2].untouched for name in d.layers}
    dense_layers, slim_layers = (layers_with_channels(model) for model in (trained[0], slim[0]))
    outside = [name for name in dense_layers if not name.startswith("backbone.")]
    assert len(outside) == 8 + 3 + 4  # FPN: 4 lateral and 4 output convolutions; RPN: 3; RoI head: 2 shared, cls, reg
    assert all(untouched[name] for name in outside)
    assert all(len(slim_layers[name].weight) == len(dense_layers[name].weight) for name in outside)


def test_heads_keep_their_weights(trained, slim):
    for part in ("neck.fpn_convs", "rpn_head", "roi_head"):
        dense_part, slim_part = (model.get_submodule(part).state_dict() for model in (trained[0], slim[0]))
        torch.testing.assert_close(slim_part, dense_part, rtol=0, atol=0)


def test_the_cards_spec_turns_the_dense_backbone_into_the_slim_one(trained, slim):
    detector, (slim_detector, card, _) = trained[0], slim
    again = slim_model(detector.backbone.net, card.prune_spec)
    torch.testing.assert_close(again.state_dict(), slim_detector.backbone.net.state_dict(), rtol=0, atol=0)
    assert card.backbone.widths == card.prune_spec.widths()


def test_the_dense_detector_is_left_as_it_was(tiny):
    detector, card = tiny()
    before, text, mode = copy.deepcopy(detector.state_dict()), repr(detector), detector.training
    prune_detector(detector, card, 0.5)
    torch.testing.assert_close(detector.state_dict(), before, rtol=0, atol=0)
    assert repr(detector) == text
    assert detector.training is mode
    assert not card.backbone.widths


def test_pruning_nothing_gives_the_same_detector(trained, found_by):
    slim_detector, card, pruned = prune_detector(*trained, 0.0)
    torch.testing.assert_close(found_by(slim_detector.eval(), card), found_by(*trained), rtol=0, atol=0)
    assert not card.backbone.widths
    assert all(decision.reason for decision in pruned.decisions)


def test_a_stage_can_be_skipped(tiny):
    slim_detector, _, pruned = prune_detector(*tiny(), 0.5, skip=("backbone.net.layer4.*",))
    assert [conv.conv.in_channels for conv in slim_detector.neck.lateral_convs] == [4, 8, 16, 64]
    reasons = {d.group: d.reason for d in pruned.untouched}
    assert reasons["backbone.net.layer4.0.conv1"] == "skipped by the recipe (backbone.net.layer4.*)"


def test_backbone_layers_go_by_the_classifiers_names(tiny):
    _, _, pruned = prune_detector(*tiny(), 0.5, skip=("layer4.0.conv1",))
    assert [d.group for d in pruned.untouched if d.reason.startswith("skipped")] == ["backbone.net.layer4.0.conv1"]


def test_a_pattern_without_a_match_is_refused_with_the_nearest_names(tiny):
    with pytest.raises(ValueError, match=r"layer9\.0\.conv1: no layer of the model matches; nearest names: backbone\."):
        prune_detector(*tiny(), 0.5, skip=("layer9.0.conv1",))


def test_a_slim_detector_learns_in_one_step(slim, train_loss):
    detector, card, _ = slim
    loss = train_loss(detector.train(), card)
    loss.backward()
    without_gradient = [
        name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not without_gradient
    torch.optim.SGD(detector.parameters(), lr=1e-3).step()
    assert train_loss(detector, card) < loss


def test_a_slim_detector_trains_and_evaluates_through_the_runner(slim, scenes, schedule, tmp_path):
    detector, card, _ = slim
    before = copy.deepcopy(detector.state_dict())
    train_detector(detector, card, scenes, schedule, tmp_path / "train", seed=0)
    assert not torch.equal(detector.backbone.net.conv1.weight, before["backbone.net.conv1.weight"])
    metrics = evaluate_detector(detector, card, scenes, tmp_path / "evaluation")
    assert 0 <= metrics["map"] <= metrics["map50"] <= 1


def test_a_backbone_pruned_twice_is_one_cut_of_the_dense_one(trained, slim):
    slimmer, card, _ = prune_detector(slim[0], slim[1], 0.5)
    once = slim_model(trained[0].backbone.net, card.prune_spec)
    torch.testing.assert_close(slimmer.backbone.net.state_dict(), once.state_dict(), rtol=0, atol=0)
