from types import MappingProxyType

import numpy as np
import pytest
import torch
from torchvision import models

from prune import find_groups, prune_model
from prune.choose.recipe import Recipe

LIMITS = ["max_macs", "max_params", "max_activations"]


def kept(pruned):
    return {d.group: d.num_kept for d in pruned.decisions}


@pytest.mark.parametrize(
    ("amounts", "got"),
    [
        ({}, "none"),
        ({"prune_ratio": 0.5, "max_macs": 9}, "prune_ratio and max_macs"),
        ({"max_params": 9, "max_macs": 9}, "max_macs and max_params"),
        ({"prune_ratio": 0.0, "max_activations": 0}, "prune_ratio and max_activations"),  # zero is an amount too
    ],
)
def test_exactly_one_ratio_or_limit_is_expected(amounts, got):
    with pytest.raises(
        ValueError, match=f"recipe: how much to cut is not clear, got {got}; expected one of prune_ratio, max_macs"
    ):
        Recipe(**amounts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranking": "local"}, "ranking: wrong, got 'local'; expected 'uniform' or 'global'"),
        ({"criterion": "l9"}, "criterion: unknown, got 'l9'; expected one of"),
        ({"round_to": 0}, "round_to: out of range, got 0; expected at least 1"),
        ({"min_channels": 0}, "min_channels: out of range, got 0; expected at least 1"),
        ({"prune_ratio": 1}, r"prune_ratio: would remove all channels or more, got 1.0; expected a share in \[0, 1\)"),
        ({"prune_ratio": -0.01}, r"prune_ratio: out of range, got -0.01; expected a share"),
        ({"prune_ratio": float("nan")}, r"prune_ratio: .* got nan; expected a share"),
        ({"ratios": {"a": 1.5}}, r"ratios\['a'\]: .* got 1.5; expected a share"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"prune_ratio": 0.5, **options})


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("prune_ratio", ["0.5", torch.tensor(0.5), torch.ones(2), [0.5], True, 0.5j], "a (valid )?number"),
        ("round_to", [2.5, "8", None, True, float("nan")], "a valid integer"),
        ("min_channels", ["a", None], "a valid integer"),
        ("min_channels", [torch.tensor(8)], "a number of Python or numpy"),
        ("skip", [None, 5, "c1", b"c1", {"c1"}], "a list of patterns"),
        ("unused", [None, 5, "c1", b"c1"], "a list of patterns"),
        ("ratios", [None, [], "c1"], "a dict of patterns"),
        ("widths", [None, [("c1", 1)]], "a dict of patterns"),
        ("max_macs", ["1G", [1], True, 1.5], "a valid integer"),
        ("within_groups", ["no", None, 1, float("nan")], "a valid boolean"),
        ("norm_widths", ["no", float("nan")], "a valid boolean"),
        ("criterion", [None, 5, ["l1"]], "a valid string"),
        ("reduction", [None, {}], "a valid string"),
        ("ranking", [None, [], torch.ones(2)], "'uniform' or 'global'"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(name, values, expected):
    for value in values:
        amount = {} if name.startswith("max") else {"prune_ratio": 0.5}
        with pytest.raises(ValueError, match=f"^{name}: wrong, got .*; expected {expected}.*$"):
            Recipe(**{**amount, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": (5,)}, r"skip\[0\]: wrong, got 5; expected a valid string"),
        ({"ratios": {"c1": "0.5"}}, r"ratios\['c1'\]: wrong, got '0.5'; expected a valid number"),
        ({"ratios": {"c1": torch.tensor(0.5)}}, r"ratios\['c1'\]: wrong, got tensor\(0.5000\); expected a number"),
        ({"ratios": {5: 0.5}}, r"ratios\[5\]: wrong, got 5; expected a valid string"),
        ({"ratios": {"c1": -0.5}}, r"ratios\['c1'\]: out of range, got -0.5; expected a share in"),
        ({"widths": {"c1": 16.0}}, r"widths\['c1'\]: wrong, got 16.0; expected a valid integer"),
        ({"widths": {"c1": "16"}}, r"widths\['c1'\]: wrong, got '16'; expected a valid integer"),
        ({"widths": {"c1": True}}, r"widths\['c1'\]: wrong, got True; expected a valid integer"),
        ({"widths": {5: 3}}, r"widths\[5\]: wrong, got 5; expected a valid string"),
        ({"prune_ratio": None, "max_macs": -1}, "max_macs: out of range, got -1; expected at least 0"),
        ({"prune_ratio": None, "max_params": 10**400}, "max_params: out of range, got 10{400}; expected at least 0"),
        ({"skip": "c" * 10_000}, "skip: wrong, got .{,310}; expected a list of patterns"),
    ],
)
def test_wrong_values_within_a_setting_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}.{{,80}}$"):
        Recipe(**{"prune_ratio": 0.5, **options})


