_base_ = [
    "../_base_/models/mbv2.py",
    "../_base_/datasets/cifar100.py",
    "../_base_/schedules/cifar100_cnn.py",
    "../_base_/classification_runtime.py",
]

model = dict(num_classes=100, data_preprocessor={{_base_.preprocessor}})
