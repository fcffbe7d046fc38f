"""Reading images, some of which may be broken."""

from __future__ import annotations

import logging
import multiprocessing

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

# Of the module, as a transform that holds it could not be copied; workers inherit it.
_skipped = multiprocessing.Value("i", 0)


@TRANSFORMS.register_module()
class LoadImageOrSkip(LoadImageFromFile):
    """Loads an image, or gives ``None`` after a warning if the file cannot be decoded.

    Faults are counted over all workers of a data loader. The arguments are those of mmcv's
    ``LoadImageFromFile``.
    """

    def transform(self, results: dict) -> dict | None:
        """Adds ``img``, ``img_shape`` and ``ori_shape``, or gives ``None``."""
        try:
            return super().transform(results)
        except Exception as error:
            with _skipped.get_lock():
                _skipped.value += 1
            print_log(
                f"image {results['img_path']!r} cannot be read and is skipped "
                f"({type(error).__name__}: {error}); skipped so far: {_skipped.value}. "
                "Copy it again, or take it out of the annotations",
                "current",
                logging.WARNING,
            )
            return None
