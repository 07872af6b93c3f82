import pytest
import torch

from prune.allocate import kept_channels, num_kept


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


@pytest.mark.parametrize(
    ("scores", "num", "expected"),
    [
        ([5.0], 1, [0]),
        ([1.0, 4.0, 2.0, 3.0], 2, [1, 3]),
        ([1.0, 3.0, 3.0, 3.0, 0.0], 2, [1, 2]),  # of the three equal ones the last goes
        ([2.0] * 40, 3, [0, 1, 2]),  # sorts that are not stable fail from 17 elements on
        ([0.0, 0.0, 1.0], 2, [0, 2]),  # ascending, whatever the rank
    ],
)
def test_highest_scores_are_kept_and_ties_keep_the_lower_index(scores, num, expected):
    assert kept_channels(torch.tensor(scores), num).tolist() == expected
