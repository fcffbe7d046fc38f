# ImageNet-1K augmented as for transformers and MLPs; batches are mixed too.
_base_ = "imagenet.py"

preprocessor = dict(
    batch_augments=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)])
)
# Images are BGR until the preprocessor: colours stand in this order.
train_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation="bicubic"),
    ),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4),
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675],
        fill_std=[57.375, 57.12, 58.395],
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(batch_size=512, dataset=dict(pipeline=train_pipeline))
