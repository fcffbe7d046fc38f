"""COCO evaluation of annotation files that are not complete."""

from __future__ import annotations

from typing import Any

from mmdet.evaluation import CocoMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """A ``CocoMetric`` that takes annotations without ``iscrowd`` for single objects.

    COCO's evaluation fails without that entry, which many tools do not write. The arguments are
    those of MMDetection's ``CocoMetric``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._coco_api is not None:
            for annotation in self._coco_api.anns.values():
                annotation.setdefault("iscrowd", 0)
