"""COCO-format data whose faults are found before training, or skipped and counted."""

from __future__ import annotations

import logging
import os
from functools import partial

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from pat_mmdet.datasets.coco_api import CheckedCOCO, paused_gc
from pat_mmdet.datasets.transforms.loading import read_image
from pat_mmdet.datasets.unreadable import BlackForUnreadable
from pat_mmdet.utils.images import read_image_sizes


@DATASETS.register_module()
class CheckedCocoDataset(BlackForUnreadable, CocoDataset):
    """A ``CocoDataset`` with clear errors, which goes on after an image that cannot be read.

    See :class:`CheckedCOCO` for what is checked, and :class:`BlackForUnreadable` for such images.

    Raises:
        FileNotFoundError: If the annotation file or most of the images do not exist.
        ValueError: If the annotation file is not valid or does not fit the classes.
    """

    @paused_gc()
    def load_data_list(self) -> list[dict]:
        """Load the annotations and check whether the images are there and of the annotated size."""
        self.COCOAPI = partial(
            CheckedCOCO, image_folder=self.data_prefix["img"], data_root=self.data_root
        )
        data_list = super().load_data_list()
        if not self.test_mode and all(
            instance["ignore_flag"] for info in data_list for instance in info["instances"]
        ):
            raise ValueError(
                f"annotation file {self.ann_file!r} has no box of the classes "
                f"{list(self.metainfo['classes'])} to learn from: none at all, or only crowds and "
                "boxes that are left out. Correct it, or the classes in the config"
            )
        # A sample, as asking a remote file system for every image can take minutes.
        sample = data_list[:: max(len(data_list) // 100, 1)]
        self._check_images([info for info in sample if "://" not in info["img_path"]])
        return data_list

    def _check_images(self, sample: list[dict]) -> None:
        """Warn of images that are absent, unreadable or of another size than annotated.

        Raises:
            FileNotFoundError: If most of them are absent.
            ValueError: If most of them cannot be read.
        """
        absent, unreadable, resized = [], [], []
        for info in sample:
            path = info["img_path"]
            try:
                shown, _ = read_image_sizes(path)
            except OSError:
                if not os.path.isfile(path):
                    absent.append(path)
                elif read_image(path) is None:  # Pillow knows other formats than OpenCV
                    unreadable.append(path)
            else:
                # Width and height may be those of the frame as stored.
                if sorted(shown) != sorted((info["width"], info["height"])):
                    resized.append(path)
        looked_for = f"of {len(sample)} images of {self.ann_file!r} that were looked for"
        if len(absent) > len(sample) / 2:
            raise FileNotFoundError(
                f"{looked_for}, {len(absent)} do not exist, for example {absent[0]!r}. Put the "
                "images there, or set data_root and data_prefix in the config"
            )
        if len(absent) + len(unreadable) > len(sample) / 2:
            raise ValueError(
                f"{looked_for}, {len(unreadable)} cannot be read, for example {unreadable[0]!r}. "
                "Copy them again"
            )
        if absent:
            _warn(
                f"{looked_for}, {len(absent)} do not exist, for example {absent[0]!r}; they will "
                "be skipped"
            )
        if resized:
            _warn(
                f"{looked_for}, {len(resized)} are not of the annotated size, for example "
                f"{resized[0]!r}; their boxes are used as they are. If the images were resized, "
                "resize the boxes too"
            )

    def filter_data(self) -> list[dict]:
        """Drop images as the config asks.

        Raises:
            ValueError: If no image is left.
        """
        kept = super().filter_data()
        if not kept:
            raise ValueError(
                f"{self.ann_file!r}: none of its images has a box of the classes "
                f"{list(self.metainfo['classes'])} (filter_cfg={self.filter_cfg}). Check the "
                "annotations, or the classes in the config"
            )
        return kept


def _warn(message: str) -> None:
    print_log(message, "current", logging.WARNING)
