"""COCO annotation files and the folders of their images."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pat_mmdet.utils.data_formats.base import (
    DataSetting,
    choose,
    named_path,
    split_of,
    visible,
)
from pat_mmdet.utils.errors import ConfigError

# Annotation files of COCO for something else than boxes.
_OTHER_TASKS = ("captions", "image_info", "panoptic", "person_keypoints", "stuff")
_SAMPLES = 20  # images of a file that are looked for in a folder


class Source(NamedTuple):
    """An annotation file and, where the user named it, the folder of its images."""

    file: Path
    images: Path | None = None


def find(setting: DataSetting) -> dict[str, Source] | None:
    """Find the annotation file of each split of a folder.

    That is ``annotations/*.json``, where a file that is for no split by its name is for training if
    it is the only one, or ``<split>/_annotations.coco.json`` (Roboflow).

    Args:
        setting (DataSetting): The folder; a split that it names is an annotation file, or a dict of
            ``ann_file`` and ``images``.

    Returns:
        dict[str, Source] | None: None if there is no annotation file.

    Raises:
        ConfigError: If there are two for a split.
        FileNotFoundError: If what is named does not exist.
    """
    root = setting.root
    found = [
        path
        for path in sorted(root.glob("annotations/*.json"))
        if not path.name.startswith(_OTHER_TASKS)
    ]
    found += sorted(root.glob("*/_annotations.coco.json"))
    named = {split: _named(setting, split, value) for split, value in setting.splits.items()}
    if not found and not named:
        return None
    sources = {split: Source(path) for split, path in choose(setting, found, "file").items()}
    if len(found) == 1 and not sources and not named:
        sources["train"] = Source(found[0])
    return {**sources, **named}


def _named(setting: DataSetting, split: str, value: Any) -> Source:
    """Return what a user named for a split.

    Raises:
        ConfigError: If it is no annotation file.
        FileNotFoundError: If it does not exist.
    """
    keys = value if isinstance(value, Mapping) else {"ann_file": value}
    if "ann_file" not in keys or not set(keys) <= {"ann_file", "images"}:
        raise ConfigError(
            f"data.{split}={value!r}: give an annotation file, or a dict of ann_file and images"
        )
    file = named_path(setting, split, keys["ann_file"])
    if not file.is_file():
        raise ConfigError(f"data.{split}={value!r}: {str(file)!r} is no annotation file")
    return Source(file, named_path(setting, split, keys["images"]) if "images" in keys else None)


def read(path: Path) -> dict:
    """Read an annotation file.

    Raises:
        ValueError: If it is no COCO file, or has no image or category.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # it would go through millions of new objects many times
    try:
        content = json.loads(path.read_bytes())
        for part in ("images", "categories"):
            if not content.get(part):
                raise ValueError(f"it has no {part}")
        content["annotations"] = content.get("annotations") or []
        names = [category["name"] for category in content["categories"]]
        files = [image["file_name"] for image in content["images"]]
        if not all(isinstance(text, str) for text in (*names, *files)):
            raise ValueError("a name is no text")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"annotation file {str(path)!r} is no COCO file: {reason}; correct it"
        ) from None
    finally:
        if was_enabled:
            gc.enable()
    return content


def class_names(content: Mapping) -> tuple[str, ...]:
    """Return the names of the categories of a file, in its order.

    Roboflow adds a category that all others are below and that has no boxes: it is left out.
    """
    categories = content["categories"]
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    return tuple(
        category["name"]
        for category in categories
        if category.get("id") in used or not _is_above_all(category["name"], categories)
    )


def _is_above_all(name: str, categories: list[dict]) -> bool:
    others = [category for category in categories if category["name"] != name]
    return bool(others) and all(other.get("supercategory") == name for other in others)


def find_images(root: Path, source: Source, split: str, content: Mapping) -> Path:
    """Find the folder of the images of an annotation file.

    Args:
        root (Path): Folder of the data.
        source (Source): The annotation file.
        split (str): Its split.
        content (Mapping): Its content.

    Returns:
        Path: The folder that most of a sample of the images is in; of several the one that is named
        as the file or the split.

    Raises:
        ConfigError: If two folders have them.
        FileNotFoundError: If there is none.
    """
    if source.images is not None:
        return source.images
    names = [image["file_name"] for image in content["images"]]
    sample = names[:: max(1, len(names) // _SAMPLES)]

    def rank(folder: Path) -> tuple:
        below = folder.relative_to(root)
        return (
            sum((folder / name).is_file() for name in sample),
            bool(below.name) and below.name in source.file.stem,
            split in map(split_of, below.parts),
        )

    ranks = {folder: rank(folder) for folder in visible(root)}
    best = max(ranks.values())
    if best[0] == 0:
        raise FileNotFoundError(
            f"none of the images of {str(source.file)!r}, for example {sample[0]!r}, is in "
            f"{str(root)!r}; put them there, or name their folder: data.{split}.ann_file="
            f"{source.file.relative_to(root).as_posix()} data.{split}.images=FOLDER"
        )
    folders = [folder for folder, value in ranks.items() if value == best]
    if len(folders) > 1:
        shown = ", ".join(repr(folder.relative_to(root).as_posix()) for folder in folders)
        raise ConfigError(
            f"the images of {str(source.file)!r} are in more than one folder: {shown}; choose by "
            f"data.{split}.ann_file={source.file.relative_to(root).as_posix()} "
            f"data.{split}.images=FOLDER"
        )
    return folders[0]
