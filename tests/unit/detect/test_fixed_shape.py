import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import onnx
import onnxruntime
import pytest
import torch

from detect.fixed_shape import FixedShapeDetector, GraphRuntime
from detect.ops import install_ops

SIZE_HW = (128, 160)
NOT_IN_TENSORRT = {"NonMaxSuppression", "RoiAlign", "NonZero", "Loop", "If", "Scan"}


def tiny_detector(**bbox_head: Any) -> Any:
    """A narrow Faster R-CNN whose random heads are strong enough to spread scores and move boxes."""
    install_ops()
    import mmdet
    import mmdet.models  # fills the registry
    from mmdet.registry import MODELS
    from mmengine.config import Config

    base = Path(mmdet.__file__).parent / ".mim/configs/_base_/models/faster-rcnn_r50_fpn.py"
    config = Config.fromfile(base).model
    config.backbone.update(depth=18, base_channels=8, init_cfg=None)
    config.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    config.rpn_head.update(in_channels=32, feat_channels=32)
    config.roi_head.bbox_roi_extractor.update(
        out_channels=32, roi_layer={"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2, "use_torchvision": True}
    )
    config.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=3, **bbox_head)
    torch.manual_seed(0)
    detector = MODELS.build({**config, "_scope_": "mmdet"})
    detector.eval()
    heads = {"rpn_cls": 0.5, "rpn_reg": 0.1, "fc_cls": 0.5, "fc_reg": 0.2}
    for name, parameter in detector.named_parameters():
        if name.endswith("weight") and (part := name.split(".")[-2]) in heads:
            torch.nn.init.normal_(parameter, std=heads[part])
    return detector


@pytest.fixture(scope="module")
def shared_detector() -> Any:
    return tiny_detector()


@pytest.fixture
def detector(shared_detector: Any) -> Any:
    return copy.deepcopy(shared_detector)


def pictures(*sizes_hw: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size_hw, generator=generator) * 255 for size_hw in sizes_hw]


def padded(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's inputs; the padding is filled with noise."""
    image = torch.full((len(images), 3, *SIZE_HW), 77.0)
    for place, picture in enumerate(images):
        image[place, :, : picture.shape[1], : picture.shape[2]] = picture
    return image, torch.tensor([picture.shape[1:] for picture in images], dtype=torch.float32)


def mmdet_predict(detector: Any, images: list[torch.Tensor]) -> list[Any]:
    """What mmdet's own `predict` finds in RGB pictures; it is given BGR, and the first fills the input."""
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo={"img_shape": picture.shape[1:]}) for picture in images]
    data = {"inputs": [picture.flip(0) for picture in images], "data_samples": samples}
    with torch.no_grad():
        data = detector.data_preprocessor(data)
        results = detector.predict(data["inputs"], data["data_samples"], rescale=False)
    return [result.pred_instances for result in results]


def assert_finds_the_same(detector: Any, sizes_hw: list[tuple[int, int]], **options: Any) -> list[int]:
    """Compare with mmdet; return how many detections each picture has."""
    images = pictures(*sizes_hw)
    module = FixedShapeDetector(detector, SIZE_HW, debug=True, **options)
    boxes, scores, labels, converged = module(*padded(images))
    assert converged.all()
    counts = (scores > 0).sum(1).tolist()
    for place, expected in enumerate(mmdet_predict(detector, images)):
        count = counts[place]
        assert count == len(expected)
        assert labels[place, :count].tolist() == expected.labels.tolist()
        torch.testing.assert_close(boxes[place, :count], expected.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[place, :count], expected.scores, atol=1e-4, rtol=0)
        assert not boxes[place, count:].any()
        assert (labels[place, count:] == -1).all()
    return counts


@pytest.mark.parametrize("runtime", get_args(GraphRuntime))
@pytest.mark.parametrize("sizes_hw", [[(128, 160)], [(128, 160), (128, 97), (33, 160)]])
def test_finds_what_mmdet_finds(detector: Any, sizes_hw: list[tuple[int, int]], runtime: str) -> None:
    assert set(assert_finds_the_same(detector, sizes_hw, runtime=runtime)) == {100}


def test_finds_what_mmdet_finds_where_few_are_above_the_threshold(detector: Any) -> None:
    detector.roi_head.test_cfg.score_thr = 0.65
    counts = assert_finds_the_same(detector, [(128, 160), (90, 131)])
    assert all(0 < count < 100 for count in counts)


def test_finds_nothing_where_mmdet_finds_nothing(detector: Any) -> None:
    detector.roi_head.test_cfg.score_thr = 0.999
    assert assert_finds_the_same(detector, [(128, 160), (90, 131)]) == [0, 0]


def test_finds_nothing_where_every_proposal_is_too_small(detector: Any) -> None:
    detector.rpn_head.test_cfg.min_bbox_size = 500
    assert assert_finds_the_same(detector, [(128, 160)]) == [0]


def test_finds_what_mmdet_finds_among_many_overlapping_boxes(detector: Any) -> None:
    torch.nn.init.constant_(detector.rpn_head.rpn_reg.bias, 0.8)  # every proposal about twice its anchor's sides
    detector.rpn_head.test_cfg.nms.iou_threshold = 0.95
    counts = assert_finds_the_same(detector, [(128, 160), (90, 131)], max_candidates=3000)
    assert all(count > 10 for count in counts)


