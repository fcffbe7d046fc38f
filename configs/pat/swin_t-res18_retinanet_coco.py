# RetinaNet teaches RetinaNet. There is no published RetinaNet with Swin-T, so train it first:
# tools/train.py configs/teachers/retinanet_swin-t_fpn_3x_coco.py
_base_ = "../students/retinanet_r18_fpn_180k_coco.py"

import mmengine

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile(
        "{{ fileDirname }}/../teachers/retinanet_swin-t_fpn_3x_coco.py"
    ).model,
    teacher_checkpoint="work_dirs/retinanet_swin-t_fpn_3x_coco/iter_270000.pth",
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/pat.py").method,
        "input_size": (800, 1216),
    },
)
