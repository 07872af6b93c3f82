"""The data and the training of a user's own config of mmdet."""

import json
import re
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture
from classify.synthetic import SHAPES
from command.errors import MissingFileError, RequestError
from detect.data import CocoSet
from detect.foreign import new_given_detector, read_mmdet
from detect.given_data import GivenData, given_set
from detect.given_training import check_given_detector, given_content, given_schedule, train_by_config

SETS = ("train", "more")
OURS = Architecture("resnet18", 6, 8)


def trained(config, folder, killed_at=None):
    """Return the weights of a fresh detector after its training, which may be killed and go on."""

    def progress(done, total, words):
        if done == killed_at:
            raise KeyboardInterrupt

    settings = read_mmdet(config)
    for kill in (progress, None) if killed_at else (None,):
        detector, _ = new_given_detector(settings, OURS, SHAPES, seed=0)
        try:
            curve = train_by_config(detector, given_schedule(settings), folder, seed=3, progress=kill)
        except KeyboardInterrupt:
            assert (folder / "epoch_1.pth").is_file()
    return detector.state_dict(), curve


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow  # six epochs of a whole detector
def test_a_killed_training_ends_with_the_same_weights(own_mmdet, tmp_path):
    config = own_mmdet()  # two epochs of (2 x 2 + 3) images, two at a time: four iterations each
    whole, curve = trained(config, tmp_path / "whole")
    again, other_curve = trained(config, tmp_path / "killed", killed_at=6)
    assert_equal(again, whole)
    assert other_curve == curve
    assert [epoch.lr for epoch in curve.epochs] == pytest.approx([2e-4, 2e-5])  # the backbone's, a tenth; the decay
    in_process, _ = trained(
        own_mmdet("train_dataloader = dict(num_workers=0, persistent_workers=False)"), tmp_path / "0"
    )
    assert_equal(in_process, whole)


def test_sets_in_sets_are_found_once_each(own_mmdet):
    found = given_set(read_mmdet(own_mmdet()), "train")
    assert found.sets == tuple(CocoSet(Path(f"{name}/instances.json"), Path(f"{name}/images")) for name in SETS)
    assert found.classes == SHAPES
    assert GivenData.of(read_mmdet(own_mmdet())).check() == SHAPES


def test_what_a_training_depends_on_is_its_own_part(own_mmdet):
    plain, other = (given_schedule(read_mmdet(own_mmdet(text))).effective() for text in ("# said", "unused = 3"))
    assert plain == other
    changed = given_schedule(read_mmdet(own_mmdet("optim_wrapper = dict(clip_grad=dict(max_norm=5))"))).effective()
    assert changed != plain
    assert json.loads(json.dumps(plain)) == plain


def test_code_of_the_users_own_is_part_of_the_content(own_mmdet, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "parts_of_a_test.py"
    module.write_text("FIRST = 1")
    config = own_mmdet('custom_imports = dict(imports=["own_parts", "parts_of_a_test"])')
    before = given_content(read_mmdet(config), "model")
    assert set(before["code"]) == {"own_parts", "parts_of_a_test"}
    module.write_text("FIRST = 2")
    assert given_content(read_mmdet(config), "model")["code"] != before["code"]


def checked(config):
    settings = read_mmdet(config)
    GivenData.of(settings).check()
    check_given_detector(settings, OURS, given_schedule(settings))


def refused(config, kind=RequestError):
    with pytest.raises(kind) as error:
        checked(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=9)', "train_cfg: not by epochs"),
        ("model = None", "cannot build a detector, got model=None; expected a config of mmdet, with model=dict"),
        ('model = "x"', "got model='x'"),
        ("model = [1]", r"got model=\[1\]"),
        ('model = dict(_delete_=True, neck=dict(type="FPN"))', "got model={'neck': {'type': 'FPN'}}"),
        ("del _base_.optim_wrapper", "no training, got optim_wrapper=None"),
        ('optim_wrapper = "x"', "no training, got optim_wrapper='x'"),
        ("train_cfg = [1]", r"no training, got train_cfg=\[1\]"),
        ("optim_wrapper = dict(optimizer=None)", "optimizer: not settings, got None"),
        ("train_cfg = dict(max_epochs=0)", "max_epochs: not usable, got 0; expected at least 1"),
        ('train_cfg = dict(max_epochs="3")', "max_epochs: not usable, got '3'"),
        ('train_dataloader = dict(sampler=dict(type="InfiniteSampler"))', "all epochs in one, got InfiniteSampler"),
        ('train_dataloader = dict(dataset=dict(_delete_=True, type="Nothing"))', "cannot be built, got .*Nothing"),
        ('train_dataloader = dict(dataset=dict(_delete_=True, type="XMLDataset"))', "not of COCO's format, got XML"),
        ('val_dataloader = dict(dataset=dict(type="CocoDataset"))', "val_dataloader: other classes, got 80 "),
        ('val_dataloader = dict(dataset={{_base_.train_dataloader.dataset}})', "evaluated on one set, got 2"),
        ('custom_hooks = [dict(type="EarlyStoppingHook", monitor="x", rule="less")]', "StoppingHook: needs validation"),
        ('custom_hooks = [dict(type="NoHook")]', "cannot train, got .*NoHook"),
        ('optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"backbone.layer4": dict(lr_mult=2)}))', "custom_keys: "),
        ('val_pipeline = [dict(type="Resize", scale=(128, 128), keep_ratio=False)]\nval_dataloader = dict('
         'dataset=dict(pipeline=val_pipeline))', "stretches images"),
        ('model = dict(roi_head=dict(bbox_head=dict(num_classes=4)))', "num_classes: not that of the data, got 4"),
        ('model = dict(backbone=dict(frozen_stages=9))', r"mine\.py: backbone.frozen_stages: out of range, got 9"),
        ('model = dict(neck=dict(type="PAFPN"))', r"mine\.py: neck: this part is not supported, got PAFPN"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_here_is_one_line(own_mmdet, text, fault):
    assert re.search(fault, refused(own_mmdet(text)))


@pytest.mark.parametrize("scale", [("a", 64), (), (-5, 64), (10**9, 10**9)])
def test_a_scale_that_is_none_is_one_line(own_mmdet, scale):
    step = f'dict(type="Resize", scale={scale}, keep_ratio=True)'
    text = f"val_dataloader = dict(dataset=dict(pipeline=[{step}]))"
    assert "mine.py: scale: not two sides, got (" in refused(own_mmdet(text))


def test_missing_and_other_data_are_one_line(own_mmdet, tmp_path):
    config = own_mmdet()
    rows = json.loads((tmp_path / "more/instances.json").read_text())
    rows["categories"][0]["name"] = "other"
    (tmp_path / "more/instances.json").write_text(json.dumps(rows))
    assert "more/instances.json: other classes than the config's metainfo has" in refused(config)
    (tmp_path / "train/instances.json").unlink()
    assert "train/instances.json: no such file" in refused(config, MissingFileError)


def test_a_loader_that_is_none_is_one_line(own_mmdet):
    with pytest.raises(RequestError, match=r"no training, got train_dataloader=\[1\]; expected the config of a whole"):
        given_schedule(read_mmdet(own_mmdet("train_dataloader = [1]")))
