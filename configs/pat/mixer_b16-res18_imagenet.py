_base_ = "../students/res18_imagenet.py"

import mmengine

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=mmengine.Config.fromfile("{{ fileDirname }}/../teachers/mixer_b16_imagenet.py").model,
    # The teacher has timm's weights.
    teacher_checkpoint=None,
    method={
        **mmengine.Config.fromfile("{{ fileDirname }}/../_base_/methods/classification/pat.py").method,
        "input_size": (224, 224),
    },
)
