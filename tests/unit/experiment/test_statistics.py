import math

import pytest
from scipy.stats import ttest_rel

from experiment.statistics import paired_difference


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    first, second = {0: 0.71, 1: 0.74, 2: 0.70}, {0: 0.68, 1: 0.70, 2: 0.69}
    found = paired_difference(first, second)
    reference = ttest_rel(list(first.values()), list(second.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.mean == pytest.approx(0.08 / 3)
    assert found.num_seeds == 3


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.02, 0.021), "above"), ((-0.02, -0.021), "below"), ((0.02, -0.01), "not separable"), ((0.5,), "not separable")],
)
def test_the_verdict_says_whether_the_interval_holds_nothing(gains, verdict) -> None:
    first = {seed: 0.5 + gain for seed, gain in enumerate(gains)}
    assert paired_difference(first, dict.fromkeys(first, 0.5)).verdict == verdict


def test_one_seed_tells_nothing_of_the_spread() -> None:
    found = paired_difference({3: 0.9}, {3: 0.1, 4: 0.2})
    assert (found.low, found.high, found.num_seeds) == (-math.inf, math.inf, 1)
