"""Several run folders against the first of them."""

import csv
import io
import json

import pytest

from command.errors import RequestError
from experiment.side_by_side import side_by_side

DEVICE = "a CPU (AMD EPYC, 1 thread), not a GPU"


@pytest.fixture
def write(results, tmp_path):
    """Writes results of dense and slim detectors into a run folder: seed -> mAP of both, and what else differs."""
    dense, slim = results["rows"][:2]

    def write(name, scores, **changes):
        rows = [
            {**row, "name": f"{row['name']}{seed}", "seed": seed, "map": score}
            for seed, both in scores.items()
            for row, score in zip((dense, slim), both, strict=True)
        ]
        folder = tmp_path / name
        folder.mkdir()
        dataset = {**results["dataset"], "val": "abc", **changes.pop("dataset", {})}
        content = {**results, "rows": rows, "dataset": dataset, **changes}
        (folder / "results.json").write_text(json.dumps(content))
        return folder

    return write


def rows_of(*folders):
    return {(row["detector"].split(",")[0], row["run"]): row for row in side_by_side(folders).figures()["rows"]}


def test_rows_are_paired_by_detector_and_seed(write):
    """Differences of 0.02 and 0.04 at the seeds of both: 0.03, standard error 0.01, Student's t of 1 is 12.706."""
    a = write("a", {0: (0.50, 0.40), 1: (0.50, 0.40)})
    b = write("b", {1: (0.50, 0.44), 0: (0.50, 0.42), 7: (0.9, 0.9)})
    found = rows_of(a, b)["prune_transfer", str(b)]
    assert [found["mAP first"], found["mAP"]] == pytest.approx([0.40, 0.43])
    assert (found["seeds"], found["images"]) == (2, "no")
    assert found["difference"] == pytest.approx(0.03)
    assert [found["95% from"], found["to"]] == pytest.approx([0.03 - 0.12706, 0.03 + 0.12706], abs=1e-5)
    assert found["verdict"] == "not separable"


@pytest.mark.parametrize(("val", "is_paired"), [("abc", True), (None, False)])
def test_draws_are_paired_where_the_images_are_known_to_be_the_same(write, val, is_paired):
    """Differences of 0.1, 0.2 and 0.3 over draws of 87 images: error 0.1 x sqrt(87 / 86), Student's t 1.988."""
    a = write("a", {0: (0.5, 0.4)}, draws={"prune_transfer-finetune0": [0.4, 0.4, 0.4]})
    draws = {"prune_transfer-finetune0": [0.5, 0.6, 0.7]}
    b = write("b", {0: (0.5, 0.9)}, draws=draws, dataset={"val": val})
    found = rows_of(a, b)["prune_transfer", str(b)]
    if is_paired:
        assert [found["95% from"], found["to"]] == pytest.approx([0.3, 0.7], abs=1e-3)
        assert (found["verdict"], found["images"]) == ("above", "yes")
    else:
        assert [found[key] for key in ("verdict", "95% from", "to", "images")] == ["no interval", None, None, "no"]


def test_without_a_seed_in_common_there_is_no_interval(write):
    a, b = write("a", {0: (0.5, 0.4)}), write("b", {1: (0.5, 0.6)})
    found = rows_of(a, b)["prune_transfer", str(b)]
    assert (found["verdict"], found["95% from"], found["seeds"]) == ("no seed in common", None, 0)
    assert found["difference"] == pytest.approx(0.2)


def test_rows_of_another_backbone_are_no_partners(write, results):
    """Where earlier versions did not write it down, each of their runs had one."""

    def rows(backbone):
        return [{**row, **({"backbone": backbone} if backbone else {})} for row in results["rows"]]

    old, new, other = (write(str(one), {}, rows=rows(one)) for one in (None, "resnet18", "resnet50"))
    assert len(side_by_side([old, new]).table().cells) == len(results["rows"])
    assert side_by_side([new, other]).table().cells == []


def test_what_has_no_partner_is_named(write, results):
    a = write("a", {0: (0.5, 0.4)})
    b = write("b", {0: (0.5, 0.4)}, rows=[*results["rows"]])
    beside = side_by_side([a, b])
    assert beside.alone()[str(a)] == []
    assert len(beside.alone()[str(b)]) == len(results["rows"]) - 2
    assert any(note.startswith(f"Not in all runs, {b} has: ") for note in beside.notes())


