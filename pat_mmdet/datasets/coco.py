"""COCO-format data whose faults are found before training, or skipped and counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from pat_mmdet.utils.images import annotated_size, boxes_fit, read_image_sizes

_REQUIRED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    "categories": ("id", "name"),
}


class CheckedCOCO(COCO):
    """Read an annotation file and say what is wrong with it.

    Annotations without ``iscrowd``, which COCO's evaluation reads, are of single objects.

    Args:
        annotation_file (str): Path of a COCO JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, empty, or lacks images, annotations or categories.
    """

    def __init__(self, annotation_file: str) -> None:
        self.path = annotation_file
        if not os.path.isfile(annotation_file):
            raise FileNotFoundError(
                f"annotation file {annotation_file!r} does not exist. Put the data there, or set "
                "data_root in the config to the folder that holds it"
            )
        try:
            super().__init__(annotation_file)
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"annotation file {annotation_file!r} ({os.path.getsize(annotation_file)} bytes) "
                f"is no valid COCO JSON: {type(error).__name__}: {error}. It may be truncated: "
                "copy or convert it again"
            ) from None
        for part, keys in _REQUIRED.items():
            if part == "annotations" and part not in self.dataset:
                continue  # as for the images of a test server
            entries = self.dataset.get(part)
            if not entries:
                raise ValueError(
                    f"annotation file {annotation_file!r} has no {part}; there is nothing to learn "
                    "from or to compare with. Check how it was made"
                )
            for key in keys:
                lacking = [entry for entry in entries if key not in entry]
                if lacking:
                    raise ValueError(
                        f"annotation file {annotation_file!r}: {len(lacking)} of {len(entries)} "
                        f"{part} lack {key!r}, the first is {str(lacking[0])[:200]}. Add it"
                    )
        for annotation in self.anns.values():
            annotation.setdefault("iscrowd", 0)
        strangers = {ann["image_id"] for ann in self.anns.values()} - set(self.imgs)
        if strangers:
            raise ValueError(
                f"annotation file {annotation_file!r}: annotations belong to image ids that it "
                f"does not list, for example {sorted(strangers)[:5]}. Correct the file"
            )

    def get_cat_ids(
        self, cat_names: Sequence = (), sup_names: Sequence = (), cat_ids: Sequence = ()
    ) -> list[int]:
        """Look up category ids by name.

        Raises:
            ValueError: If no class is named, one is not in the file, the order differs, or
                annotations use ids that no category has.
        """
        if not cat_names:
            raise ValueError(
                f"no classes are set for annotation file {self.path!r}. Set classes in the config "
                "(metainfo) to the names of the categories to learn"
            )
        names = {category["id"]: category["name"] for category in self.dataset["categories"]}
        absent = [name for name in cat_names if name not in names.values()]
        if absent:
            raise ValueError(
                f"annotation file {self.path!r} has no categories named {absent}; it has "
                f"{sorted(names.values())}. Set the classes in the config (metainfo) to the "
                "names in the file"
            )
        ordered = [name for name in names.values() if name in cat_names]
        if ordered != list(cat_names):
            # MMDetection numbers labels in the order of the file.
            raise ValueError(
                f"annotation file {self.path!r} has its categories in the order {ordered}, the "
                f"config has the classes {list(cat_names)}. Set the classes in the file's order, "
                "or they would change names"
            )
        used = {annotation["category_id"] for annotation in self.anns.values()}
        if not used <= set(names):
            raise ValueError(
                f"annotation file {self.path!r}: annotations use the category ids "
                f"{sorted(used - set(names))}, which its categories {names} do not define. "
                "Correct the file"
            )
        return super().get_cat_ids(cat_names, sup_names, cat_ids)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """A ``CocoDataset`` with clear errors, which goes on after an image that cannot be read.

    Such an image is reported by :class:`LoadImageOrSkip`. In training another image takes its
    place. In evaluation a black one does, so that its objects count as missed. Where the annotation
    file has width and height of an image swapped, they are corrected by the image.

    Raises:
        FileNotFoundError: If the annotation file or most of the images do not exist.
        ValueError: If the annotation file is not valid or does not fit the classes.
    """

    COCOAPI = CheckedCOCO

    def load_data_list(self) -> list[dict]:
        """Load the annotations and check whether the images are there and of the annotated size."""
        self._corrected: list[str] = []
        data_list = super().load_data_list()
        if self._corrected:
            self._warn(
                f"{len(self._corrected)} images have width and height swapped, for example "
                f"{self._corrected[0]!r}; the sizes of the images are used"
            )
        if not self.test_mode and not any(info["instances"] for info in data_list):
            raise ValueError(
                f"annotation file {self.ann_file!r} has no box of the classes "
                f"{list(self.metainfo['classes'])}; there is nothing to learn from"
            )
        # A sample, as asking a remote file system for every image can take minutes.
        sample = data_list[:: max(len(data_list) // 100, 1)]
        self._check_images([info for info in sample if "://" not in info["img_path"]])
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse the annotations of an image, whose size is corrected before.

        Boxes outside of the annotated size are lost, so the image is asked where boxes would fit
        if width and height were swapped.
        """
        image = raw_data_info["raw_img_info"]
        size = image["width"], image["height"]
        boxes = [annotation["bbox"] for annotation in raw_data_info["raw_ann_info"]]
        if not boxes_fit(boxes, size) and boxes_fit(boxes, size[::-1]):
            path = os.path.join(self.data_prefix["img"], image["file_name"])
            corrected = annotated_size(path, size, boxes)
            if corrected != size:
                self._corrected.append(image["file_name"])
                image["width"], image["height"] = corrected
        return super().parse_data_info(raw_data_info)

    def _check_images(self, sample: list[dict]) -> None:
        """Warn of images that are absent or of another size than annotated.

        Raises:
            FileNotFoundError: If most of them are absent.
        """
        paths = [info["img_path"] for info in sample]
        absent = [path for path in paths if not os.path.isfile(path)]
        if len(absent) > len(sample) / 2:
            raise FileNotFoundError(
                f"of {len(sample)} images of {self.ann_file!r} that were looked for, {len(absent)} "
                f"do not exist, for example {absent[0]!r}. Put the images there, or set data_root "
                "and data_prefix in the config"
            )
        if absent:
            self._warn(
                f"of {len(sample)} images that were looked for, {len(absent)} do not exist, for "
                f"example {absent[0]!r}; they will be skipped"
            )
        resized = [info for info in sample if _has_another_size(info)]
        if resized:
            self._warn(
                f"of {len(sample)} images that were looked at, {len(resized)} are not of the "
                f"annotated size, for example {resized[0]['img_path']!r}; their boxes are used as "
                "they are. If the images were resized, resize the boxes too"
            )

    def _warn(self, message: str) -> None:
        print_log(f"{self.ann_file!r}: {message}", "current", logging.WARNING)

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

    def prepare_data(self, idx: int) -> dict | None:
        """Load and transform an image, or a black one in evaluation if it cannot be read."""
        data = super().prepare_data(idx)
        if data is None and self.test_mode:
            info = self.get_data_info(idx)
            info["img"] = np.zeros((info["height"], info["width"], 3), dtype=np.uint8)
            info["img_shape"] = info["ori_shape"] = info["img"].shape[:2]
            for transform in self.pipeline.transforms[1:]:
                info = transform(info)
            return info
        return data


def _has_another_size(info: dict) -> bool:
    """Return True if an image is readable and of neither the annotated size nor that swapped."""
    try:
        shown, _ = read_image_sizes(info["img_path"])
    except OSError:
        return False
    return sorted(shown) != sorted((info["width"], info["height"]))
