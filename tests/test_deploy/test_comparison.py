import numpy as np
import pytest

from pat_mmdet.deploy import Detections
from pat_mmdet.deploy.comparison import compare_detections

BOXES = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 50, 50]], np.float32)
SCORES = np.array([0.9, 0.5, 0.2], np.float32)
LABELS = np.array([0, 1, 1])
FOUND = Detections(BOXES, SCORES, LABELS)


def changed(boxes=0.0, scores=0.0, label=1, keep=3):
    """The detections with a change of the last ones."""
    return Detections(
        BOXES[:keep] + np.float32(boxes),
        SCORES[:keep] + np.float32(scores),
        np.array([0, 1, label])[:keep],
    )


@pytest.mark.parametrize(
    ("actual", "threshold", "limit", "agrees"),
    [
        (FOUND, 0.05, 100, True),
        (Detections(*(item[::-1] for item in FOUND)), 0.05, 100, True),
        (changed(boxes=5e-4, scores=5e-6), 0.05, 100, True),
        (changed(boxes=2e-3), 0.05, 100, False),
        (changed(scores=2e-5), 0.05, 100, False),
        (changed(label=0), 0.05, 100, False),
        (changed(boxes=7), 0.05, 100, False),
        (changed(boxes=np.nan), 0.05, 100, False),
        (changed(keep=2), 0.05, 100, False),
        (changed(keep=2), 0.199995, 100, True),  # at the threshold
        (changed(label=0), 0.05, 3, True),  # the last one that is allowed
        (changed(keep=0), 0.05, 100, False),
    ],
)
def test_detections_agree(actual, threshold, limit, agrees):
    for pair in ((FOUND, actual), (actual, FOUND)):
        assert compare_detections("image", *pair, threshold, limit).is_small is agrees


def test_differences_are_measured():
    difference = compare_detections("image", FOUND, changed(boxes=0.25, keep=2), 0.05, 100)
    assert difference == ("image", 3, 0.25, 0.0, 1)
    assert str(difference) == (
        "image: 3 detections, boxes 2.5e-01 px, scores 0.0e+00, 1 WITHOUT A PARTNER"
    )
