"""Run MMDetection on mmcv-lite, the ready wheel of mmcv without compiled operators.

``mmcv.ops`` needs the compiled module ``mmcv._ext``. Where the installed mmcv has none,
``torchvision_ops.py`` is imported under that name. This module imports nothing but the standard
library, so that it may run at every start of Python.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType


class TorchvisionOpsFinder(MetaPathFinder):
    """Find ``mmcv._ext`` in ``torchvision_ops.py``.

    It belongs at the end of ``sys.meta_path``, where it is asked only if Python has not found a
    compiled extension. One that is there but cannot be loaded stays the error that it is.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of ``torchvision_ops.py`` if asked for ``mmcv._ext``."""
        if fullname != "mmcv._ext":
            return None
        return spec_from_file_location(fullname, Path(__file__).with_name("torchvision_ops.py"))


def provide_mmcv_ops() -> None:
    """Install the finder, once. It has to happen before ``mmcv.ops`` or ``mmdet`` is imported."""
    if not any(isinstance(finder, TorchvisionOpsFinder) for finder in sys.meta_path):
        sys.meta_path.append(TorchvisionOpsFinder())
