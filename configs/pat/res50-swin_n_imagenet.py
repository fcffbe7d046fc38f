_base_ = "../students/swin_n_imagenet.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/res50_imagenet.py"),
    # The teacher has timm's weights.
    teacher_checkpoint=None,
    method=dict(type="PAT", raa_grid=4, raa_dim=512),
    input_size=(224, 224),
)
