_base_ = "../students/faster-rcnn_r18_fpn_digits.py"

model = dict(
    _delete_=True,
    type="DetectionDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/faster-rcnn_swin-p_fpn_digits.py"),
    teacher_checkpoint="work_dirs/faster-rcnn_swin-p_fpn_digits/iter_900.pth",
    # The features of this teacher have mean squares of 40 to 100, where loss_fd with weight 1
    # would drown the detector's own losses.
    method=dict(type="PAT", fd_weight=0.02),
    input_size=(128, 128),
)
