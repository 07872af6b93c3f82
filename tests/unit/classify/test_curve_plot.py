import io

import pytest

from classify.curve import Curve, Epoch, Iteration
from classify.curve_plot import curve_picture


@pytest.fixture
def curve():
    """Two epochs of four iterations, of which every second is kept."""
    figures = [{}, {"map": 0.25, "map50": 0.5, "map_small": None, "seconds": 3.0}]
    epochs = [
        Epoch(epoch=n, lr=0.1 / n, losses={"loss": 3.0 / n, "loss_cls": 1.0 / n}, figures=figures[n - 1])
        for n in (1, 2)
    ]
    iterations = [Iteration(iteration=i, loss=4.0 / i, lr=0.1) for i in (1, 3, 5, 7)]
    return Curve(epochs=tuple(epochs), iterations=tuple(iterations))


def lines(axes):
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}


def test_losses_figures_and_rate_are_drawn_over_the_epochs(curve):
    loss, figures, rate = curve_picture(curve, "net.safetensors").axes
    drawn = lines(loss)
    # the first of four iterations ends at a quarter of the first epoch
    assert drawn.pop("single iterations") == [(0.25, 4.0), (0.75, 4 / 3), (1.25, 0.8), (1.75, 4 / 7)]
    assert drawn == {"mean of the epoch: 1.5": [(1, 3.0), (2, 1.5)], "loss_cls: 0.5": [(1, 1.0), (2, 0.5)]}
    assert lines(figures) == {"mAP: 0.25": [(2, 0.25)], "mAP at IoU 0.50: 0.5": [(2, 0.5)]}
    assert [x for x, _ in next(iter(lines(rate).values()))] == [0.25, 0.75, 1.25, 1.75]


def test_a_curve_without_validation_has_two_panels(curve):
    bare = curve.model_copy(update={"epochs": curve.epochs[:1], "iterations": curve.iterations[:2]})
    assert [axes.get_ylabel() for axes in curve_picture(bare, "net").axes] == ["training loss", "learning rate"]


def test_equal_curves_give_equal_bytes(curve):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        curve_picture(curve, "$x^$ <b>").savefig(file, format="png", metadata={"Software": None})
    assert files[0].getvalue() == files[1].getvalue()
