"""Convert a Pascal VOC data set (XML files) to COCO annotation files.

Example:
    python tools/dataset_converters/voc2coco.py data/bccd --classes RBC WBC Platelets

reads ``data/bccd/{Annotations,JPEGImages,ImageSets/Main}`` and writes
``data/bccd/annotations/{train,val}.json``. The images stay where they are: ``file_name`` is
relative to ``JPEGImages``, so a config uses ``data_prefix=dict(img='JPEGImages/')``.

Conventions:

* Coordinates follow MMDetection's own ``XMLDataset`` and ``pascal_voc.py``: VOC counts pixels
  from 1, so 1 is taken from all four coordinates, and ``w = xmax - xmin``, ``h = ymax - ymin``
  (without + 1). ``--zero-based`` is for files that count from 0: nothing is subtracted.
* A box without area, or wholly outside its image, is dropped; one that is partly outside is
  clipped. Both are counted in the summary.
* ``difficult`` boxes get ``iscrowd=1``: MMDetection neither trains on them nor counts a
  detection on them as wrong.
* An image without boxes stays in the file.
* Category ids count from 1 in the order of ``--classes``. Without that option they are the sorted
  names of the boxes of all ``--splits``, so convert the splits in one run or name the classes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
MAX_NAMES_SHOWN = 5
WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class ConversionError(Exception):
    """Something in the data set is wrong; the message says what, where and what to do."""


@dataclass
class VocObject:
    """One ``<object>`` of a VOC file, its corners in the coordinates of that file."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass
class VocImage:
    """One image of a split with its objects."""

    file_name: str
    width: int
    height: int
    xml_path: Path
    objects: list[VocObject]
    real_size: tuple[int, int]


@dataclass
class Summary:
    """What a conversion did to the boxes of one split; lists hold file names, one per box."""

    images: int = 0
    empty_images: int = 0
    boxes: Counter[str] = field(default_factory=Counter)
    difficult: int = 0
    zero_area: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    at_zero: int = 0

    def lines(self, split: str, classes: Sequence[str]) -> Iterator[str]:
        """Yield the lines of the report on this split."""
        per_class = ", ".join(f"{name} {self.boxes[name]}" for name in classes)
        yield f"{split}: {self.images} images ({self.empty_images} without a box)"
        yield f"  boxes: {sum(self.boxes.values())} ({per_class}), difficult: {self.difficult}"
        yield f"  dropped, no area: {_names(self.zero_area)}"
        yield f"  dropped, outside the image: {_names(self.outside)}"
        yield f"  clipped to the image: {_names(self.clipped)}"
        if self.other_size:
            yield (
                f"  warning: the XML and the image disagree on the size (kept the XML's): "
                f"{_names(self.other_size)}"
            )
        if self.at_zero:
            yield (
                f"  warning: {self.at_zero} boxes begin at 0, which does not exist where pixels "
                f"count from 1; if these files count from 0, use --zero-based"
            )


def _names(names: Sequence[str]) -> str:
    """Return the number of boxes and the first distinct file names, as text."""
    if not names:
        return "0"
    distinct = list(dict.fromkeys(names))
    more = ", …" if len(distinct) > MAX_NAMES_SHOWN else ""
    return f"{len(names)} ({', '.join(distinct[:MAX_NAMES_SHOWN])}{more})"


def read_split(voc_root: Path, split: str) -> list[str]:
    """Return the image ids of ``ImageSets/Main/<split>.txt`` in the order of the file."""
    path = voc_root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise ConversionError(
            f"split file not found: {path}\nCreate it (one image name per line, without suffix) "
            f"or name other splits with --splits."
        )
    ids = [
        line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ]
    ids = [image_id for image_id in ids if image_id]
    if not ids:
        raise ConversionError(f"split file is empty: {path}\nList one image name per line.")
    twice = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise ConversionError(
            f"{twice[0]!r} is listed more than once in {path}\nRemove the repeated lines."
        )
    return ids


def find_image(voc_root: Path, image_id: str) -> Path:
    """Return the image file of an id, whatever its suffix."""
    folder = voc_root / "JPEGImages"
    for suffix in IMAGE_SUFFIXES:
        path = folder / f"{image_id}{suffix}"
        if path.is_file():
            return path
    raise ConversionError(
        f"no image for {image_id!r} in {folder}\nAdd it ({', '.join(IMAGE_SUFFIXES[:4])}) or "
        f"remove the name from the split file."
    )


