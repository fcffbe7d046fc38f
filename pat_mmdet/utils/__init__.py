"""Configs and checkpoints."""

from pat_mmdet.utils.checkpoint import load_weights, read_checkpoint
from pat_mmdet.utils.config import (
    apply_method,
    is_distiller,
    load_config,
    prepare_environment,
    set_work_dir,
    student_model,
)

__all__ = [
    "apply_method",
    "is_distiller",
    "load_config",
    "load_weights",
    "prepare_environment",
    "read_checkpoint",
    "set_work_dir",
    "student_model",
]
