import math

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from experiment.statistics import Difference, paired_difference, seeds_to_separate, verdicts_of

FIRST, SECOND = {0: 0.71, 1: 0.74, 2: 0.70}, {0: 0.68, 1: 0.70, 2: 0.69}


def of_p_value(p_value, sign=1):
    """Return a difference of five seeds that has this p value, by Student's distribution."""
    return Difference(sign * t.isf(p_value / 2, 4) / math.sqrt(5), 5, seed_spread=1.0, image_error=None)


def test_interval_and_p_value_are_those_of_a_paired_t_test() -> None:
    found = paired_difference(FIRST, SECOND)
    test = ttest_rel(list(FIRST.values()), list(SECOND.values()))
    reference = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.mean == pytest.approx(0.08 / 3)
    assert found.num_seeds == 3


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.02, 0.021), "above"), ((-0.02, -0.021), "below"), ((0.02, -0.01), "not separable"), ((0.5,), "not separable")],
)
def test_the_verdict_says_whether_the_interval_holds_nothing(gains, verdict) -> None:
    first = {seed: 0.5 + gain for seed, gain in enumerate(gains)}
    assert verdicts_of([paired_difference(first, dict.fromkeys(first, 0.5))]) == [verdict]


def test_one_seed_tells_nothing_of_the_spread() -> None:
    found = paired_difference({3: 0.9}, {3: 0.1, 4: 0.2})
    assert (found.low, found.high, found.num_seeds, found.p_value) == (-math.inf, math.inf, 1, 1.0)
    assert not found.is_known


def test_seeds_that_differ_by_the_same_tell_nothing_of_the_spread() -> None:
    found = paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert (found.low, found.high, found.p_value) == (-math.inf, math.inf, 1.0)
    assert verdicts_of([found]) == ["not separable"]


def test_one_seed_with_draws_of_images_has_their_interval() -> None:
    # differences on the draws 0.2, 0.4, 0.6: deviation 0.2, and 1.96 of it to both sides
    found = paired_difference({0: 0.9}, {0: 0.5}, {0: [0.8, 0.9, 1.0]}, {0: [0.6, 0.5, 0.4]})
    assert (found.low, found.high) == pytest.approx((0.4 - 1.96 * 0.2, 0.4 + 1.96 * 0.2), abs=1e-4)


def test_the_variances_over_seeds_and_images_add_up() -> None:
    # over seeds 0.3^2 / 3 = 0.03 with 2 degrees of freedom, over images 0.3^2 = 0.09 without end: together 0.12 with
    # 0.12^2 / (0.03^2 / 2) = 32, of which Student's 97.5 % point is 2.0369 in every printed table
    found = Difference(1.0, 3, seed_spread=0.3, image_error=0.3)
    assert found.high - found.mean == pytest.approx(2.0369 * math.sqrt(0.12), abs=1e-4)


def test_draws_are_taken_only_where_all_seeds_have_them() -> None:
    draws = {seed: [0.1, 0.2] for seed in FIRST}
    assert paired_difference(FIRST, SECOND, draws, {0: [0.1, 0.2]}) == paired_difference(FIRST, SECOND)


def test_draws_average_the_seeds_before_they_spread() -> None:
    # seeds err in opposite ways on every draw: their mean does not vary over images
    first = {0: [0.1, 0.3], 1: [0.3, 0.1]}
    found = paired_difference({0: 0.2, 1: 0.2}, {0: 0.1, 1: 0.1}, first, {0: [0.0, 0.0], 1: [0.0, 0.0]})
    assert found.image_error == pytest.approx(0.0)


def test_holm_steps_down_through_the_p_values() -> None:
    # of four: 0.01 < 0.05 / 4, 0.016 < 0.05 / 3, 0.03 > 0.05 / 2, so 0.04 is not asked, though it is below 0.05
    found = [of_p_value(0.03), of_p_value(0.01), of_p_value(0.04), of_p_value(0.016, sign=-1)]
    assert verdicts_of(found) == ["not separable", "above", "not separable", "below"]


def test_what_cannot_be_judged_is_not_counted() -> None:
    # 0.04 alone is below 0.05, and would not be below 0.05 / 2
    assert verdicts_of([Difference(0.5, 1, None, None), of_p_value(0.04)]) == ["not separable", "above"]


@pytest.mark.parametrize(("effect", "num"), [(1.0, 10), (0.8, 15), (0.5, 34)])
def test_seeds_are_as_many_as_in_the_tables_of_paired_t_tests(effect, num) -> None:
    # G*Power: two-sided, error 0.05, power 0.8
    assert seeds_to_separate(Difference(effect, 3, seed_spread=1.0, image_error=None)) == num


def test_seeds_do_not_help_where_images_are_too_few() -> None:
    assert seeds_to_separate(Difference(0.01, 3, seed_spread=0.001, image_error=0.02)) is None
    assert seeds_to_separate(Difference(0.0, 3, seed_spread=0.1, image_error=None)) is None


def test_power_is_how_often_a_test_finds_a_difference() -> None:
    # 20 000 sets of 6 seeds drawn from a normal distribution, each given to scipy
    drawn = np.random.default_rng(0).normal(1.2, 1.0, (20_000, 6))
    found = (ttest_rel(drawn, np.zeros_like(drawn), axis=1).pvalue < 0.05).mean()
    assert Difference(1.2, 6, seed_spread=1.0, image_error=None).power(6) == pytest.approx(found, abs=0.015)
