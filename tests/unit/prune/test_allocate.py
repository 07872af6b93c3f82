import pytest
import torch

from prune import Group, Member
from prune.choose.allocate import Ranked, allocate, must_stay, num_kept
from prune.choose.recipe import Recipe


@pytest.mark.parametrize(
    ("num_channels", "prune_ratio", "expected"),
    [
        (1, 0.0, 1),
        (10, 0.9, 1),  # 10 / 10; in floats 10 * (1 - 0.9) = 0.99.. would floor to 0
        (10, 0.8, 2),
        (3, 0.9, 1),  # 0.3, but one channel always stays
        (64, 0.3, 44),  # 44.8
        (128, 0.3, 89),  # 89.6
        (256, 0.3, 179),  # 179.2
        (128, 0.6, 51),  # 51.2
        (256, 0.4, 153),  # 153.6
        (512, 0.6, 204),  # 204.8
        (1000, 0.001, 999),
        (7, 1e-7, 6),  # 6.9999993
    ],
)
def test_num_kept_is_the_exact_floor(num_channels, prune_ratio, expected):
    assert num_kept(num_channels, prune_ratio) == expected


@pytest.mark.parametrize(
    ("num_channels", "prune_ratio", "round_to", "expected"),
    [
        (64, 0.3, 8, 48),  # 44 lies halfway between 40 and 48: up
        (128, 0.3, 8, 88),  # 89 -> 88
        (256, 0.4, 8, 152),  # 153 -> 152
        (512, 0.6, 16, 208),  # 204 -> 208
        (256, 0.3, 16, 176),  # 179 -> 176
        (64, 0.375, 16, 48),  # 40 lies halfway between 32 and 48: up
        (64, 0.99, 8, 8),  # 1 -> at least one multiple
        (64, 0.99, 16, 16),
        (20, 0.05, 8, 16),  # 19 -> 16
        (20, 0.0, 8, 20),  # 20 -> 24, but there are only 20
        (8, 0.9, 8, 8),  # one multiple is the whole layer
        (6, 0.5, 8, 6),  # narrower than one multiple
    ],
)
def test_num_kept_moves_to_the_nearest_multiple(num_channels, prune_ratio, round_to, expected):
    assert num_kept(num_channels, prune_ratio, round_to) == expected


@pytest.mark.parametrize("prune_ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_ratio_outside_its_range_is_refused(prune_ratio):
    with pytest.raises(ValueError, match=r"prune_ratio: .* expected a share in \[0, 1\)"):
        num_kept(8, prune_ratio)


@pytest.mark.parametrize("round_to", [0, -8])
def test_multiple_below_one_is_refused(round_to):
    with pytest.raises(ValueError, match=f"round_to: not a multiple, got {round_to}"):
        num_kept(8, 0.5, round_to)


def ranked(scores):
    """All channels may go."""
    return Ranked(scores, torch.zeros(len(scores), dtype=torch.bool))


@pytest.mark.parametrize(
    ("scores", "num", "expected"),
    [
        ([5.0], 1, [0]),
        ([1.0, 4.0, 2.0, 3.0], 2, [1, 3]),
        ([1.0, 3.0, 3.0, 3.0, 0.0], 2, [1, 2]),  # of the three equal ones the last goes
        ([2.0] * 40, 3, [0, 1, 2]),  # sorts that are not stable fail from 17 elements on
        ([0.0, 0.0, 1.0], 2, [0, 2]),  # ascending, regardless of rank
    ],
)
def test_highest_scores_are_kept_and_ties_keep_the_lower_index(scores, num, expected):
    assert ranked(torch.tensor(scores)).kept(num).tolist() == expected


def test_channels_that_must_stay_come_before_higher_scores():
    assert Ranked(torch.tensor([1.0, 9.0, 2.0]), torch.tensor([True, False, True])).kept(2).tolist() == [0, 2]


def two_groups():
    """Group a of 4 channels and group b of 6; no layer writes only a part of one."""
    return [Group("a", 4, ()), Group("b", 6, ())]


SCORES = {"a": torch.tensor([3.0, 1.0, 2.0, 4.0]), "b": torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])}


def kept_of(groups, amount, cost=None, scores=SCORES):
    shares = allocate(groups, {name: ranked(s) for name, s in scores.items()}, Recipe(**amount), cost)
    return {name: share.num_kept for name, share in shares.items()}


def ten_and_one(kept):
    return {"macs": 10 * kept["a"] + kept["b"]}


