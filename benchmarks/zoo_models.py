"""The networks of the zoo, with random weights: all of torchvision's, some of each of timm's kinds, and mmdet's."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from masked_twin import FOREIGN_ERRORS
from torch import Tensor, nn
from torchvision import models

__all__ = ["ZooModel", "zoo_model", "zoo_names"]

TIMM = """
    beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coat_tiny
    coatnet_0_rw_224 coatnext_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto
    cpubone_b0_bfrobust crossvit_9_240 cs3darknet_s cs3sedarknet_l csatv2 cspdarknet53 cspnext_tiny cspresnet50
    darknet53 davit_tiny deepseek_vit_412m deit_tiny_distilled_patch16_224 densenet121 dla34 dla60_res2net dm_nfnet_f0
    dpn68 eca_halonext26ts ecaresnet26t edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
    efficientvim_m1 efficientvit_b0 efficientvit_l1 efficientvit_m0 ese_vovnet19b_dw eva02_tiny_patch14_224
    fasternet_t0 fastvit_t8 fbnetc_100 focalnet_tiny_srf gcvit_xxtiny gemma4_vit_167m gernet_s ghostnet_100
    ghostnetv2_100 gmlp_s16_224 hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small
    iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_050
    lcnetv2_small legacy_senet154 legacy_seresnet18 legacy_xception levit_128s levit_conv_128s lowformer_b0
    mambaout_femto maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256 mixer_s16_224 mixnet_s mnasnet_small mobilenetv2_050
    mobilenetv3_small_100 mobilenetv4_conv_small mobilenetv5_300m mobileone_s0 mobilevit_xxs mobilevitv2_050
    mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small nf_regnet_b0 nf_resnet50 nfnet_f0
    pit_s_distilled_224 pit_ti_224 pnasnet5large poolformer_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetv_040
    regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s res2next50 resmlp_12_224
    resnest14d resnet18 resnet26t resnet50 resnet50_gn resnet50d resnetblur50 resnetv2_50 resnetv2_50x1_bit
    rexnet_100 samvit_base_patch16 selecsls42b semnasnet_050 sequencer2d_s seresnet50 shvit_s1 skresnet18
    skresnext50_32x4d spnasnet_100 starnet_s1 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224
    swinv2_cr_tiny_ns_224 swinv2_tiny_window8_256 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e tnt_s_patch16_224
    tresnet_m twins_pcpvt_small twins_svt_small vgg11 visformer_tiny vit_base_patch16_gap_224
    vit_relpos_small_patch16_224
    vit_small_patch32_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 xception41 xception71
    xcit_nano_12_p16_224
""".split()  # noqa: SIM905  # a list literal has a line for each
OWN_SIDE = {"inception_v3": 299, "samvit_base_patch16": 224, "raft_large": 128, "raft_small": 128}
"""Image sides of models that do not train with smaller images, or need not have as large ones as by default."""
DETECTOR_HEADS = ("head", "rpn.head", "roi_heads")


@dataclass(frozen=True)
class ZooModel:
    """A dense network, in eval mode, and what it is called with."""

    model: nn.Module
    inputs: tuple[Any, ...]
    training: tuple[Any, ...]
    """Arguments in train mode, where it takes others."""
    outputs: list[nn.Module]
    """The modules that compute its outputs: torch-pruning has to be told not to cut them."""


def zoo_names() -> dict[str, str]:
    """Return the kind of every network that can be made here, by its name: "torchvision/resnet50", for example."""
    parts = {
        "classification": models,
        "segmentation": models.segmentation,
        "detection": models.detection,
        "video": models.video,
        "optical flow": models.optical_flow,
    }
    names = {f"torchvision/{name}": kind for kind, part in parts.items() for name in models.list_models(module=part)}
    return {name: f"torchvision, {kind}" for name, kind in names.items()} | _timm_names() | {"mmdet/resnet50": "mmdet"}


def zoo_model(name: str, side: int) -> ZooModel:
    """Return the network of that name for square images of that side, or of its own side where it must have that."""
    source, _, own = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"torchvision": _torchvision, "timm": _timm, "mmdet": _mmdet}[source](own, side)


def _timm_names() -> dict[str, str]:
    try:
        import timm
    except ImportError:
        return {}
    return {f"timm/{name}": "timm" for name in TIMM if timm.is_model(name)}


def _timm(name: str, side: int) -> ZooModel:
    import timm

    config = timm.get_pretrained_cfg(name)
    own = OWN_SIDE.get(name, config.input_size[-1])
    side = own if name in OWN_SIDE else side
    model = (_resized(name, side) if config.fixed_input_size else None) or timm.create_model(name)
    return _dense(model, [side, own], _images, model.num_classes)


def _resized(name: str, side: int) -> nn.Module | None:
    """Return timm's model made for images of that side, or None where it cannot be."""
    import timm

    try:
        model = timm.create_model(name, img_size=side)
    except FOREIGN_ERRORS:
        return None
    return model if _runs(model, _images(1, side)) else None


