_base_ = [
    "../_base_/models/deit_t.py",
    "../_base_/datasets/imagenet_vit.py",
    "../_base_/schedules/imagenet_vit.py",
    "../_base_/classification_runtime.py",
]

model = dict(data_preprocessor={{_base_.preprocessor}})
