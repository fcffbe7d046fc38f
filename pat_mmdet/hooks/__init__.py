"""Hooks of training and testing."""

from pat_mmdet.hooks.checkpoint_hook import SafeCheckpointHook
from pat_mmdet.hooks.distill_weight_hook import DistillWeightHook
from pat_mmdet.hooks.student_ema_hook import StudentEMAHook
from pat_mmdet.hooks.visualization_hook import TolerantVisualizationHook

__all__ = [
    "DistillWeightHook",
    "SafeCheckpointHook",
    "StudentEMAHook",
    "TolerantVisualizationHook",
]
