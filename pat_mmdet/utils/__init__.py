"""Configs, checkpoints and work dirs.

What is listed here is imported when it is first used: ``import pat_mmdet`` and ``--help`` do not
wait for torch.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "checkpoint": ("load_weights", "read_checkpoint"),
    "config": (
        "apply_method",
        "is_distiller",
        "load_config",
        "set_work_dir",
        "student_model",
        "teacher_model",
    ),
    "data_check": ("check_data",),
    "io": ("write_atomic",),
    "runs": ("RunDir", "read_record", "write_record"),
    "setup_env": ("prepare_environment",),
}

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
