# CIFAR-10 as images in folders, data/cifar10/{train,val}/<class>/*.jpg, unpacked by
# tools/dataset_converters/cifar10.py. For images of your own in such folders, give data_root and classes (in
# alphabetical order), here or on the command line.
data_root = "data/cifar10/"
classes = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# The models take their size from here.
image_size = 32

# What the models that use this data are given.
preprocessor = dict(
    type="ClsDataPreprocessor",
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],
    std=[62.985, 62.0925, 66.708],
    to_rgb=True,
)

# Short runs learn more from mild augmentation.
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
train_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="TolerantCustomDataset",
        data_root=data_root,
        metainfo=dict(classes=classes),
        data_prefix="train",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="TolerantCustomDataset",
        data_root=data_root,
        metainfo=dict(classes=classes),
        data_prefix="val",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# CRD's memory has a row for each training image; 16384 negatives would be most of them.
method_options = dict(
    crd={"model.method.num_data": 20000, "model.method.num_negatives": 2048},
)
