"""YOLO annotations: a text file for each image, read by globox."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pat_mmdet.utils.data_formats.base import (
    Converted,
    DataSetting,
    add_image,
    choose,
    empty_coco,
    list_images,
    named_path,
)
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.images import read_image_sizes


class Source(NamedTuple):
    """YOLO annotations found in a folder.

    Attributes:
        splits (dict[str, list[Path]]): The images of each split.
        names (tuple[str, ...] | None): Names of the classes by their ids, if they are written.
        files (list[Path]): The files that say so.
    """

    splits: dict[str, list[Path]]
    names: tuple[str, ...] | None
    files: list[Path]


def find(setting: DataSetting) -> Source | None:
    """Find images and names of classes in a folder.

    Splits and names are those of ``data.yaml``. Without it, splits are the folders
    ``labels/<split>`` with ``images/<split>`` or ``<split>`` beside, or ``<split>/labels`` with
    ``<split>/images``; ``labels`` and ``images`` without folders are for training. Names are then
    the lines of ``classes.txt`` or ``*.names``.

    Args:
        setting (DataSetting): The folder; a split that it names is a folder of images, or a list.

    Returns:
        Source | None: None if there are no labels.

    Raises:
        ConfigError: If there are two for a split, or two such files.
        FileNotFoundError: If what is named, there or by the user, does not exist.
        ValueError: If a file cannot be read.
    """
    root = setting.root
    yaml_file, content = _read_yaml(root)
    files = [yaml_file] if yaml_file else []
    if content is not None:
        places = dict(_yaml_places(setting, yaml_file, content))
        names = _names_of(yaml_file, content["names"])
    else:
        places = {split: [path] for split, path in _labelled_folders(setting).items()}
        lists = [root / "classes.txt", root / "labels/classes.txt", *sorted(root.glob("*.names"))]
        lists = [path for path in lists if path.is_file()]
        names = tuple(filter(None, map(str.strip, _lines(lists[0])))) if lists else None
        files += lists[:1]
    for split, name in setting.splits.items():
        places[split] = [named_path(setting, split, name)]
    if not places:
        return None
    splits = {}
    for split, paths in places.items():
        files += [path for path in paths if path.is_file()]
        splits[split] = [image for path in paths for image in _images(path)]
        if not splits[split]:
            raise ValueError(f"no image under {', '.join(map(str, paths))} for split {split!r}")
    return Source(splits, names, files)


def _read_yaml(root: Path) -> tuple[Path | None, dict | None]:
    """Read the YAML file of a data set, which is one with the names of the classes.

    Raises:
        ConfigError: If there are two.
        ValueError: If ``data.yaml`` cannot be read.
    """
    found = {}
    for path in sorted(root.glob("*.y*ml")):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            if path.stem == "data":
                reason = " ".join(str(error).split())
                raise ValueError(f"{path} is no readable YAML ({reason}); correct it") from None
            continue
        if isinstance(content, dict) and "names" in content:
            found[path] = content
    chosen = [path for path in found if path.stem == "data"] or list(found)
    if len(chosen) > 1:
        raise ConfigError(
            f"data={str(root)!r} has more than one data set in YAML: "
            f"{', '.join(path.name for path in chosen)}; rename one of them to data.yaml"
        )
    return (chosen[0], found[chosen[0]]) if chosen else (None, None)


def _names_of(path: Path, names: Any) -> tuple[str, ...]:
    """Return the names of classes, which are a list, or a dict by their ids.

    Raises:
        ValueError: If they are neither.
    """
    if isinstance(names, Mapping) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: names is no list of classes, nor a dict with ids from 0")
    return tuple(map(str, names))


def _yaml_places(
    setting: DataSetting, file: Path, content: Mapping
) -> Iterator[tuple[str, list[Path]]]:
    """Yield split and folders, or lists of images, that a YAML file names and the user does not.

    Raises:
        FileNotFoundError: If those of train or val do not exist.
    """
    root = setting.root
    base = root / str(content.get("path") or "")
    for split in ("train", "val", "test"):
        entries = () if split in setting.splits else content.get(split) or ()
        paths = []
        for entry in [entries] if isinstance(entries, str) else entries:
            # Roboflow writes `../train/images` for what is beside the file.
            inside = str(entry)
            while inside.startswith("../"):
                inside = inside[3:]
            candidates = (base / entry, root / entry, root / inside)
            path = next((path for path in candidates if path.exists()), None)
            if path is not None:
                paths.append(Path(os.path.normpath(path)))
            elif split != "test":
                raise FileNotFoundError(
                    f"{file}: {split}: {str(entry)!r} does not exist, neither in {str(base)!r} nor "
                    f"in {str(root)!r}; correct it, or name a folder by data.{split}"
                )
        if paths:
            yield split, paths


def _labelled_folders(setting: DataSetting) -> dict[str, Path]:
    """Return the folders of images by split, by the folders of their labels.

    Raises:
        ConfigError: If there are two for a split.
    """
    root = setting.root
    names = [path.name for path in root.glob("labels/*") if path.is_dir()]
    pairs = [(root / "images" / name, root / name) for name in names]
    found = [next(filter(Path.is_dir, pair), None) for pair in pairs]
    found += [path.with_name("images") for path in root.glob("*/labels")]
    splits = choose(setting, [path for path in found if path and path.is_dir()], "folder")
    if (
        not splits
        and not setting.splits
        and any(root.glob("labels/*.txt"))
        and (root / "images").is_dir()
    ):
        return {"train": root / "images"}
    return splits


def _images(path: Path) -> list[Path]:
    """Return the images of a folder, or those that a list names."""
    if path.is_dir():
        return list_images(path)
    return [path.parent / line.strip() for line in _lines(path) if line.strip()]


def _lines(path: Path) -> list[str]:
    """Read a text file.

    Raises:
        ValueError: If it is no text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); correct it") from None


