"""COCO-format data whose faults are found before training, or skipped and counted."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from pat_mmdet.datasets.coco_api import CheckedCOCO, paused_gc
from pat_mmdet.datasets.unreadable import UnreadableImagesMixin, take_sample
from pat_mmdet.utils.images import read_image_sizes


@DATASETS.register_module()
class CheckedCocoDataset(UnreadableImagesMixin, CocoDataset):
    """A ``CocoDataset`` with clear errors, which goes on after an image that cannot be read.

    See :class:`CheckedCOCO` for what is checked, and :class:`UnreadableImagesMixin` for images.

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
        self._check_sizes(take_sample(data_list))
        return data_list

    def _check_sizes(self, sample: list[dict]) -> None:
        """Warn of images that are of another size than annotated."""
        resized = []
        for info in sample:
            with suppress(OSError):
                shown, _ = read_image_sizes(info["img_path"])
                # Width and height may be those of the frame as stored.
                if sorted(shown) != sorted((info["width"], info["height"])):
                    resized.append(info["img_path"])
        if resized:
            print_log(
                f"of {len(sample)} images of {self.ann_file!r} that were looked for, "
                f"{len(resized)} are not of the annotated size, for example {resized[0]!r}; their "
                "boxes are used as they are. If the images were resized, resize the boxes too",
                "current",
                logging.WARNING,
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