@pytest.mark.parametrize(
    ("prune_ratio", "options", "expected"),
    [
        (0.0, {}, {"a": 4, "b": 6}),
        (0.1, {}, {"a": 4, "b": 5}),  # 0.5
        (0.25, {}, {"a": 3, "b": 4}),  # 7 of 10 stay: 0.5 1 1.5 go
        (0.5, {}, {"a": 2, "b": 3}),  # 0.5 1 1.5 2 2.5
        (0.9, {}, {"a": 1, "b": 1}),  # nine would go, but one of each stays
        (0.5, {"min_channels": 3}, {"a": 3, "b": 3}),  # 2 stays, and 6 of 10
        (0.6, {"min_channels": 4}, {"a": 4, "b": 4}),
        (0.5, {"ratios": {"a": 0.75}}, {"a": 1, "b": 3}),  # half of b's 6
        (0.5, {"widths": {"b": 1}}, {"a": 2, "b": 1}),  # half of a's 4
        (0.5, {"round_to": 2}, {"a": 2, "b": 4}),  # 3 of b lies halfway: up
        (0.5, {"round_to": 4}, {"a": 4, "b": 4}),
    ],
)
def test_global_ratio_counts_the_channels_of_all_groups_together(prune_ratio, options, expected):
    assert kept_of(two_groups(), {"prune_ratio": prune_ratio, "ranking": "global", **options}) == expected


def test_of_equal_scores_those_of_earlier_groups_go_first():
    equal = {"a": torch.ones(4), "b": torch.ones(6)}
    assert kept_of(two_groups(), {"prune_ratio": 0.2, "ranking": "global"}, scores=equal) == {"a": 2, "b": 6}


@pytest.mark.parametrize(
    ("max_macs", "options", "expected"),
    [
        # dense is 46. At 35 the first two have gone, at 34 three, at 24 four
        (46, {}, {"a": 4, "b": 6}),
        (45, {}, {"a": 4, "b": 5}),
        (35, {}, {"a": 3, "b": 5}),
        # 24 fits; then a's next, score 2, would come first but takes 10; b's next, 1.5 and 0.5, take 1 each
        (33, {}, {"a": 2, "b": 6}),
        (25, {}, {"a": 2, "b": 5}),
        # a has two steps of 20: (4, 4) is 44, (2, 4) is 24; then b's step of 2
        (43, {"round_to": 2}, {"a": 2, "b": 6}),
        (25, {"round_to": 2}, {"a": 2, "b": 4}),
        (11, {}, {"a": 1, "b": 1}),
        (33, {"min_channels": 3}, {"a": 3, "b": 3}),
    ],
)
def test_global_limit_removes_the_lowest_scores_and_refills_from_the_top(max_macs, options, expected):
    assert kept_of(two_groups(), {"max_macs": max_macs, "ranking": "global", **options}, ten_and_one) == expected


@pytest.mark.parametrize(
    ("max_macs", "expected"),
    [
        # floors of a 4 and b 8 at 0, 1/8, .. 7/8: (4, 8) (3, 7) (3, 6) (2, 5) (2, 4) (1, 3) (1, 2) (1, 1)
        (36, {"a": 3, "b": 6}),
        (23, {"a": 2, "b": 3}),  # (1, 3) is 13; a keeps the smaller share and fits, then 24 would be too much
        (30, {"a": 2, "b": 8}),  # (2, 5) is 25; a's next takes 10, b's three take 3
        (20, {"a": 1, "b": 8}),
    ],
)
def test_uniform_limit_takes_exact_floors_and_fills_smallest_share_first(max_macs, expected):
    groups = [Group("a", 4, ()), Group("b", 8, ())]
    scores = {"a": torch.ones(4), "b": torch.arange(8.0)}
    assert kept_of(groups, {"max_macs": max_macs}, ten_and_one, scores) == expected


@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_limit_below_the_minimum_names_the_minimum_which_works(ranking):
    def recipe_of(max_macs):
        return {"max_macs": max_macs, "min_channels": 2, "ranking": ranking}

    with pytest.raises(ValueError, match=r"max_macs: below what can be reached, got 21; expected at least 22$"):
        kept_of(two_groups(), recipe_of(21), ten_and_one)
    assert kept_of(two_groups(), recipe_of(22), ten_and_one) == {"a": 2, "b": 2}


@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_no_groups_to_prune_is_no_error(ranking):
    assert allocate([], {}, Recipe(0.5, ranking=ranking), dict) == {}
    assert allocate([], {}, Recipe(max_macs=5, ranking=ranking), lambda kept: {"macs": 5}) == {}


@pytest.mark.parametrize(
    ("min_channels", "expected"),
    [
        (1, [False, True, True, False, False]),
        (2, [True, True, True, False, True]),
        (9, [True] * 5),
    ],
)
def test_the_best_channels_of_layers_that_write_only_a_part_stay(min_channels, expected):
    indices = torch.arange
    members = (
        Member("part", "out", indices(2), torch.tensor([0, 1])),
        Member("rest", "out", indices(3), torch.tensor([2, 3, 4])),
        Member("all", "out", indices(5), indices(5)),
        Member("reader", "in", indices(2), torch.tensor([3, 4])),
    )
    scores = torch.tensor([1.0, 2.0, 5.0, 3.0, 4.0])
    assert must_stay(Group("part", 5, members), scores, min_channels).tolist() == expected
