"""Sizes of image files, and the frame that their annotations are in.

Photographs may be stored sideways, with an EXIF orientation that viewers and OpenCV follow. An
image therefore has two sizes, as shown and as stored, and annotation files may mean either.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height are swapped
Size = tuple[int, int]


def read_image_sizes(path: str) -> tuple[Size, Size]:
    """Read the size of an image from its header.

    Args:
        path (str): Path of the image.

    Returns:
        tuple[tuple[int, int], tuple[int, int]]: (width, height) as shown and as stored.

    Raises:
        OSError: If the file is missing or no image.
    """
    with Image.open(path) as image:
        stored = image.size
        is_sideways = image.getexif().get(_ORIENTATION, 1) >= 5
    return (stored[::-1] if is_sideways else stored), stored


def boxes_fit(boxes: Sequence[Sequence[float]], size: Size) -> bool:
    """Return True if boxes (x, y, width, height) lie in an image, up to rounding."""
    return all(x + w <= size[0] + 1 and y + h <= size[1] + 1 for x, y, w, h in boxes)


def annotated_size(path: str, size: Size, boxes: Sequence[Sequence[float]]) -> Size:
    """Correct the size that an annotation file gives for an image.

    Size and boxes are taken to be in one frame, that of the image as shown or as stored. Where the
    size is neither but has width and height swapped, or where the boxes show that they are not in
    the stored frame, the size as shown is right.

    Args:
        path (str): Path of the image.
        size (tuple[int, int]): (width, height) in the annotation file.
        boxes (Sequence[Sequence[float]]): Boxes (x, y, width, height) in pixels.

    Returns:
        tuple[int, int]: (width, height) of the frame that the boxes are in; the given one if the
        image cannot be read or has an unrelated size.
    """
    try:
        shown, stored = read_image_sizes(path)
    except OSError:
        return size
    if size == shown or (size == stored and boxes_fit(boxes, size)):
        return size
    return shown if size == shown[::-1] else size
