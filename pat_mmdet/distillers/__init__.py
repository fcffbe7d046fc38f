"""The distillers: the ``model.type`` of a config."""

from pat_mmdet.distillers.base import BaseDistiller, task_settings
from pat_mmdet.distillers.classification import ClassificationDistiller
from pat_mmdet.distillers.detection import DetectionDistiller

__all__ = ["BaseDistiller", "ClassificationDistiller", "DetectionDistiller", "task_settings"]
