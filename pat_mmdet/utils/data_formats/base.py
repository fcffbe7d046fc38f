"""Types and functions shared by the readers of all formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pat_mmdet.utils.errors import ConfigError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
CACHE = ".pat_mmdet"  # folder of converted annotations, beside the data
_WORDS = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation"},
    "test": {"test", "testing"},
}


@dataclass(frozen=True)
class DataSetting:
    """The ``data`` of a config, see :mod:`pat_mmdet.utils.data_folder`.

    Attributes:
        root (Path): The folder.
        splits (dict): What the user named for ``'train'``, ``'val'`` and ``'test'``.
        classes (tuple[str] | None): Names that the user gave.
        format (str | None): Format that the user chose.
        val_share (float | None): Share of the training images that is held out for evaluation.
    """

    root: Path
    splits: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    format: str | None = None
    val_share: float | None = None


class Split(NamedTuple):
    """A split, as a data set of MMDetection or mmpretrain reads it.

    Attributes:
        images (Path): Folder in which the names of the images begin, or with a folder per class.
        ann_file (Path | None): COCO file, or list of images and labels; None for class folders.
        num_images (int): Number of images.
        num_boxes (int | None): Number of boxes; None in classification.
    """

    images: Path
    ann_file: Path | None
    num_images: int
    num_boxes: int | None = None


class Data(NamedTuple):
    """Data found in a folder.

    Attributes:
        format (str): Name of the format.
        root (Path): The folder.
        classes (tuple[str, ...]): Names of the classes, in the order of their labels.
        splits (dict[str, Split]): Has ``'train'``, and ``'val'`` and ``'test'`` if they are there.
        notes (list[str]): What was corrected, left out or chosen.
    """

    format: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, Split]
    notes: list[str]


class Converted(NamedTuple):
    """Annotations of another format as COCO.

    Attributes:
        splits (dict[str, dict]): Contents of the COCO files.
        images (Path): Folder in which the file names begin.
        changes (dict[str, dict[str, list[str]]]): By split, what was corrected or left out, and the
            images, one entry for each box.
    """

    splits: dict[str, dict]
    images: Path
    changes: dict[str, dict[str, list[str]]]


def split_of(name: str) -> str | None:
    """Return the split that a name is for: ``'val'`` for ``'instances_val2017'``.

    Args:
        name (str): Name of a file or folder.

    Returns:
        str | None: ``'train'``, ``'val'``, ``'test'``, or None if it names none or several.
    """
    words = set(re.findall("[a-z]+", name.lower()))
    found = [split for split, names in _WORDS.items() if words & names]
    return found[0] if len(found) == 1 else None


def choose(setting: DataSetting, found: Iterable[Path], what: str) -> dict[str, Path]:
    """Assign files or folders to splits by their names.

    Args:
        setting (DataSetting): The folder of the data.
        found (Iterable[Path]): Files or folders in it; those whose names are for no split, or for
            one that the setting names itself, are left out.
        what (str): What they are, for the message.

    Returns:
        dict[str, Path]: By split.

    Raises:
        ConfigError: If there are two for a split.
    """
    root = setting.root
    chosen: dict[str, Path] = {}
    for path in sorted(found):
        below = path.relative_to(root)
        split = split_of(path.stem) or split_of(below.parent.name)
        if split is None or split in setting.splits:
            continue
        if split in chosen:
            first = chosen[split].relative_to(root).as_posix()
            raise ConfigError(
                f"data={str(root)!r} has more than one {what} for {split}: {first!r}, "
                f"{below.as_posix()!r}; choose by data.{split}={first}"
            )
        chosen[split] = path
    return chosen


def named_path(setting: DataSetting, split: str, name: Any) -> Path:
    """Return the path that a user named for a split.

    Raises:
        ConfigError: If it is no path.
        FileNotFoundError: If it does not exist.
    """
    if not isinstance(name, str):
        raise ConfigError(f"data.{split}={name!r}: give a path")
    path = setting.root / name
    if not path.exists():
        raise FileNotFoundError(f"data.{split}={name!r}: {str(path)!r} does not exist")
    return path


def visible(root: Path, depth: int = 3) -> Iterator[Path]:
    """Yield the folders in a folder, but for hidden ones.

    Args:
        root (Path): The folder, which comes first.
        depth (int): How many folders inside each other are gone through.
    """
    yield root
    for path in sorted(root.iterdir()) if depth else ():
        if path.is_dir() and not path.name.startswith("."):
            yield from visible(path, depth - 1)


def list_images(folder: Path) -> list[Path]:
    """List the images in a folder and the folders inside, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def empty_coco(description: str, classes: Sequence[str]) -> dict:
    """Return a COCO file without images.

    Args:
        description (str): Where it comes from. Some COCO readers copy ``info`` without asking
            whether it is there.
        classes (Sequence[str]): Names of the categories, whose ids are counted from 1.
    """
    categories = [dict(id=index, name=name) for index, name in enumerate(classes, 1)]
    return dict(
        info=dict(description=description), images=[], annotations=[], categories=categories
    )


def add_image(
    coco: dict,
    file_name: str,
    size: tuple[int, int],
    boxes: Iterable[tuple[str, Sequence[float], bool]],
) -> list[str]:
    """Add an image and its boxes to a COCO file.

    Boxes without area or outside of the image are dropped, those partly outside are clipped, and
    those of other classes are left out.

    Args:
        coco (dict): Content of the file, changed in place.
        file_name (str): Name of the image.
        size (tuple[int, int]): Its width and height.
        boxes (Iterable): Class, (x, y, w, h) in pixels, and whether training leaves the box out.

    Returns:
        list[str]: What was changed, once for each box.
    """
    width, height = size
    ids = {category["name"]: category["id"] for category in coco["categories"]}
    image_id, count = len(coco["images"]) + 1, len(coco["annotations"])
    coco["images"].append(dict(id=image_id, file_name=file_name, width=width, height=height))
    notes = []
    for name, (x, y, w, h), is_crowd in boxes:
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if name not in ids:
            notes.append("left out, of another class")
        elif min(w, h) <= 0:
            notes.append("dropped, no area")
        elif right <= left or bottom <= top:
            notes.append("dropped, outside the image")
        else:
            # Less comes from rounding.
            if max(left - x, top - y, x + w - right, y + h - bottom) >= 0.5:
                notes.append("clipped to the image")
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]) + 1,
                    image_id=image_id,
                    category_id=ids[name],
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=int(is_crowd),
                )
            )
    return notes if len(coco["annotations"]) > count else [*notes, "images without a box"]


def describe(changes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what was changed, how often, and an example."""
    return [f"{what}: {len(where)}, for example {where[0]}" for what, where in changes.items()]
