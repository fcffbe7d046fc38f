"""Perspective-Aware Teaching: distillation between architectures, for MMDetection.

Importing the package registers its distillers, methods, hooks, data sets and loops, so that configs
find them by name. Where the OpenMMLab packages are missing it registers nothing, and
``pat_mmdet.models.losses`` and ``pat_mmdet.models.layers`` still work with torch alone.
"""

import importlib
import warnings
from importlib.util import find_spec

from .version import __version__

__all__ = ["__version__"]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or a stub
        return False


def _obstacle() -> str:
    """Tells what keeps the OpenMMLab packages from being used; empty if nothing does."""
    from .utils.version_check import PACKAGES, pip_command

    needed = {
        "mmengine": ["mmengine"],
        "mmcv": ["mmcv.ops"],
        "mmdet": ["mmdet", "mmdet.datasets", "mmdet.models"],
    }
    for package, modules in needed.items():
        command = pip_command(package, PACKAGES[package].supported)
        if not _installed(package):
            return f"{package} is not installed. To install it: {command}"
        try:
            for module in modules:
                importlib.import_module(module)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if package == "mmcv" and "mmcv._ext" in str(error):
                what += " (this mmcv was built for another torch)"
            return (
                f"{module} cannot be imported. {what}\n"
                f"Install what it lacks, or {package} anew: {command}"
            )
    return ""


def _register_all() -> None:
    """Imports what registers itself, if MMDetection is there to register with."""
    if not _installed("mmengine"):
        return
    from .utils.mmcv_ops import provide_mmcv_ops
    from .utils.version_check import check_versions

    provide_mmcv_ops()
    check_versions()
    obstacle = _obstacle()
    if obstacle:
        warnings.warn(
            f"pat_mmdet registers nothing with MMDetection, as {obstacle}\n"
            "(pat_mmdet.models.losses and pat_mmdet.models.layers work without it.)",
            stacklevel=3,
        )
        return
    from . import datasets, evaluation  # noqa: F401
    from .engine import hooks, runner  # noqa: F401
    from .models import backbones, distillers, methods  # noqa: F401

    if _installed("mmpretrain") and _installed("timm"):
        from .models import classifiers  # noqa: F401
        from .models.backbones import timm_swin  # noqa: F401


_register_all()
