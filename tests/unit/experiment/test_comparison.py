from xml.etree import ElementTree

from experiment import plots
from experiment.comparison import comparison, score_of

DENSE = {"ordering": "dense", "budget": None, "method": None, "prune_ratio": 0.0, "map": None}
SLIM = DENSE | {"ordering": "prune_transfer", "budget": "finetune", "method": "l1", "prune_ratio": 0.5}
SCRATCH = SLIM | {"ordering": "scratch_transfer", "budget": "scratch_b"}


def rows(**top1):
    kinds = {"dense": DENSE, "finetune": SLIM, "scratch": SCRATCH, "lasso": SLIM | {"method": "lasso"}}
    return [kinds[name] | {"seed": seed, "top1": value} for name, many in top1.items() for seed, value in many.items()]


ROWS = rows(
    dense={0: 0.80, 1: 0.82}, finetune={0: 0.70, 1: 0.72}, scratch={0: 0.60, 1: 0.621}, lasso={0: 0.75, 1: 0.75}
)


def test_a_line_has_mean_and_deviation_of_each_budget() -> None:
    assert comparison(ROWS).table() == [
        ["method", "prune_ratio", "finetune", "scratch_b"],
        ["dense", "0", "0.810 ± 0.014", "0.810 ± 0.014"],
        ["l1", "0.5", "0.710 ± 0.014", "0.611 ± 0.015"],
        ["lasso", "0.5", "0.750 ± 0.000", "-"],
    ]


def test_detectors_are_compared_by_map_and_ordering() -> None:
    detectors = [{**row, "map": row["top1"] / 2} for row in ROWS]
    assert score_of(detectors) == "map"
    assert comparison(detectors).ways == ["prune_transfer (finetune)", "scratch_transfer (scratch_b)"]


def test_the_figure_names_every_method_as_it_is() -> None:
    named = [{**row, "method": row["method"] and f"{row['method']} <$x>"} for row in ROWS]
    drawn = ElementTree.fromstring(plots.comparison_plot(comparison(named)))
    texts = {element.text for element in drawn.iter() if element.tag.endswith("text")}
    assert {"l1 <$x>, 0.5", "lasso <$x>, 0.5", "finetune", "scratch_b", "dense"} <= texts
    assert plots.comparison_plot(comparison(rows(dense={0: 0.8}))) == ""
