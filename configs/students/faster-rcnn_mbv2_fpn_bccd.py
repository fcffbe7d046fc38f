_base_ = [
    "../_base_/models/faster-rcnn_fpn_mini.py",
    "../_base_/datasets/bccd_detection.py",
    "../_base_/schedules/schedule_mini.py",
    "../_base_/mini_runtime.py",
]

model = dict(
    backbone=dict(
        type="HeadlessMobileNetV2",
        out_indices=(1, 2, 4, 6),
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://mmdet/mobilenet_v2"),
    ),
    neck=dict(in_channels=[24, 32, 96, 320]),
    roi_head=dict(bbox_head=dict(num_classes=3)),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)

optim_wrapper = dict(
    optimizer=dict(lr=0.001),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.2)}),
)
