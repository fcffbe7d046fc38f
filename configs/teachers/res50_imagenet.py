# timm's weights; there is nothing to train.
_base_ = [
    "../_base_/models/res50.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/imagenet_cnn.py",
    "../_base_/classification_runtime.py",
]

model = dict(pretrained=True, data_preprocessor={{_base_.preprocessor}})
