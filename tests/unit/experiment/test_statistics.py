import math
from itertools import combinations

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
    # differences on the draws 0.2, 0.4, 0.6: deviation 0.2, of four images sqrt(4 / 3) times that, and Student's 3.1824
    # of it to both sides
    found = paired_difference({0: 0.9}, {0: 0.5}, {0: [0.8, 0.9, 1.0]}, {0: [0.6, 0.5, 0.4]}, num_images=4)
    reach = 3.1824 * 0.2 * math.sqrt(4 / 3)
    assert (found.low, found.high) == pytest.approx((0.4 - reach, 0.4 + reach), abs=1e-4)


def test_one_seed_whose_draws_are_all_alike_tells_nothing() -> None:
    found = paired_difference({0: 0.9}, {0: 0.5}, {0: [0.9, 0.9]}, {0: [0.5, 0.5]}, num_images=40)
    assert (found.is_known, found.p_value) == (False, 1.0)
    assert verdicts_of([found]) == ["not separable"]


def test_draws_of_a_single_image_are_none() -> None:
    found = paired_difference({0: 0.9}, {0: 0.5}, {0: [0.8, 0.9]}, {0: [0.5, 0.5]}, num_images=1)
    assert (found.image_error, found.is_known) == (None, False)


def test_the_variances_over_seeds_and_images_add_up() -> None:
    # over seeds 0.3^2 / 3 = 0.03 with 2 degrees of freedom, over 31 images 0.3^2 = 0.09 with 30, of which Student's
    # 97.5 % points are 4.3027 and 2.0423 in every printed table; their mean, weighted by the variances, is 2.6074
    found = Difference(1.0, 3, seed_spread=0.3, image_error=0.3, num_images=31)
    assert found.high - found.mean == pytest.approx(2.6074 * math.sqrt(0.12), abs=1e-4)


def test_the_interval_ends_at_0_where_the_chance_is_5_percent() -> None:
    found = Difference(2.6074 * math.sqrt(0.12), 3, seed_spread=0.3, image_error=0.3, num_images=31)
    assert found.p_value == pytest.approx(0.05, abs=1e-5)


def false_verdicts(num_seeds: int, num_rows: int, num_images: int = 100) -> float:
    """Return how many of 400 experiments without any difference have a wrong verdict."""
    rng = np.random.default_rng(0)
    image_error = 0.01 * math.sqrt(2 / num_seeds)

    def is_wrong() -> bool:
        rows = rng.normal(0, math.hypot(0.02, 0.01), (num_rows, num_seeds))  # what seeds do, and what images do to each
        found = [
            Difference((one - other).mean(), num_seeds, (one - other).std(ddof=1), image_error, num_images)
            for one, other in combinations(rows, 2)
        ]
        return set(verdicts_of(found)) != {"not separable"}

    return sum(is_wrong() for _ in range(400)) / 400


@pytest.mark.parametrize(("num_seeds", "num_rows"), [(2, 2), (2, 4), (3, 4)])
def test_few_seeds_that_lie_close_by_chance_are_no_certainty(num_seeds, num_rows) -> None:
    # 5 % at most, +- 1; Satterthwaite's degrees of freedom gave 10 to 26 % here
    assert false_verdicts(num_seeds, num_rows) < 0.09


def test_draws_are_taken_only_where_all_seeds_have_them() -> None:
    draws = {seed: [0.1, 0.2] for seed in FIRST}
    assert paired_difference(FIRST, SECOND, draws, {0: [0.1, 0.2]}, 9) == paired_difference(FIRST, SECOND)


def test_draws_average_the_seeds_before_they_spread() -> None:
    # seeds err in opposite ways on every draw: their mean does not vary over images
    first = {0: [0.1, 0.3], 1: [0.3, 0.1]}
    found = paired_difference({0: 0.2, 1: 0.2}, {0: 0.1, 1: 0.1}, first, {0: [0.0, 0.0], 1: [0.0, 0.0]}, 9)
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
    assert seeds_to_separate(Difference(0.01, 3, seed_spread=0.001, image_error=0.02, num_images=100)) is None
    assert seeds_to_separate(Difference(0.0, 3, seed_spread=0.1, image_error=None)) is None


def test_power_is_how_often_a_test_finds_a_difference() -> None:
    # 20 000 sets of 6 seeds drawn from a normal distribution, each given to scipy
    drawn = np.random.default_rng(0).normal(1.2, 1.0, (20_000, 6))
    found = (ttest_rel(drawn, np.zeros_like(drawn), axis=1).pvalue < 0.05).mean()
    assert Difference(1.2, 6, seed_spread=1.0, image_error=None).power(6) == pytest.approx(found, abs=0.015)
