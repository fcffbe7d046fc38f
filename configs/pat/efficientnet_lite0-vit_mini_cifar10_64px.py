_base_ = "../students/vit_mini_cifar10_64px.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/efficientnet_lite0_cifar10_64px.py"),
    teacher_checkpoint="work_dirs/efficientnet_lite0_cifar10_64px/epoch_3.pth",
    # At 64 pixels the last map has 2×2 positions.
    method=dict(type="PAT", raa_grid=2, raa_dim=128),
    input_size=({{_base_.image_size}}, {{_base_.image_size}}),
)
