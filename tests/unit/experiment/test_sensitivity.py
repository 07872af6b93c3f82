import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from classify.backbones import Architecture
from classify.checkpoint import load_classifier, save_model
from classify.synthetic import SHAPES, write_shapes
from command.config import read_config
from command.folders import locked
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.data import CocoSet
from detect.evaluate import evaluate_detector
from detect.pruning import prune_detector
from detect.synthetic import write_scenes
from experiment import sensitivity, subjects
from experiment.cli import app
from experiment.cuts import PruneConfig
from experiment.sensitivity import SensitivityConfig, next_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
STUDIES = sorted(ROOT.glob("configs/prune/sensitivity_*.py"))
CLASSIFIER = """
start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="shapes", num_train=12, num_val=60)
image_size = 32
schedule = dict(epochs=8, batch_size=6, lr=2e-3)
"""
STUDY = """
data = dict(type="shapes", num_train=12, num_val=60)
prune_ratios = (0.25, 0.5)
round_to = 1
num_images = 12
skip = ("layer1.?.conv1", "layer2.*", "layer3.*")
"""
NUM_TRIALS = 1 + 2 * 4  # dense; conv1 and three groups of layer4
SIZE_HW = (96, 128)
SETTINGS = DetectorSettings(
    SIZE_HW, fpn_channels=16, head_channels=32, num_proposals=30, roi_samples=32, anchor_scale=2
)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "c.py").write_text(CLASSIFIER)
    invoke("classify", "train", folder / "c.py", "--out", folder / "net.safetensors")
    return folder / "net.safetensors"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    return tmp_path / "study.py"


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    """A study's folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "study.py").write_text(STUDY)
    return folder / "out", invoke("prune", "sensitivity", folder / "study.py", classifier, "--out", folder / "out")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """What a config of generated scenes with four of them and seed 0 validates on."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 4, SIZE_HW, seed=1)


@pytest.fixture(scope="module")
def detector(model, tmp_path_factory):
    """A copy of the detector's file; studies are written beside it."""
    return Path(shutil.copy(model, tmp_path_factory.mktemp("detector")))


@pytest.fixture
def evaluations(monkeypatch):
    """Count the classifiers that are evaluated; the one after `stop_after` is interrupted."""

    class Counted:
        num, stop_after, really = 0, None, staticmethod(subjects.evaluate_classifier)

        def __call__(self, *arguments):
            if self.num == self.stop_after:
                raise KeyboardInterrupt
            self.num += 1
            return self.really(*arguments)

    counted = Counted()
    monkeypatch.setattr(subjects, "evaluate_classifier", counted)
    return counted


def figures_in(folder):
    return json.loads((folder / "sensitivity.json").read_text())


