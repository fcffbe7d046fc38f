_base_ = "../students/mixer_mini_cifar10.py"

import mmengine

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile("{{ fileDirname }}/../teachers/tinyvit_mini_cifar10.py").model,
    teacher_checkpoint="work_dirs/tinyvit_mini_cifar10/epoch_20.pth",
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/classification/pat.py").method,
        "input_size": ({{_base_.image_size}}, {{_base_.image_size}}),
        # At 32 pixels the last maps have 2×2 positions and one.
        "raa_grid": 2,
        "raa_dim": 128,
    },
)
