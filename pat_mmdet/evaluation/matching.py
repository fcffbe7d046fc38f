"""Which predicted boxes are right, by COCO's rules."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Places of `match_boxes` that are no index of an annotated box.
FALSE, IGNORED = -1, -2


class Boxes(NamedTuple):
    """Boxes of an image, annotated or predicted.

    Attributes:
        boxes (np.ndarray): (N, 4), as x, y, width, height in pixels.
        labels (np.ndarray): (N,), integers.
        values (np.ndarray): (N,), scores of predictions; of annotations 1 where a box is to be
            ignored (a crowd) and else 0.
    """

    boxes: np.ndarray
    labels: np.ndarray
    values: np.ndarray


def match_boxes(
    truth: Sequence[Boxes], predictions: Sequence[Boxes], iou_threshold: float = 0.5
) -> list[np.ndarray]:
    """Match predicted boxes with annotated ones of their class, best score first.

    A prediction never changes the match of one with a higher score, so the matches also hold if
    predictions below some score are left out.

    Args:
        truth (Sequence[Boxes]): Annotated boxes by image.
        predictions (Sequence[Boxes]): Predicted boxes by image.
        iou_threshold (float): IoU that a match needs.

    Returns:
        list[np.ndarray]: For every image the index of the annotated box that a prediction found,
        :data:`FALSE` if none, or :data:`IGNORED` if that box is to be ignored, (N,).
    """
    matches = [np.full(len(image.labels), FALSE) for image in predictions]
    if not sum(map(len, matches)):
        return matches
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        evaluator = COCOeval(*_to_coco(truth, predictions), "bbox")
        evaluator.params.iouThrs = [iou_threshold]
        evaluator.params.areaRng = [[0, float("inf")]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.params.maxDets = [max(map(len, matches))]
        evaluator.evaluate()
    first = np.cumsum([0, *(len(image.labels) for image in predictions)])
    first_truth = np.cumsum([0, *(len(image.labels) for image in truth)])
    for result in filter(None, evaluator.evalImgs):
        image = result["image_id"]
        place = np.array(result["dtIds"], dtype=int) - 1 - first[image]
        found = result["dtMatches"][0].astype(int) - 1
        matches[image][place] = np.where(found >= 0, found - first_truth[image], FALSE)
        matches[image][place[result["dtIgnore"][0].astype(bool)]] = IGNORED
    return matches


def _to_coco(truth: Sequence[Boxes], predictions: Sequence[Boxes]) -> tuple[COCO, COCO]:
    """Return annotations and predictions in COCO's form; ids are counted through from 1."""
    labels = {int(label) for image in (*truth, *predictions) for label in image.labels}
    annotations = COCO()
    annotations.dataset = dict(
        images=[dict(id=index) for index in range(len(truth))],
        categories=[dict(id=label) for label in sorted(labels)],
        annotations=[
            {**entry, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": int(value)}
            for entry, value in _entries(truth)
        ],
    )
    annotations.createIndex()
    scored = [{**entry, "score": value} for entry, value in _entries(predictions)]
    return annotations, annotations.loadRes(scored)


def _entries(images: Sequence[Boxes]) -> list[tuple[dict, float]]:
    """Return the boxes of all images as entries of COCO, with their values."""
    boxes = [
        (index, *box) for index, image in enumerate(images) for box in zip(*map(np.ndarray.tolist, image))
    ]
    return [
        (dict(id=number, image_id=index, category_id=label, bbox=box), value)
        for number, (index, box, label, value) in enumerate(boxes, start=1)
    ]
