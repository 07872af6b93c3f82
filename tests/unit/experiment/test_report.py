from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from rich.console import Console

from experiment import pictures, plots, report

NASTY = "<script>alert('x')</script>"


def make_row(ordering: str, budget: str | None, **changes: Any) -> dict[str, Any]:
    row = {
        "name": f"{ordering}-{budget}" if budget else ordering,
        "ordering": ordering,
        "budget": budget,
        "method": "l1" if budget else None,
        "prune_ratio": 0.5,
        "seed": 0,
        "map": 0.6,
        "map50": 0.9,
        "map_framework": 0.6004,
        "top1": None,
        "macs": 500_000_000,
        "params": 4_000_000,
        "latency_ms": 10.0,
        "latency_p90_ms": 11.0,
        "latency_p99_ms": 12.0,
        "speedup": 1.5,
        "speedup_low": 1.4,
        "speedup_high": 1.6,
        "mac_reduction": 3.0,
        "runtime": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "widths": "64 to 32",
        "train_epochs": {"classify": 10, "detect": 12},
        "model": f"stages/{ordering}/model.safetensors",
        "onnx": None,
    }
    return row | changes


def make_dense(**changes: Any) -> dict[str, Any]:
    figures = {"map": 0.66, "macs": 1_500_000_000, "params": 12_000_000, "latency_ms": 15.0, "mac_reduction": 1.0}
    return make_row("dense", None, **(figures | {"speedup": 1.0, "speedup_low": 1.0, "speedup_high": 1.0} | changes))


def make_results(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    results = {
        "version": 1,
        "experiment": "quickstart",
        "created": "2025-01-02T03:04:05+00:00",
        "command": "espalier run quickstart",
        "git_commit": None,
        "versions": {"torch": "2.14.1"},
        "config": {"prune": {"method": "l1"}},
        "dataset": {"name": "shapes", "num_train": 8, "num_val": 4, "classes": ["circle", NASTY]},
        "wall_s": 90.0,
        "rows": rows,
        "latency": {
            "device": "cpu: AMD EPYC 7B13 (2 threads)",
            "is_gpu": False,
            "runtime": "onnxruntime 1.31",
            "precision": "fp32",
            "input_shape": [1, 3, 256, 256],
            "warmup": 5,
            "rounds": 50,
            "order": "alternating",
        },
        "pictures": [],
        "notes": [],
    }
    return results | changes


def make_pictures(folder: Path) -> list[dict[str, Any]]:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    truth = [{"box_xyxy": [4, 20, 24, 40], "label": 1}]
    found = [
        {"box_xyxy": [4, 20, 24, 40], "label": 1, "score": 0.93},
        {"box_xyxy": [0, 0, 9, 9], "label": 0, "score": 0.29},
    ]
    base = {"size_hw": [48, 64], "truth": truth, "detections": {"transfer_prune-finetune": found, "dense": found}}
    return [base | {"file": "a.png"}, base | {"file": str(folder / "b.png")}]


SLIM = make_row("transfer_prune", "finetune")
FAILED = make_row("prune_transfer", "finetune", map=None, map50=None, latency_ms=None, error="detect: loss is NaN")


@pytest.fixture
def page(tmp_path: Path) -> str:
    results = make_results([SLIM, make_dense(), FAILED], pictures=make_pictures(tmp_path), notes=[NASTY])
    return report.write_report(results, tmp_path).read_text("utf-8")


def cells_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]


def test_csv_has_every_key_in_fixed_order_and_unrounded_values(tmp_path: Path) -> None:
    report.write_report(make_results([make_row("dense", None, map=0.123456789, extra="kept"), FAILED]), tmp_path)
    header, dense, failed = csv.reader((tmp_path / "results.csv").open(encoding="utf-8"))
    assert tuple(header) == (*report.CSV_COLUMNS, "extra")
    values = dict(zip(header, dense, strict=True))
    assert values["map"] == "0.123456789"
    assert values["train_epochs_classify"] == "10"
    assert values["extra"] == "kept"
    assert dict(zip(header, failed, strict=True))["error"] == "detect: loss is NaN"


def test_nothing_half_written_is_left_beside_the_report(tmp_path: Path) -> None:
    path = report.write_report(make_results([]), tmp_path / "new")
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "results.csv"]


def test_page_loads_nothing_from_outside(page: str) -> None:
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"url\(|@import|<link|<script", page.replace("url(#", ""))
    images = re.findall(r'<image [^>]*href="([^"]*)"', page)
    # matplotlib may draw markers as images too; ours are the two photographs, each embedded once
    assert sum(image.startswith("data:image/webp;base64,") for image in images) == 2
    assert all(image.startswith("data:") for image in images)


def test_page_says_first_that_it_was_a_cpu(page: str) -> None:
    sentence = "Latency was measured on a CPU (AMD EPYC 7B13, 2 threads), not on a GPU."
    assert page.index(sentence) < page.index("<h1>")


def test_gpu_is_named_without_the_cpu_sentence() -> None:
    latency = make_results([])["latency"] | {"device": "cuda: NVIDIA H100", "is_gpu": True}
    assert report.table_markdown(make_results([], latency=latency)).startswith("Latency was measured on NVIDIA H100.\n")


def test_failed_row_stays_visible(page: str) -> None:
    assert "<td class=number>failed</td>" in page
    assert "detect: loss is NaN" in page


def test_names_cannot_inject_markup(page: str) -> None:
    assert NASTY not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 3


def test_only_scores_from_the_threshold_are_shown(page: str) -> None:
    assert ">0.93</text>" in page
    assert "0.29" not in page


