"""Pascal VOC annotations: an XML file for each image."""

from __future__ import annotations

import math
import os
import random
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pat_mmdet.utils.data_formats.base import (
    IMAGE_SUFFIXES,
    Converted,
    DataSetting,
    add_image,
    choose,
    empty_coco,
    named_path,
)
from pat_mmdet.utils.images import Size, annotated_size, read_image_sizes

SPLITS = ("train", "val", "valid", "test")


def find(setting: DataSetting) -> dict[str, list[Path]] | None:
    """List the XML files of each split of a folder.

    Splits are those of ``ImageSets/Main/<split>.txt``, or of a folder for each; without either, all
    files are for training.

    Args:
        setting (DataSetting): The folder; a split that it names is a list in ``ImageSets/Main``, by
            its name or path, or a folder.

    Returns:
        dict[str, list[Path]] | None: None if there is no XML file.

    Raises:
        FileNotFoundError: If what is named does not exist.
        ValueError: If a list asks for what is not there, or a split has no XML file.
    """
    root = setting.root
    xmls = [path for path in sorted(root.rglob("*.xml")) if not _is_hidden(root, path)]
    if not xmls:
        return None
    lists = root / "ImageSets/Main"
    places = {name: lists / f"{name}.txt" for name in ("train", "val", "test")}
    places = {name: path for name, path in places.items() if path.is_file()}
    if not places:
        folders = [path for path in root.iterdir() if path.is_dir() and any(path.rglob("*.xml"))]
        places = choose(setting, folders, "folder")
    for split, name in setting.splits.items():
        path = lists / f"{name}.txt"
        places[split] = path if path.is_file() else named_path(setting, split, name)
    by_name = {xml.stem: xml for xml in xmls}
    splits = {
        split: read_list(path, by_name) if path.is_file() else sorted(path.rglob("*.xml"))
        for split, path in places.items()
    }
    return _refuse_empty(root, splits or {"train": xmls})


def _is_hidden(root: Path, path: Path) -> bool:
    """Return True for what an editor keeps in a folder of its own."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def find_splits(
    root: Path, names: Sequence[str] | None = None, val_share: float = 0.2, seed: int = 0
) -> dict[str, list[Path]]:
    """List the XML files of each split; of a random one where the folder has no splits.

    Args:
        root (Path): The folder.
        names (Sequence[str], optional): Names of the splits; by default those found.
        val_share (float): Share of a random val split.
        seed (int): Seed of a random split.

    Raises:
        FileNotFoundError: If the list of a split does not exist.
        ValueError: If a list asks for what is not there, or a split has no XML file.
    """
    xmls = sorted(root.rglob("*.xml"))
    folders = [name for name in SPLITS if any((root / name).rglob("*.xml"))]
    if (root / "ImageSets/Main").is_dir():
        by_name = {xml.stem: xml for xml in xmls}
        lists = {name: root / f"ImageSets/Main/{name}.txt" for name in names or SPLITS[:2]}
        splits = {name: read_list(path, by_name) for name, path in lists.items()}
    elif names or len(folders) > 1:
        splits = {name: sorted((root / name).rglob("*.xml")) for name in names or folders}
    else:
        random.Random(seed).shuffle(xmls)
        count = round(val_share * len(xmls))
        splits = {"train": sorted(xmls[count:]), "val": sorted(xmls[:count])}
    return _refuse_empty(root, splits)


def _refuse_empty(root: Path, splits: dict[str, list[Path]]) -> dict[str, list[Path]]:
    for name, found in splits.items():
        if not found:
            raise ValueError(f"no XML file under {root} for split {name!r}; name other splits")
    return splits


def read_list(path: Path, xmls: Mapping[str, Path]) -> list[Path]:
    """Return the XML files that a list of image names asks for.

    Args:
        path (Path): The list.
        xmls (Mapping[str, Path]): The XML files by their names.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If a file is not there, or is listed twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; write it or name other splits")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    for name, count in Counter(filter(None, names)).items():
        if count > 1 or name not in xmls:
            problem = "more than once" if count > 1 else f"but there is no {name}.xml"
            raise ValueError(f"{path} lists {name!r} {problem}; correct it")
    return [xmls[name] for name in names if name]


