"""Every part of a detector cut: the backbone, the neck and both heads."""

import copy

import pytest
import torch
from mmdet.apis import init_detector
from torch import nn

from detect import load_detector, save_detector
from detect.evaluate import evaluate_detector
from detect.fixed_shape import FixedShapeDetector
from detect.pruning import prune_detector
from detect.traced import TracedDetector
from detect.train import train_detector
from prune import cost_of, masked_model

PARTS = ("backbone", "neck", "rpn_head", "roi_head")


@pytest.fixture(scope="module")
def cut(_trained):
    """The trained detector with half of every part, its card, and what was pruned."""
    return prune_detector(*_trained, 0.5, parts=PARTS)


@pytest.fixture
def whole(cut):
    return copy.deepcopy(cut[0]).eval(), *cut[1:]


def outputs(detector, image):
    with torch.no_grad():
        return torch.utils._pytree.tree_leaves(TracedDetector(detector.eval(), 3)(image))


def test_slim_outputs_equal_masked_dense_outputs(trained, whole, images):
    masked = outputs(masked_model(trained[0], whole[2].spec), images[:1])
    torch.testing.assert_close(outputs(whole[0], images[:1]), masked, rtol=1e-4, atol=1e-5)


def test_every_hidden_layer_of_every_part_is_halved(trained, whole):
    widths = {name: d.num_kept for d in whole[2].decisions for name in d.layers}
    dense = {name: len(m.weight) for name, m in trained[0].named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    final = {"rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"}
    assert {name for name in dense if widths[name] == dense[name]} == final
    assert all(2 * widths[name] == dense[name] for name in dense.keys() - final)


def test_the_pyramid_is_coupled_across_levels_and_with_both_heads(whole):
    slim = whole[0]
    # FPN 16 -> 8: all levels alike, and what reads them
    assert [level.conv.out_channels for level in slim.neck.fpn_convs] == [8] * 4
    assert slim.rpn_head.rpn_conv.in_channels == 8
    assert slim.roi_head.bbox_head.shared_fcs[0].in_features == 8 * 7 * 7
    assert slim.roi_head.bbox_roi_extractor.out_channels == 8


def test_mmdet_opens_it_by_its_config_and_predicts_the_same(whole, found_by, tmp_path):
    path = tmp_path / "whole.safetensors"
    save_detector(path, whole[0], whole[1])
    theirs = init_detector(str(path.with_suffix(".py")), str(path), device="cpu")
    ours, card = load_detector(path)
    # half of a trained detector finds little; what it finds must be the same
    theirs.test_cfg.rcnn.score_thr = ours.test_cfg.rcnn.score_thr = 0.0
    for detector in (theirs, ours):
        detector.roi_head.test_cfg.score_thr = 0.0
    torch.testing.assert_close(found_by(theirs, card), found_by(ours, card), rtol=0, atol=0)


def test_it_trains_on_and_is_evaluated(whole, scenes, schedule, tmp_path):
    detector, card, _ = whole
    before = detector.neck.fpn_convs[0].conv.weight.detach().clone()
    train_detector(detector, card, scenes, schedule, tmp_path / "train", seed=0)
    assert not torch.equal(detector.neck.fpn_convs[0].conv.weight, before)
    assert 0 <= evaluate_detector(detector, card, scenes, tmp_path / "evaluation")["map"] <= 1


def test_its_fixed_shape_graph_costs_the_same_as_the_traced_layers(whole):
    detector, card, _ = whole
    size_hw = card.preprocessing.image_hw
    graph = FixedShapeDetector(detector, size_hw)
    traced = TracedDetector(detector, card.settings["num_proposals"])
    assert cost_of(graph, graph.example_inputs()).macs == cost_of(traced, (torch.zeros(1, 3, *size_hw),)).macs


def test_a_limit_is_on_the_whole_detector_at_its_own_size(tiny):
    detector, card = tiny()
    graph = FixedShapeDetector(detector, card.preprocessing.image_hw)
    limit = cost_of(graph, graph.example_inputs()).macs // 2
    slim, _, _ = prune_detector(detector, card, max_macs=limit, parts=PARTS)
    graph = FixedShapeDetector(slim, card.preprocessing.image_hw)
    assert 0.95 * limit < cost_of(graph, graph.example_inputs()).macs <= limit


@pytest.mark.parametrize("part", PARTS)
def test_a_part_can_be_cut_alone(tiny, part):
    slim, _, pruned = prune_detector(*tiny(), 0.5, parts=(part,))
    assert {d.group.split(".")[0] for d in pruned.decisions if not d.reason} == {part}
    others = {d.reason for d in pruned.untouched if d.group.split(".")[0] != part}
    assert all("is not among the parts to cut" in reason or "an output of the model" in reason for reason in others)
    assert outputs(slim, torch.zeros(1, 3, 64, 64))


def test_layers_of_the_heads_go_by_the_detectors_names(tiny):
    slim, _, _ = prune_detector(*tiny(), 0.0, parts=PARTS, widths={"roi_head.bbox_head.shared_fcs.0": 5, "conv1": 7})
    assert slim.roi_head.bbox_head.shared_fcs[0].out_features == 5
    assert slim.roi_head.bbox_head.shared_fcs[1].out_features == 32
    assert slim.backbone.net.conv1.out_channels == 7


def test_an_unknown_part_is_refused(tiny):
    with pytest.raises(ValueError, match="parts: unknown, got 'head'; expected any of"):
        prune_detector(*tiny(), 0.5, parts=("head",))


@pytest.mark.parametrize("parts", [[PARTS, PARTS], [("neck",), ("backbone",)], [("backbone",), PARTS]])
def test_a_detector_pruned_twice_is_rebuilt_from_its_card(tiny, images, tmp_path, parts):
    slim, card, _ = prune_detector(*tiny(), 0.5, parts=parts[0])
    slimmer, card, _ = prune_detector(slim, card, 0.5, parts=parts[1])
    save_detector(tmp_path / "d.safetensors", slimmer, card)
    loaded, card = load_detector(tmp_path / "d.safetensors")
    found, again = (TracedDetector(detector.eval())(images[:1]) for detector in (slimmer, loaded))
    torch.testing.assert_close(again, found, rtol=0, atol=0)
    convs = [detector.backbone.net.layer2[0].conv1 for detector in (tiny()[0], slimmer)]
    assert convs[0].out_channels == 2 ** sum("backbone" in step for step in parts) * convs[1].out_channels