def _text(element: ET.Element, path: str, where: str) -> str:
    """Return the text at ``path`` below ``element``; an absent or empty one is an error."""
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ConversionError(f"<{path}> is missing or empty in {where}\nCorrect the file.")
    return text


def _number(element: ET.Element, path: str, where: str) -> float:
    """Return the finite number at ``path`` below ``element``, an ``int`` where it is whole."""
    text = _text(element, path, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConversionError(f"<{path}> is {text!r}, not a number, in {where}\nCorrect the file.")
    return int(number) if number == int(number) else number


def _xml_size(root: ET.Element, where: str) -> tuple[int, int] | None:
    """Return (width, height) of ``<size>``, or None where it is absent, empty or zero."""
    size = root.find("size")
    if size is None:
        return None
    values = []
    for key in ("width", "height"):
        if not (size.findtext(key) or "").strip():
            return None
        values.append(int(_number(size, key, where)))
    return (values[0], values[1]) if min(values) > 0 else None


def read_image(voc_root: Path, image_id: str) -> VocImage:
    """Read the XML file of one image and the size of the image itself."""
    xml_path = voc_root / "Annotations" / f"{image_id}.xml"
    if not xml_path.is_file():
        raise ConversionError(
            f"annotation file not found: {xml_path}\nAdd it or remove {image_id!r} from the "
            f"split file."
        )
    try:
        root = ET.parse(xml_path).getroot()
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        raise ConversionError(
            f"not readable XML: {xml_path}: {error}\nCorrect the file."
        ) from error

    image_path = find_image(voc_root, image_id)
    try:
        with Image.open(image_path) as image:
            real_size = image.size
    except OSError as error:
        raise ConversionError(
            f"cannot read the image {image_path}: {error}\nReplace the file."
        ) from error

    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        where = f"object {number} of {xml_path}"
        corners = tuple(
            _number(element, f"bndbox/{key}", where) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "").strip() not in ("", "0")
        objects.append(VocObject(_text(element, "name", where), corners, difficult))

    width, height = _xml_size(root, str(xml_path)) or real_size
    file_name = image_path.relative_to(voc_root / "JPEGImages").as_posix()
    return VocImage(file_name, width, height, xml_path, objects, real_size)


def convert_split(
    images: Sequence[VocImage], classes: Sequence[str], zero_based: bool = False
) -> tuple[dict, Summary]:
    """Turn the images of one split into a COCO data set.

    Args:
        images: The images of the split.
        classes: Class names; the category ids are their positions, counted from 1.
        zero_based: Whether the files count pixels from 0 instead of 1.

    Returns:
        The content of the COCO file, and what happened to the boxes.
    """
    category_ids = {name: index for index, name in enumerate(classes, 1)}
    summary = Summary(images=len(images))
    # Some COCO readers copy `info` without asking whether it is there. The ids begin at 1 because
    # COCO's evaluation takes annotation id 0 for "no match".
    coco: dict = {
        "info": {"description": "converted from Pascal VOC by voc2coco.py"},
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for name, index in category_ids.items()],
    }
    for image_id, image in enumerate(images, 1):
        coco["images"].append(
            {
                "id": image_id,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
        )
        if (image.width, image.height) != image.real_size:
            summary.other_size.append(image.file_name)
        before = len(coco["annotations"])
        for item in image.objects:
            if item.name not in category_ids:
                raise ConversionError(
                    f"unknown class {item.name!r} in {image.xml_path}\nThe classes are "
                    f"{', '.join(classes)}: add it to --classes or correct the file."
                )
            summary.at_zero += not zero_based and 0 in item.corners[:2]
            box = _clip(item, image, 0 if zero_based else 1, summary)
            if box is None:
                continue
            summary.boxes[item.name] += 1
            summary.difficult += item.difficult
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[item.name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(item.difficult),
                }
            )
        summary.empty_images += len(coco["annotations"]) == before
    return coco, summary


