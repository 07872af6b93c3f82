"""Detectors that stay mmdet's own: their config, a model file, and every command on them."""

import json
from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config

from classify.checkpoint import read_card
from classify.synthetic import SHAPES
from command.errors import RequestError
from detect import build_detector, load_detector, mmdet_config
from detect.foreign import slim_config
from prune.cut.surgery import masked_model

STOCK = Path(mmdet.__file__).parent / ".mim/configs"
RESNET = 'dict(_delete_=True, type="ResNet", depth=18, base_channels=8, norm_eval=False)'
RES2NET = 'dict(_delete_=True, type="Res2Net", depth=50, scales=2, base_width=4, base_channels=8, norm_eval=False)'
REGNET = 'dict(_delete_=True, type="RegNet", arch="regnetx_400mf", norm_eval=False)'
RPN = "rpn_head=dict(in_channels=32, feat_channels=32)"
FEW = "test_cfg=dict(rpn=dict(max_per_img=100))"
ALIGN = "out_channels=32"
TWO_LAYERS = "in_channels=32, fc_out_channels=64, num_classes=6"
ONE_OF_CASCADE = f'dict(type="Shared2FCBBoxHead", reg_class_agnostic=True, {TWO_LAYERS})'
DOUBLE = "in_channels=32, conv_out_channels=16, fc_out_channels=64, num_classes=6, num_convs=1, num_fcs=1"
MASK = f"mask_roi_extractor=dict({ALIGN}), mask_head=dict(in_channels=32, conv_out_channels=16, num_classes=6), "
COUNTS = "num_things_classes=6, num_stuff_classes=2"
SEGMENTS = f"semantic_head=dict(in_channels=32, inner_channels=32, {COUNTS}), panoptic_fusion_head=dict({COUNTS})"
KINDS = {
    "cascade": ("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco", RESNET, f"bbox_head=[{ONE_OF_CASCADE}] * 3"),
    "double": ("double_heads/dh-faster-rcnn_r50_fpn_1x_coco", RESNET, f"bbox_head=dict({DOUBLE})"),
    "mask": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", RESNET, f"{MASK}bbox_head=dict({TWO_LAYERS})"),
    "regnet": ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", REGNET, f"bbox_head=dict({TWO_LAYERS})"),
    "res2net": ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", RES2NET, f"bbox_head=dict({TWO_LAYERS})"),
}
RETINA = """
model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, base_channels=8, norm_eval=False),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    bbox_head=dict(num_classes=6, in_channels=32, feat_channels=32, stacked_convs=2),
)
"""
CHANNELS = {RESNET: [8, 16, 32, 64], RES2NET: [32, 64, 128, 256], REGNET: [32, 64, 160, 384]}
PIPELINE = """
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""

pytestmark = pytest.mark.filterwarnings("ignore:checkpoint is None")


@pytest.fixture
def write(tmp_path):
    """Write the config of a small detector after a stock one, and a checkpoint that finds something."""

    def both(kind):
        stock, backbone, heads = KINDS[kind]
        config, checkpoint = tmp_path / f"{kind}.py", tmp_path / f"{kind}.pth"
        neck = f"neck=dict(in_channels={CHANNELS[backbone]}, out_channels=32)"
        roi = f"roi_head=dict(bbox_roi_extractor=dict({ALIGN}), {heads})"
        model = f"model = dict(backbone={backbone}, {neck}, {RPN}, {roi}, {FEW})"
        config.write_text(f'_base_ = "{STOCK}/{stock}.py"\n{model}\n{PIPELINE}')
        torch.manual_seed(0)
        detector = init_detector(str(config), None, device="cpu")
        for name, parameter in detector.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight")):
                torch.nn.init.normal_(parameter, std=0.5)
        meta = {"dataset_meta": {"classes": SHAPES}}
        torch.save({"state_dict": detector.state_dict(), "meta": meta}, checkpoint)
        return config, checkpoint

    return both


def found_in_noise(detector):
    """Return what mmdet's own inference finds, all scores counted."""
    image = torch.randint(0, 256, (97, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    head = detector.roi_head if hasattr(detector, "roi_head") else detector.bbox_head
    head.test_cfg.score_thr = 0.0
    instances = inference_detector(detector, image.numpy()).pred_instances
    assert len(instances) > 50
    return instances


ALL_PARTS = 'parts=["backbone","neck","rpn_head","roi_head"]'


def assert_same(found, expected, tolerance=0.0):
    for key in ("bboxes", "scores", "labels"):
        torch.testing.assert_close(found[key], expected[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slim_detector_opens_in_mmdet_and_equals_the_masked_one(invoke, write, tmp_path, kind):
    config, checkpoint = write(kind)
    slim = tmp_path / "slim.safetensors"
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", ALL_PARTS)
    card = read_card(slim)
    assert (card.classes, card.is_foreign, card.is_slim) == (SHAPES, True, True)
    by_mmdet = init_detector(str(slim.with_suffix(".py")), str(slim), device="cpu")
    dense = init_detector(str(config), str(checkpoint), device="cpu")
    assert type(by_mmdet) is type(dense)
    found = found_in_noise(by_mmdet)
    ours, _ = load_detector(slim, slim.with_suffix(".py"))
    ours.cfg = by_mmdet.cfg
    assert_same(found_in_noise(ours), found)
    masked, slim = masked_model(dense, card.prune_spec).double(), by_mmdet.double()
    masked.roi_head.mask_head = slim.roi_head.mask_head = None  # mmdet pastes masks in float32 alone
    assert_same(found_in_noise(masked), found_in_noise(slim), 1e-4)


def test_a_head_that_needs_more_than_maps_keeps_what_it_reads(invoke, write, tmp_path):
    config, checkpoint = write("double")
    slim = tmp_path / "slim.safetensors"
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", ALL_PARTS)
    widths = read_card(slim).widths
    assert widths["neck.fpn_convs.0.conv"] == (16, 32)
    assert not [name for name in widths if name.startswith("roi_head")]
    assert widths["rpn_head.rpn_conv"] == (32, 16)
    assert widths["backbone.layer4.1.conv1"] == (32, 32)


def test_a_slim_detector_is_cut_again_from_its_own_config(invoke, write, tmp_path):
    config, checkpoint = write("cascade")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", first)
    shown = invoke("prune", "l1_half", first, "--mmdet", first.with_suffix(".py"), "--out", second, "--json").stdout
    card = read_card(second)
    assert card.widths["backbone.layer4.1.conv1"] == (16, 16)
    assert card.prune_spec.layers["backbone.layer4.1.conv1"].num_out == 64
    dense = sum(p.numel() for p in load_detector(checkpoint, config)[0].parameters())
    assert json.loads(shown)["dense_params"] == dense
    theirs = init_detector(str(second.with_suffix(".py")), str(second), device="cpu")
    assert theirs.backbone.layer4[1].conv1.weight.shape == (16, 16, 3, 3)
    # the config of the dense one will do as well: the file has the widths
    assert load_detector(second, config)[0].backbone.layer4[1].conv1.weight.shape == (16, 16, 3, 3)


def test_every_step_takes_a_detector_of_mmdets_parts(invoke, write, scenes, tmp_path):
    config, checkpoint = write("cascade")
    kept, slim, trained = (tmp_path / f"{name}.safetensors" for name in ("kept", "slim", "trained"))
    said = invoke("import", checkpoint, "--mmdet", config, "--out", kept).stderr
    assert f"next: espalier prune l1_half {kept} --mmdet {kept.with_suffix('.py')}" in said.replace("\n", " ")
    assert "note: kept as mmdet's own parts (" in said
    said = invoke("prune", "l1_half", kept, "--mmdet", kept.with_suffix(".py"), "--out", slim).stderr
    assert "start.mmdet" in said
    paths = {"annotations": scenes.annotations, "images": scenes.images}
    settings = [f"data.{part}_{key}={path}" for part in ("train", "val") for key, path in paths.items()]
    settings += ["data.root=.", f"start.file={slim}", f"start.mmdet={slim.with_suffix('.py')}"]
    settings += ["schedule.epochs=1", "schedule.batch_size=4", "schedule.milestones=[]"]
    options = [text for setting in settings for text in ("--set", setting)]
    invoke("detect", "train", "faster_rcnn_coco_finetune", *options, "--out", trained)
    mmdet = ("--mmdet", trained.with_suffix(".py"))
    scored = json.loads(invoke("detect", "eval", trained, scenes.annotations, scenes.images, *mmdet, "--json").stdout)
    assert scored["map"] == read_card(trained).provenance["metrics"]["map"]
    invoke("detect", "predict", trained, scenes.images, "--out", tmp_path / "drawn", *mmdet)
    assert len([*(tmp_path / "drawn").iterdir()]) == 8
    shown = json.loads(invoke("prune", "show", trained, *mmdet, "--json").stdout)
    assert {"backbone.layer1.0.conv1", "neck.lateral_convs.0.conv"} <= {row["name"] for row in shown["layers"]}


def test_what_mmdets_parts_need_is_said(invoke, write, model, tmp_path):
    config, checkpoint = write("cascade")
    kept = tmp_path / "kept.safetensors"
    invoke("import", checkpoint, "--mmdet", config, "--out", kept)
    with pytest.raises(
        RequestError, match=rf"made of mmdet's own parts, got no config; give .* --mmdet {tmp_path}/kept.py"
    ):
        invoke("prune", "l1_half", kept)
    with pytest.raises(RequestError, match="of Espalier's own parts, got a config of mmdet; leave --mmdet out"):
        invoke("prune", "l1_half", model, "--mmdet", config)
    with pytest.raises(RequestError, match="roi_head: this part is not supported, got CascadeRoIHead"):
        invoke("deploy", "export", kept, "--mmdet", kept.with_suffix(".py"))
    assert not (tmp_path / "kept.deploy").exists()


def test_a_slim_detector_on_another_backbone_is_exported(invoke, write, tmp_path):
    config, checkpoint = write("res2net")
    slim = tmp_path / "slim.safetensors"
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim)
    said = invoke("deploy", "export", slim, "--mmdet", slim.with_suffix(".py"), "--set", "size_hw=128,128").stderr
    assert "agree with PyTorch's" in said
    assert json.loads((tmp_path / "slim.deploy/deploy.json").read_text())["mmdet"] == "slim.py"


def test_groups_of_mmdets_parts_are_measured_alone(invoke, trained, scenes, tmp_path):
    # the small trained detector, as mmdet would have trained it
    config, checkpoint = tmp_path / "faster.py", tmp_path / "faster.pth"
    model = mmdet_config(trained[1]).model.to_dict()
    model["backbone"] = {"type": "ResNet", "depth": 18, "base_channels": 8}
    config.write_text(f"default_scope = 'mmdet'\nmodel = {model}\n{PIPELINE}")
    names = {name: name.replace("backbone.net.", "backbone.") for name in trained[0].state_dict()}
    weights = {names[name]: tensor for name, tensor in trained[0].state_dict().items()}
    torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": SHAPES}}}, checkpoint)
    settings = ["data.root=.", f"data.val_annotations={scenes.annotations}", f"data.val_images={scenes.images}"]
    settings += ["num_images=4", "prune_ratios=[0.5]", 'parts=["rpn_head"]', "round_to=1"]
    options = [text for setting in settings for text in ("--set", setting)]
    study = ("prune", "sensitivity", "sensitivity_coco", checkpoint, "--mmdet", config, *options)
    (curve,) = json.loads(invoke(*study, "--out", tmp_path / "study", "--json").stdout)["curves"]
    assert (curve["group"], curve["num_channels"]) == ("rpn_head.rpn_conv", 16)
    assert curve["points"][0]["num_kept"] == 8


def test_a_one_stage_detector_is_pruned_too_but_not_exported(invoke, tmp_path):
    config, checkpoint, slim = (tmp_path / name for name in ("retina.py", "retina.pth", "slim.safetensors"))
    config.write_text(f'_base_ = "{STOCK}/retinanet/retinanet_r18_fpn_1x_coco.py"\n{RETINA}{PIPELINE}')
    torch.manual_seed(0)
    dense = init_detector(str(config), None, device="cpu")
    torch.nn.init.normal_(dense.bbox_head.retina_cls.weight, std=0.5)
    torch.save(dense.state_dict(), checkpoint)
    parts = 'parts=["backbone","neck","bbox_head"]'
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", parts)
    card = read_card(slim)
    assert card.widths["bbox_head.cls_convs.1.conv"] == (16, 16)
    by_mmdet = init_detector(str(slim.with_suffix(".py")), str(slim), device="cpu")
    masked = masked_model(dense, card.prune_spec).double()
    assert_same(found_in_noise(masked), found_in_noise(by_mmdet.double()), 1e-4)
    with pytest.raises(RequestError, match="rpn_head: this part is not supported, got none"):
        invoke("deploy", "export", slim, "--mmdet", slim.with_suffix(".py"))


@pytest.mark.parametrize("classes", [["a"] * 6, "abcdef", {"a": 1}, [1, 2, 3, 4, 5, 6], None])
def test_class_names_of_a_checkpoint_are_names_or_numbered(invoke, write, tmp_path, classes):
    config, checkpoint = write("cascade")
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "meta": {"dataset_meta": {"CLASSES": classes}, 3: 4}}, checkpoint)
    found = load_detector(checkpoint, config)[1].classes
    assert found == (("a",) * 6 if classes == ["a"] * 6 else tuple(f"class {label}" for label in range(6)))


def test_the_given_config_is_never_replaced(invoke, write, tmp_path):
    config, checkpoint = write("cascade")
    before = config.read_text()
    for command in (("import", checkpoint), ("prune", "l1_half", checkpoint)):
        with pytest.raises(RequestError, match=r"its config would replace the given one, .*cascade\.py"):
            invoke(*command, "--mmdet", config, "--out", config.with_suffix(".safetensors"), "--force")
    assert config.read_text() == before


MODULE = """
from mmdet.models import FasterRCNN
from mmdet.registry import MODELS


@MODELS.register_module(force=True)
class RollRCNN(FasterRCNN):
    def extract_feat(self, batch_inputs):
        return tuple(m.roll(7, 1) for m in super().extract_feat(batch_inputs))


@MODELS.register_module(force=True)
class SecondRCNN(FasterRCNN):
    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        bias = self.neck.fpn_convs[0].conv.out_channels / 32
        found = super().predict(batch_inputs, batch_data_samples, rescale)
        for sample in found:
            sample.pred_instances.scores = sample.pred_instances.scores * bias
        return found
"""


@pytest.fixture
def own_class(write, tmp_path, monkeypatch):
    """Write a config with a class of the user's own, and its checkpoint."""

    def both(name):
        config, checkpoint = write("res2net")
        (tmp_path / "mine_rcnn.py").write_text(MODULE)
        monkeypatch.syspath_prepend(tmp_path)
        more = f"\ncustom_imports = dict(imports='mine_rcnn')\nmodel['type'] = '{name}'\n"
        config.write_text(config.read_text() + more)
        return config, checkpoint

    return both


def test_maps_that_a_class_of_the_users_own_changes_stay_whole(invoke, own_class, tmp_path):
    config, checkpoint = own_class("RollRCNN")
    slim = tmp_path / "slim.safetensors"
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", ALL_PARTS)
    card = read_card(slim)
    assert card.widths["neck.fpn_convs.0.conv"] == (16, 32)
    by_mmdet = init_detector(str(slim.with_suffix(".py")), str(slim), device="cpu")
    masked = masked_model(init_detector(str(config), str(checkpoint), device="cpu"), card.prune_spec)
    assert_same(found_in_noise(masked.double()), found_in_noise(by_mmdet.double()), 1e-4)


def test_a_detector_that_reads_its_widths_while_it_predicts_is_refused(invoke, own_class, tmp_path):
    (config, checkpoint), slim = own_class("SecondRCNN"), tmp_path / "slim.safetensors"
    with pytest.raises(RequestError, match=r"SecondRCNN: cannot be pruned so, .* got other scores; expected the same"):
        invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", ALL_PARTS)
    assert not slim.exists()


def test_what_a_further_head_reads_stays_whole(invoke, tmp_path):
    config, checkpoint, slim = (tmp_path / name for name in ("panoptic.py", "panoptic.pth", "slim.safetensors"))
    config.write_text(
        f'_base_ = "{STOCK}/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"\n'
        f"model = dict(backbone={RESNET}, neck=dict(in_channels={CHANNELS[RESNET]}, out_channels=32), {RPN}, {FEW},"
        f" {SEGMENTS}, roi_head=dict(bbox_roi_extractor=dict({ALIGN}), {MASK}bbox_head=dict({TWO_LAYERS})))\n{PIPELINE}"
    )
    torch.manual_seed(0)
    dense = init_detector(str(config), None, device="cpu")
    torch.save(dense.state_dict(), checkpoint)
    invoke("prune", "l1_half", checkpoint, "--mmdet", config, "--out", slim, "--set", ALL_PARTS)
    widths = read_card(slim).widths
    assert widths["neck.fpn_convs.0.conv"][1] == 32
    by_mmdet = init_detector(str(slim.with_suffix(".py")), str(slim), device="cpu")
    maps = by_mmdet.extract_feat(torch.rand(1, 3, 64, 64))
    assert by_mmdet.semantic_head(maps)["seg_preds"].isfinite().all()


def test_configs_with_classes_in_them_and_lists_of_rules_are_written(write, tmp_path):
    config, checkpoint = write("res2net")
    model = Config.fromfile(config).model.to_dict()
    model["backbone"]["init_cfg"] = [{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Pretrained", "checkpoint": "x"}]
    new = "from mmdet.models.detectors import FasterRCNN\n" + f"model = {model!r}\nmodel.update(type=FasterRCNN)\n"
    (tmp_path / "new.py").write_text(f"{new}resume = True\n")
    written = slim_config(tmp_path / "new.py", load_detector(checkpoint, config)[1], "slim.safetensors")
    (tmp_path / "slim.py").write_text(written.pretty_text)
    read = Config.fromfile(tmp_path / "slim.py")
    assert read.model.type.endswith("FasterRCNN")
    assert "init_cfg" not in read.model.backbone
    assert (read.resume, read.load_from) == (False, f"{tmp_path}/slim.safetensors")
    assert type(build_detector(read.model, is_loaded_next=True)).__name__ == "FasterRCNN"
