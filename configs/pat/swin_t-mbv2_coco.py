_base_ = "../students/faster-rcnn_mbv2_fpn_180k_coco.py"

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/faster-rcnn_swin-t_fpn_3x_coco.py"),
    # Mask R-CNN of the MMDetection zoo, 46.0 box AP on val2017 (published); its mask head is unused.
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/swin/"
    "mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco/"
    "mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco_20210908_165006-90a4008c.pth",
    method=dict(type="PAT"),
    input_size=(800, 1216),
)

method_options = dict(dkd={"model.method.alpha": 1.0})
# What published runs changed (`--settings published`); OFA's final term was off in them.
published = dict(
    ofa={"model.method.kd_weight": 0.0},
    pat={
        "train_cfg.max_iters": 270000,
        "param_scheduler.1.milestones": [210000, 250000],
    },
)
