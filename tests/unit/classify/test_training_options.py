"""Averaged weights, parts of batches, precisions and scaled rates, on a linear network whose steps can be followed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from classify.processes import Processes
from classify.schedule import Schedule
from classify.train import train_classifier
from command.errors import RequestError

PLAIN = Schedule(epochs=2, batch_size=4, lr=0.5, optimizer="SGD", warmup_iters=0, weight_decay=0.0)

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


@pytest.fixture
def trained(pairs, tmp_path):
    """Train on eight images; return the weights after every iteration, and those in the end."""

    def train(schedule, name="run", progress=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        images = torch.randint(0, 256, (8, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        steps = []

        def follow(done, *_):
            steps.append(copy.deepcopy(net.state_dict()))
            if progress:
                progress(done)

        train_classifier(net, pairs(images, [0, 1] * 4), schedule, tmp_path / name, 0, follow)
        return steps, net.state_dict()

    return train


def assert_close(one, other, **tolerance):
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, **tolerance)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_exponential_from_the_first_step_on(trained, accumulate):
    parts, found = trained(replace(PLAIN, ema=0.75, accumulate=accumulate))
    first, *others = parts[accumulate - 1 :: accumulate]
    assert len(others) == 3  # four steps, whatever the parts
    expected = first
    for step in others:
        expected = {name: 0.75 * expected[name] + 0.25 * step[name] for name in step}
    assert_close(expected, found)
    assert any((found[name] != parts[-1][name]).any() for name in found)


def test_an_average_goes_on_after_a_kill(trained):
    class KilledError(Exception):
        pass

    def kill(done):
        if done == 3:
            raise KilledError

    _, whole = trained(replace(PLAIN, ema=0.75), "whole")
    with pytest.raises(KilledError):
        trained(replace(PLAIN, ema=0.75), "killed", kill)
    _, resumed = trained(replace(PLAIN, ema=0.75), "killed")
    assert_close(whole, resumed, rtol=0, atol=0)


def test_a_batch_in_two_parts_gives_the_same_steps(trained):
    stepped = replace(PLAIN, milestones=(0.5,))  # a cosine falls within the batch
    _, whole = trained(stepped, "whole")
    steps, parts = trained(replace(stepped, accumulate=2), "parts")
    assert len(steps) == 8
    assert_close(whole, parts)


def test_a_rate_is_scaled_with_the_batch(trained):
    assert replace(PLAIN, lr_batch_size=16).peak_lr == 0.125
    _, scaled = trained(replace(PLAIN, lr=1.0, lr_batch_size=8), "scaled")
    assert_close(trained(PLAIN, "plain")[1], scaled)


def test_bfloat16_rounds_the_products_alone(trained):
    _, exact = trained(PLAIN, "exact")
    _, rounded = trained(replace(PLAIN, amp="bf16"), "rounded")
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
    assert_close(exact, rounded, rtol=0.1, atol=0.02)
    assert any((exact[name] != rounded[name]).any() for name in exact)


def test_a_compiled_training_takes_the_same_steps(trained):
    assert_close(trained(PLAIN, "plain")[1], trained(replace(PLAIN, compile="eager"), "compiled")[1])


def test_channels_last_changes_no_result(trained):
    assert_close(trained(PLAIN, "plain")[1], trained(replace(PLAIN, channels_last=True), "last")[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has both")
@pytest.mark.parametrize(("option", "value"), [("amp", "fp16"), ("sync_bn", True)])
def test_what_needs_a_gpu_is_refused_without_one(trained, option, value):
    with pytest.raises(RequestError, match=rf"{option}: .*got a CPU"):
        trained(replace(PLAIN, **{option: value}))


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(RequestError, match="accumulate: does not divide batch_size 4, got 3"):
        replace(PLAIN, accumulate=3)


@pytest.mark.parametrize("ema", [0, 1, 1.0, True, 1e-20])
def test_an_average_of_everything_or_nothing_is_refused(ema):
    with pytest.raises(RequestError, match=rf"ema: out of range, got {ema}; expected at least 1e-09 and at most 0\.9"):
        replace(PLAIN, ema=ema)


def test_an_unknown_backend_is_refused_with_the_known_ones(command, tmp_path):
    line = "compile: unknown backend, got 'nonsense'; expected one of cudagraphs, inductor"
    with pytest.raises(RequestError, match=line):
        replace(PLAIN, compile="nonsense")
    out = tmp_path / "net.safetensors"
    code, _, err = command("classify", "train", "resnet18_shapes", "--out", out, "--set", "schedule.compile=nonsense")
    assert (code, line in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_options_that_are_not_used_are_no_part_of_a_hash():
    assert not {"ema", "amp", "accumulate", "compile", "lr_batch_size"} & PLAIN.effective().keys()
    assert replace(PLAIN, ema=0.9).effective()["ema"] == 0.9


def test_one_process_waits_for_nobody():
    with Processes().first_one_first():
        assert Processes().is_first
