import json

import pytest
import torch
from torch import nn

from prune import LayerCut, PruneSpec, find_groups, narrowed_model, prune_model, slim_model


def test_json_round_trip_gives_the_same_spec(declared, x):
    spec = prune_model(declared[0], (x,), 0.5).spec
    assert PruneSpec.from_json(spec.to_json()) == spec


def test_empty_spec_survives_json():
    assert PruneSpec.from_json(PruneSpec({}).to_json()) == PruneSpec({})


def test_spec_from_json_cuts_the_same_model(tiny, x, same_state):
    pruned = prune_model(tiny("residual"), (x,), 0.5)
    again = slim_model(tiny("residual"), PruneSpec.from_json(pruned.spec.to_json()))
    assert same_state(again, pruned.model)


def test_two_steps_joined_are_one_step_from_the_dense_model(declared, x, same_state):
    dense = declared[0]
    first = prune_model(dense, (x,), 0.3)
    second = prune_model(first.model, (x,), 0.3)
    third = prune_model(second.model, (x,), 0.3)
    joined = third.spec.after(second.spec.after(first.spec))
    assert joined == third.spec.after(second.spec).after(first.spec)
    assert same_state(slim_model(dense, joined), third.model)


def normed():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 1), nn.BatchNorm2d(24), nn.Conv2d(24, 10, 3), nn.BatchNorm2d(10), nn.Conv2d(10, 2, 1)]
    for norm in layers[1::2]:
        nn.init.uniform_(norm.weight)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("options", [{}, {"round_to": 4}, {"ranking": "global"}], ids=str)
@pytest.mark.parametrize("ratios", [(0.2, 0.4, 0.5), (0.1, 0.45, 0.8)])
def test_steps_that_count_from_the_dense_net_join_to_one_cut(ratios, options, x):
    options = {"criterion": "bn_scale", **options}  # which no cut changes
    step, joined, widths = normed(), PruneSpec({}), {}
    for ratio in ratios:
        pruned = prune_model(step, (x,), ratio, dense_widths=widths, **options)
        widths = widths or {decision.group: decision.num_channels for decision in pruned.decisions}
        step, joined = pruned.model, pruned.spec.after(joined)
    assert joined == prune_model(normed(), (x,), ratios[-1], **options).spec


def test_ratio_of_the_dense_net_that_is_reached_already_cuts_nothing(x):
    slim = prune_model(normed(), (x,), 0.5).model
    for options in ({}, {"ranking": "global"}, {"ratios": {"*": 0.4}}):
        again = prune_model(slim, (x,), 0.4, dense_widths={"0": 24, "2": 10}, **options)
        assert [d.num_kept for d in again.decisions] == [12, 5, 2]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_cuts_of_whole_groups_and_within_groups_join(first, second, x, same_state):
    dense = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=4), nn.Conv2d(32, 2, 1))
    one = prune_model(dense, (x,), 0.5, within_groups=first)
    two = prune_model(one.model, (x,), 0.5, within_groups=second)
    joined = two.spec.after(one.spec)
    assert two.model[1].groups == {0: 1, 1: 2, 2: 4}[first + second]
    for again in (slim_model(dense, joined), narrowed_model(dense, joined.widths())):
        again.load_state_dict(two.model.state_dict())
        torch.testing.assert_close(again(x), two.model(x), rtol=0, atol=0)
    assert same_state(slim_model(dense, joined), two.model)


def test_indices_of_a_second_step_count_in_the_slim_model():
    first = PruneSpec({"a": LayerCut((1, 3, 4), None, 5, 3), "b": LayerCut(None, (1, 3, 4), 2, 5)})
    second = PruneSpec({"a": LayerCut((0, 2), (1,), 3, 3), "c": LayerCut((0,), None, 2, 2)})
    assert second.after(first) == PruneSpec(
        {"a": LayerCut((1, 4), (1,), 5, 3), "b": first.layers["b"], "c": second.layers["c"]}
    )


def test_steps_that_do_not_follow_each_other_are_refused():
    spec = PruneSpec({"a": LayerCut((0, 2), None, 5, 3)})
    with pytest.raises(ValueError, match=r"a: the spec is for another model, got 5 channels; expected 2"):
        spec.after(spec)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            {"g": LayerCut((0,), None, 8, 8), "g.groups": LayerCut(None, None, 4, 4)},
            {"g": LayerCut(None, (0, 1), 8, 8)},
        ),
        ({"g": LayerCut(None, (0, 1), 8, 8)}, {"g.groups": LayerCut(None, None, 4, 4)}),
        ({"g": LayerCut((0, 1), None, 8, 8)}, {"g.groups": LayerCut(None, None, 0, 0)}),
        ({"g": LayerCut((0, 1), None, 8, 8)}, {"g.groups": LayerCut(None, None, 9, 9)}),
        ({"g": LayerCut((0, 2), None, 8, 8)}, {"g.groups": LayerCut(None, None, 1, 1)}),  # half of two groups
        ({"g.groups": LayerCut(None, None, 0, 0)}, {"g": LayerCut((0,), None, 8, 8)}),
        ({"g.groups": LayerCut(None, None, 3, 3)}, {"g": LayerCut((0,), None, 8, 8)}),
        ({"g": LayerCut((0,), None, 8, 8)}, {"g": LayerCut((0,), (0,), 8, 8)}),
    ],
)
def test_cuts_of_groups_that_do_not_fit_are_refused(first, second):
    for one, two in ((first, second), (second, first)):
        with pytest.raises(ValueError, match=r"^g(\.groups)?: the spec is for another model, got .*; expected"):
            PruneSpec(two).after(PruneSpec(one))


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        # (8, 16) -> (1, 16), whose only side is "out" -> (1, 2)
        (LayerCut((3,), None, 8, 16), LayerCut((4, 5), None, 16, 16), LayerCut((3,), (4, 5), 8, 16)),
        (LayerCut((3,), (1, 2, 6), 8, 16), LayerCut((0, 2), None, 3, 3), LayerCut((3,), (1, 6), 8, 16)),
        (LayerCut(None, (7,), 8, 16), LayerCut((1, 2), None, 8, 8), LayerCut((1, 2), (7,), 8, 16)),
        # (8, 16, 5) -> (8, 1, 5): "in" is another dimension, and whole
        (LayerCut(None, (7,), 8, 16), LayerCut((1, 2), None, 8, 5), LayerCut((1, 2), (7,), 8, 16)),
    ],
)
def test_cuts_of_a_tensor_with_one_channel_on_a_side_join(first, second, joined):
    assert PruneSpec({"w": second}).after(PruneSpec({"w": first})) == PruneSpec({"w": joined})


