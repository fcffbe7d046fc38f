"""A small data set in COCO format."""

import json
import logging
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

HEIGHT, WIDTH = 40, 60
TRAIN = [
    dict(type="LoadImageOrSkip"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
TEST = [
    dict(type="LoadImageOrSkip"),
    dict(type="Resize", scale=(90, 60), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]


def make_data(folder):
    """Six images with a cat and a dog each; category ids are not in the order of numbers."""
    (folder / "img").mkdir()
    rng = np.random.RandomState(0)
    images, annotations = [], []
    for i in range(6):
        image = rng.randint(50, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"img/{i}.png"), image)
        images.append(dict(id=10 + i, file_name=f"{i}.png", height=HEIGHT, width=WIDTH))
        for category, box in ((7, [2, 3, 20 + i, 15]), (3, [30, 10, 25, 20 + i])):
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=10 + i, category_id=category, bbox=box,
                    area=box[2] * box[3], iscrowd=0,
                )
            )  # fmt: skip
    categories = [dict(id=7, name="cat"), dict(id=3, name="dog")]
    write(folder, dict(images=images, annotations=annotations, categories=categories))
    return folder


def write(folder, content):
    (folder / "ann.json").write_text(json.dumps(content))


def change(folder, function):
    """Changes the annotation file by a function of its content."""
    content = json.loads((folder / "ann.json").read_text())
    function(content)
    write(folder, content)


def dataset(folder, test=False, classes=("cat", "dog"), **options):
    init_default_scope("mmdet")
    cfg = dict(
        type="CheckedCocoDataset",
        data_root=str(folder),
        ann_file="ann.json",
        data_prefix=dict(img="img/"),
        metainfo=dict(classes=classes),
        filter_cfg=None if test else dict(filter_empty_gt=True, min_size=1),
        pipeline=TEST if test else TRAIN,
        test_mode=test,
        serialize_data=False,  # which collects garbage, for longer than the rest takes
    )
    return DATASETS.build({**cfg, **options})


@contextmanager
def messages_with(words=""):
    """Collect the warnings that MMEngine's logger gets with these words in them."""
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            if words in record.getMessage():
                messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def score(folder, kind="CheckedCocoMetric"):
    """COCO mAP of predictions that are right wherever there is something to see."""
    loaded = dataset(folder, test=True)
    metric = METRICS.build(dict(type=kind, ann_file=str(folder / "ann.json"), metric="bbox"))
    metric.dataset_meta = loaded.metainfo
    for batch in DataLoader(loaded, batch_size=4, collate_fn=pseudo_collate):
        predictions = []
        for image, sample in zip(batch["inputs"], batch["data_samples"]):
            truth = sample.gt_instances[slice(None, None if image.any() else 0)]
            # Boxes of the test pipeline are those of the file, as predictions are.
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth))
            )
            predictions.append(sample.to_dict())
        metric.process(batch, predictions)
    return metric.evaluate(len(loaded))["coco/bbox_mAP"]
