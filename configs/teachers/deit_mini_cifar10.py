# DeiT of width 96 and six blocks on 8×8 patches; about 90 s an epoch on one core.
_base_ = [
    "../_base_/models/deit_t.py",
    "../_base_/datasets/cifar10.py",
    "../_base_/schedules/cifar10.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    num_classes=10,
    img_size={{_base_.image_size}},
    patch_size=8,
    embed_dim=96,
    depth=6,
    num_heads=3,
    data_preprocessor={{_base_.preprocessor}},
)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs)
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