def test_panels_are_truth_then_dense_then_slim(tmp_path: Path) -> None:
    picture = pictures.prepare(
        make_pictures(tmp_path)[0], ["circle", "square"], ["dense", "transfer_prune-finetune"], tmp_path
    )
    assert [panel.title for panel in picture.panels] == ["ground truth", "dense", "transfer_prune-finetune"]
    assert picture.panels[1].boxes[0].title == "square 0.93"
    # x 4 to 24, y 20 to 40
    assert (picture.panels[0].boxes[0].width, picture.panels[0].boxes[0].height) == (20, 20)


def test_missing_picture_does_not_spoil_the_report(tmp_path: Path) -> None:
    gone = make_pictures(tmp_path)[0] | {"file": "gone.png"}
    path = report.write_report(make_results([make_dense()], pictures=[gone]), tmp_path)
    assert "the picture is missing" in path.read_text("utf-8")


def test_markdown_numbers_carry_their_units_and_dense_comes_first() -> None:
    header, _, dense, slim = cells_of(report.table_markdown(make_results([SLIM, make_dense()])))
    # Three digits for the smallest of a column: 0.500 G, 4.00 M, 10.0 ms.
    assert dict(zip(header, dense, strict=True)) == {
        "ordering": "dense",
        "budget": "-",
        "mAP": "0.660",
        "AP50": "0.900",
        "MACs (G)": "1.500",
        "params (M)": "12.00",
        "latency (ms)": "15.0",
        "speedup (x)": "1.00",
        "95% interval": "-",
        "MAC reduction (x)": "1.00",
    }
    assert slim[2:] == ["0.600", "0.900", "0.500", "4.00", "10.0", "1.50", "1.40-1.60", "3.00"]


def test_small_networks_are_counted_in_millions() -> None:
    header, *_ = cells_of(report.table_markdown(make_results([make_dense(macs=123_456_789)])))
    assert "MACs (M)" in header


def test_seeds_become_mean_and_sample_deviation() -> None:
    # mean of 0.60 0.62 0.67 is 0.63; deviations -0.03 -0.01 0.04, squares 9 + 1 + 16 = 26e-4, / 2 = 13e-4, root 0.036
    rows = [
        make_row("transfer_prune", "finetune", seed=seed, map=figure) for seed, figure in enumerate((0.60, 0.62, 0.67))
    ]
    header, _, dense, slim = cells_of(report.table_markdown(make_results([make_dense(), *rows])))
    values = dict(zip(header, slim, strict=True))
    assert values["mAP"] == "0.630 ± 0.036"
    assert values["seeds"] == "n=3 (0, 1, 2)"
    assert values["latency (ms)"] == "10.0"
    assert dict(zip(header, dense, strict=True))["seeds"] == "n=1 (0)"


def test_failed_seed_is_not_averaged_away() -> None:
    rows = [SLIM, SLIM | {"seed": 1, "map": None, "error": "killed"}]
    table = cells_of(report.table_markdown(make_results(rows)))[2:]
    assert [row[table_column] for row in table for table_column in (2, 3)] == ["n=1 (0)", "0.600", "n=1 (1)", "failed"]


def test_methods_are_told_apart_only_where_they_differ() -> None:
    two = report.table_markdown(make_results([make_dense(), SLIM, SLIM | {"method": "random"}]))
    assert cells_of(two)[0][2] == "method"
    assert "method" not in report.table_markdown(make_results([make_dense(), SLIM]))


def finding(rows: list[dict[str, Any]]) -> str:
    caption = report.table_text(make_results(rows)).caption
    return str(caption)


def test_finding_names_the_slim_row_with_the_highest_map() -> None:
    better = make_row("scratch_transfer", "scratch_b", map=0.61)
    text = finding([SLIM, make_dense(), better, FAILED])
    assert text.startswith(
        "scratch_transfer (scratch_b) reaches 0.610 mAP (dense: 0.660) "
        "at 1.50x measured speedup (95% interval 1.40-1.60), with 3.00x fewer MACs. One seed: "
    )


@pytest.mark.parametrize(("low", "is_doubted"), [(0.97, True), (1.01, False), (None, False)])
def test_finding_claims_no_gain_that_the_interval_does_not_show(low: float | None, is_doubted: bool) -> None:
    assert ("no gain by the clock" in finding([make_dense(), SLIM | {"speedup_low": low}])) == is_doubted


def test_finding_without_a_finished_slim_row_says_so() -> None:
    assert finding([]) == finding([make_dense(), FAILED]) == "No slim detector finished."


def test_text_table_shows_every_row_without_markup() -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(report.table_text(make_results([make_dense(), SLIM | {"budget": "[red]"}, FAILED])))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    assert "[red]" in text
    assert "failed" in text
    assert "not on a GPU" in text


def make_point(label: str, **changes: float) -> plots.Point:
    figures = dict.fromkeys(plots.FIGURES, 1.0) | {"map_spread": 0.0} | changes
    return plots.Point(label, "transfer_prune", **figures)


def test_plots_are_wellformed_and_follow_the_page_colour() -> None:
    points = [make_point("a <b> $x"), make_point("c")]
    for svg in (plots.accuracy_plot(points), plots.speedup_plot(points)):
        texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
        assert {"a <b> $x", "c"} <= set(texts)
        assert "currentColor" in svg


def test_plots_without_figures_are_empty() -> None:
    nothing = [make_point("a", latency_ms=float("nan"), speedup=float("nan"))]
    assert plots.accuracy_plot(nothing) == plots.speedup_plot(nothing) == ""


def test_same_results_give_the_same_page(tmp_path: Path) -> None:
    results = make_results([make_dense(), SLIM])
    first = report.write_report(results, tmp_path).read_bytes()
    assert report.write_report(results, tmp_path).read_bytes() == first
