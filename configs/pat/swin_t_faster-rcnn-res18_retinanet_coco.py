# Faster R-CNN teaches RetinaNet. Their class scores cannot be compared, as one scores RoIs and the
# other anchors, so features alone are matched, on the levels that both have: P3 to P6.
_base_ = "../students/retinanet_r18_fpn_180k_coco.py"

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/faster-rcnn_swin-t_fpn_3x_coco.py"),
    # Mask R-CNN of the MMDetection zoo, 46.0 box AP on val2017 (published); its mask head is unused.
    teacher_checkpoint="https://download.openmmlab.com/mmdetection/v2.0/swin/"
    "mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco/"
    "mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco_20210908_165006-90a4008c.pth",
    feature_strides=(8, 16, 32, 64),
    method=dict(type="PAT", kd_weight=0.0),
    input_size=(800, 1216),
)
