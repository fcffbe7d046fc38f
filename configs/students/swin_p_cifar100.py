_base_ = [
    "../_base_/models/swin_p.py",
    "../_base_/datasets/cifar100_vit.py",
    "../_base_/schedules/cifar100_vit.py",
    "../_base_/classification_runtime.py",
]

model = dict(num_classes=100, data_preprocessor={{_base_.preprocessor}})
