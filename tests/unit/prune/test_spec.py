import json

import pytest

from prune import LayerCut, PruneSpec, find_groups, prune_model, slim_model


def test_json_round_trip_gives_the_same_spec(declared, x):
    spec = prune_model(declared[0], (x,), 0.5).spec
    assert PruneSpec.from_json(spec.to_json()) == spec


def test_empty_spec_survives_json():
    assert PruneSpec.from_json(PruneSpec({}).to_json()) == PruneSpec({})


def test_spec_from_json_cuts_the_same_model(tiny, x, same_state):
    pruned = prune_model(tiny("residual"), (x,), 0.5)
    again = slim_model(tiny("residual"), PruneSpec.from_json(pruned.spec.to_json()))
    assert same_state(again, pruned.model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: "),
        ("not json", "text: "),
        (b"\xff\xfe", "text: "),
        ("[" * 100_000, "text: "),
        ("[]", "text: "),
        ("{}", "version: "),
        ('{"version": 2, "layers": {}}', "version: Input should be 1"),
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


def test_a_claim_of_many_channels_takes_no_memory():
    cut = {"kept_out": [0], "num_out": 10**15, "num_in": 3}
    spec = PruneSpec.from_json(json.dumps({"version": 1, "layers": {"a": cut}}))
    assert spec.widths() == {"a": (3, 1)}