def test_a_study_writes_figures_and_a_picture(finished):
    folder, _ = finished
    figures = figures_in(folder)
    groups = {curve["group"]: curve for curve in figures["curves"]}
    assert (figures["kind"], figures["metric"], figures["num_images"]) == ("classifier", "top1", 12)
    assert list(groups) == ["conv1", "layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1"]
    assert [point["num_kept"] for point in groups["layer4.0.conv1"]["points"]] == [96, 64]
    assert all(p["drop"] == pytest.approx(figures["score"] - p["score"]) for p in groups["conv1"]["points"])
    assert {d["group"]: d["reason"] for d in figures["untouched"]}["fc"] == "its channels are an output of the model"
    assert (folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_every_group_and_what_to_do_next(finished, classifier):
    folder, result = finished
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "layer4.1.conv1 128" in text
    assert "not measured: layer1.0.conv1, layer1.1.conv1 (skipped by the recipe (layer1.?.conv1))" in text
    assert f"wrote {folder / 'sensitivity.png'}, and its figures beside it\nnext: espalier prune" in result.stderr
    next_line = result.stderr.strip().splitlines()[-1].removeprefix("next: ")
    words = [word.replace("configs/", f"{ROOT}/configs/") for word in shlex.split(next_line)[1:]]
    pruned = json.loads(invoke(*words, "--out", folder.parent / "slim.safetensors", "--json").stdout)
    reasons = {group["group"]: group["reason"] for group in pruned["groups"]}
    assert reasons["layer1.0.conv1"] == "skipped by the recipe (layer1.?.conv1)"
    for curve in figures_in(folder)["curves"]:
        lost_too_much = curve["points"][1]["drop"] > 0.05
        assert (reasons[curve["group"]] is not None) == lost_too_much


def test_json_is_alone_on_standard_output(config, classifier, finished, tmp_path):
    result = invoke("prune", "sensitivity", config, classifier, "--out", tmp_path / "out", "--json")
    figures = json.loads(result.stdout)
    assert figures.items() <= figures_in(finished[0]).items()


def test_the_table_is_printed_for_latex(config, classifier, finished, tmp_path, monkeypatch):
    figures = figures_in(finished[0])
    monkeypatch.setattr("experiment.sensitivity.measure_sensitivity", lambda *_: figures)
    result = invoke("prune", "sensitivity", config, classifier, "--out", tmp_path / "out", "--latex")
    rows = [line for line in result.stdout.splitlines() if line.endswith(r" \\")]
    assert rows[0].startswith(r" & group & width & -")
    assert [row.split(" & ")[1] for row in rows[1:]] == [curve["group"] for curve in figures["curves"]]
    assert r"\begin{tabular}{llr" in result.stdout


def test_the_dense_score_is_that_of_an_evaluation(config, classifier, tmp_path):
    overrides = ("--set", "num_images=None", "--set", "skip=('*',)", "--set", "prune_ratios=(0.5,)")
    invoke("prune", "sensitivity", config, classifier, "--out", tmp_path / "out", *overrides)
    (images,) = (tmp_path / "out/data").glob("shapes2-*")
    evaluated = json.loads(invoke("classify", "eval", classifier, images, "--json").stdout)
    figures = figures_in(tmp_path / "out")
    assert (figures["num_images"], figures["score"]) == (60, pytest.approx(evaluated["top1"] / 100))
    assert (figures["macs"], figures["params"]) == (evaluated["macs"], evaluated["params"])


def test_a_killed_study_resumes_to_the_same_result(config, classifier, finished, tmp_path, evaluations):
    out = tmp_path / "out"
    evaluations.stop_after = 4
    CliRunner().invoke(app, ["prune", "sensitivity", str(config), str(classifier), "--out", str(out)])
    points = out / "points.jsonl"
    assert len(points.read_text().splitlines()) == 4
    assert not (out / "sensitivity.json").exists()
    points.write_text(points.read_text()[:-5])  # as if the kill had come within the last line
    evaluations.stop_after = None
    invoke("prune", "sensitivity", config, classifier, "--out", out)
    assert evaluations.num == NUM_TRIALS + 1  # the cut line's trial twice
    for name in ("points.jsonl", "sensitivity.json", "sensitivity.png"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes()


def test_another_limit_or_more_ratios_measure_only_what_is_new(config, classifier, tmp_path, evaluations):
    study = ("prune", "sensitivity", config, classifier, "--out", tmp_path / "out")
    invoke(*study)
    assert evaluations.num == NUM_TRIALS
    invoke(*study, "--set", "max_drop=0.9")
    assert evaluations.num == NUM_TRIALS
    assert figures_in(tmp_path / "out")["recommendation"] == {"prune_ratio": 0.5, "max_drop": 0.9, "skip": []}
    invoke(*study, "--set", "prune_ratios=(0.5, 0.75)")
    assert evaluations.num == NUM_TRIALS + 4


def test_the_folder_of_another_study_is_refused_or_replaced(config, classifier, command, tmp_path, evaluations):
    study = ("prune", "sensitivity", config, classifier, "--out", tmp_path / "out")
    invoke(*study)
    (tmp_path / "out/notes.txt").write_text("mine")
    other = (*study, "--set", "criterion=l2")
    code, out, err = command(*other)
    assert (code, out) == (2, "")
    assert (
        "out: left by a study of another model, data or criterion, or damaged; give another --out, or --force\n" in err
    )
    invoke(*other, "--force")
    assert evaluations.num == 2 * NUM_TRIALS
    assert figures_in(tmp_path / "out")["config"]["criterion"] == "l2"
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_refused(config, classifier, command, tmp_path):
    code, _, err = command("prune", "sensitivity", config, classifier, "--out", tmp_path, "--force")
    assert code == 2
    assert f"{tmp_path}: holds other files, got study.py; expected a new folder" in err


def test_a_second_study_in_the_same_folder_is_refused(config, classifier, command, tmp_path):
    with locked(tmp_path / "out"):
        code, _, err = command("prune", "sensitivity", config, classifier, "--out", tmp_path / "out")
    assert (code, err) == (2, f"espalier: {tmp_path}/out: in use by another run; wait for it, or give another --out\n")


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[" * 100_000,
        b"\xff",
        b'{"group": "conv1", "num_kept": "8", "score": 0.5}',
        b'{"group": "conv1", "num_kept": -8, "score": 0.5}',
        b'{"group": "conv1", "num_kept": 8, "score": NaN}',
        b'{"group": "conv1", "num_kept": 8, "score": 50.0}',
    ],
    ids=["no keys", "deeply nested", "no text", "wrong type", "negative", "not a number", "no share"],
)
def test_a_damaged_line_is_named(config, classifier, finished, command, tmp_path, line):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / "points.jsonl").write_bytes(line + b"\n")
    code, _, err = command("prune", "sensitivity", config, classifier, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    got = line[:60].decode(errors="replace")
    assert err.endswith(f"points.jsonl: not a measured point, got {got!r}; delete that line\n")


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"made_from": 1}'])
def test_a_folder_with_a_damaged_record_is_refused(config, classifier, finished, command, tmp_path, record):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / "study.json").write_bytes(record)
    code, _, err = command("prune", "sensitivity", config, classifier, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "or damaged; give another --out, or --force" in err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune_ratios=(0.5, 1.0)"], "would remove all channels or more, got 1.0; expected a share in [0, 1)"),
        (["prune_ratios=()"], "prune_ratios: Tuple should have at least 1 item after validation, not 0"),
        (["prune_ratio=0.6"], "prune_ratio: not measured, got 0.6; expected one of prune_ratios (0.25, 0.5)"),
        (["skip=('nope',)"], "nope: no layer of the model matches"),
        (["criterion=taylor"], "criterion: unknown, got 'taylor'; expected one of bn_scale, fpgm, l1, l2, random"),
        (["reduction=median"], "reduction: unknown, got 'median'"),
        (["parts=('tail',)"], "unknown, got 'tail'; expected one of backbone, bbox_head, neck, roi_head, rpn_head"),
        (["max_drop=inf"], "max_drop: Input should be less than or equal to 1, got 'inf'"),
        (["max_drop=nan"], "max_drop: Input should be less than or equal to 1, got 'nan'"),
        (["round_to=100000"], "round_to: Input should be less than or equal to 65536, got 100000"),
        (["num_images=0"], "num_images: Input should be greater than or equal to 1, got 0"),
        (
            ["data={'_delete_': True, 'type': 'scenes'}"],
            "holds a classifier, got 'scenes'; expected shapes, folder, npz or cifar",
        ),
        (["data={'_delete_': True, 'type': 'folder', 'root': 'none'}"], "none/train: no such folder"),
        (["data={'_delete_': True, 'type': 'folder', 'root': 'empty'}"], "holds no images"),
        (["data={'_delete_': True, 'type': 'folder', 'root': 'five'}"], "knows other classes than the data has, got 5"),
        (["maxdrop=0.1"], "unknown key maxdrop; nearest valid ones: max_drop"),
    ],
)
def test_a_wrong_request_is_one_line_before_any_work(
    config, classifier, command, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.chdir(tmp_path)
    write_shapes(tmp_path / "five", 12, 12, 32, seed=0)
    for split in ("train", "val"):
        (tmp_path / "empty" / split / "a").mkdir(parents=True)
        shutil.rmtree(tmp_path / "five" / split / "triangle")
    options = [word for text in overrides for word in ("--set", text)]
    code, out, err = command("prune", "sensitivity", config, classifier, "--out", "out", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_refused(config, classifier, command, tmp_path):
    net, card = load_classifier(classifier)
    net.fc.weight.data[0, 0] = torch.nan
    save_model(tmp_path / "nan.safetensors", net, card)
    code, _, err = command("prune", "sensitivity", config, tmp_path / "nan.safetensors")
    assert code == 2
    assert (
        "nan.safetensors: weight fc.weight is not finite, got NaN or infinity; expected numbers, train again\n" in err
    )
    assert not (tmp_path / "nan.sensitivity").exists()


def test_a_slim_model_is_refused(config, classifier, command, tmp_path):
    slim = tmp_path / "slim.safetensors"
    invoke("prune", ROOT / "configs/prune/l1_half.py", classifier, "--out", slim)
    code, _, err = command("prune", "sensitivity", config, slim)
    assert (code, err) == (2, f"espalier: {slim}: slim already; expected a dense model\n")


def test_a_detector_is_studied_in_all_its_parts(detector, scenes, tmp_path):
    config = tmp_path / "study.py"
    config.write_text(
        'data = dict(type="scenes", num_val=4)\nprune_ratios = (0.5,)\nround_to = 1\nskip = ("layer[234].*",)\n'
    )
    result = invoke("prune", "sensitivity", config, detector, "--out", tmp_path / "out", "--json")
    figures = json.loads(result.stdout)
    scores = {curve["group"]: curve["points"][0]["score"] for curve in figures["curves"]}
    assert {name.split(".")[0] for name in scores} == {"backbone", "neck", "rpn_head", "roi_head"}
    assert figures["metric"] == "map"
    net, card = load_detector(detector)
    assert figures["score"] == evaluate_detector(net, card, scenes, tmp_path / "dense")["map"] > 0
    for part, group in (("backbone", "backbone.net.conv1"), ("neck", "neck.lateral_convs.0.conv")):
        slim, slim_card, _ = prune_detector(net, card, 0.0, parts=[part], ratios={group: 0.5})
        assert scores[group] == evaluate_detector(slim, slim_card, scenes, tmp_path / part)["map"]
    assert (
        '--set round_to=1 --set \'parts=("backbone", "neck", "rpn_head", "roi_head", "bbox_head",)\'' in result.stderr
    )


def test_a_detector_is_studied_on_some_images_of_a_coco_set(detector, scenes, tmp_path):
    config = tmp_path / "study.py"
    images = scenes.images.name
    config.write_text(
        f'data = dict(type="coco", root="{scenes.annotations.parent}", val_annotations="instances.json", '
        f'val_images="{images}")\nprune_ratios = (0.5,)\nround_to = 1\nnum_images = 2\nparts = ("roi_head",)\n'
    )
    invoke("prune", "sensitivity", config, detector, "--out", tmp_path / "out")
    figures, looked_at = figures_in(tmp_path / "out"), json.loads((tmp_path / "out/annotations.json").read_text())
    assert [image["id"] for image in looked_at["images"]] == [0, 2]
    assert {row["image_id"] for row in looked_at["annotations"]} == {0, 2}
    assert [curve["group"] for curve in figures["curves"]] == [f"roi_head.bbox_head.shared_fcs.{i}" for i in (0, 1)]
    reasons = {decision["group"]: decision["reason"] for decision in figures["untouched"]}
    assert reasons["backbone.net.conv1"] == "skipped by the recipe (backbone.*)"
    net, card = load_detector(detector)
    some = CocoSet(tmp_path / "out/annotations.json", scenes.images)
    assert figures["score"] == evaluate_detector(net, card, some, tmp_path / "work")["map"]


def test_a_detector_that_finds_nothing_has_nothing_to_lose(command, tmp_path):
    model, config = tmp_path / "det.safetensors", tmp_path / "study.py"
    net, card = new_detector(Architecture("resnet18", 1, 16), SHAPES, SETTINGS, seed=0)
    net.roi_head.bbox_head.fc_cls.bias.data[-1] = 100.0  # all is background
    save_detector(model, net, card)
    config.write_text('data = dict(type="scenes", num_val=2)\n')
    code, _, err = command("prune", "sensitivity", config, model)
    assert code == 2
    assert err.endswith("det.safetensors: has no accuracy to lose, got map 0; expected a trained model\n")


def test_images_without_objects_are_refused(detector, scenes, command, tmp_path):
    rows = json.loads(scenes.annotations.read_text())
    rows["annotations"] = [row for row in rows["annotations"] if row["image_id"] > 0]
    (tmp_path / "some.json").write_text(json.dumps(rows))
    config = tmp_path / "study.py"
    config.write_text(
        f'num_images = 1\ndata = dict(type="coco", root="/", val_annotations="{tmp_path}/some.json", '
        f'val_images="{scenes.images}")\n'
    )
    code, _, err = command("prune", "sensitivity", config, detector, "--out", tmp_path / "out")
    assert code == 2
    assert "num_images: no boxes in these images, got 1 images; expected more images" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_valid(path):
    assert read_config(path, (), SensitivityConfig).prune_ratio == 0.5


def test_what_the_next_command_leaves_out_is_in_its_config():
    config = read_config(ROOT / "configs/prune/l1_half.py", (), PruneConfig)
    assert {name: getattr(config, name) for name in sensitivity._IN_L1_HALF} == sensitivity._IN_L1_HALF


def test_the_next_command_names_what_differs():
    config = SensitivityConfig(
        data={"type": "shapes"}, prune_ratios=(0.3,), prune_ratio=0.3, criterion="l2", skip=("conv1",)
    )
    figures = {"kind": "classifier", "recommendation": {"skip": ["layer2.0.conv1"]}}
    assert next_command(Path("my net.safetensors"), config, figures) == (
        "espalier prune l1_half 'my net.safetensors' --set prune_ratio=0.3 "
        '--set \'criterion="l2"\' --set \'skip=("conv1", "layer2.0.conv1",)\''
    )
