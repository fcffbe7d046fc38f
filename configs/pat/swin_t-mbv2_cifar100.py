_base_ = "../students/mbv2_cifar100.py"

model = dict(
    _delete_=True,
    type="ClassificationDistiller",
    student={{_base_.model}},
    teacher=dict(config="teachers/swin_t_cifar100.py"),
    teacher_checkpoint="work_dirs/pretrained/swin_tiny_patch4_window7_224_cifar100.pth",
    method=dict(type="PAT", raa_grid=4, raa_dim=512),
    input_size=(224, 224),
)
