import os
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from classify.checkpoint import Preprocessing
from detect import save_detector
from detect.fixed_shape import FixedShapeDetector
from detect.foreign import load_foreign

STOCK = Path(mmdet.__file__).parent / ".mim/configs"
SMALL = """
model = dict(
    backbone=dict(
        depth=18, base_channels=8, init_cfg=dict(_delete_=True, type="Pretrained", checkpoint="not_there.pth")
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=3),
    ),
)
"""
SIZE_HW = (128, 160)
ROI_ALIGN = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2, "use_torchvision": True}
NAMES = ("cat", "dog", "cow")

pytestmark = pytest.mark.filterwarnings("ignore:checkpoint is None")


def reference(config, checkpoint=None):
    """The detector built by mmdet, but with a fixed number of samples."""
    options = {"model.roi_head.bbox_roi_extractor.roi_layer": ROI_ALIGN, "model.backbone.init_cfg": None}
    return init_detector(str(config), checkpoint and str(checkpoint), device="cpu", cfg_options=options)


@pytest.fixture
def write(tmp_path):
    """Write a small config after a stock one, and its checkpoint: what torch.save is given, from the weights."""

    def both(stock="faster-rcnn_r50_fpn_1x_coco", content=lambda weights: weights, scale=1.0, more=""):
        config, checkpoint = tmp_path / "config.py", tmp_path / "net.pth"
        config.write_text(f'_base_ = "{STOCK}/faster_rcnn/{stock}.py"\n{SMALL}')
        torch.manual_seed(0)
        detector = reference(config)
        for name, std in {"rpn_cls": 0.5, "rpn_reg": 0.1, "fc_cls": 0.5, "fc_reg": 0.2}.items():
            for path, parameter in detector.named_parameters():
                if path.endswith(f"{name}.weight"):
                    torch.nn.init.normal_(parameter, std=scale * std)
        torch.save(content(detector.state_dict()), checkpoint)
        config.write_text(config.read_text() + more)
        return config, checkpoint

    return both


def with_meta(**meta):
    return lambda weights: {"state_dict": weights, "meta": meta}


# the second feeds its network BGR, with another mean and not divided, so its features are 57 times as large
@pytest.mark.parametrize(
    ("name", "scale"), [("faster-rcnn_r50_fpn_1x_coco", 1), ("faster-rcnn_r50-caffe_fpn_1x_coco", 1 / 57)]
)
def test_a_stock_detector_at_fixed_shape_finds_what_mmdet_finds(write, name, scale):
    config, checkpoint = write(name, with_meta(dataset_meta={"classes": NAMES}), scale)
    detector, card = load_foreign(config, checkpoint)
    assert (card.kind, card.classes) == ("detector", NAMES)
    assert card.preprocessing == Preprocessing((800, 1344))
    image = torch.rand(1, 3, *SIZE_HW, generator=torch.Generator().manual_seed(1)) * 255
    graph = FixedShapeDetector(detector, SIZE_HW, nms_iterations=60)
    boxes, scores, labels = graph(image, torch.tensor([SIZE_HW]).float())
    net = reference(config, checkpoint)
    data = {"inputs": [image[0].flip(0)], "data_samples": [DetDataSample(metainfo={"img_shape": SIZE_HW})]}
    with torch.no_grad():
        data = net.data_preprocessor(data)
        expected = net.predict(data["inputs"], data["data_samples"], rescale=False)[0].pred_instances
    assert len(expected) == 100
    assert labels[0].tolist() == expected.labels.tolist()
    torch.testing.assert_close(boxes[0], expected.bboxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(scores[0], expected.scores, atol=1e-4, rtol=0)


def pipeline(*steps):
    """Replace the stock config's by these steps."""
    return f"test_dataloader = dict(dataset=dict(_delete_=True, pipeline={list(steps)}))\n"


def resize(**settings):
    return {"type": "Resize", **settings}


PADS_TO_64 = "model.update(data_preprocessor=dict(pad_size_divisor=64))\n"
NONE = "test_dataloader = dict(_delete_=True)\ntest_pipeline = []\n"
WRAPPED = f"test_dataloader = dict(dataset=dict(_delete_=True, dataset=dict(pipeline={[resize(scale=(640, 480))]})))"
OLD = {"type": "MultiScaleFlipAug", "img_scale": (1000, 600), "transforms": [resize(), {"type": "RandomFlip"}]}
OLD_SCALES = {**OLD, "img_scale": [(1333, 800), (666, 400)]}
CLASSES = "from mmdet.datasets.transforms import FixScaleResize\ntest_pipeline = [dict(type=FixScaleResize, scale=96)]"


@pytest.mark.parametrize(
    ("more", "size_hw", "keep_ratio"),
    [
        (pipeline(resize(scale=(800, 1333), keep_ratio=True)), (800, 1344), True),
        (pipeline(resize(scale=(640, 640), keep_ratio=True)), (640, 640), True),
        (pipeline(resize(scale=(1000, 600), keep_ratio=True)), (608, 1024), True),
        (PADS_TO_64 + pipeline(resize(scale=(1333, 800), keep_ratio=True)), (832, 1344), True),
        (pipeline({"type": "mmdet.Resize", "scale": 300}), (320, 320), False),
        (pipeline(resize(scale_factor=2.0)), (800, 1344), True),
        (WRAPPED, (480, 640), False),
        (f"{NONE}data = dict(test=dict(pipeline={[OLD]}))", (608, 1024), True),
        (f"{NONE}data = dict(test=dict(pipeline={[OLD_SCALES]}))", (800, 1344), True),
        (f"{NONE}{CLASSES}", (96, 96), False),
        (NONE, (800, 1344), True),
    ],
)
def test_the_size_is_that_of_the_test_pipeline(write, more, size_hw, keep_ratio):
    assert load_foreign(*write(more=more))[1].preprocessing == Preprocessing(size_hw, keep_ratio=keep_ratio)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (with_meta(CLASSES=NAMES, epoch=12), NAMES),  # mmdet 2
        (with_meta(epoch=12), ("class 0", "class 1", "class 2")),
        (lambda weights: weights, ("class 0", "class 1", "class 2")),
        (lambda weights: {f"module.{name}": weight for name, weight in weights.items()}, ("class 0",)),
    ],
)
def test_classes_are_the_checkpoints_or_numbered(write, content, names):
    assert load_foreign(*write(content=content))[1].classes[: len(names)] == names


