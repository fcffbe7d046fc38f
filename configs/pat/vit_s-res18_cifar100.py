_base_ = "../students/res18_cifar100.py"

import mmengine

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    # The checkpoint has all its weights.
    teacher={
        **mmengine.Config.fromfile("{{ fileDirname }}/../teachers/vit_s_cifar100.py").model,
        "pretrained": False,
    },
    teacher_checkpoint="work_dirs/pretrained/vit_small_patch16_224_cifar100.pth",
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/classification/pat.py").method,
        "input_size": (224, 224),
    },
)