def test_what_else_differs_is_said(write, results):
    latency = {**results["latency"], "device": "an NVIDIA H100"}
    config = {**results["config"], "num_threads": 7}
    a = write("a", {0: (0.5, 0.4)})
    b = write("b", {0: (0.5, 0.4)}, latency=latency, config=config, git_commit="f" * 40, dataset={"num_train": 9})
    notes = side_by_side([a, b]).notes()
    assert notes[0].startswith(f"{a}: ")
    assert f"commit {'f' * 12}, bccd (9 images to train, 87 to validate)" in notes[1]
    assert "on an NVIDIA H100" in notes[1]
    assert any(note.startswith(f"{b} has other settings: num_threads: ") and "-> 7" in note for note in notes)
    for said in ("run by another commit", "timed on another device", "trained on another data set"):
        assert sum(said in note for note in notes) == 1
    alike = side_by_side([a, write("c", {0: (0.5, 0.4)})]).notes()
    assert not any("another" in note or "other settings" in note for note in alike)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": {"val": "def"}},
            r"b: other validation images, got bccd \(87 images\); expected those of .*a, bccd",
        ),
        ({"dataset": {"val": None, "num_val": 5}}, r"b: other validation images, got bccd \(5 images\); expected"),
        ({"dataset": {"val": None, "classes": ["x"]}, "pictures": []}, "b: other validation images"),
    ],
)
def test_other_validation_images_are_refused(write, changes, message):
    a, b = write("a", {0: (0.5, 0.4)}), write("b", {0: (0.5, 0.4)}, **changes)
    with pytest.raises(RequestError, match=message):
        side_by_side([a, b])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"metric": "voc07"}, "b: another score, got VOC's mAP; expected COCO's mAP, as in "),
        ({"map": None, "map50": None, "map_framework": None}, "b: another score, got top-1; expected COCO's mAP"),
    ],
)
def test_another_score_is_refused(write, results, row, message):
    rows = [{**one, **row} for one in results["rows"]]
    with pytest.raises(RequestError, match=message):
        side_by_side([write("a", {0: (0.5, 0.4)}), write("b", {0: (0.5, 0.4)}, rows=rows)])


def test_the_command_prints_every_form_and_writes_nothing(write, command):
    a, b = write("a", {0: (0.5, 0.4)}), write("b", {0: (0.5, 0.44)})
    figures = json.loads(command("report", a, b, "--json")[1])
    assert (figures["against"], figures["runs"]) == (str(a), [str(a), str(b)])
    header, _, slim = csv.reader(io.StringIO(command("report", a, b, "--csv")[1]))
    assert float(dict(zip(header, slim, strict=True))["mAP"]) == 0.44
    assert command("report", a, b, "--markdown")[1].count("\n| ") == 4
    assert command("report", a, b, "--latex")[1].count("\\\\\n") == 3
    code, out, err = command("report", a, b)
    assert (code, err) == (0, "")
    assert DEVICE in " ".join(out.split())
    assert [path.name for path in (*a.iterdir(), *b.iterdir())] == ["results.json"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge"], "--merge: merges several run folders into a new one; expected two or more, and --out"),
        (["--out", "c"], "--out c: not used without --merge; give both"),
        (["--merge", "--out", "c", "--json"], "--json: not used with --merge; give one of them"),
        (["--json", "--csv"], "--json --csv: more than one output format, got 2; expected one"),
    ],
)
def test_a_wrong_request_of_several_folders_is_one_line(write, command, options, message):
    a, b = write("a", {0: (0.5, 0.4)}), write("b", {0: (0.5, 0.44)})
    assert command("report", a, b, *options) == (2, "", f"espalier: {message}\n")
    assert command("report", a, a) == (2, "", f"espalier: {a}: given twice; expected folders of different runs\n")


def test_a_run_under_another_spelling_of_its_name_is_the_same(write):
    a = write("a", {0: (0.5, 0.4)})
    with pytest.raises(RequestError, match="given twice"):
        side_by_side([a, a / ".." / "a"])


def test_each_target_that_another_device_timed_is_named(write, results):
    """The first target is timed alike, the second on another GPU."""
    cpu = results["latency"]
    both = [{"cpu": cpu, "gpu": {**cpu, "device": gpu}} for gpu in ("A100", "T4")]
    a, b = (write(name, {0: (0.5, 0.4)}, targets=targets) for name, targets in zip("ab", both, strict=True))
    (note,) = [one for one in side_by_side([a, b]).notes() if "timed on another" in one]
    assert "another device or runtime (gpu)" in note


def test_rows_of_a_single_target_match_whatever_it_is_called(write):
    a, b = (write(name, {0: (0.5, 0.4)}) for name in "ab")
    for folder, target in ((a, "onnxruntime"), (b, "cpu")):
        content = json.loads((folder / "results.json").read_text())
        content["rows"] = [{**row, "target": target} for row in content["rows"]]
        (folder / "results.json").write_text(json.dumps(content))
    assert len(side_by_side([a, b]).figures()["rows"]) == 2
