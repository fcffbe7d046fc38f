# CIFAR-10 enlarged to 64 pixels.
_base_ = "cifar10.py"

image_size = 64
train_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="RandomResizedCrop", scale=image_size, crop_ratio_range=(0.5, 1.0)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="Resize", scale=(image_size, image_size)),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
