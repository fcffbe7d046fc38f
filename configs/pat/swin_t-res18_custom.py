# A pair for data of your own in COCO format. Copy this file and change the settings at its top; what
# lies below follows them in plain MMEngine, so any Runner trains it to the same effect.
_base_ = "swin_t-res18_coco.py"

data_root = "data/custom/"
# In the order of the annotation files.
classes = ("cat", "dog")
# Width and height that images are fitted into.
image_size = (640, 480)
batch_size = 8
max_iters = 20000
# Trained on the same classes, by
# tools/train.py configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py --cfg-options \
#     data_root=data/custom/ "classes=('cat','dog')" and the ann_file and data_prefix of each split.
teacher_checkpoint = "work_dirs/faster-rcnn_swin-t_fpn_3x_coco/iter_270000.pth"

heads = dict(roi_head=dict(bbox_head=dict(num_classes=len(classes))))
model = dict(
    student=heads,
    teacher=heads,
    teacher_checkpoint=teacher_checkpoint,
    input_size=(image_size[1], image_size[0]),
)

train_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageOrSkip"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/train.json",
        data_prefix=dict(img="train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(classes=classes),
        ann_file="annotations/val.json",
        data_prefix=dict(img="val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/val.json")
test_evaluator = val_evaluator

train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=max_iters // 20),
    dict(
        type="MultiStepLR",
        by_epoch=False,
        milestones=[max_iters * 2 // 3, max_iters * 8 // 9],
        gamma=0.1,
    ),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 10))
