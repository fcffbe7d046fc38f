"""Perspective-Aware Teaching: distillation between architectures, for MMDetection.

Importing the package imports neither torch nor MMDetection. It checks the installed versions, and
configs find its distillers, hooks, data sets and loops by name, as
:mod:`pat_mmdet.utils.registration` explains.
"""

from importlib.util import find_spec

from .utils.registration import add_locations_on_import, register_all_modules
from .version import __version__

__all__ = ["__version__", "register_all_modules"]

# ``pat_mmdet.models.losses`` and ``pat_mmdet.models.layers`` serve with torch alone.
if find_spec("mmengine") is not None:
    from .utils.mmcv_ops import provide_mmcv_ops
    from .utils.version_check import check_versions

    provide_mmcv_ops()
    check_versions()
    add_locations_on_import()
