"""COCO evaluation of annotation files that are not complete."""

from __future__ import annotations

from typing import Any

from mmdet import registry as mmdet
from mmdet.evaluation import CocoMetric
from mmengine.fileio import get_local_path
from mmengine.registry import METRICS

from pat_mmdet.datasets.coco_api import CheckedCOCO


@mmdet.METRICS.register_module(name="CocoMetric", force=True)
@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """A ``CocoMetric`` that reads annotations as :class:`CheckedCOCO` does.

    Without ``iscrowd``, which many tools do not write, COCO's evaluation fails. It takes an object
    with the annotation id 0 for missed, and of several with one id it knows the last. Therefore
    configs that say ``CocoMetric`` get this class too. The arguments are those of MMDetection's.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        *args: Any,
        sort_categories: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(None, *args, **kwargs)
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=self.backend_args) as path:
            self._coco_api = CheckedCOCO(path)
        if sort_categories:
            self._coco_api.dataset["categories"].sort(key=lambda category: category["id"])
            self._coco_api.createIndex()
