"""Sizes of image files, and the frame that their annotations are in.

Photographs may be stored sideways, with an EXIF orientation that viewers and OpenCV follow. An
image therefore has two sizes, as shown and as stored, and annotation files may mean either.
"""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image

_PNG = b"\x89PNG"
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
    stored, orientation = _read_header(path)
    return (stored[::-1] if orientation >= 5 else stored), stored


def read_orientation(content: bytes) -> int:
    """Read the EXIF orientation of an image file, 1 (none) to 8; 1 if it cannot be read."""
    if content.startswith(_PNG) and b"eXIf" not in content:
        return 1  # Pillow would decode the image to find that out
    try:
        return _read_header(io.BytesIO(content))[1]
    except OSError:
        return 1


def _read_header(source: str | BinaryIO) -> tuple[Size, int]:
    """Return stored (width, height) and EXIF orientation of an image.

    Raises:
        OSError: If the file is missing or no image.
    """
    try:
        with Image.open(source) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            return image.size, orientation if orientation in range(1, 9) else 1
    except OSError:
        raise
    except Exception as error:  # what a damaged header makes of Pillow's readers
        raise OSError(f"no readable image: {type(error).__name__}: {error}") from None


def annotated_size(path: str, size: Size, fits: bool) -> Size:
    """Correct the size that an annotation file gives for an image.

    Size and boxes are taken to be in one frame, that of the image as shown or as stored. Where the
    size is neither but has width and height swapped, or where the boxes show that they are not in
    the stored frame, the size as shown is right.

    Args:
        path (str): Path of the image.
        size (tuple[int, int]): (width, height) in the annotation file.
        fits (bool): Whether the boxes of the image lie in that size.

    Returns:
        tuple[int, int]: (width, height) of the frame that the boxes are in; the given one if the
        image cannot be read or has an unrelated size.
    """
    try:
        shown, stored = read_image_sizes(path)
    except OSError:
        return size
    if size == shown or (size == stored and fits):
        return size
    return shown if size == shown[::-1] else size
