_base_ = "../students/faster-rcnn_mbv2_fpn_bccd.py"

import mmengine

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile(
        "{{ fileDirname }}/../teachers/faster-rcnn_swin-p_fpn_bccd.py"
    ).model,
    teacher_checkpoint="work_dirs/faster-rcnn_swin-p_fpn_bccd/iter_1800.pth",
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/pat.py").method,
        "input_size": (192, 256),
        # The features of this teacher have mean squares of 40 to 100, where loss_fd with weight 1
        # would drown the detector's own losses.
        "fd_weight": 0.02,
    },
)