def test_a_training_checkpoint_is_read_with_its_log(tiny, classes, tmp_path):
    detector, card = tiny()
    save_detector(tmp_path / "det.safetensors", detector, card)
    checkpoint, log = tmp_path / "epoch_1.pth", HistoryBuffer(np.array([0.5]), np.array([1]))
    content = {"state_dict": detector.state_dict(), "meta": {"dataset_meta": {"classes": classes}}}
    torch.save({**content, "message_hub": {"log_scalars": {"train/loss": log}}}, checkpoint)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)  # the log, for one
    methods = dict(HistoryBuffer._statistics_methods)
    found, found_card = load_foreign(tmp_path / "det.py", checkpoint)
    assert HistoryBuffer._statistics_methods == methods  # reading such a log would change those of every other
    assert (found_card.classes, found_card.preprocessing.image_hw) == (classes, (128, 128))
    torch.testing.assert_close(found.state_dict(), detector.state_dict())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_would_run_code_is_refused_without_running(write, tmp_path):
    config, checkpoint = write(content=lambda weights: {"state_dict": weights, "meta": Evil(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"net\.pth: no plain weights inside; expected"):
        load_foreign(config, checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            with_meta(dataset_meta={"classes": NAMES[:2]}),
            r"net\.pth: class names do not match its weights, got 2 names",
        ),
        (lambda weights: {"backbone.conv1.weight": torch.zeros(1)}, r"net\.pth: of another architecture, .* got "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        load_foreign(*write(content=content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", r"config\.py: cannot build a detector, got .*; expected a config of mmdet"),
        ("lr = 1", r"config\.py: cannot build a detector, got .*model.*; expected a config of mmdet"),
        ('model = dict(type="NoSuchNet")', r"config\.py: cannot build a detector, got .*NoSuchNet.*; expected"),
        (
            f'_base_ = "{STOCK}/_base_/models/faster-rcnn_r50_fpn.py"\nmodel = dict(data_preprocessor=None)',
            r"config\.py: model does not normalise images, got BaseDataPreprocessor; expected data_preprocessor=dict\(",
        ),
    ],
)
def test_a_config_without_a_supported_detector_is_refused(tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_foreign(tmp_path / "config.py", tmp_path / "net.pth")
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.py: no such file; expected a config of mmdet"):
        load_foreign(tmp_path / "none.py", tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        load_foreign(write()[0], tmp_path / "none.pth")


def test_a_stock_config_loads_no_pretrained_weights(write):
    config, checkpoint = write()
    assert Config.fromfile(config).model.backbone.init_cfg.checkpoint == "not_there.pth"
    load_foreign(config, checkpoint)


@pytest.mark.parametrize(
    "init_cfg",
    [
        'dict(type="Pretrained", checkpoint="http://127.0.0.1:9/x.pth")',
        '[dict(type="mmengine.Pretrained", checkpoint="evil.pth")]',
        'dict(type="PretrainedInit", checkpoint="torchvision://resnet50")',
    ],
)
def test_weights_that_a_config_names_are_not_fetched(write, tmp_path, init_cfg, monkeypatch):
    config, checkpoint = write(more=f"\nmodel['init_cfg'] = {init_cfg}\nmodel['backbone']['init_cfg'] = {init_cfg}\n")
    monkeypatch.setattr("mmengine.runner.checkpoint._load_checkpoint", lambda *args, **more: pytest.fail("read"))
    detector, _ = load_foreign(config, checkpoint)
    assert detector.is_init


def test_a_config_in_yaml_is_refused_and_runs_nothing(write, tmp_path):
    _, checkpoint = write()
    text = f"model: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"not a config, got the ending '\.yaml'; expected a Python file"):
        load_foreign(tmp_path / "config.yaml", checkpoint)
    (tmp_path / "based.py").write_text(f'_base_ = "{tmp_path / "config.yaml"}"\n')
    with pytest.raises(ValueError, match=r"based\.py: cannot build a detector"):
        load_foreign(tmp_path / "based.py", checkpoint)
    assert not (tmp_path / "ran").exists()
