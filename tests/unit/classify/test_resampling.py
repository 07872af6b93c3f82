import math

import numpy as np
import pytest

from classify.resampling import drawn_means, image_draws


def test_every_draw_has_as_many_images_and_is_the_same_again():
    first, second = (np.array(list(image_draws(7))) for _ in range(2))
    assert (first.sum(1) == 7).all()
    assert (first == second).all()
    assert len(np.unique(first, axis=0)) > 100


def test_means_of_draws_spread_as_the_theory_says():
    # 80 right of 400: sqrt(0.2 x 0.8 / 400) = 0.02; 200 draws know it to 5 %
    draws = drawn_means([1] * 80 + [0] * 320)
    assert np.std(draws) == pytest.approx(math.sqrt(0.2 * 0.8 / 400), rel=0.25)
    assert np.mean(draws) == pytest.approx(0.2, abs=0.006)