def test_numbers_of_numpy_become_plain():
    recipe = Recipe(np.float32(0.5), widths=MappingProxyType({"a": np.int64(3)}), round_to=np.int64(2))
    got = recipe.prune_ratio, recipe.widths, recipe.widths["a"], recipe.round_to
    assert [*map(type, got)] == [float, dict, int, int]


def test_a_recipe_keeps_its_settings_when_the_given_ones_change():
    ratios = {"a": 0.5}
    recipe = Recipe(0.5, ratios=ratios)
    ratios["a"] = 2
    assert recipe.ratios == {"a": 0.5}


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        ((0.5,), {"nonsense": 1}, "nonsense: no field of Recipe, got 1; nearest names: "),
        ((0.5,), {"round": 8}, "round: no field of Recipe, got 8; nearest names: round_to"),
        ((0.5,), {"prune_ratio": 0.5}, "prune_ratio: given twice, got 0.5 beside 0.5; expected one"),
        (("0.5",), {}, "prune_ratio: wrong, got '0.5'; expected a valid number"),
        ((Recipe(0.5),), {"round_to": 8}, "round_to: given beside a recipe; expected it in the recipe"),
        ((0.5,), {"criterion": 5}, "criterion: ranks no channels, got 5; expected a Criterion or a name"),
    ],
)
def test_fields_that_do_not_fit_are_refused(tiny, x, arguments, fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        prune_model(tiny("residual"), (x,), *arguments, **fields)


@pytest.mark.parametrize("name", LIMITS)
def test_limit_is_returned_as_name_and_value(name):
    assert Recipe(**{name: 0}).limit == (name, 0)
    assert Recipe(0.5).limit is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratios": {"b": 0.8}}, {"a": 2, "b": 1}),
        ({"ratios": {"c": 0.0}}, {"a": 4, "b": 3}),  # any layer that writes the channels names the group
        ({"ratios": {"*": 0.0, "b": 0.8}}, {"a": 4, "b": 6}),  # the first match counts
        ({"widths": {"b": 5}}, {"a": 2, "b": 5}),
        ({"widths": {"[ab]": 4, "b": 1}}, {"a": 4, "b": 4}),
        ({"widths": {"b": 5}, "ratios": {"b": 0.8, "a": 0.75}}, {"a": 1, "b": 5}),  # widths go before ratios
        ({"skip": ["b"]}, {"a": 2, "b": 6}),
        ({"skip": ["b"], "widths": {"b": 2}, "ratios": {"b": 0.8}}, {"a": 2, "b": 6}),  # skip goes before both
        ({"ratios": {"b": 0.8}, "round_to": 2, "min_channels": 3}, {"a": 4, "b": 4}),  # own ratios are rounded
        ({"widths": {"b": 1}, "round_to": 2, "min_channels": 3}, {"a": 4, "b": 1}),  # widths are exact
    ],
)
def test_own_widths_and_ratios_override_the_amount_in_order(tiny, x, options, expected):
    assert kept(prune_model(tiny("residual"), (x,), 0.5, **options)) == {**expected, "d": 2}


