"""A user's own config of mmdet, small: scales, sets in sets, an average, rates by layer, code of their own."""

_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
custom_imports = dict(imports=["own_parts"], allow_failed_imports=False)
model = dict(
    neck=dict(out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=6),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=50), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=50)),
)
pack = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomChoiceResize", scales=[(128, 96), (96, 96)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Dimmed", most=0.3),
    pack,
]
val_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    pack,
]
one = dict(
    type="Scenes",
    data_root="train/",
    ann_file="instances.json",
    data_prefix=dict(img="images/"),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=train_pipeline,
)
more = {**one, "data_root": "more/"}
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(type="ConcatDataset", datasets=[dict(type="RepeatDataset", times=2, dataset=one), more]),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="Scenes",
        data_root="val/",
        ann_file="instances.json",
        data_prefix=dict(img="images/"),
        test_mode=True,
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="val/instances.json", metric="bbox")
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3),
    dict(type="MultiStepLR", milestones=[1]),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.002, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=10),
)
custom_hooks = [dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.01)]
