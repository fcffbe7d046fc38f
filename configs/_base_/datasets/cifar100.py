# CIFAR-100 at 224×224, unpacked by tools/dataset_converters/cifar100.py; augmented as for CNNs.
data_root = "data/cifar100/"

# What the models that use this data are given.
preprocessor = dict(
    type="ClsDataPreprocessor",
    num_classes=100,
    mean=[129.3105, 124.0575, 112.4295],
    std=[68.1615, 65.382, 70.431],
    # The images of the archive are RGB.
    to_rgb=False,
)

train_pipeline = [
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="Resize", scale=(224, 224), backend="pillow", interpolation="bicubic"),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CIFAR100",
        data_root=data_root,
        split="train",
        download=False,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CIFAR100",
        data_root=data_root,
        split="test",
        download=False,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The size of CRD's memory.
method_options = dict(crd={"model.method.num_data": 50000})
