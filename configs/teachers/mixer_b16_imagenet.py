# timm's weights; there is nothing to train.
_base_ = [
    "../_base_/models/mixer_b16.py",
    "../_base_/datasets/imagenet_vit.py",
    "../_base_/schedules/imagenet_vit.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    pretrained=True,
    # What its weights were trained with.
    data_preprocessor=dict(
        type="ClsDataPreprocessor",
        num_classes=1000,
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        to_rgb=True,
    ),
)
