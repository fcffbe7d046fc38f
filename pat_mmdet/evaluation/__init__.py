"""Evaluation of detectors."""

from pat_mmdet.evaluation.faster_coco_metric import FasterCocoMetric

__all__ = ["FasterCocoMetric"]