def test_finds_what_mmdet_finds_with_other_settings(detector: Any) -> None:
    detector.rpn_head.test_cfg.update(nms_pre=300, max_per_img=40)
    detector.roi_head.test_cfg.update(max_per_img=200)
    assert_finds_the_same(detector, [(128, 160), (90, 131)])


def test_finds_what_mmdet_finds_with_class_agnostic_boxes() -> None:
    assert_finds_the_same(tiny_detector(reg_class_agnostic=True), [(128, 160)])


def test_a_preprocessor_that_keeps_bgr_is_followed(detector: Any) -> None:
    detector.data_preprocessor._channel_conversion = False
    assert_finds_the_same(detector, [(128, 160)])


def test_candidates_left_out_are_the_worst(detector: Any) -> None:
    image = padded(pictures((128, 160)))
    boxes, scores, _ = FixedShapeDetector(detector, SIZE_HW)(*image)
    few_boxes, few_scores, _ = FixedShapeDetector(detector, SIZE_HW, max_candidates=20)(*image)
    count = int((few_scores > 0).sum())
    assert few_boxes.shape == (1, 20, 4)
    assert 0 < count <= 20
    torch.testing.assert_close(few_boxes[:, :count], boxes[:, :count])
    torch.testing.assert_close(few_scores[:, :count], scores[:, :count])


def test_too_few_rounds_are_reported(detector: Any) -> None:
    *_, converged = FixedShapeDetector(detector, SIZE_HW, debug=True, nms_iterations=1)(*padded(pictures((128, 160))))
    assert converged.tolist() == [False]


def test_detector_is_left_as_it_was(detector: Any) -> None:
    detector.train()
    before = copy.deepcopy(detector.state_dict())
    module = FixedShapeDetector(detector, SIZE_HW, dtype=torch.float16)
    assert detector.training
    assert not module.backbone.training
    assert all(parameter.requires_grad for parameter in detector.rpn_head.parameters())
    torch.testing.assert_close(detector.state_dict(), before)


def test_half_precision_is_only_for_the_networks(detector: Any) -> None:
    image = padded(pictures((128, 160)))
    module = FixedShapeDetector(detector, SIZE_HW, dtype=torch.bfloat16)
    boxes, scores, _ = module(*image)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, FixedShapeDetector(detector, SIZE_HW)(*image)[1], atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d.roi_head.test_cfg.nms.update(type="soft_nms"), {}, r"test_cfg\.rcnn\.nms: .* got .*soft_nms"),
        (lambda d: d.rpn_head.test_cfg.update(nms_pre=4000), {"size_hw": (256, 160)}, r"rpn\.nms_pre: .* got 4000"),
        (lambda d: setattr(d, "rpn_head", torch.nn.Identity()), {}, "rpn_head: .* got Identity; expected RPNHead"),
        (lambda d: delattr(d, "roi_head"), {}, "roi_head: .* got none; expected StandardRoIHead"),
        (
            lambda d: setattr(d.rpn_head, "use_sigmoid_cls", False),
            {},
            "rpn_head.loss_cls: .*; expected use_sigmoid=True",
        ),
        (lambda d: None, {"size_hw": (128, 150)}, r"size_hw: .* got \(128, 150\); expected multiples of 32"),
        (lambda d: None, {"max_candidates": 4000}, "max_candidates: .* got 4000; expected 1 to 3840"),
        (lambda d: None, {"nms_iterations": 0}, "nms_iterations: .* got 0; expected at least 1"),
    ],
)
def test_unsupported_detectors_and_settings_are_refused(
    detector: Any, change: Callable[[Any], object], options: dict[str, Any], message: str
) -> None:
    change(detector)
    with pytest.raises(ValueError, match=message):
        FixedShapeDetector(detector, **{"size_hw": SIZE_HW, **options})


@pytest.fixture(scope="module")
def exported(shared_detector: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[FixedShapeDetector, Path]:
    module, path = (
        FixedShapeDetector(shared_detector, SIZE_HW, debug=True),
        tmp_path_factory.mktemp("onnx") / "tiny.onnx",
    )
    names = {"input_names": module.input_names, "output_names": module.output_names}
    torch.onnx.export(module, module.example_inputs(2), path, dynamo=True, opset_version=18, verbose=False, **names)
    return module, path


def test_onnx_runtime_equals_the_module(exported: tuple[FixedShapeDetector, Path]) -> None:
    module, path = exported
    image, image_hw = padded(pictures((128, 160), (90, 131)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(module.output_names), {"image": image.numpy(), "image_hw": image_hw.numpy()})
    for name, value, expected in zip(module.output_names, found, module(image, image_hw), strict=True):
        torch.testing.assert_close(
            torch.from_numpy(value), expected, atol=1e-3 if name == "boxes_xyxy" else 1e-4, rtol=0
        )


def test_onnx_file_holds_only_standard_operators_of_fixed_shape(exported: tuple[FixedShapeDetector, Path]) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported[1])).graph
    operators = Counter(node.op_type for node in graph.node)
    assert not operators.keys() & NOT_IN_TENSORRT
    assert {node.domain for node in graph.node} == {""}
    assert operators["GridSample"] == 1
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)]
    assert all(dim.HasField("dim_value") for dims in shapes for dim in dims)


def test_tensorrt_builds_the_onnx_file(exported: tuple[FixedShapeDetector, Path]) -> None:
    tensorrt = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(exported[1])), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None
