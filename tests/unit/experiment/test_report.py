from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import ExifTags, Image
from rich.console import Console

from experiment import plots, report, report_pictures

NASTY = "<script>alert('x')</script>"


# fmt: off
def make_row(ordering: str, budget: str | None, **changes: Any) -> dict[str, Any]:
    """Return a row with the keys of `experiment.run`, in its order."""
    row = {
        "name": f"{ordering}-{budget}" if budget else ordering, "ordering": ordering, "budget": budget,
        "method": "l1" if budget else None, "prune_ratio": 0.5 if budget else 0.0, "seed": 0,
        "map": 0.6, "map50": 0.9, "map_framework": 0.6004, "top1": 0.88, "macs": 500_000_000, "params": 4_000_000,
        "runtime": "onnxruntime", "precision": "fp32",
        "latency_ms": 10.0, "latency_p90_ms": 11.0, "latency_p99_ms": 12.0,
        "speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6, "mac_reduction": 3.0, "device": "AMD EPYC 7B13",
        "train_epochs": {"train_detector": 12, "finetune_detector": 8},
        "train_lr": {"train_detector": 2e-3, "finetune_detector": 1e-3},
        "model": f"stages/{ordering}/model.safetensors", "onnx": f"stages/{ordering}/model.onnx",
    }
    return row | changes


DENSE = make_row("dense", None) | {
    "map": 0.66, "macs": 1_500_000_000, "params": 12_000_000, "latency_ms": 15.0,
    "speedup": 1.0, "speedup_low": None, "speedup_high": None, "mac_reduction": 1.0,
    "train_epochs": {"train_classifier": 10, "train_detector": 12},
}
SLIM = make_row("transfer_prune", "finetune")
LONGER = DENSE | {
    "name": "dense_longer", "ordering": "dense_longer", "map": 0.68,
    "speedup": 1.01, "speedup_low": 0.99, "speedup_high": 1.03,
    "train_epochs": {"train_classifier": 10, "train_detector": 20},
}


