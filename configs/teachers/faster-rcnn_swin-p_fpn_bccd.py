# Embedding 48, 2-2-2-2 blocks, windows of 4 for images of 256×192 pixels; from random weights.
_base_ = [
    "../_base_/models/faster-rcnn_fpn_mini.py",
    "../_base_/datasets/bccd_detection.py",
    "../_base_/schedules/schedule_mini.py",
    "../_base_/mini_runtime.py",
]

model = dict(
    backbone=dict(
        type="SwinTransformer",
        embed_dims=48,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 8, 16],
        window_size=4,
        drop_path_rate=0.1,
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[48, 96, 192, 384]),
    roi_head=dict(bbox_head=dict(num_classes=3)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)

max_iters = 1800
train_cfg = dict(max_iters=max_iters, val_interval=600)
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=80),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=80, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=300))
