"""Reading images, some of which may be broken."""

from __future__ import annotations

import logging
import multiprocessing

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.fileio import get
from mmengine.logging import print_log

# Of the module, as a transform that holds it could not be copied; workers inherit it.
_skipped = multiprocessing.Value("i", 0)
_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# The longer side by the shorter one; beyond that, resizing may leave no pixel of the shorter side.
_MAX_ASPECT_RATIO = 64


@TRANSFORMS.register_module()
class LoadImageOrSkip(LoadImageFromFile):
    """Load an image, or return ``None`` after a warning if the file cannot be decoded.

    Faults are counted over all workers of a data loader. A JPEG without its end is decoded as far
    as it goes, with a warning, as OpenCV does when it reads the file itself. An image that is too
    thin to be resized is padded at its end.

    The EXIF orientation is followed, as in MMDetection, unless the annotation file gives the size
    of the image as it is stored: then it is loaded as stored, where its boxes fit.

    The arguments are those of mmcv's ``LoadImageFromFile``.
    """

    def transform(self, results: dict) -> dict | None:
        """Add ``img``, ``img_shape`` and ``ori_shape``, or return ``None``."""
        path = results["img_path"]
        try:
            image = _pad_thin(self._load(results))
        except Exception as error:
            with _skipped.get_lock():
                _skipped.value += 1
            _warn(
                f"image {path!r} cannot be read and is skipped "
                f"({type(error).__name__}: {error}); skipped so far: {_skipped.value}. "
                "Copy it again, or take it out of the annotations"
            )
            return None
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _load(self, results: dict) -> np.ndarray:
        """Load an image in the frame of its annotations."""
        path = results["img_path"]
        try:
            image = super().transform(results)["img"]
        except Exception:
            content = get(path, backend_args=self.backend_args)
            is_cut = content.startswith(_JPEG_BEGIN) and not content.endswith(_JPEG_END)
            image = self._decode(content + _JPEG_END, self.color_type) if is_cut else None
            if image is None:
                raise
            _warn(f"image {path!r} is cut; it is used as far as it goes. Copy it again")
        annotated = (results.get("height"), results.get("width"))
        if image.shape[1::-1] == annotated and image.shape[:2] != annotated:
            content = get(path, backend_args=self.backend_args)
            stored = self._decode(content, "color_ignore_orientation")
            if stored.shape[:2] == annotated:
                return stored
        return image

    def _decode(self, content: bytes, flag: str) -> np.ndarray | None:
        return mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)


def _pad_thin(image: np.ndarray) -> np.ndarray:
    """Pad an image with black to at most the largest aspect ratio."""
    height, width = image.shape[:2]
    shape = (max(height, width // _MAX_ASPECT_RATIO), max(width, height // _MAX_ASPECT_RATIO))
    return image if shape == (height, width) else mmcv.impad(image, shape=shape)


def _warn(message: str) -> None:
    print_log(message, "current", logging.WARNING)