def test_a_tensor_cut_once_and_twice_is_the_same():
    net = nn.Module()
    net.w = nn.Parameter(torch.arange(128.0).view(8, 16))
    first, second = PruneSpec({"w": LayerCut((3,), None, 8, 16)}), PruneSpec({"w": LayerCut((4, 5), None, 16, 16)})
    assert slim_model(slim_model(net, first), second).w.tolist() == [[52, 53]]  # 3 * 16 + 4 and 5
    assert slim_model(net, second.after(first)).w.tolist() == [[52, 53]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: "),
        ("not json", "text: "),
        (b"\xff\xfe", "text: "),
        ("[" * 100_000, "text: "),
        ("[]", "text: "),
        ("{}", "version: "),
        ('{"version": 3, "layers": {}}', "version: Input should be 1 or 2"),
        ('{"version": 1, "layers": []}', "layers: "),
        ('{"version": 1, "layers": {"a": 3}}', "layers.a: "),
        ('{"version": 1, "layers": {"a": {"kept": [1]}}}', "layers.a.kept: "),
        ('{"version": 1, "layers": {"a": {"kept_out": "01", "num_out": 2}}}', "layers.a.kept_out: "),
        ('{"version": 1, "layers": {"a": {"kept_out": [1.5], "num_out": 2}}}', "layers.a.kept_out.0: "),
        ('{"version": 1, "layers": {"a": {"kept_out": ["0"], "num_out": 2}}}', "layers.a.kept_out.0: "),
        ('{"version": 1, "layers": {"a": {"kept_out": [true], "num_out": 2}}}', "layers.a.kept_out.0: "),
        ('{"version": 1, "layers": {"a": {"num_out": NaN}}}', "layers.a.num_out: "),
        ('{"version": 1, "layers": {"a": {"num_out": 1e999}}}', "layers.a.num_out: "),
        (f'{{"version": 1, "layers": {{"a": {{"num_out": {"9" * 5000}}}}}}}', "text: "),
    ],
)
def test_text_that_is_no_spec_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^PruneSpec: not a spec, got {message}.*; expected the JSON of PruneSpec$"):
        PruneSpec.from_json(text)


def test_json_names_kept_channels_and_widths():
    spec = PruneSpec({"a": LayerCut(kept_out=(0, 2), num_out=4, num_in=3)})
    cut = {"kept_out": [0, 2], "kept_in": None, "num_out": 4, "num_in": 3}
    assert json.loads(spec.to_json()) == {"version": 1, "layers": {"a": cut}}


def test_spec_holds_kept_indices_of_every_cut_side(tiny, x):
    net = tiny("concat")
    groups = find_groups(net, (x,))
    kept = {"a": groups[0].members[0].channels[[1, 3]], "b": groups[1].members[0].channels[[0]]}
    # c reads a's channels at 0..3 and b's at 4..9: of the ten 1, 3 and 4 stay
    assert PruneSpec.from_kept(net, kept, groups).layers == {
        "a": LayerCut(kept_out=(1, 3), num_out=4, num_in=3),
        "b": LayerCut(kept_out=(0,), num_out=6, num_in=3),
        "c": LayerCut(kept_in=(1, 3, 4), num_out=2, num_in=10),
    }


def test_widths_are_inputs_then_outputs():
    layers = {
        "a": LayerCut(kept_out=(0, 2), num_out=4, num_in=3),
        "b": LayerCut(kept_in=(0, 2), num_out=6, num_in=4),
    }
    assert PruneSpec(layers).widths() == {"a": (3, 2), "b": (2, 6)}


def test_part_below_a_submodule_has_relative_names():
    cut = LayerCut(kept_out=(0,), num_out=2, num_in=3)
    spec = PruneSpec({"backbone.conv1": cut, "backbones.conv1": cut, "neck.conv": cut})
    assert spec.under("backbone.") == PruneSpec({"conv1": cut})


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [4], [-1]])
def test_indices_that_no_layer_has_are_refused(kept):
    text = json.dumps({"version": 1, "layers": {"a": {"kept_out": kept, "num_out": 4, "num_in": 3}}})
    with pytest.raises(ValueError, match=r"PruneSpec: a keeps .*; expected ascending indices below 4"):
        PruneSpec.from_json(text)
    with pytest.raises(ValueError, match=r"PruneSpec: a keeps .*; expected ascending indices below 4"):
        PruneSpec({"a": LayerCut(tuple(kept), None, 4, 3)})


def test_a_claim_of_many_channels_takes_no_memory():
    cut = {"kept_out": [0], "num_out": 10**15, "num_in": 3}
    spec = PruneSpec.from_json(json.dumps({"version": 1, "layers": {"a": cut}}))
    assert spec.widths() == {"a": (3, 1)}
