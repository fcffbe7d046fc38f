"""Configs, checkpoints and work dirs."""

from pat_mmdet.utils.checkpoint import load_weights, read_checkpoint
from pat_mmdet.utils.config import (
    apply_method,
    check_data,
    is_distiller,
    load_config,
    prepare_environment,
    set_work_dir,
    student_model,
    teacher_model,
)
from pat_mmdet.utils.io import write_atomic
from pat_mmdet.utils.runs import RunDir, read_record, write_record

__all__ = [
    "RunDir",
    "apply_method",
    "check_data",
    "is_distiller",
    "load_config",
    "load_weights",
    "prepare_environment",
    "read_checkpoint",
    "read_record",
    "set_work_dir",
    "student_model",
    "teacher_model",
    "write_atomic",
    "write_record",
]