def _torchvision(name: str, side: int) -> ZooModel:
    if name in models.list_models(module=models.detection):
        return _detector(name, side)
    if name in models.list_models(module=models.segmentation):
        model = models.get_model(name, weights=None, weights_backbone=None)
        return _dense(model, [side, 224], _images, 21)
    faster = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = models.get_model(name, weights=None, **faster)
    if name in models.list_models(module=models.optical_flow):
        pair = tuple(torch.rand(2, 1, 3, OWN_SIDE[name], OWN_SIDE[name]))
        return ZooModel(model.eval(), pair, pair, [])
    sides = [OWN_SIDE[name]] if name in OWN_SIDE else [side, 224]
    if name in models.list_models(module=models.video):
        return _dense(model, sides, _clips, 400)
    return _dense(model, sides, _images, 1000)


def _dense(model: nn.Module, sides: list[int], images: Callable[[int, int], Tensor], num_classes: int) -> ZooModel:
    """Return the model with images of the first side that it runs with."""
    side = next((side for side in sides[:-1] if _runs(model, images(1, side))), sides[-1])
    widths = {m: getattr(m, "out_features", getattr(m, "out_channels", None)) for m in model.modules()}
    outputs = [module for module, width in widths.items() if width == num_classes]
    return ZooModel(model.eval(), (images(1, side),), (images(2, side),), outputs)


def _detector(name: str, side: int) -> ZooModel:
    """Return a detector that gives as many boxes whatever their scores, so that outputs and costs can be compared."""
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if "rcnn" in name:
        options |= {"box_score_thresh": -1.0, "box_nms_thresh": 1.0, "box_detections_per_img": 20}
        options |= {"rpn_nms_thresh": 1.0, "rpn_post_nms_top_n_test": 50}
    else:
        options |= {"score_thresh": -1.0, "nms_thresh": 1.0, "detections_per_img": 20}
    if not name.startswith("ssd"):  # these resize images themselves
        options |= {"min_size": side, "max_size": 2 * side}
    model = models.get_model(name, **options).eval()
    for key, layer in model.named_modules():
        if key.endswith("bbox_pred"):
            layer.weight.data *= 1e-3  # boxes near their anchors: empty ones would be dropped, and costs would vary
    images = [torch.rand(3, side, side) for _ in range(2)]
    heads = [m for key, m in model.named_modules() if key in DETECTOR_HEADS]
    return ZooModel(model, (images[:1],), (images, [_target(side) for _ in images]), heads)


def _target(side: int) -> dict[str, Tensor]:
    box = torch.tensor([[0.1, 0.1, 0.6, 0.8]]) * side
    masks = torch.ones(1, side, side, dtype=torch.uint8)
    corners = torch.tensor([[0.2, 0.2]]) * side
    keypoints = torch.cat([corners, torch.ones(1, 1)], 1).expand(1, 17, 3)
    return {"boxes": box, "labels": torch.ones(1, dtype=torch.long), "masks": masks, "keypoints": keypoints}


def _mmdet(name: str, side: int) -> ZooModel:
    from classify.backbones import Architecture
    from detect import DetectorSettings, new_detector
    from detect.traced import TracedDetector

    classes = tuple(f"class {i}" for i in range(80))
    detector, _ = new_detector(Architecture(name, 1), classes, DetectorSettings(), 0)
    traced = TracedDetector(detector.eval())
    heads = [m for key, m in traced.named_modules() if key.endswith(("_cls", "_reg"))]
    return ZooModel(traced, (_images(1, side),), (_images(2, side),), heads)


def _images(num: int, side: int) -> Tensor:
    return torch.rand(num, 3, side, side)


def _clips(num: int, side: int) -> Tensor:
    return torch.rand(num, 3, 16, side, side)


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model.eval()(images)
    except FOREIGN_ERRORS:  # the images are too small
        return False
    return True
