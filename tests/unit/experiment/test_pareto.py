"""The front of models that no other one beats."""

import math

import pytest

from experiment.pareto import pareto_front


@pytest.mark.parametrize(
    ("costs", "scores", "front"),
    [
        # 8 ms at 0.50 is beaten by 8 ms at 0.55, 12 ms at 0.58 by 10 ms at 0.60
        ([10, 8, 8, 12, 15], [0.60, 0.55, 0.50, 0.58, 0.66], [1, 0, 4]),
        ([5, 6], [0.5, 0.5], [0]),
        ([5, 5, 4], [0.5, 0.5, 0.4], [2, 0, 1]),
        ([1, 2], [math.nan, 0.1], [1]),
        ([], [], []),
    ],
    ids=["some are beaten", "dearer and no better", "equals stay", "no score", "no model"],
)
def test_the_front_has_the_models_that_no_other_beats(costs, scores, front):
    assert pareto_front(costs, scores) == front
