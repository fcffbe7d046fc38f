"""The steps of a test pipeline that change the image, with numpy and OpenCV alone.

The results are those of the transforms of mmcv and mmpretrain, pixel by pixel. Only Pillow before
version 13 may differ a little, on images that get much lower but not much narrower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_CV2_INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}
# Pillow rounds the weights of its filters to this many binary places.
_PILLOW_BITS = 22


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as MMDetection does, with its EXIF orientation.

    Args:
        path (str | Path): Path of the file.

    Returns:
        np.ndarray: (H, W, 3), uint8, BGR.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {str(path)!r} does not exist; check the path")
    content = np.fromfile(path, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise ValueError(f"image {str(path)!r} cannot be read: it is damaged or no image")
    return image


def apply_pipeline(image: np.ndarray, steps: Sequence[dict[str, Any]]) -> np.ndarray:
    """Apply the steps of a test pipeline.

    Args:
        image (np.ndarray): (H, W, 3), uint8.
        steps (Sequence[dict]): Transforms by ``type``, with all arguments; see :data:`STEPS`.

    Returns:
        np.ndarray: (H', W', 3), uint8.
    """
    for step in steps:
        arguments = dict(step)
        image = STEPS[arguments.pop("type")](image, **arguments)
    return image


def _resize(
    image: np.ndarray,
    scale: Sequence[int],
    keep_ratio: bool,
    interpolation: str,
    backend: str,
) -> np.ndarray:
    """Resize to ``scale``, as (width, height), or to what fits into it, long edge to long edge."""
    width, height = scale
    if keep_ratio:
        rows, columns = image.shape[:2]
        factor = min(max(scale) / max(rows, columns), min(scale) / min(rows, columns))
        width, height = int(columns * factor + 0.5), int(rows * factor + 0.5)
    return _resize_to(image, width, height, interpolation, backend)


def _resize_edge(
    image: np.ndarray, scale: int, edge: str, interpolation: str, backend: str
) -> np.ndarray:
    """Resize so that an edge has the length ``scale``."""
    height, width = image.shape[:2]
    if (
        edge == "width"
        or (edge == "short" and width < height)
        or (edge == "long" and width > height)
    ):
        size = (scale, int(scale * height / width))
    else:
        size = (int(scale * width / height), scale)
    return _resize_to(image, *size, interpolation, backend)


def _center_crop(image: np.ndarray, crop_size: Sequence[int]) -> np.ndarray:
    """Cut out the centre, of at most ``crop_size`` as (width, height)."""
    width, height = crop_size
    top = max(0, round((image.shape[0] - height) / 2))
    left = max(0, round((image.shape[1] - width) / 2))
    return image[top : top + height, left : left + width]


STEPS: dict[str, Callable[..., np.ndarray]] = {
    "Resize": _resize,
    "ResizeEdge": _resize_edge,
    "CenterCrop": _center_crop,
}


def _resize_to(
    image: np.ndarray, width: int, height: int, interpolation: str, backend: str
) -> np.ndarray:
    """Resize by OpenCV, or as Pillow does."""
    if backend == "cv2":
        return cv2.resize(image, (width, height), interpolation=_CV2_INTERPOLATIONS[interpolation])
    lost_rows, lost_columns = image.shape[0] - height, image.shape[1] - width
    # Pillow rounds after each axis, so that their order matters.
    if lost_rows > max(0, 2 * lost_columns):
        image = _resample(image, height, interpolation)
    image = _resample(image.swapaxes(0, 1), width, interpolation).swapaxes(0, 1)
    return _resample(image, height, interpolation)


def _triangle(x: np.ndarray) -> np.ndarray:
    """Evaluate the filter of bilinear interpolation."""
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Evaluate the filter of bicubic interpolation (Keys, 1981, with a = -0.5)."""
    x, a = np.abs(x), -0.5
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


# Filter and its radius in pixels.
PILLOW_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}


def _resample(image: np.ndarray, length: int, interpolation: str) -> np.ndarray:
    """Resize the first axis of an image as Pillow does.

    OpenCV's bicubic and bilinear interpolation take 4 and 2 pixels also when an image is made
    smaller, Pillow's filters grow with the scale. Sums are in whole numbers, as Pillow's are.

    Args:
        image (np.ndarray): (N, ...), uint8.
        length (int): New length of the first axis.
        interpolation (str): A key of :data:`PILLOW_FILTERS`.

    Returns:
        np.ndarray: (length, ...), uint8.
    """
    size = image.shape[0]
    if size == length:
        return image
    evaluate, radius = PILLOW_FILTERS[interpolation]
    scale = size / length
    stretch = max(scale, 1.0)
    support = radius * stretch
    centers = (np.arange(length) + 0.5) * scale
    first = np.maximum((centers - support + 0.5).astype(int), 0)
    last = np.minimum((centers + support + 0.5).astype(int), size)
    taps = np.arange(math.ceil(support) * 2 + 1)
    positions = first[:, None] + taps
    weights = evaluate((positions - centers[:, None] + 0.5) * (1 / stretch))
    weights = np.where(positions < last[:, None], weights, 0.0)
    # One after the other: the order of the additions decides about the last bit.
    weights = weights / np.cumsum(weights, axis=1)[:, -1:]
    weights = np.trunc(weights * 2**_PILLOW_BITS + np.copysign(0.5, weights)).astype(np.int32)

    shape = (length,) + (1,) * (image.ndim - 1)
    total = np.full((length, *image.shape[1:]), 1 << (_PILLOW_BITS - 1), np.int32)
    for tap in taps:
        pixels = image[np.minimum(positions[:, tap], size - 1)].astype(np.int32)
        total += pixels * weights[:, tap].reshape(shape)
    return np.clip(total >> _PILLOW_BITS, 0, 255).astype(np.uint8)
