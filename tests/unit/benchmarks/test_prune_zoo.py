import os
import signal
import time

import pytest
import torch
from prune_zoo import step
from torch import nn
from zoo_models import ZooModel, zoo_model, zoo_names
from zoo_pruners import TOOLS, peak, proof, seconds
from zoo_tables import network_table, row, summary_table


def tiny():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    x = torch.rand(1, 3, 4, 4)
    return ZooModel(net, (x,), (x,), [net[2]])


@pytest.mark.parametrize("tool", TOOLS)
def test_both_pruners_are_right_on_a_chain(tool):
    found = proof(tiny(), tool)
    assert found["status"] == "equal"
    # 8 x (3 + 1) + 2 x (8 + 1) parameters become 4 x 4 + 2 x 5; 16 x (8 x 3 + 2 x 8) multiply-adds become half
    assert (found["params"], found["params_removed"]) == (50, 1 - 26 / 50)
    assert (found["macs"], found["macs_removed"]) == (640, 0.5)


def test_a_refusal_keeps_its_reason():
    zoo = tiny()
    zoo.model[0].weight.data[0] = float("nan")
    found = proof(zoo, "ours")
    assert found["status"] == "refused"
    assert found["why"].startswith("0.weight: a weight is not finite")


def test_a_crash_keeps_its_error(monkeypatch):
    monkeypatch.setitem(TOOLS, "theirs", lambda zoo: {}["missing"])
    assert proof(tiny(), "theirs") == {"status": "crashed", "why": "KeyError: 'missing'"}


def test_a_tool_that_changes_the_dense_model_is_wrong(monkeypatch):
    monkeypatch.setitem(TOOLS, "theirs", lambda zoo: zoo.model.train())
    assert proof(tiny(), "theirs") == {"status": "wrong", "why": "the dense model was changed"}


def test_all_are_timed_and_measured():
    found = seconds(tiny(), 2)
    assert {name: len(samples) for name, samples in found["samples"].items()} == {
        "ours": 2,
        "unchecked": 2,
        "theirs": 2,
    }
    assert found["same_channels"]
    assert peak(tiny(), "ours")["peak"] >= 1


def test_a_kept_result_is_not_worked_out_again(tmp_path):
    path = tmp_path / "a.json"
    assert step(path, lambda: {"pid": os.getpid()}, 60, 50)["pid"] != os.getpid()
    assert step(path, lambda: {"pid": 0}, 60, 50) != {"pid": 0}


@pytest.mark.parametrize(
    ("work", "limit_s", "status", "why"),
    [
        (lambda: {}["missing"], 60, "unmeasured", "KeyError: 'missing'"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 60, "crashed", "its process ended with code -9"),
        (lambda: time.sleep(60), 1, "not finished", "within 1 s"),
        (lambda: {"bytes": len(bytearray(2**40))}, 60, "unmeasured", "MemoryError"),
    ],
)
def test_a_failing_step_ends_alone(tmp_path, work, limit_s, status, why):
    found = step(tmp_path / "a.json", work, limit_s, 50)
    assert (found["status"], found["why"].rstrip(": ")) == (status, why)


def a_result(status, samples=None, **found):
    right = {"macs_removed": 0.75, "params_removed": 0.5} if status == "equal" else {"why": "it | fails"}
    result = {"network": "timm/a", "kind": "timm", "ours": {"status": status, "peak": 2.0} | right}
    result["theirs"] = {"status": "equal", "macs_removed": 0.25, "params_removed": 0.5, "peak": None}
    return result | ({} if samples is None else {"samples": samples, "same_channels": None})


def test_a_row_says_why():
    assert row(a_result("refused")) == ["timm/a", "refused: it / fails", "-", "-", "equal", "25%", "50%"]


def test_a_row_says_where_nothing_was_cut():
    result = a_result("equal")
    result["ours"]["params_removed"] = 0.0
    assert row(result)[1] == "equal, nothing cut"


def test_a_row_has_medians():
    samples = {"ours": [1.0, 9.0, 2.0], "unchecked": [1.0], "theirs": [5.0, 1.0, 6.0]}
    assert row(a_result("equal", samples))[-7:] == ["2.00", "1.00", "5.00", "2.5", "-", "2.00", "-"]


def test_the_summary_counts():
    results = [a_result("equal"), a_result("wrong"), a_result("unmatched"), a_result("refused")]
    columns, rows = summary_table(results)
    assert rows[0][:8] == ["timm", "4", "1", "1", "0", "0", "2", "75% / 50%"]
    assert rows[-1] == ["all", *rows[0][1:]]
    assert len(columns) == len(rows[0])


@pytest.mark.parametrize("table", [network_table, summary_table])
def test_times_have_columns(table):
    columns, rows = table(
        [a_result("equal", {"ours": [1.0], "unchecked": [1.0], "theirs": [2.0]}), a_result("refused", {})]
    )
    assert {len(cells) for cells in rows} == {len(columns)}
    assert "2.0" in rows[0]


def test_every_kind_of_torchvision_is_in_the_zoo():
    names = zoo_names()
    assert names["torchvision/resnet50"] == "torchvision, classification"
    assert names["torchvision/ssd300_vgg16"] == "torchvision, detection"


def test_a_network_comes_with_inputs_and_its_last_layer():
    zoo = zoo_model("torchvision/squeezenet1_1", 64)
    assert zoo.inputs[0].shape == (1, 3, 64, 64)
    assert zoo.outputs == [zoo.model.classifier[1]]
