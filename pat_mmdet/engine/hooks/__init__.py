"""Hooks of training and testing."""

from pat_mmdet.engine.hooks.check_config_hook import CheckConfigHook
from pat_mmdet.engine.hooks.check_finite_hook import CheckFiniteHook
from pat_mmdet.engine.hooks.checkpoint_hook import SafeCheckpointHook
from pat_mmdet.engine.hooks.distill_weight_hook import DistillWeightHook
from pat_mmdet.engine.hooks.pat_statistics_hook import PATStatisticsHook
from pat_mmdet.engine.hooks.pat_visualization_hook import PATVisualizationHook
from pat_mmdet.engine.hooks.progress_bar_hook import ProgressBarHook
from pat_mmdet.engine.hooks.stopped_worker_hook import StoppedWorkerHook
from pat_mmdet.engine.hooks.student_ema_hook import StudentEMAHook
from pat_mmdet.engine.hooks.visualization_hook import TolerantVisualizationHook

__all__ = [
    "CheckConfigHook",
    "CheckFiniteHook",
    "DistillWeightHook",
    "PATStatisticsHook",
    "PATVisualizationHook",
    "ProgressBarHook",
    "SafeCheckpointHook",
    "StoppedWorkerHook",
    "StudentEMAHook",
    "TolerantVisualizationHook",
]