def test_reasons_name_the_requested_amount(tiny, x):
    def reasons(**options):
        return [d.reason for d in prune_model(tiny("residual"), (x,), 0.5, **options).decisions[:2]]

    assert reasons(widths={"a": 4, "b": 6}) == ["widths keeps all 4 channels", "widths keeps all 6 channels"]
    assert reasons(ratios={"a": 0.0}) == ["ratio 0.0 keeps all 4 channels", None]
    assert reasons(ratios={"b": 0.1}, round_to=6)[1] == "ratio 0.1 rounded to a multiple of 6 keeps all 6 channels"


@pytest.mark.parametrize("width", [0, -1, 7])
def test_width_that_does_not_fit_is_refused(tiny, x, width):
    with pytest.raises(ValueError, match=rf"widths\['b'\]: does not fit b, got {width}; expected 1 to 6$"):
        prune_model(tiny("residual"), (x,), 0.5, widths={"b": width})


@pytest.mark.parametrize(
    ("net", "widths", "expected"),
    [
        ("depthwise", {"1": 3}, {"0": 3, "1": 3}),
        ("depthwise_twice", {"0": 3}, {"0": 3, "1": 6}),  # twice as many out as in
        ("depthwise_twice", {"1": 6}, {"0": 3, "1": 6}),
        ("grouped", {"0": 4}, {"0": 4, "1": 8}),  # 3 blocks, each of 2 channels in and 4 out
        ("grouped", {"1": 8}, {"0": 4, "1": 8}),
        ("grouped", {"*": 4, "1": 4}, {"0": 4, "1": 8}),  # the first layer that a pattern names counts
    ],
)
def test_width_is_what_the_named_layer_keeps(tiny, x, net, widths, expected):
    slim = prune_model(tiny(net), (x,), 0.0, widths=widths).model
    assert {name: slim.get_submodule(name).out_channels for name in expected} == expected


@pytest.mark.parametrize(
    ("layer", "width", "expected"),
    [("0", 3, "2 to 6 in steps of 2"), ("0", 8, "2 to 6 in steps of 2"), ("1", 6, "4 to 12 in steps of 4")],
)
def test_width_that_would_split_a_block_is_refused(tiny, x, layer, width, expected):
    with pytest.raises(ValueError, match=rf"widths\['{layer}'\]: does not fit 0, got {width}; expected {expected}"):
        prune_model(tiny("grouped"), (x,), 0.5, widths={layer: width})


@pytest.mark.parametrize(
    "options", [{"ratios": {"lateral3": 0.5}}, {"widths": {"lateral3": 1}}, {"skip": ["lateral3"]}]
)
@pytest.mark.parametrize("amount", [{"prune_ratio": 0.5}, {"max_macs": 9000}])
def test_pattern_without_a_layer_is_refused_with_the_nearest(tiny, x, options, amount):
    with pytest.raises(ValueError, match=r"^lateral3: no layer .*; nearest names: lateral[12], lateral[12]"):
        prune_model(tiny("fpn"), (x,), **amount, **options)


def test_pattern_like_no_layer_lists_no_near_names(tiny, x):
    with pytest.raises(ValueError, match="zzz: no layer of the model matches; nearest names: none"):
        prune_model(tiny("fpn"), (x,), 0.5, skip=["zzz"])


def test_nearest_names_are_different_ones():
    groups = find_groups(models.densenet121(num_classes=2), (torch.zeros(1, 3, 32, 32),))
    with pytest.raises(ValueError, match="nearest names") as caught:
        Recipe(0.5, skip=["features.norm6"]).check_patterns(groups)
    near = str(caught.value).partition("nearest names: ")[2].split(", ")
    assert near[0] == "features.norm0"  # norm5 comes after every block: no group's own
    assert len(set(near)) == len(near) == 3
