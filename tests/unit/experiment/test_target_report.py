"""Reports of rows on several targets: told apart, and compared within a target only."""

import csv
import json

import pytest

from command.errors import RequestError
from experiment.comparison import comparison
from experiment.finding import device, finding
from experiment.report import table_latex, table_markdown, table_text, write_report
from experiment.report_lines import differing, lines_of
from experiment.results import read_results
from experiment.verdicts import judged_lines, judged_speeds


@pytest.fixture
def on_two(results):
    """The results on two targets; on the second, all but dense are slower."""
    cpu = [row | {"name": f"{row['name']}@cpu", "target": "cpu"} for row in results["rows"]]
    gpu = [row | {"name": f"{row['name']}@gpu", "target": "gpu", "latency_ms": 1.0} for row in results["rows"]]
    for row in gpu:
        row |= {} if row["ordering"] == "dense" else {"speedup": 0.5, "speedup_low": 0.4, "speedup_high": 0.6}
    conditions = {"cpu": results["latency"], "gpu": results["latency"] | {"device": "NVIDIA L4", "is_gpu": True}}
    return results | {"rows": [*cpu, *gpu], "targets": conditions}


def test_lines_of_two_targets_are_told_apart(on_two, results):
    lines = lines_of(on_two["rows"])
    assert [line.label for line in lines if line.is_dense] == ["dense (cpu)", "dense (gpu)"]
    assert len({line.label for line in lines}) == len(lines) == 2 * len(lines_of(results["rows"]))
    assert [line.family for line in lines] == [(None, "cpu")] * (len(lines) // 2) + [(None, "gpu")] * (len(lines) // 2)
    assert "target" in differing(on_two["rows"])
    assert "target" not in differing(results["rows"])


def test_lines_are_compared_within_their_target(on_two, results):
    lines = lines_of(on_two["rows"])
    judged = judged_lines(lines, {})
    assert all(one.first.family == one.second.family for one in judged)
    assert len(judged) == 2 * len(judged_lines(lines_of(results["rows"]), {}))
    verdicts = {line.line.family: line.verdict for line in judged_speeds(lines)}
    assert verdicts[(None, "gpu")] == "slower"


def test_noise_of_one_target_does_not_decide_on_another():
    base = {"budget": None, "method": None, "prune_ratio": 0.0, "map": 0.5, "seed": 0, "speedup": 1.0}
    none = {"speedup_low": None, "speedup_high": None}
    rows = []
    for target, noise in (("cpu", 1.01), ("gpu", 3.0)):
        rows += [
            base | none | {"ordering": "dense", "target": target},
            base | {"ordering": "dense_longer", "target": target, "speedup_low": 0.99, "speedup_high": noise},
            base
            | {"ordering": "transfer_prune", "budget": "finetune", "method": "l1", "prune_ratio": 0.5}
            | {"target": target, "speedup_low": 1.4, "speedup_high": 1.6},
        ]
    found = {speed.line.family: speed.verdict for speed in judged_speeds(lines_of(rows))}
    assert found == {(None, "cpu"): "faster", (None, "gpu"): "not decided"}


def test_methods_are_compared_target_by_target(on_two):
    compared = comparison(on_two["rows"])
    assert [len(scores) for scores in compared.dense.values()] == [1, 1]
    assert {row[0] for row in compared.table()[1:]} == {"cpu", "gpu"}


def test_the_finding_is_of_one_target(on_two):
    for row in on_two["rows"]:
        if row["target"] == "gpu" and row["ordering"] == "dense":
            row["map"] = 0.123
        elif row["target"] == "gpu":
            row["map"] = row["map"] / 2
    lines = lines_of(on_two["rows"])
    text = finding(on_two, lines, judged_lines(lines, {}), judged_speeds(lines))
    assert "(cpu)" in text or ", cpu)" in text
    assert "0.123" not in text


def test_devices_of_all_targets_are_named_and_what_was_not_run(on_two):
    sentence = device(on_two | {"not_run": [{"target": "rtx", "reason": "build_only"}]})
    assert sentence.startswith(f"Latency was measured on {on_two['latency']['device']} (cpu), on NVIDIA L4 (gpu).")
    assert sentence.endswith("Target rtx was not run: build_only.")


def test_every_form_of_a_report_names_the_targets(on_two, tmp_path):
    page = write_report(on_two, tmp_path).read_text()
    assert "dense (gpu)" in page
    assert "NVIDIA L4" in page
    with (tmp_path / "results.csv").open() as file:
        assert {row["target"] for row in csv.DictReader(file)} == {"cpu", "gpu"}
    assert " target " in table_markdown(on_two)
    assert "target" in table_latex(on_two)
    assert [str(column.header) for column in table_text(on_two).columns].count("target") == 1


def test_a_target_without_its_dense_row_is_refused(on_two, tmp_path):
    on_two["rows"] = [row for row in on_two["rows"] if row["name"] != "dense@gpu"]
    (tmp_path / "results.json").write_text(json.dumps(on_two))
    with pytest.raises(RequestError, match="no dense row"):
        read_results(tmp_path / "results.json")
