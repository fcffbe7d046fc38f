# timm's weights; there is nothing to train.
_base_ = [
    "../_base_/models/swin_t.py",
    "../_base_/datasets/imagenet_vit.py",
    "../_base_/schedules/imagenet_vit.py",
    "../_base_/classification_runtime.py",
]

model = dict(pretrained=True, data_preprocessor={{_base_.preprocessor}})
