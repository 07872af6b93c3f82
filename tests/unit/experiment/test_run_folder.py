"""What a run leaves in its folder, and what it refuses to find there."""

import io
import json

import pytest
from rich.console import Console

from command.errors import RequestError, WorkError
from experiment.plan_table import plan_figures
from experiment.results import RESULTS
from experiment.run import join_experiment, run_experiment

pytestmark = pytest.mark.slow  # a whole experiment is run, once


def test_a_failed_reference_leaves_no_results_of_an_earlier_run(ran, tiny, run_tiny):
    before = (ran / RESULTS).read_bytes()
    diverging = tiny().classification.train
    settings = tiny().classification.model_copy(update={"train": type(diverging)(1, 8, 1e30, "SGD")})
    with pytest.raises(WorkError, match="lower it"):
        run_tiny(ran, tiny(classification=settings))
    assert not {path.name for path in ran.iterdir()} & {RESULTS, "report.html", "results.csv", "differences.csv"}
    assert (ran / "earlier" / RESULTS).read_bytes() == before


def test_a_run_that_has_nothing_to_do_keeps_its_results(ran, tiny, run_tiny):
    before = json.loads((ran / RESULTS).read_text())
    assert run_tiny(ran, tiny())["rows"] == before["rows"]
    assert not (ran / "earlier").exists()


def run(config, folder):
    run_experiment(config, folder, "espalier run tiny", Console(file=io.StringIO()))


def join(config, folder):
    (folder / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    join_experiment(config, folder, Console(file=io.StringIO()))


@pytest.mark.parametrize("name", ["run", "run/stages", "run/stages/claims"])
@pytest.mark.parametrize("act", [plan_figures, run])
def test_a_file_where_a_run_makes_a_folder_is_refused(tmp_path, tiny, name, act):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(RequestError, match=rf"{tmp_path / name}: is a file; expected a folder, or a new name"):
        act(tiny(), tmp_path / "run")


@pytest.mark.parametrize("ending", ["failed", "lock"])
@pytest.mark.parametrize("act", [plan_figures, join, run])
def test_a_folder_where_a_run_makes_a_claim_is_refused(tmp_path, tiny, ending, act):
    place = tmp_path / f"stages/claims/train_shapes-0123456789ab.{ending}"
    place.mkdir(parents=True)
    with pytest.raises(RequestError, match=rf"{place}: not a file that a run made; delete it and give the same"):
        act(tiny(), tmp_path)


CONFIG = """
name = "planned"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(data=dict(type="shapes", num_train=16, num_val=8), image_size=32,
    train=dict(epochs=1, batch_size=8, lr=1e-3), finetune=dict(epochs=1, batch_size=8, lr=1e-3))
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--join", "--jobs", "4"), "--jobs: not used with --join"),
        (("--plan", "--join"), "--join: not used with --plan"),
        (("--plan", "--jobs", "2"), "--jobs: not used with --plan"),
        (("--join", "--json"), "--json: not used with --join"),
    ],
)
def test_options_that_would_do_nothing_are_refused(command, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.py").write_text(CONFIG)
    code, out, err = command("run", "c.py", *options)
    assert (code, out, err) == (2, "", f"espalier: {message}; give one of them\n")
