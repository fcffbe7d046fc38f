"""Data sets of which some images cannot be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log

from pat_mmdet.datasets.transforms.loading import read_image
from pat_mmdet.utils.images import read_image_sizes

_SIDE = 224  # pixels, of an image whose size nothing tells


class UnreadableImagesMixin:
    """Mixin of data sets whose pipelines begin with ``LoadImageOrSkip``.

    That reports an image which cannot be read. In training the data set takes another one. In
    evaluation a black image takes its place, so that it counts, as missed or wrong.
    """

    test_mode: bool
    ann_file: str
    data_prefix: dict
    pipeline: Any
    get_data_info: Any

    def load_data_list(self) -> list[dict]:
        """Load the annotations and check whether the images are there.

        Raises:
            FileNotFoundError: If most of them do not exist.
            ValueError: If most of them cannot be read.
        """
        data_list = super().load_data_list()  # type: ignore[misc]
        paths = [info["img_path"] for info in take_sample(data_list)]
        _check_images(paths, self.ann_file or next(iter(self.data_prefix.values())))
        return data_list

    def prepare_data(self, idx: int) -> dict | None:
        """Load and transform an image, or a black one in evaluation if it cannot be read."""
        data = super().prepare_data(idx)  # type: ignore[misc]
        if data is not None or not self.test_mode:
            return data
        info = self.get_data_info(idx)
        size = (info.get("height", _SIDE), info.get("width", _SIDE))
        info["img"] = np.zeros((*size, 3), dtype=np.uint8)
        info["img_shape"] = info["ori_shape"] = size
        for transform in self.pipeline.transforms[1:]:
            info = transform(info)
        return info


def take_sample(data_list: Sequence[dict]) -> list[dict]:
    """Return about a hundred images, without those of remote file systems.

    Asking such a system for every image can take minutes.
    """
    return [
        info
        for info in data_list[:: max(len(data_list) // 100, 1)]
        if "://" not in info["img_path"]
    ]


def _check_images(paths: Sequence[str], source: str) -> None:
    """Warn of images that do not exist.

    Args:
        paths (Sequence[str]): Some images.
        source (str): File or folder that they are from.

    Raises:
        FileNotFoundError: If most of them do not exist.
        ValueError: If most of them cannot be read.
    """
    absent = [path for path in paths if not os.path.isfile(path)]
    looked_for = f"of {len(paths)} images of {source!r} that were looked for"
    if len(absent) > len(paths) / 2:
        raise FileNotFoundError(
            f"{looked_for}, {len(absent)} do not exist, for example {absent[0]!r}. Put the images "
            "there, or set data_root and data_prefix in the config"
        )
    unreadable = [path for path in paths if path not in absent and not _is_readable(path)]
    if len(absent) + len(unreadable) > len(paths) / 2:
        raise ValueError(
            f"{looked_for}, {len(unreadable)} cannot be read, for example {unreadable[0]!r}. Copy "
            "them again"
        )
    if absent:
        print_log(
            f"{looked_for}, {len(absent)} do not exist, for example {absent[0]!r}; they will be "
            "skipped",
            "current",
            logging.WARNING,
        )


def _is_readable(path: str) -> bool:
    """Return True if the header of an image can be read, or else the image."""
    try:
        read_image_sizes(path)
    except OSError:
        return read_image(path) is not None  # OpenCV knows other formats than Pillow
    return True
