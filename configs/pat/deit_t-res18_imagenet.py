_base_ = "../students/res18_imagenet.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/deit_t_imagenet.py"),
    # The teacher has timm's weights.
    teacher_checkpoint=None,
    method=dict(type="PAT", raa_grid=4, raa_dim=512),
    input_size=(224, 224),
)

published = dict(ofa={"model.method.eps": 1.5})
