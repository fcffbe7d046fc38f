# RetinaNet teaches RetinaNet. There is no published RetinaNet with Swin-T, so train it first:
# tools/train.py configs/teachers/retinanet_swin-t_fpn_3x_coco.py
_base_ = "../students/retinanet_r18_fpn_180k_coco.py"

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/retinanet_swin-t_fpn_3x_coco.py"),
    teacher_checkpoint="work_dirs/retinanet_swin-t_fpn_3x_coco/iter_270000.pth",
    method=dict(type="PAT"),
    input_size=(800, 1216),
)
