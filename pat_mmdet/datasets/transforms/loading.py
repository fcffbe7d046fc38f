"""Reading images, some of which may be broken."""

from __future__ import annotations

import io
import logging
import multiprocessing
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import FileClient, get
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image

from pat_mmdet.utils.images import read_orientation

# Of the module, as a transform that holds them could not be copied; workers inherit them.
_skipped = multiprocessing.Value("i", 0)
_resized = multiprocessing.Value("i", 0)
_turned = multiprocessing.Value("i", 0)
_TURNING_FLAGS = ("color", "grayscale")  # of mmcv; others ignore the EXIF orientation
_PNG_BEGIN = b"\x89PNG"
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
    of the image as it is stored: then it is loaded as stored, where its boxes fit. There are
    warnings where the size does not tell the frame of the boxes, and where it is another one.

    The arguments are those of mmcv's ``LoadImageFromFile``.
    """

    def transform(self, results: dict) -> dict | None:
        """Add ``img``, ``img_shape`` and ``ori_shape``, or return ``None``."""
        path = results["img_path"]
        try:
            image = _pad_thin(self._load(results))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _warn(
                f"image {path!r} cannot be read and is skipped ({reason}); skipped so far: "
                f"{_count(_skipped)}. Copy it again, or take it out of the data"
            )
            return None
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results

    def _load(self, results: dict) -> np.ndarray:
        """Load an image in the frame of its annotations."""
        path = results["img_path"]
        shape = (results["height"], results["width"]) if "height" in results else None
        options = (shape, self.color_type, self.imdecode_backend)
        if self.file_client_args is not None:  # deprecated in mmcv
            content = FileClient.infer_client(self.file_client_args, path).get(path)
        else:
            content = get(path, backend_args=self.backend_args)
        if not content:
            raise ValueError("it is empty")
        if content.startswith(_PNG_BEGIN) and b"acTL" in content[:1024]:
            # OpenCV fills damaged parts of animated ones with what is in the memory.
            Image.open(io.BytesIO(content)).verify()
        image = decode_image(content, *options)
        if image is None and content.startswith(_JPEG_BEGIN) and not content.endswith(_JPEG_END):
            image = decode_image(content + _JPEG_END, *options)
            if image is not None:
                _warn(f"image {path!r} is cut; it is used as far as it goes. Copy it again")
        if image is None:
            raise ValueError("it is damaged, or no image of a known format")
        if shape is not None and results.get("instances"):
            orientation = read_orientation(content) if self.color_type in _TURNING_FLAGS else 1
            _check_frame(path, image.shape[:2], shape, orientation)
        return image


def decode_image(
    content: bytes,
    shape: tuple[int, int] | None = None,
    flag: str = "color",
    backend: str | None = None,
) -> np.ndarray | None:
    """Decode an image as shown, or as stored if only that gives a known shape.

    Args:
        content (bytes): The image file.
        shape (tuple[int, int], optional): Annotated (height, width).
        flag (str): As of :func:`mmcv.imfrombytes`.
        backend (str, optional): As of :func:`mmcv.imfrombytes`.

    Returns:
        np.ndarray | None: The image, (H, W, 3) as BGR or (H, W); ``None`` if it cannot be decoded.
    """
    image = mmcv.imfrombytes(content, flag=flag, backend=backend)
    if image is None or image.shape[:2] == shape or image.shape[1::-1] != shape:
        return image
    if flag not in _TURNING_FLAGS:
        return image
    stored = mmcv.imfrombytes(content, flag=f"{flag}_ignore_orientation", backend=backend)
    return stored if stored is not None and stored.shape[:2] == shape else image


def read_image(
    path: str, shape: tuple[int, int] | None = None, backend_args: dict | None = None
) -> np.ndarray | None:
    """Read an image to draw on, as :class:`LoadImageOrSkip` has loaded it.

    Args:
        path (str): Path of the image.
        shape (tuple[int, int], optional): Annotated (height, width).
        backend_args (dict, optional): Arguments of the file backend.

    Returns:
        np.ndarray | None: The image (H, W, 3) as BGR; ``None`` if it cannot be read, which the
        data set has reported.
    """
    try:
        return decode_image(get(path, backend_args=backend_args), shape)
    except Exception:
        return None


def _check_frame(
    path: str, shape: tuple[int, int], annotated: tuple[int, int], orientation: int
) -> None:
    """Warn where boxes may be in another frame than the image, after 1, 10, 100, ... images.

    Args:
        path (str): Path of the image.
        shape (tuple[int, int]): Its (height, width) as loaded.
        annotated (tuple[int, int]): (height, width) in the annotation file.
        orientation (int): EXIF orientation that was followed, 1 for none.
    """
    if shape != annotated:
        count = _count(_resized)
        if _is_power_of_ten(count):
            _warn(
                f"image {path!r} has (height, width) {shape} and is annotated with {annotated}; "
                f"boxes are used as they are; such images so far: {count}. Correct the size, and "
                "the boxes if the image was resized"
            )
        return
    if orientation in (2, 3, 4) or (orientation > 4 and shape[0] == shape[1]):
        count = _count(_turned)
        if _is_power_of_ten(count):
            _warn(
                f"image {path!r} has the EXIF orientation {orientation}, which its size does not "
                f"show; it is turned as viewers do, and boxes are taken for that; such images so "
                f"far: {count}. If boxes are for the pixels as stored, remove the orientation or "
                "set color_type='color_ignore_orientation' in LoadImageOrSkip"
            )


def _pad_thin(image: np.ndarray) -> np.ndarray:
    """Pad an image with black to at most the largest aspect ratio."""
    height, width = image.shape[:2]
    shape = (max(height, width // _MAX_ASPECT_RATIO), max(width, height // _MAX_ASPECT_RATIO))
    return image if shape == (height, width) else mmcv.impad(image, shape=shape)


def _count(counter: Any) -> int:
    """Add one to a counter of all workers and return its value."""
    with counter.get_lock():
        counter.value += 1
        return counter.value


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"


def _warn(message: str) -> None:
    print_log(message, "current", logging.WARNING)
