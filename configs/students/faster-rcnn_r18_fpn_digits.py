# A quarter of ResNet18's width, from random weights.
_base_ = [
    "../_base_/models/faster-rcnn_fpn_mini.py",
    "../_base_/datasets/digits_detection.py",
    "../_base_/schedules/schedule_mini.py",
    "../_base_/mini_runtime.py",
]

model = dict(
    backbone=dict(
        type="ResNet",
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(bbox_head=dict(num_classes=10)),
)