def _clip(item: VocObject, image: VocImage, origin: int, summary: Summary) -> list[float] | None:
    """Return the box as [x, y, w, h] inside the image, or None where nothing of it is left."""
    x1, y1, x2, y2 = (value - origin for value in item.corners)
    if x2 <= x1 or y2 <= y1:
        summary.zero_area.append(image.file_name)
        return None
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x2, image.width), min(y2, image.height)
    if right <= left or bottom <= top:
        summary.outside.append(image.file_name)
        return None
    if (left, top, right, bottom) != (x1, y1, x2, y2):
        summary.clipped.append(image.file_name)
    return [left, top, right - left, bottom - top]


def default_out_dir(voc_root: Path) -> Path:
    """Return ``VOC_ROOT/annotations``, unless that place is marked read-only."""
    out_dir = voc_root / "annotations"
    existing = out_dir if out_dir.exists() else voc_root
    # The mode bits are asked too, as they do not stop root (the usual user of a container) from
    # writing into a data set that was made read-only on purpose.
    if existing.is_dir() and not (
        os.access(existing, os.W_OK) and existing.stat().st_mode & WRITE_BITS
    ):
        raise ConversionError(
            f"{existing} is read-only\nGive another output folder as second argument."
        )
    return out_dir


def write_json(content: dict, path: Path) -> None:
    """Write ``content`` so that ``path`` is either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def convert(
    voc_root: Path,
    out_dir: Path,
    splits: Sequence[str] = ("train", "val"),
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
) -> None:
    """Convert all splits; nothing is written unless every one of them can be read.

    Args:
        voc_root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.
        out_dir: Folder of the COCO files, created where necessary.
        splits: Names of the files in ``ImageSets/Main``, without suffix.
        classes: Class names in the order of their ids. Default: all names found, sorted.
        zero_based: Whether the files count pixels from 0 instead of 1.
    """
    if not voc_root.is_dir():
        raise ConversionError(f"no such folder: {voc_root}\nGive the root of a VOC data set.")
    if classes is not None and len(set(classes)) != len(classes):
        raise ConversionError("--classes names a class twice\nName each class once.")
    ids = {split: read_split(voc_root, split) for split in splits}
    images = {
        split: [read_image(voc_root, image_id) for image_id in split_ids]
        for split, split_ids in ids.items()
    }
    if classes is None:
        classes = sorted({o.name for group in images.values() for i in group for o in i.objects})
        if not classes:
            raise ConversionError(
                f"no box in any image of the splits {', '.join(splits)} of {voc_root}\n"
                f"Check the files in Annotations, or name the classes with --classes."
            )
    results = {split: convert_split(group, classes, zero_based) for split, group in images.items()}

    with _write_errors(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        for split, (coco, _) in results.items():
            write_json(coco, out_dir / f"{split}.json")

    for split, (_, summary) in results.items():
        print("\n".join(summary.lines(split, classes)))
    seen: dict[str, str] = {}
    for split, split_ids in ids.items():
        shared = [image_id for image_id in split_ids if image_id in seen]
        if shared:
            print(f"warning: {split} and {seen[shared[0]]} share images: {_names(shared)}")
        seen.update(dict.fromkeys(split_ids, split))
    # MMDetection numbers the labels in the order of the file, whatever the config says.
    print(f"wrote {', '.join(str(out_dir / f'{split}.json') for split in results)}")
    print(f"for the config, in this order: metainfo = dict(classes={tuple(classes)!r})")


@contextmanager
def _write_errors(out_dir: Path) -> Iterator[None]:
    """Report a folder that cannot be written to as an error with its remedy."""
    try:
        yield
    except OSError as error:
        raise ConversionError(
            f"cannot write to {out_dir}: {error}\nGive another output folder as second argument."
        ) from error


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("voc_root", type=Path, help="root folder of the VOC data set")
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        help="output folder (default: VOC_ROOT/annotations, unless read-only)",
    )
    parser.add_argument("--splits", nargs="+", default=["train", "val"], help="default: train val")
    parser.add_argument(
        "--classes", nargs="+", help="class names in the order of their ids (default: sorted)"
    )
    parser.add_argument("--zero-based", action="store_true", help="the files count pixels from 0")
    return parser.parse_args()


def main() -> None:
    """Run the conversion, turning every expected error into one message."""
    args = parse_args()
    try:
        out_dir = args.out or default_out_dir(args.voc_root)
        convert(args.voc_root, out_dir, args.splits, args.classes, args.zero_based)
    except ConversionError as error:
        sys.exit(f"voc2coco: {error}")


if __name__ == "__main__":
    main()
