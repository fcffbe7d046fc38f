# TinyViT, attention behind a convolutional stem, at about half its width; about 32 s an epoch on one
# core.
_base_ = [
    "../_base_/models/timm_classifier.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/schedules/cifar10.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    model_name="tiny_vit_5m_224",
    num_classes=10,
    embed_dims=(32, 64, 128, 160),
    depths=(2, 2, 4, 2),
    num_heads=(1, 2, 4, 5),
    # The sides of the maps at 32 pixels.
    window_sizes=(8, 4, 2, 1),
    data_preprocessor={{_base_.preprocessor}},
)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=1, end=max_epochs),
]