def read_xml(path: Path) -> tuple[Size, list[tuple[str, list[float], bool]]]:
    """Read an XML file.

    Returns:
        tuple: (width, height), 0 if not given, and name, corners and difficulty of the objects.

    Raises:
        ValueError: If it is damaged, or something in it is missing or no number.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no readable XML ({error}); correct it") from None
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"object {number} of {path} has no <name>; add it")
        texts = [element.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
        corners = _to_numbers(texts, f"<bndbox> of object {number} of {path}")
        objects.append((name, corners, (element.findtext("difficult") or "0").strip() != "0"))
    texts = [root.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    width, height = map(int, _to_numbers(texts, f"<size> of {path}"))
    return (width, height), objects


def _to_numbers(texts: list[str], where: str) -> list[float]:
    """Return finite numbers, ``int`` where they are whole."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} has {texts} for numbers; correct it")
    return [int(number) if number.is_integer() else number for number in numbers]


def find_images(root: Path, xmls: Iterable[Path]) -> tuple[dict[Path, Path], int]:
    """Pair XML files and images by their names.

    Args:
        root (Path): Folder of the images.
        xmls (Iterable[Path]): The XML files.

    Returns:
        tuple[dict[Path, Path], int]: The image of each XML file, and the number of other images.

    Raises:
        FileNotFoundError: If an image is missing.
    """
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in root.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            by_name[path.stem].append(path)
    images = {}
    for xml in xmls:
        if xml.stem not in by_name:
            raise FileNotFoundError(f"there is no image for {xml}; add it or remove the XML file")
        # Of those with its name, the one nearest by folder.
        images[xml] = max(by_name[xml.stem], key=lambda path: len(os.path.commonpath([path, xml])))
    return images, sum(map(len, by_name.values())) - len(images)


def find_classes(
    splits: Mapping[str, Sequence[Path]], root: Path, classes: Sequence[str] | None
) -> list[str]:
    """Return the names of the classes, by default all of the splits, sorted.

    Raises:
        ValueError: If a given class occurs in no split or is given twice, or there are none.
    """
    xmls = (xml for split in splits.values() for xml in split)
    names = sorted({name for xml in xmls for name, *_ in read_xml(xml)[1]})
    classes = list(classes or names)
    if not classes or not set(classes) <= set(names) or len(set(classes)) != len(classes):
        raise ValueError(
            f"classes {' '.join(classes) or '(none)'}: name each class once, of those with boxes "
            f"in the splits {', '.join(splits)} of {root}: {', '.join(names) or 'none'}"
        )
    return classes


def convert(
    splits: Mapping[str, Sequence[Path]],
    images: Mapping[Path, Path],
    classes: Sequence[str],
    first_pixel: int = 1,
) -> Converted:
    """Convert annotations to COCO.

    Args:
        splits (Mapping[str, Sequence[Path]]): The XML files of each split.
        images (Mapping[Path, Path]): Their images.
        classes (Sequence[str]): Names of the classes, in the order of their ids.
        first_pixel (int): From which number on the files count pixels; VOC does from 1.

    Raises:
        ValueError: If a file cannot be read.
    """
    folder = Path(os.path.commonpath([image.parent for image in images.values()]))
    contents: dict[str, dict] = {}
    changes: dict[str, dict[str, list[str]]] = {}
    for split, xmls in splits.items():
        coco = empty_coco("converted from Pascal VOC", classes)
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for xml in xmls:
            for note in _convert_image(coco, images[xml], xml, folder, first_pixel):
                changed[note].append(coco["images"][-1]["file_name"])
        contents[split], changes[split] = coco, dict(changed)
    return Converted(contents, folder, changes)


def _convert_image(coco: dict, path: Path, xml: Path, folder: Path, first_pixel: int) -> list[str]:
    """Add an image and its boxes to a COCO file; return what was changed, once for each box."""
    size, objects = read_xml(xml)
    try:
        shown, stored = read_image_sizes(str(path))
    except OSError as error:
        raise ValueError(f"image {path} cannot be read ({error}); replace it") from None
    corners = [[value - first_pixel for value in values] for _, values, _ in objects]
    boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in corners]
    fits = all(x + w <= size[0] + 1 and y + h <= size[1] + 1 for x, y, w, h in boxes)
    width, height = annotated_size(str(path), size, fits) if all(size) else shown
    notes = []
    if all(size) and size != (width, height):
        notes.append("size corrected, width and height were swapped")
    elif (width, height) not in (shown, stored):
        notes.append("warning: image of another size than its XML says")
    if first_pixel == 1:
        notes += [
            "warning: begins at 0; if pixels count from 0, convert with voc2coco.py --zero-based"
            for x, y, *_ in boxes
            if min(x, y) == -1
        ]
    named = [(name, box, difficult) for (name, _, difficult), box in zip(objects, boxes)]
    return notes + add_image(coco, path.relative_to(folder).as_posix(), (width, height), named)
