# CIFAR-10 at 64 pixels, augmented as for transformers and MLPs; batches are mixed too.
_base_ = "cifar10_64px.py"

preprocessor = dict(
    batch_augments=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)])
)
# Images are BGR until the preprocessor: colours stand in this order.
train_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="RandomResizedCrop", scale={{_base_.image_size}}, crop_ratio_range=(0.25, 1.0)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[114, 123, 125]),
    ),
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[113.8575, 122.961, 125.307],
        fill_std=[66.708, 62.0925, 62.985],
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
