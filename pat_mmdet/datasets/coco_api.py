"""Annotation files in COCO format, checked entry by entry."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from pat_mmdet.utils.images import annotated_size

_NUMBER = (int, float)
_ID = (int, str)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": dict(id=_ID, file_name=(str,), height=_NUMBER, width=_NUMBER),
    "annotations": dict(id=_ID, image_id=_ID, category_id=_ID, bbox=(list,), area=_NUMBER),
    "categories": dict(id=_ID, name=(str,)),
}
_MAX_ID = 2**53  # COCO's evaluation keeps ids as floats
_MAX_AREA = 1e10  # COCO's evaluation leaves larger objects out
_MAX_PIXELS = 2**30  # of an image that OpenCV reads


@contextmanager
def paused_gc() -> Iterator[None]:
    """Pause the garbage collector, which would go through millions of new objects many times."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CheckedCOCO(COCO):
    """Read an annotation file, and say what is wrong with it.

    What would train or evaluate something else than was meant is refused. What has one meaning is
    set right in memory, with a warning: annotations without ``iscrowd`` are of single objects; ids
    that COCO's evaluation takes for "no match" (0, for example) or that occur twice are numbered
    anew; boxes that are not finite are left out; width and height that are swapped are swapped
    back.

    Args:
        annotation_file (str): Path of a COCO JSON file.
        image_folder (str, optional): Folder of the images, which are asked for their size where
            boxes would fit if width and height were swapped. With it, boxes that training leaves
            out or clips are counted in a warning.
        data_root (str, optional): Folder that the images may not lead out of.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, or its entries are incomplete or contradict each other.
    """

    @paused_gc()
    def __init__(
        self, annotation_file: str, image_folder: str | None = None, data_root: str | None = None
    ) -> None:
        super().__init__()
        self.path = annotation_file
        self.dataset = self._read()
        self._check_fields()
        self._check_ids()
        self._check_images()
        if image_folder is not None:
            self._check_file_names(image_folder, data_root)
        if self.dataset.get("annotations"):
            self._complete_annotations()
            self._check_boxes(image_folder)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence = (), sup_names: Sequence = (), cat_ids: Sequence = ()
    ) -> list[int]:
        """Look up category ids by name.

        Raises:
            ValueError: If no class is named, one is not in the file or twice, or the order differs.
        """
        if not cat_names:
            raise ValueError(
                f"no classes are set for annotation file {self.path!r}. Set classes in the config "
                "(metainfo) to the names of the categories to learn"
            )
        names = [category["name"] for category in self.dataset["categories"]]
        absent = [name for name in cat_names if name not in names]
        if absent:
            raise self._error(
                f"has no categories named {absent}; it has {sorted(names)}. Set the classes in the "
                "config (metainfo) to the names in the file"
            )
        ordered = [name for name in names if name in cat_names]
        repeated = _repeated(ordered)
        if repeated:
            raise self._error(
                f"has more than one category named {repeated[0]!r}. Make one of them, or give them "
                "names of their own"
            )
        if ordered != list(cat_names):
            # MMDetection numbers labels in the order of the file.
            raise self._error(
                f"has its categories in the order {ordered}, the config has the classes "
                f"{list(cat_names)}. Set the classes in the file's order, or they would change "
                "names"
            )
        return super().get_cat_ids(cat_names, sup_names, cat_ids)

    def _read(self) -> dict:
        """Return the content of the file."""
        if not os.path.isfile(self.path):
            raise FileNotFoundError(
                f"annotation file {self.path!r} does not exist. Put the data there, or set "
                "data_root in the config to the folder that holds it"
            )
        content = Path(self.path).read_bytes()
        try:
            dataset = json.loads(content)
            if not isinstance(dataset, dict):
                raise ValueError(f"it holds a {type(dataset).__name__}")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"annotation file {self.path!r} ({len(content)} bytes) is no valid COCO JSON: "
                f"{type(error).__name__}: {error}. It may be truncated: copy or convert it again"
            ) from None
        return dataset

    def _check_fields(self) -> None:
        """Check that entries are complete and of the right types."""
        for part, fields in _FIELDS.items():
            if part == "annotations" and part not in self.dataset:
                continue  # as for the images of a test server
            entries = self.dataset.get(part)
            if not entries or not isinstance(entries, list):
                raise self._error(
                    f"has no {part}; there is nothing to learn from or to compare with. Check how "
                    "it was made"
                )
            self._refuse(part, "are no objects", [e for e in entries if type(e) is not dict])
            for key, types in fields.items():
                self._check_field(part, key, types)

    def _check_field(self, part: str, key: str, types: tuple[type, ...]) -> None:
        """Check that all entries of a part have a value of one of the types."""
        entries = self.dataset[part]
        with suppress(KeyError):
            if set(map(type, _values(entries, key))) <= set(types):
                return
        self._refuse(part, f"lack {key!r}", [entry for entry in entries if key not in entry])
        names = " or ".join(item.__name__ for item in types)
        wrong = [entry for entry in entries if type(entry[key]) not in types]
        self._refuse(part, f"have a {key!r} that is no {names}", wrong)

    def _check_ids(self) -> None:
        """Check that ids are unique, and that annotations belong to images and categories."""
        for part, key in (("images", "image_id"), ("categories", "category_id")):
            ids = list(_values(self.dataset[part], "id"))
            repeated = _repeated(ids)
            if repeated:
                raise self._error(
                    f"has more than one of its {part} with the id {repeated[0]!r}; give each an "
                    "id of its own"
                )
            known, kinds = set(ids), set(map(type, ids))
            if len(kinds) > 1 or (kinds == {int} and max(map(abs, ids)) > _MAX_ID):
                raise self._error(
                    f"has numbers and texts as ids of {part}, or numbers beyond 2**53; number "
                    "them from 1"
                )
            used = set(_values(self.dataset.get("annotations", ()), key))
            if not used <= known:
                raise self._error(
                    f"has annotations with values of {key} that none of its {part} has as id, for "
                    f"example {sorted(used - known, key=str)[:5]}. Correct the file"
                )

    def _check_images(self) -> None:
        """Check the sizes of the images, and whether each is listed once."""
        images = self.dataset["images"]
        self._refuse(
            "images",
            "have a width or height that no image has",
            [
                image
                for image in images
                if not (0 < image["width"] * image["height"] <= _MAX_PIXELS)
                or image["width"] < 1
                or image["height"] % 1
                or image["width"] % 1
            ],
        )
        for image in images:
            image["width"], image["height"] = int(image["width"]), int(image["height"])
        repeated = _repeated(image["file_name"] for image in images)
        if repeated:
            self._warn(
                f"{len(repeated)} images are listed more than once, for example {repeated[0]!r}; "
                "each entry counts as an image"
            )

    def _check_file_names(self, image_folder: str, data_root: str | None) -> None:
        """Check that no image lies outside of the folder of the data."""
        below = os.path.relpath(image_folder or ".", data_root or ".")
        # The config itself may have the images elsewhere.
        start = "" if _leads_up(below) else below
        outside = [
            image
            for image in self.dataset["images"]
            if os.path.isabs(image["file_name"]) or _leads_up(f"{start}/{image['file_name']}")
        ]
        folder = data_root or image_folder
        self._refuse("images", f"have a file_name that leads out of {folder!r}", outside)

    def _complete_annotations(self) -> None:
        """Check and add ``iscrowd``, and number annotations that need it."""
        annotations = self.dataset["annotations"]
        for annotation in annotations:
            annotation.setdefault("iscrowd", 0)
        wrong = [item for item in annotations if item["iscrowd"] not in (0, 1)]
        self._refuse("annotations", "have an 'iscrowd' other than 0 and 1", wrong)
        if all(item["iscrowd"] for item in annotations):
            raise self._error(
                "marks all boxes as crowds (iscrowd=1), which are neither learnt nor evaluated; "
                "set iscrowd=0 for single objects"
            )
        ids = list(_values(annotations, "id"))
        repeated = len(ids) - len(set(ids))
        is_numbered = set(map(type, ids)) == {int} and min(ids) > 0 and max(ids) <= _MAX_ID
        if repeated or not is_numbered:
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            fault = f"{repeated} have the id of another" if repeated else "their ids are others"
            self._warn(
                "COCO's evaluation needs a number of its own, from 1 on, for each annotation, and "
                f"{fault}; they are numbered anew in memory"
            )

    def _check_boxes(self, image_folder: str | None) -> None:
        """Check all boxes, and leave out those that are not finite."""
        annotations = self.dataset["annotations"]
        lists = list(_values(annotations, "bbox"))
        kinds = set(map(type, chain.from_iterable(lists)))
        if set(map(len, lists)) != {4} or not kinds <= set(_NUMBER):
            wrong = [
                item
                for item in annotations
                if len(item["bbox"]) != 4 or not set(map(type, item["bbox"])) <= set(_NUMBER)
            ]
            self._refuse("annotations", "have a 'bbox' that is not four numbers", wrong)
        boxes = _floats(chain.from_iterable(lists)).reshape(-1, 4)
        area = _floats(_values(annotations, "area"))
        finite = (np.abs(boxes) <= _MAX_AREA).all(1) & (np.abs(area) <= _MAX_AREA)
        if not finite.any():
            raise self._error("has no box whose numbers are finite. Check how it was made")
        if not finite.all():
            first = annotations[int(np.argmin(finite))]
            self._warn(
                f"{int((~finite).sum())} of {len(finite)} boxes are not finite and left out, the "
                f"first is annotation {first['id']} with {str(first['bbox'])[:100]}"
            )
            annotations = [item for item, good in zip(annotations, finite) if good]
            self.dataset["annotations"] = annotations
            boxes, area = boxes[finite], area[finite]

        images = self.dataset["images"]
        rows = {image["id"]: row for row, image in enumerate(images)}
        row = np.array([rows[image_id] for image_id in _values(annotations, "image_id")])
        sizes = np.array([(image["width"], image["height"]) for image in images])
        self._refuse_fractions(boxes, sizes)
        self._refuse_corners(boxes, sizes[row])
        if image_folder is not None:
            begin, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
            self._swap_sizes(image_folder, row, end, sizes)
            self._count_boxes(begin, end, area, sizes[row])

    def _refuse_fractions(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Refuse boxes (N, 4) that are shares of the sizes (M, 2) of the images."""
        if (boxes >= 0).all() and boxes.max() <= 1 < sizes.min():
            raise self._error(
                f"has boxes whose coordinates look normalised (0 to 1), for example "
                f"{boxes[0].tolist()}; COCO wants pixels: multiply x and width by the image's "
                "width, y and height by its height, and set 'area' to width times height"
            )

    def _refuse_corners(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Refuse boxes that are (x1, y1, x2, y2).

        Read as (x, y, w, h), many of them would reach beyond their images, while hardly any list of
        such boxes has each w > x, each h > y and all inside as corners.

        Args:
            boxes (np.ndarray): Boxes, (N, 4).
            sizes (np.ndarray): Width and height of their images, (N, 2).
        """
        begin, other = boxes[:, :2], boxes[:, 2:]
        is_beyond = (begin + other > 1.1 * sizes).any(1)
        are_corners = ((other > begin) & (other <= sizes + 1)).all(1)
        if is_beyond.mean() > 0.1 and are_corners.mean() > 0.95:
            raise self._error(
                f"has boxes that look like (x1, y1, x2, y2): as (x, y, width, height) "
                f"{int(is_beyond.sum())} of {len(boxes)} would reach beyond their images, for "
                f"example {boxes[int(np.argmax(is_beyond))].tolist()}. Subtract x1 and y1 from the "
                "last two"
            )

    def _swap_sizes(
        self, image_folder: str, row: np.ndarray, end: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Correct swapped widths and heights by the images, in place.

        Boxes outside of the size are lost, so images are asked where boxes would fit otherwise.

        Args:
            image_folder (str): Folder of the images.
            row (np.ndarray): Index of the image of each box, (N,).
            end (np.ndarray): Right and lower edges of the boxes, (N, 2).
            sizes (np.ndarray): Width and height of the images, (M, 2).
        """
        counts = [
            np.bincount(row, (end > size[row] + 1).any(1), len(sizes))
            for size in (sizes, sizes[:, ::-1])
        ]
        corrected = []
        for index in np.flatnonzero((counts[0] > 0) & (counts[1] == 0)):
            image = self.dataset["images"][index]
            path = os.path.join(image_folder, image["file_name"])
            size = (image["width"], image["height"])
            right = annotated_size(path, size, fits=False)
            if right != size:
                image["width"], image["height"] = sizes[index] = right
                corrected.append(image["file_name"])
        if corrected:
            self._warn(
                f"{len(corrected)} images have width and height swapped, for example "
                f"{corrected[0]!r}; the sizes of the images are used"
            )

    def _count_boxes(
        self, begin: np.ndarray, end: np.ndarray, area: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Warn of the boxes that training leaves out or clips.

        Args:
            begin (np.ndarray): Left and upper edges, (N, 2).
            end (np.ndarray): Right and lower edges, (N, 2).
            area (np.ndarray): Areas, (N,).
            sizes (np.ndarray): Width and height of their images, (N, 2).
        """
        annotations = self.dataset["annotations"]
        ignored = np.array([bool(item.get("ignore")) for item in annotations])
        # As in CocoDataset.parse_data_info.
        outside = (np.minimum(end, sizes) <= np.maximum(begin, 0)).any(1)
        small = (end - begin < 1).any(1) | (area <= 0)
        beyond = ((begin < -1) | (end > sizes + 1)).any(1)
        found, counted = [], np.zeros(len(annotations), dtype=bool)
        for what, mask in (
            ("marked ignore: not trained on", ignored),
            ("smaller than a pixel or without area: not trained on", small),
            ("outside of their image: not trained on", outside),
            ("partly outside of their image: clipped where images are resized", beyond),
        ):
            mask = mask & ~counted
            counted |= mask
            if mask.any():
                first = annotations[int(np.argmax(mask))]
                found.append(f"{int(mask.sum())} {what} (the first is annotation {first['id']})")
        if found:
            self._warn(f"of {len(annotations)} boxes, {'; '.join(found)}")

    def _refuse(self, part: str, what: str, entries: list) -> None:
        """Raise an error if there are entries, which it counts and of which it shows the first."""
        if entries:
            raise self._error(
                f"{len(entries)} of {len(self.dataset[part])} {part} {what}, the first is "
                f"{repr(entries[0])[:200]}. Correct the file",
                separator=": ",
            )

    def _error(self, message: str, separator: str = " ") -> ValueError:
        return ValueError(f"annotation file {self.path!r}{separator}{message}")

    def _warn(self, message: str) -> None:
        _warn_once(f"annotation file {self.path!r}: {message}")


def _values(entries: Iterable[dict], key: str) -> Iterator:
    """Yield the value of every entry."""
    return map(itemgetter(key), entries)


def _leads_up(path: str) -> bool:
    """Return True if a relative path leads out of the folder that it starts in."""
    return os.path.normpath(path).split(os.sep)[0] == os.pardir


def _repeated(values: Iterable) -> list:
    """Return the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _floats(values: Iterable[float]) -> np.ndarray:
    """Return numbers as an array; a whole number that no float can hold is infinite."""
    values = list(values)
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([value if abs(value) < _MAX_ID else math.inf for value in values])


@cache
def _warn_once(message: str) -> None:
    """Log a warning, once for a data set and the evaluator that read the same file."""
    print_log(message, "current", logging.WARNING)
