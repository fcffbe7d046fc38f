_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_180k.py",
    "../_base_/default_runtime.py",
]

import mmengine

model = dict(
    backbone=mmengine.Config.fromfile(
        "{{ fileDirname }}/faster-rcnn_r18_fpn_180k_coco.py"
    ).model.backbone,
    neck=dict(in_channels=[64, 128, 256, 512]),
)

# MMDetection's rate for RetinaNet, 0.01 for 16 images, at 8.
optim_wrapper = dict(optimizer=dict(lr=0.005))
