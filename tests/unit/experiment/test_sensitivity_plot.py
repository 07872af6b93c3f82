import itertools

import pytest

from experiment.sensitivity_plot import NUM_LABELS, sensitivity_plot


def invented_figures(num_groups, drop):
    points = [
        {"prune_ratio": ratio, "num_kept": 100 - 100 * ratio, "macs_won": 10, "drop": ratio * drop}
        for ratio in (0.25, 0.5)
    ]
    names = [f"backbone.net.layer3.{i}.conv2" for i in range(num_groups)]
    curves = [{"group": name, "num_channels": 100, "points": points} for name in names]
    about = {"model": "net.safetensors", "metric": "map", "num_images": 500, "score": 0.4, "macs": 1000}
    return {**about, "curves": curves, "recommendation": {"prune_ratio": 0.5, "max_drop": 0.05, "skip": names}}


@pytest.mark.parametrize("drop", [0.3, -0.3])
def test_names_in_the_picture_cover_neither_each_other_nor_the_edge(drop):
    figure = sensitivity_plot(invented_figures(36, drop))
    figure.draw_without_rendering()
    for axes, num in zip(figure.axes, (NUM_LABELS // 2, NUM_LABELS), strict=False):
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == num
        # an annotation's extent holds its line, so the texts alone are compared by position
        heights = sorted(text.xyann[1] for text in axes.texts)
        assert min(b - a for a, b in itertools.pairwise(heights)) > 0.03
        assert all(figure.bbox.contains(box.x1, box.y1) for box in boxes)


def test_a_model_without_a_group_to_cut_gives_a_picture_too(tmp_path):
    figure = sensitivity_plot({**invented_figures(0, 0.0), "macs": 0})
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0