def make_results(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    results = {
        "version": 1, "experiment": "quickstart", "command": "espalier run quickstart",
        "config": {"pruning": {"criterion": "l1"}},
        "created": "2025-01-02T03:04:05+00:00", "git_commit": None, "versions": {"torch": "2.14.1"}, "wall_s": 90.0,
        "dataset": {"name": "shapes", "num_train": 8, "num_val": 4, "classes": ["circle", NASTY]},
        "rows": rows,
        "latency": {
            "device": "a CPU (AMD EPYC 7B13, 2 threads), not a GPU", "is_gpu": False, "runtime": "onnxruntime 1.31",
            "precision": "fp32", "input_shape": [1, 3, 256, 256], "warmup": 5, "rounds": 50, "order": "alternating",
        },
        "pictures": [], "notes": [],
    }
    return results | changes
# fmt: on


def make_pictures(folder: Path) -> list[dict[str, Any]]:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    truth = [{"box_xyxy": [4, 20, 24, 40], "label": 1}]
    found = [
        {"box_xyxy": [4, 20, 24, 40], "label": 1, "score": 0.93},
        {"box_xyxy": [0, 0, 9, 9], "label": 0, "score": 0.29},
    ]
    base = {"size_hw": [48, 64], "truth": truth, "detections": {"transfer_prune-finetune": found, "dense": found}}
    return [base | {"file": "a.png"}, base | {"file": "b.png"}]


@pytest.fixture
def page(tmp_path: Path) -> str:
    results = make_results([SLIM, DENSE], pictures=make_pictures(tmp_path), notes=[NASTY])
    return report.write_report(results, tmp_path).read_text("utf-8")


def cells_of(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]


def results_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the first table, that of the results."""
    return cells_of(report.table_markdown(make_results(rows)).split("\n\n")[1])


def test_csv_has_the_keys_of_the_rows_in_their_order_and_unrounded_values(tmp_path: Path) -> None:
    report.write_report(make_results([DENSE | {"map": 0.123456789}, SLIM]), tmp_path)
    header, dense, slim = csv.reader((tmp_path / "results.csv").open(encoding="utf-8"))
    stages = ["finetune_detector", "train_classifier", "train_detector"]
    columns = [*(f"train_epochs.{stage}" for stage in stages), "train_lr.finetune_detector", "train_lr.train_detector"]
    assert header == [*(key for key in DENSE if not key.startswith("train_")), *columns]
    assert dense[header.index("map")] == "0.123456789"
    assert (dense[-5:-2], slim[-5:]) == (["", "10", "12"], ["8", "", "12", "0.001", "0.002"])


def test_the_map_of_voc_is_one_column_with_its_name(tmp_path: Path) -> None:
    results = make_results([row | {"metric": "voc07", "map50": row["map"]} for row in (DENSE, SLIM)])
    header = cells_of(report.table_markdown(results))[0]
    assert "mAP (VOC07)" in header
    assert not {"mAP", "AP50"} & {*header}
    page = report.write_report(results, tmp_path).read_text("utf-8")
    assert "mAP is that of PASCAL VOC 2007" in page
    assert "COCO box metrics" not in page


def test_report_is_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = report.write_report(make_results([DENSE]), tmp_path / "new")
    # one line has no other table
    assert {file.name for file in path.parent.iterdir()} == {"report.html", "results.csv", "summary.csv"}


def test_page_loads_nothing_from_outside(page: str) -> None:
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"url\(|@import|<link", page.replace("url(#", ""))
    images = re.findall(r'<image [^>]*href="([^"]*)"', page)
    # matplotlib may draw markers as images too; ours are the two photographs, each embedded once
    assert sum(image.startswith("data:image/webp;base64,") for image in images) == 2
    assert all(image.startswith("data:") for image in images)


def test_no_script_but_the_report_s_own_may_run(page: str) -> None:
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page


def test_page_starts_by_naming_a_cpu_measurement(page: str) -> None:
    sentence = "Latency was measured on a CPU (AMD EPYC 7B13, 2 threads), not a GPU."
    assert page.index(sentence) < page.index("<h1>")


def test_gpu_is_named_without_the_cpu_sentence() -> None:
    results = make_results([DENSE])
    results["latency"] |= {"device": "NVIDIA H100", "is_gpu": True}
    assert report.table_markdown(results).startswith("Latency was measured on NVIDIA H100.\n")


def test_what_stays_whole_is_folded_under_its_number(page: str) -> None:
    assert re.search(r"<details>\s*<summary>1 group of channels stays whole, and why</summary>\s*<ul>\s*<li>&lt;", page)


def test_names_cannot_inject_markup(page: str) -> None:
    assert NASTY not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 3


def test_only_scores_from_the_threshold_are_drawn(page: str) -> None:
    assert ">0.93</text>" in page
    assert "0.29" not in page


def test_panels_are_truth_then_dense_then_slim(tmp_path: Path) -> None:
    names = ["dense", "transfer_prune-finetune"]
    picture = report_pictures.prepare(make_pictures(tmp_path)[0], ["circle", "square"], names, tmp_path)
    assert [panel.title for panel in picture.panels] == ["ground truth", *names]
    assert picture.panels[1].boxes[0].title == "square 0.93"
    # x 4 to 24, y 20 to 40
    assert (picture.panels[0].boxes[0].width, picture.panels[0].boxes[0].height) == (20, 20)


def test_missing_picture_does_not_spoil_the_report(tmp_path: Path) -> None:
    gone = make_pictures(tmp_path)[0] | {"file": "gone.png"}
    path = report.write_report(make_results([DENSE], pictures=[gone]), tmp_path)
    text = path.read_text("utf-8")
    assert "(the picture is missing)" in text
    assert "The files of 1 of 1 pictures are missing." in text


def test_a_turned_photograph_is_drawn_upright(tmp_path: Path) -> None:
    # red above blue, stored on its left side; orientation 6: a viewer turns it right by a quarter
    upright = Image.new("RGB", (48, 64), "red")
    upright.paste("blue", (0, 32, 48, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
    picture = {"file": "a.jpg", "size_hw": [64, 48], "truth": [], "detections": {}}
    data = report_pictures.prepare(picture, [], [], tmp_path).uri.partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as drawn:
        assert drawn.size == (48, 64)
        top, bottom = (drawn.convert("RGB").getpixel((24, y)) for y in (8, 56))
    assert top[0] > 200 > 50 > top[2]
    assert bottom[2] > 200 > 50 > bottom[0]


def test_captions_take_two_lines_each(page: str) -> None:
    captions = re.findall(r"<figcaption>([^<]*)<br>([^<]*)</figcaption>", page)
    assert captions[:3] == [("ground truth", ""), ("dense", ""), ("transfer_prune", "finetune")]


def test_latex_has_the_cells_of_the_markdown_table() -> None:
    results = make_results([SLIM, DENSE])
    lines = report.table_latex(results).splitlines()
    assert lines[0] == f"% Latency was measured on {results['latency']['device']}."
    rows = [line.removesuffix(r" \\").split(" & ") for line in lines if line.endswith(r" \\")]
    expected = [row for row in cells_of(report.table_markdown(results)) if "---" not in row]
    assert [[re.sub(r"\\(?=[_%])", "", cell) for cell in row] for row in rows] == [
        [cell.replace("\\", "") for cell in row] for row in expected
    ]
    assert r"\begin{tabular}{ll" in lines[2]


def test_markdown_numbers_carry_their_units_and_dense_comes_first() -> None:
    header, _, dense, slim = results_of([SLIM, DENSE])
    # Three digits for the smallest of a column: 0.500 G, 4.00 M, 10.0 ms.
    assert header[:7] == ["ordering", "budget", "epochs", "mAP", "AP50", "MACs (G)", "params (M)"]
    assert header[7:] == ["latency (ms)", "speedup (x)", "95% interval", "MAC reduction (x)"]
    assert dense == ["dense", "-", "10+12", "0.660", "0.900", "1.500", "12.00", "15.0", "1.00", "-", "1.00"]
    assert slim[2:] == ["0+20", "0.600", "0.900", "0.500", "4.00", "10.0", "1.50", "1.40-1.60", "3.00"]


def test_small_networks_are_counted_in_millions() -> None:
    assert "MACs (M)" in report.table_markdown(make_results([DENSE | {"macs": 123_456_789}]))


def test_seeds_become_mean_and_sample_deviation() -> None:
    # mean of 0.60 0.62 0.67 is 0.63; deviations -0.03 -0.01 0.04, squares 9 + 1 + 16 = 26e-4, / 2 = 13e-4, root 0.036
    rows = [SLIM | {"seed": seed, "map": figure} for seed, figure in enumerate((0.60, 0.62, 0.67))]
    header, _, dense, slim = results_of([DENSE, *rows])
    values = dict(zip(header, slim, strict=True))
    assert values["mAP"] == "0.630 ± 0.036"
    assert values["seeds"] == "0, 1, 2"
    assert values["latency (ms)"] == "10.0"
    assert dict(zip(header, dense, strict=True))["seeds"] == "0"


def test_ratios_are_named_only_where_they_differ() -> None:
    two = results_of([DENSE, SLIM, SLIM | {"prune_ratio": 0.7}])
    assert [row[2] for row in two if row[2] != "---"] == ["prune_ratio", "0.0", "0.5", "0.7"]
    assert "prune_ratio" not in report.table_markdown(make_results([DENSE, SLIM]))


def finding(rows: list[dict[str, Any]]) -> str:
    return str(report.table_text(make_results(rows)).caption)


AS_LONG = {"train_epochs": {"train_detector": 12}}
"""As the dense detector."""


def test_finding_names_the_slim_row_with_the_highest_map() -> None:
    better = make_row("scratch_transfer", "scratch_b", map=0.61, **AS_LONG)
    assert finding([SLIM | AS_LONG, DENSE, better]).startswith(
        "scratch_transfer (scratch_b) and dense are not separable: -0.050 mAP, one seed, which tells nothing of the "
        "spread. scratch_transfer (scratch_b) reaches 0.610 mAP (dense: 0.660) "
        "at 1.50x measured speedup (95% interval 1.40-1.60), with 3.00x fewer MACs. One seed: "
    )


def test_finding_says_that_training_times_differ() -> None:
    assert (
        "Detectors were trained for 12 to 20 epochs (dense 12, transfer_prune (finetune) 20), which alone can change "
        "mAP. "
    ) in finding([SLIM, DENSE])
    assert "which alone can change" not in finding([SLIM | AS_LONG, DENSE])


def test_the_epochs_of_both_stages_stand_below_the_table() -> None:
    assert finding([SLIM, DENSE]).endswith(
        "Epochs of classification and detection: dense 10+12; transfer_prune (finetune) 0+20."
    )


def test_finding_adds_one_sentence_on_the_longer_control() -> None:
    assert finding([SLIM, DENSE, LONGER]).startswith(
        "transfer_prune (finetune) and dense are not separable: -0.060 mAP, one seed, which tells nothing of the "
        "spread. transfer_prune (finetune) reaches 0.600 mAP (dense: 0.660) at 1.50x measured speedup "
        "(95% interval 1.40-1.60), with 3.00x fewer MACs. Detectors were trained for 12 to 20 epochs (dense 12, "
        "dense_longer 20, transfer_prune (finetune) 20), which alone can change mAP. Dense trained for 20 epochs "
        "(dense_longer) reaches 0.680 mAP; it is not pruned, so its 1.01x is what a speedup can be without pruning. "
        "One seed: "
    )
    assert "dense_longer" not in finding([SLIM, DENSE])


def test_the_control_has_a_line_of_its_own_between_dense_and_slim() -> None:
    # means 0.66 and 0.68 stay apart; the control's ratio of 0 is no second ratio
    rows = [row | {"seed": seed} for seed in (0, 1) for row in (SLIM, LONGER, DENSE)]
    header, _, *lines = results_of(rows)
    assert header[:5] == ["ordering", "budget", "seeds", "epochs", "mAP"]
    assert [line[:5] for line in lines] == [
        ["dense", "-", "0, 1", "10+12", "0.660"],
        ["dense_longer", "-", "0, 1", "10+20", "0.680"],
        ["transfer_prune", "finetune", "0, 1", "0+20", "0.600"],
    ]


def test_the_page_names_the_control_in_words_and_plots(tmp_path: Path) -> None:
    page = report.write_report(make_results([DENSE, LONGER, SLIM]), tmp_path).read_text("utf-8")
    assert "<dt>dense_longer</dt><dd>as dense, but learns to detect for as many epochs as transfer_prune" in page
    plotted = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert ["dense_longer" in svg for svg in plotted] == [True, True, True]


@pytest.mark.parametrize(("low", "is_doubted"), [(0.97, True), (1.01, False)])
def test_finding_claims_no_gain_within_the_interval(low: float, is_doubted: bool) -> None:
    assert ("no measured gain" in finding([DENSE, SLIM | {"speedup_low": low}])) == is_doubted


def test_finding_without_a_slim_row_reports_dense_only() -> None:
    assert finding([DENSE]).startswith("Only the dense network was run.")


def printed(rows: list[dict[str, Any]], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(report.table_text(make_results(rows)))
    return console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above


def test_text_table_takes_no_name_for_markup() -> None:
    assert "[red]" in printed([DENSE, SLIM | {"budget": "[red]"}], width=140)


def test_text_table_fits_80_columns_and_folds_orderings_last() -> None:
    slim = make_row("scratch_transfer", "scratch_b")
    line = "scratch_transfer scratch_b 0.600 0.900 0.500   4.00    10.0  1.50 1.40-1.60 3.00"
    assert line in printed([DENSE, slim], width=80).splitlines()
    assert "scratch_transfer " in printed([DENSE, slim, slim | {"seed": 1, "map": 0.7}], width=80)


def test_plots_are_wellformed_and_follow_the_page_colour() -> None:
    named = {1.0: "a <b> $x", 2.0: "c"}
    points = [
        plots.Point(label, "transfer_prune", score=place, spread=0.0, **dict.fromkeys(plots.FIGURES, place))
        for place, label in named.items()
    ]
    for svg in (plots.accuracy_plot(points), plots.macs_plot(points), plots.speedup_plot(points)):
        texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]
        assert {"a <b> $x", "c"} <= set(texts)
        assert "currentColor" in svg


def test_models_at_one_place_share_a_label() -> None:
    figures = dict.fromkeys(plots.FIGURES, 1.0)
    points = [plots.Point(label, "transfer_prune", score=0.5, spread=0.0, **figures) for label in "abc"]
    assert ">a and 2 more</text>" in plots.macs_plot(points)


def test_models_whose_markers_cover_each_other_share_a_label() -> None:
    figures = dict.fromkeys(plots.FIGURES, 1.0)
    macs = {"a": 100e6, "b": 100.1e6, "c": 900e6}
    points = [
        plots.Point(label, "transfer_prune", score=0.5, spread=0.0, **{**figures, "macs": num})
        for label, num in macs.items()
    ]
    svg = plots.macs_plot(points)
    assert ">a and 1 more</text>" in svg
    assert ">c</text>" in svg


def test_without_slim_detectors_no_speedup_is_drawn() -> None:
    assert plots.speedup_plot([]) == ""


def test_the_next_command_times_the_files_of_one_seed_the_dense_one_first(command: Any, tmp_path: Path) -> None:
    rows = [SLIM, DENSE, SLIM | {"seed": 1, "name": "slim1"}, DENSE | {"seed": 1, "name": "dense1"}]
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run/results.json").write_text(json.dumps(make_results(rows)))
    _, _, err = command("report", tmp_path / "my run", "--json")
    files = [tmp_path / "my run" / row["onnx"] for row in (DENSE, SLIM)]
    assert shlex.split(err.splitlines()[-1]) == ["next:", "espalier", "deploy", "bench", *map(str, files)]


def test_the_summary_has_mean_and_sample_deviation_unrounded(tmp_path: Path) -> None:
    # deviations -1e-9, 0 and 1e-9: sample deviation 1e-9
    rows = [SLIM | {"seed": seed, "map": 0.5 + (seed - 1) * 1e-9} for seed in range(3)]
    report.write_report(make_results([DENSE, *rows]), tmp_path)
    header, dense, slim = csv.reader((tmp_path / "summary.csv").open(encoding="utf-8"))
    assert header[:5] == ["ordering", "budget", "seeds", "map.mean", "map.sd"]
    assert dense[:5] == ["dense", "", "1", "0.66", ""]
    assert slim[:3] == ["transfer_prune", "finetune", "3"]
    assert [float(cell) for cell in slim[3:5]] == pytest.approx([0.5, 1e-9], rel=1e-6)


def test_the_stages_of_every_row_are_named(tmp_path: Path) -> None:
    stages = {"stages": ["train_classifier-0123456789ab", "export-ba9876543210"]}
    results = make_results([DENSE | stages, SLIM | stages])
    results["latency"]["record"] = "stages/latency-0a/latency.json"
    page = report.write_report(results, tmp_path).read_text("utf-8")
    assert page.count('data-header="stages">train_classifier-0123456789ab export-ba9876543210</td>') == 2
    assert '<a href="stages/latency-0a/latency.json">' in page
    header, dense, _ = csv.reader((tmp_path / "results.csv").open(encoding="utf-8"))
    assert dense[header.index("stages")] == "train_classifier-0123456789ab export-ba9876543210"


def test_a_page_shows_as_many_columns_as_it_has_room_for(tmp_path: Path) -> None:
    rows = [DENSE, *(SLIM | {"name": f"a{i}", "prune_ratio": i / 100} for i in range(20))]
    results = make_results(rows, per_class={row["name"]: {"cat": 0.5} for row in rows})
    page = report.write_report(results, tmp_path).read_text("utf-8")
    assert "The first 10 of 23 columns; all are in the file." in page
    assert len(next(csv.reader((tmp_path / "classes.csv").open(encoding="utf-8")))) == 23


def test_same_results_give_the_same_page(tmp_path: Path) -> None:
    first, second = (report.write_report(make_results([DENSE, SLIM]), tmp_path).read_bytes() for _ in range(2))
    assert first == second


def test_the_reason_of_a_failure_turns_no_text_around(tmp_path: Path) -> None:
    failed = [{"name": "slim\u202e", "reason": "loss\u202e\x1b[31m: nan"}]
    page = report.write_report(make_results([DENSE]) | {"failed": failed}, tmp_path).read_text("utf-8")
    assert r"slim\u202e: loss\u202e\x1b[31m: nan" in page
    assert "\u202e" not in page


def test_a_table_of_earlier_results_is_deleted(tmp_path: Path) -> None:
    report.write_report(make_results([DENSE, SLIM, SLIM | {"method": "l2"}]), tmp_path)
    assert (tmp_path / "methods.csv").is_file()
    report.write_report(make_results([DENSE, SLIM]), tmp_path)
    assert not (tmp_path / "methods.csv").exists()
