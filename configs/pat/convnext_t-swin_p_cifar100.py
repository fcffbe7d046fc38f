_base_ = "../students/swin_p_cifar100.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/convnext_t_cifar100.py"),
    teacher_checkpoint="work_dirs/pretrained/convnext_tiny_cifar100.pth",
    method=dict(type="PAT", raa_grid=4, raa_dim=512),
    input_size=(224, 224),
)
