"""The distillers: the ``model.type`` of a config."""

from pat_mmdet.models.distillers.base import BaseDistiller, eval_mode
from pat_mmdet.models.distillers.classification import ClassificationDistiller
from pat_mmdet.models.distillers.detection import DetectionDistiller
from pat_mmdet.models.distillers.teacher import FrozenTeacher

__all__ = [
    "BaseDistiller",
    "ClassificationDistiller",
    "DetectionDistiller",
    "FrozenTeacher",
    "eval_mode",
]
