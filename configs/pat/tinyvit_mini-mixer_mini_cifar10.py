_base_ = "../students/mixer_mini_cifar10.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/tinyvit_mini_cifar10.py"),
    teacher_checkpoint="work_dirs/tinyvit_mini_cifar10/epoch_20.pth",
    # At 32 pixels the last maps have 2×2 positions and one.
    method=dict(type="PAT", raa_grid=2, raa_dim=128),
    input_size=({{_base_.image_size}}, {{_base_.image_size}}),
)
