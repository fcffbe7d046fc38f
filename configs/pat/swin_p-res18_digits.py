_base_ = "../students/faster-rcnn_r18_fpn_digits.py"

import mmengine

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile(
        "{{ fileDirname }}/../teachers/faster-rcnn_swin-p_fpn_digits.py"
    ).model,
    teacher_checkpoint="work_dirs/faster-rcnn_swin-p_fpn_digits/iter_900.pth",
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/pat.py").method,
        "input_size": (128, 128),
        # The features of this teacher have mean squares of 40 to 100, where loss_fd with weight 1
        # would drown the detector's own losses.
        "fd_weight": 0.02,
    },
)
