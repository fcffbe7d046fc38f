# "3x" is the common name of 270k iterations; of 8 images each, as here, they are 18 epochs.
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_270k_adamw.py",
    "../_base_/default_runtime.py",
]

import mmengine

model = dict(
    backbone={
        **mmengine.Config.fromfile(
            "{{ fileDirname }}/faster-rcnn_swin-t_fpn_3x_coco.py"
        ).model.backbone,
        "out_indices": (1, 2, 3),
    },
    # The neck starts at the first map that it gets, which has the stride 8.
    neck=dict(in_channels=[192, 384, 768], start_level=0),
)
