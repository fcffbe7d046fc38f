_base_ = "../students/faster-rcnn_mbv2_fpn_bccd.py"

import mmengine

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile(
        "{{ fileDirname }}/../teachers/faster-rcnn_swin-p_fpn_bccd.py"
    ).model,
    teacher_checkpoint="work_dirs/faster-rcnn_swin-p_fpn_bccd/iter_900.pth",
    method=dict(
        input_size=(192, 256),
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/pat.py").method,
    ),
)
