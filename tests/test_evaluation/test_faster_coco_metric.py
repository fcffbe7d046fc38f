"""The evaluator with compiled matching gives what MMDetection's gives."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.tools import ROOT, run_tool
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from pat_mmdet.evaluation import FasterCocoMetric

CLASSES = 12
HEIGHT, WIDTH = 480, 640


def rle(box):
    """The mask of a box, with the pixels of its upper left corner missing."""
    x, y, w, h = (int(value) for value in box)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[y : y + h + 1, x : x + w + 1] = 1
    mask[y : y + h // 3, x : x + w // 3] = 0
    code = coco_mask.encode(mask)
    return {**code, "counts": code["counts"].decode()}


def make(folder, images=40, per_image=(0, 20), detections=(0, 60), seed=0, masks=False):
    """Writes an annotation file with all that the evaluation treats differently.

    Boxes of all sizes; crowds; boxes that an annotation tool marked as ignored; a class without a
    box; images without boxes or without detections; equal scores; two detections of one box.

    Returns:
        The file, and what a detector gave for each image.
    """
    rng = np.random.default_rng(seed)
    annotations, samples = [], []
    for image in range(images):
        boxes, labels = [], []
        for _ in range(rng.integers(*per_image)):
            side = np.exp(rng.uniform(np.log(4), np.log(250), 2))
            corner = rng.uniform(0, (WIDTH, HEIGHT) - side)
            boxes.append([*corner, *side])
            labels.append(int(rng.integers(CLASSES - 1)))  # none of the last class
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=image, category_id=10 * labels[-1] + 1,
                    bbox=boxes[-1], area=float(side.prod() * rng.uniform(0.5, 1)),
                    iscrowd=int(rng.random() < 0.1), ignore=int(rng.random() < 0.1),
                    **(dict(segmentation=rle(boxes[-1])) if masks else {}),
                )
            )  # fmt: skip
        found, scores, names = [], [], []
        for _ in range(rng.integers(*detections) if image % 5 else 0):
            if boxes and rng.random() < 0.6:
                which = rng.integers(len(boxes))
                size = np.array(boxes[which][2:])
                found.append(boxes[which] + rng.normal(0, 0.05, 4) * [*size, *size])
                names.append(labels[which] if rng.random() < 0.9 else int(rng.integers(CLASSES)))
            else:
                found.append(np.array([*rng.uniform(0, 200, 2), *rng.uniform(4, 200, 2)]))
                names.append(int(rng.integers(CLASSES)))
            scores.append(round(rng.random(), 2))  # some are equal
        boxes_xywh = torch.tensor(np.array(found).reshape(-1, 4), dtype=torch.float32)
        pred = dict(
            bboxes=torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], 1),
            scores=torch.tensor(scores),
            labels=torch.tensor(names, dtype=torch.long),
        )
        if masks:
            pred["masks"] = [rle(box.clamp(0, 470)) for box in boxes_xywh]
        samples.append(dict(img_id=image, ori_shape=(HEIGHT, WIDTH), pred_instances=pred))
    content = dict(
        images=[
            dict(id=i, file_name=f"{i}.jpg", width=WIDTH, height=HEIGHT) for i in range(images)
        ],
        annotations=annotations,
        categories=[dict(id=10 * i + 1, name=f"class {i}") for i in range(CLASSES)],
    )
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return str(file), samples


def evaluate(kind, file, samples, **options):
    """All values that a metric reports."""
    metric = kind(ann_file=file, classwise=True, **options)
    metric.dataset_meta = dict(classes=[f"class {i}" for i in range(CLASSES)])
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def precisions(kind, file, samples, monkeypatch, **options):
    """What :func:`evaluate` gives, and the statistics before they are rounded."""
    seen, summarize = [], COCOeval.summarize

    def keep(self):
        summarize(self)
        seen.extend([self.stats, self.eval["precision"], self.eval["recall"], self.eval["scores"]])

    with monkeypatch.context() as patch:
        patch.setattr(COCOeval, "summarize", keep)
        return evaluate(kind, file, samples, **options), seen


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (dict(), dict()),
        (dict(seed=1, detections=(90, 140)), dict(metric=["bbox", "proposal"])),
        (dict(seed=2, images=15, masks=True), dict(metric=["bbox", "segm"])),
        (dict(seed=3), dict(proposal_nums=(1, 10, 100), iou_thrs=np.linspace(0.3, 0.9, 7))),
    ],
    ids=["boxes", "more than 100 detections", "masks", "other thresholds"],
)
def test_equals_pycocotools(tmp_path, monkeypatch, data, options):
    file, samples = make(tmp_path, **data)
    want, exact = precisions(CocoMetric, file, samples, monkeypatch, **options)
    got, fast = precisions(FasterCocoMetric, file, samples, monkeypatch, **options)
    assert list(got) == list(want)
    for key, value in want.items():
        assert got[key] == pytest.approx(value, abs=1e-6, nan_ok=True), key
    assert len(fast) == len(exact) == 4 * len(np.atleast_1d(options.get("metric", "bbox")))
    for left, right in zip(fast, exact):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6)
    assert want["coco/bbox_mAP"] > 0.02 and math.isnan(want["coco/class 11_precision"])


def test_no_detections(tmp_path):
    file, samples = make(tmp_path)
    nothing = [
        {**sample, "pred_instances": {k: v[:0] for k, v in sample["pred_instances"].items()}}
        for sample in samples
    ]
    assert evaluate(FasterCocoMetric, file, nothing) == evaluate(CocoMetric, file, nothing) == {}
    metric = FasterCocoMetric(ann_file=file)
    metric.dataset_meta = dict(classes=[f"class {i}" for i in range(CLASSES)])
    values = []
    for _ in range(2):  # of one training
        metric.process({}, samples)
        values.append(metric.evaluate(len(samples)))
    assert values[0] == values[1]


def test_mmdet_is_restored(tmp_path, monkeypatch):
    from faster_coco_eval.core.faster_eval_api import COCOeval_faster
    from mmdet.evaluation.metrics import coco_metric

    used, run, usual = [], COCOeval_faster.evaluate, coco_metric.COCOeval
    monkeypatch.setattr(COCOeval_faster, "evaluate", lambda self: used.append(1) or run(self))
    init_default_scope("mmdet")
    file, samples = make(tmp_path, images=5)
    evaluator = Evaluator(dict(type="FasterCocoMetric", ann_file=file))
    evaluator.dataset_meta = dict(classes=[f"class {i}" for i in range(CLASSES)])
    evaluator.process(samples, {})
    assert "coco/bbox_mAP" in evaluator.evaluate(len(samples))
    assert used and coco_metric.COCOeval is usual


def test_missing_package(digits, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        'import sys; sys.modules["faster_coco_eval"] = None\n'
        "from pat_mmdet.cli.train import main; main()"
    )
    output = run_tool(
        script, "configs/students/faster-rcnn_r18_fpn_digits.py", "--work-dir",
        tmp_path / "out", "--cfg-options", f"data_root={digits}/",
        "val_evaluator.type=FasterCocoMetric", code=1, cwd=ROOT,
    )  # fmt: skip
    assert "error: FasterCocoMetric needs faster-coco-eval" in output.splitlines()[-1]
    assert 'pip install "faster-coco-eval' in output and "Iter(train)" not in output
