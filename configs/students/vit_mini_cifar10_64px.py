# ViT of width 96 and six blocks on 8×8 patches of 64 pixels.
_base_ = [
    "../_base_/datasets/cifar10_64px_aug.py",
    "../_base_/schedules/cifar10_20e.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    type="ImageClassifier",
    data_preprocessor={{_base_.preprocessor}},
    backbone=dict(
        type="VisionTransformer",
        arch=dict(embed_dims=96, num_layers=6, num_heads=4, feedforward_channels=384),
        img_size={{_base_.image_size}},
        patch_size=8,
    ),
    head=dict(
        type="VisionTransformerClsHead",
        num_classes=10,
        in_channels=96,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