def find_label(root: Path, image: Path) -> Path:
    """Return the path of the labels of an image, which may not exist.

    That is a file of the image's name in the folder ``labels`` that stands for ``images``, or in
    ``labels`` as the image is in the data, or else beside the image.
    """
    parts = list(Path(os.path.normpath(image)).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        label = Path(*parts).with_suffix(".txt")
    else:
        label = root / "labels" / Path(os.path.relpath(image, root)).with_suffix(".txt")
    return label if label.is_file() else image.with_suffix(".txt")


def convert(
    root: Path,
    splits: Mapping[str, Sequence[Path]],
    names: Sequence[str],
    classes: Sequence[str],
) -> Converted:
    """Convert annotations to COCO. Images without a label file have no boxes.

    Args:
        root (Path): Folder of the data.
        splits (Mapping[str, Sequence[Path]]): The images of each split.
        names (Sequence[str]): Names of the classes by their ids in the files.
        classes (Sequence[str]): Those to keep, in the order of their ids in COCO.

    Raises:
        ImportError: If globox is not installed.
        ValueError: If a file cannot be read, or a split has no labels.
    """
    folder = Path(
        os.path.commonpath([image.parent for split in splits.values() for image in split])
    )
    contents: dict[str, dict] = {}
    changes: dict[str, dict[str, list[str]]] = {}
    for split, images in splits.items():
        coco = empty_coco("converted from YOLO", classes)
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for image in images:
            file_name = image.relative_to(folder).as_posix()
            try:
                size, _ = read_image_sizes(str(image))
            except OSError as error:
                raise ValueError(f"image {image} cannot be read ({error}); replace it") from None
            label = find_label(root, image)
            boxes = _read_boxes(label, size, names) if label.is_file() else []
            if not label.is_file():
                changed["images without a label file"].append(file_name)
            for note in add_image(coco, file_name, size, boxes):
                changed[note].append(file_name)
        if len(changed["images without a label file"]) == len(images):
            raise ValueError(
                f"no image of split {split!r} has a label file, for example {images[0]} would have "
                f"{find_label(root, images[0])}; put the labels there"
            )
        contents[split] = coco
        changes[split] = {what: where for what, where in changed.items() if where}
    return Converted(contents, folder, changes)


def _read_boxes(
    path: Path, size: tuple[int, int], names: Sequence[str]
) -> list[tuple[str, Sequence[float], bool]]:
    """Read a label file: name, (x, y, w, h) in pixels and ``False`` for each box.

    Raises:
        ImportError: If globox is not installed.
        ValueError: If it cannot be read, or has a class that has no name.
    """
    try:
        from globox import BoundingBox
        from globox.errors import ParsingError
    except ImportError:
        raise ImportError(
            "YOLO annotations are read by globox, which is not installed; "
            "pip install 'pat_mmdet[yolo]' or globox"
        ) from None
    boxes = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            box = BoundingBox.from_yolo_v5(line, image_size=size)
        except (AssertionError, ParsingError):
            raise ValueError(
                f"line {number} of {path} is {line[:80]!r}; it has to be a class, and x, y, width "
                "and height of a box as parts of the image"
            ) from None
        if not box.label.isdecimal() or int(box.label) >= len(names):
            raise ValueError(
                f"line {number} of {path} has the class {box.label}, but there are {len(names)} "
                f"names, for the classes 0 to {len(names) - 1}; correct the file or the names"
            )
        boxes.append((names[int(box.label)], box.ltwh, False))
    return boxes
