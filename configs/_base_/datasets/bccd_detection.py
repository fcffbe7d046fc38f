# Blood cells (github.com/Shenggan/BCCD_Dataset), converted by tools/dataset_converters/voc2coco.py, at 256×192 of
# their 640×480 pixels, which is what a CPU can train.
_base_ = "coco_detection.py"

data_root = "data/bccd/"
classes = ("RBC", "WBC", "Platelets")

train_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(256, 192), keep_ratio=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="Resize", scale=(256, 192), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/train.json",
        data_prefix=dict(img="JPEGImages/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=0),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/val.json",
        data_prefix=dict(img="JPEGImages/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + "annotations/val.json")
test_evaluator = val_evaluator
