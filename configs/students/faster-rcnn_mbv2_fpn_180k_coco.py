_base_ = [
    "../_base_/models/faster-rcnn_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_180k.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="HeadlessMobileNetV2",
        out_indices=(1, 2, 4, 6),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://mmdet/mobilenet_v2"),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
