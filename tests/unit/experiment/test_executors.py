"""Jobs of submitit that share a run: one begins it, the others join; submitit itself is stood in for, or runs here."""

import json
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from command.errors import RequestError, WorkError
from experiment.executors import executor_options, submitted
from experiment.status import status_of

RUN = ["run", "--out", "runs/a", "--set", "seeds=[1]", "--", "methods"]


class Jobs:
    """submitit's AutoExecutor, which keeps what it gets."""

    made: list["Jobs"] = []  # noqa: RUF012  # one for each test, see `submitit`
    refusal: str | None = None

    def __init__(self, folder, cluster, **settings):
        self.about = {"folder": folder.as_posix(), "cluster": cluster, **settings}
        self.commands = []
        self.made.append(self)

    def update_parameters(self, **options):
        if "partition" in options:
            raise NameError("Unknown executor 'partition'\nKnown executors: slurm, local")
        self.options = options

    def batch(self):
        return nullcontext()

    def submit(self, work):
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.commands += work
        return SimpleNamespace(job_id=f"7_{len(self.commands) - 1}")


class Sequence(list):
    add = list.append


@pytest.fixture
def submitit(monkeypatch):
    monkeypatch.setattr(Jobs, "made", [])
    helpers = SimpleNamespace(FunctionSequence=Sequence, CommandFunction=list)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Jobs, helpers=helpers))
    return Jobs.made


def test_one_job_runs_and_the_others_join(submitit, tmp_path):
    names = submitted(RUN, tmp_path, "slurm", 3, {"slurm_partition": "gpu", "timeout_min": 60})
    (jobs,) = submitit
    assert names == ["7_0", "7_1", "7_2"]
    assert (jobs.about["folder"], jobs.about["cluster"]) == (f"{tmp_path.as_posix()}/jobs", "slurm")
    assert jobs.options == {"name": "espalier", "timeout_min": 60, "slurm_partition": "gpu"}
    python = [sys.executable, "-m", "espalier"]
    assert jobs.commands[0] == [*python, *RUN]
    assert jobs.commands[1] == jobs.commands[2] == [*python, "run", "--join", *RUN[1:]]


def test_jobs_have_a_day_unless_told_otherwise(submitit, tmp_path):
    submitted(RUN, tmp_path, "slurm", 1, {})
    assert submitit[0].options["timeout_min"] == 24 * 60


def test_an_option_that_submitit_does_not_know_is_refused(submitit, tmp_path):
    with pytest.raises(RequestError, match=r'--executor slurm: {"partition": "gpu"} does not do, Unknown executor'):
        submitted(RUN, tmp_path, "slurm", 2, {"partition": "gpu"})


def test_jobs_that_the_cluster_refuses_are_a_fault_in_a_line(submitit, tmp_path, monkeypatch):
    monkeypatch.setattr(Jobs, "refusal", "sbatch: error:\ninvalid partition")
    with pytest.raises(WorkError, match="--executor slurm: the jobs were refused, sbatch: error: invalid partition"):
        submitted(RUN, tmp_path, "slurm", 2, {})


def test_options_are_literals_or_texts(submitit):
    options = executor_options(["timeout_min=600", "slurm_partition=gpu", "slurm_comment='a=b'"])
    assert options == {"timeout_min": 600, "slurm_partition": "gpu", "slurm_comment": "a=b"}
    with pytest.raises(RequestError, match="--executor-set gpu: no name and value"):
        executor_options(["gpu"])


def test_a_missing_submitit_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RequestError, match=r'submitit is not installed; .* pip install "espalier\[slurm\]"'):
        executor_options([])


@pytest.mark.parametrize("more", [["--join"], ["--plan"], ["--json"]])
def test_an_executor_does_not_go_with_other_ways_to_run(command, more):
    code, _, err = command("run", "quickstart", "--executor", "local", *more)
    assert (code, len(err.splitlines())) == (2, 1)


TINY = """
name = "tiny"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=16, num_val=8),
    image_size=32,
    train=dict(epochs=1, batch_size=8, lr=0.01),
    finetune=dict(epochs=1, batch_size=8, lr=0.01),
)
pruning = dict(prune_ratios=(0.5,), round_to=1)
budgets = ("scratch_e",)
latency = dict(rounds=10)
"""


@pytest.mark.slow
def test_three_local_jobs_do_a_run_together(command, tmp_path):
    """With submitit's own executor, whose jobs are processes of their own."""
    pytest.importorskip("submitit")
    (tmp_path / "tiny.py").write_text(TINY)
    folder = tmp_path / "run"
    code, _, err = command("run", tmp_path / "tiny.py", "--out", folder, "--executor", "local", "--jobs", "3")
    assert code == 0, err
    until = time.monotonic() + 500
    while (found := status_of(folder)).state != "finished" and time.monotonic() < until:
        time.sleep(1)
    assert found.state == "finished", [path.read_text()[-2000:] for path in (folder / "jobs").glob("*.err")]
    assert len(json.loads((folder / "results.json").read_text())["rows"]) == 3
