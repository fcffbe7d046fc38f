"""Matches of predicted with annotated boxes."""

import numpy as np
import pytest

from pat_mmdet.evaluation.matching import FALSE, IGNORED, Boxes, match_boxes


def boxes(*rows):
    """Boxes from rows of x, y, width, height, label, and score or ignore flag."""
    rows = np.array(rows, dtype=float).reshape(-1, 6)
    return Boxes(rows[:, :4], rows[:, 4].astype(int), rows[:, 5])


LARGE, SMALL, CROWD = (0, 0, 10, 10, 0, 0), (30, 30, 4, 4, 1, 0), (50, 0, 20, 20, 0, 1)
TRUTH = boxes(SMALL, LARGE, CROWD)


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([], []),
        # A worse box finds the object first, if its score is higher.
        ([(0, 0, 10, 10, 0, 0.5), (0, 0, 10, 9, 0, 0.6)], [FALSE, 1]),
        ([(0, 0, 10, 10, 1, 0.5), (30, 30, 4, 4, 1, 0.4)], [FALSE, 0]),  # the wrong class
        ([(0, 0, 10, 4.9, 0, 0.5), (30, 30, 4, 2.1, 1, 0.5)], [FALSE, 0]),  # IoU 0.49 and 0.525
        ([(51, 1, 5, 5, 0, 0.5), (55, 5, 5, 5, 0, 0.5)], [IGNORED, IGNORED]),
    ],
)
def test_matches(predicted, expected):
    empty = boxes()
    # The same in any image, and whatever the images before it have.
    matches = match_boxes([TRUTH, empty, TRUTH], [boxes(SMALL), empty, boxes(*predicted)])
    assert matches[0].tolist() == [0] and matches[1].tolist() == []
    assert matches[2].tolist() == expected


def test_threshold_leaves_matches():
    rng = np.random.default_rng(0)
    truth = boxes(*[(*rng.uniform(0, 20, 2), 8, 8, rng.integers(2), 0) for _ in range(8)])
    scores = np.linspace(0.01, 0.99, 60)
    rows = [(*rng.uniform(0, 20, 2), 8, 8, rng.integers(2), score) for score in scores]
    (every,) = match_boxes([truth], [boxes(*rows)])
    (confident,) = match_boxes([truth], [boxes(*rows[30:])])
    assert confident.tolist() == every[30:].tolist() and (confident >= 0).any()
