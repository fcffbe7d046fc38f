_base_ = [
    "../_base_/models/vit_s.py",
    "../_base_/datasets/cifar100_vit.py",
    "../_base_/schedules/cifar100_teacher.py",
    "../_base_/classification_runtime.py",
]

model = dict(pretrained=True, num_classes=100, data_preprocessor={{_base_.preprocessor}})
