"""Data in the formats that annotation tools write, found in a folder.

A detector takes COCO, Pascal VOC and YOLO, a classifier a folder for each class. Pascal VOC and
YOLO are converted to COCO files, see :func:`~pat_mmdet.utils.data_formats.cache.cached_files`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pat_mmdet.utils.data_formats import coco, image_folder, voc, yolo
from pat_mmdet.utils.data_formats.base import (
    Converted,
    Data,
    DataSetting,
    Split,
    describe,
    list_images,
)
from pat_mmdet.utils.data_formats.cache import cached_files
from pat_mmdet.utils.errors import ConfigError

__all__ = ["Data", "DataSetting", "Split", "find_data"]

_SEED = 0  # of a val split that is held out


class _Format(NamedTuple):
    """A format.

    Attributes:
        task (str): What it is for, ``'detection'`` or ``'classification'``.
        sign (str): What a folder in this format has, for messages.
        find (Callable): Returns the sources of a :class:`DataSetting` by split; None if it is of
            another format.
        read (Callable): Returns the :class:`Data` of a setting and its sources.
    """

    task: str
    sign: str
    find: Callable[[DataSetting], Any]
    read: Callable[[DataSetting, Any], Data]


def find_data(setting: DataSetting, task: str) -> Data:
    """Find out what a folder holds.

    Args:
        setting (DataSetting): The folder, and what the user chose.
        task (str): ``'detection'`` or ``'classification'``.

    Returns:
        Data: Format, classes and splits. If several formats are there, it is the first one of COCO,
        Pascal VOC and YOLO.

    Raises:
        FileNotFoundError: If the folder, or something that is named, does not exist.
        ImportError: If a package is missing.
        ValueError: If there is nothing for the task, it is ambiguous, faulty or contradicts itself.
    """
    root = setting.root
    if not root.is_dir():
        problem = "is no folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"data={str(root)!r} {problem}; give the folder of the data")
    known = {name: item for name, item in _FORMATS.items() if item.task == task}
    if setting.format is not None and setting.format not in known:
        raise ConfigError(f"data.format={setting.format!r}: for {task}, give {' or '.join(known)}")
    tried = [known[setting.format]] if setting.format else list(known.values())
    for item in tried:
        sources = item.find(setting)
        if sources is not None:
            return item.read(setting, sources)
    lacks = f"data={str(root)!r} has nothing to train on for {task}: no "
    lacks += ", no ".join(item.sign for item in tried)
    for item in _FORMATS.values():
        if item.task != task and item.find(DataSetting(root)) is not None:
            raise ConfigError(f"{lacks}. It has {item.sign}: take a config for {item.task}")
    count = len(list_images(root))
    raise ConfigError(f"{lacks}. It has {count} images{'; annotate them' if count else ''}")


def _read_coco(setting: DataSetting, sources: dict[str, coco.Source]) -> Data:
    """Read COCO files."""
    root = setting.root
    _require_train(setting, sources)
    contents: dict[str, dict] = {}
    notes = []
    for split, source in sources.items():
        content = coco.read(source.file)
        if content["annotations"]:
            contents[split] = content
        elif split == "test" and split not in setting.splits:  # of a challenge
            notes.append(f"test: no boxes in {source.file}, left out")
        else:
            raise ValueError(f"annotation file {str(source.file)!r} ({split}) has no box")
    images = {
        split: coco.find_images(root, sources[split], split, content)
        for split, content in contents.items()
    }
    files = {split: sources[split].file for split in contents}
    if _is_held_out(setting, sources):
        names = {"train": "train.json", "val": "val.json"}
        found = cached_files(
            root,
            [files["train"]],
            ["coco", setting.val_share],
            list(names.values()),
            lambda: {
                names[split]: json.dumps(content, ensure_ascii=False)
                for split, content in _hold_out(contents["train"], setting.val_share).items()
            },
        )
        files.update((split, found[name]) for split, name in names.items())
        contents.update((split, coco.read(files[split])) for split in names)
        images["val"] = images["train"]
    return _detection("COCO", setting, files, images, contents, notes)


def _read_voc(setting: DataSetting, splits: dict[str, list[Path]]) -> Data:
    """Convert Pascal VOC."""
    _require_train(setting, splits)
    root = setting.root
    xmls = [xml for split in splits.values() for xml in split]
    images, unused = voc.find_images(root, xmls)

    def convert() -> Converted:
        classes = voc.find_classes(splits, root, setting.classes)
        return voc.convert(splits, images, classes)

    notes = [f"{unused} images without annotations or split"] if unused else []
    return _read_converted("Pascal VOC", setting, splits, [*xmls, *images.values()], convert, notes)


def _read_yolo(setting: DataSetting, source: yolo.Source) -> Data:
    """Convert YOLO."""
    _require_train(setting, source.splits)
    names = source.names or setting.classes
    if not names:
        raise ConfigError(
            f"data={str(setting.root)!r} has YOLO labels but no names of their classes; write "
            "data.yaml with names, classes.txt with a name a line, or give data.classes"
        )
    classes = setting.classes or names
    if not set(classes) <= set(names):
        raise ConfigError(
            f"data.classes={list(classes)} but the names in {source.files[0]} are {list(names)}"
        )
    images = [image for split in source.splits.values() for image in split]
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(images)} images that the data name do not exist, the first is "
            f"{str(missing[0])!r}"
        )
    labels = [yolo.find_label(setting.root, image) for image in images]
    files = [*source.files, *images, *filter(Path.is_file, labels)]

    def convert() -> Converted:
        return yolo.convert(setting.root, source.splits, names, classes)

    return _read_converted("YOLO", setting, source.splits, files, convert, [])


def _read_converted(
    name: str,
    setting: DataSetting,
    splits: Mapping[str, Sequence[Path]],
    sources: Iterable[Path],
    convert: Callable[[], Converted],
    notes: list[str],
) -> Data:
    """Convert annotations to COCO files, or read those of an earlier conversion."""
    is_held_out = _is_held_out(setting, splits)
    held_out = ("train", "val") if is_held_out else ()
    names = {split: f"{split}.json" for split in dict.fromkeys((*splits, *held_out))}

    def make() -> dict[str, str]:
        converted = convert()
        contents = dict(converted.splits)
        for split, changed in converted.changes.items():
            contents[split]["info"]["changes"] = describe(changed)
            contents[split]["info"]["images"] = os.path.relpath(converted.images, setting.root)
        if is_held_out:
            contents.update(_hold_out(contents["train"], setting.val_share))
        return {
            names[split]: json.dumps(content, ensure_ascii=False)
            for split, content in contents.items()
        }

    # Which images are in which split.
    members = {
        split: [os.path.relpath(path, setting.root) for path in paths]
        for split, paths in splits.items()
    }
    options = [name, list(setting.classes or ()), setting.val_share, members]
    found = cached_files(setting.root, sources, options, list(names.values()), make)
    files = {split: found[file] for split, file in names.items()}
    contents = {split: coco.read(path) for split, path in files.items()}
    images = {
        split: setting.root / content["info"]["images"] for split, content in contents.items()
    }
    notes = notes + [
        f"{split}: {change}" for split in splits for change in contents[split]["info"]["changes"]
    ]
    return _detection(
        name, setting, files, images, contents, [*notes, f"converted to {files['train'].parent}"]
    )


def _read_image_folder(setting: DataSetting, folders: dict[str, Path]) -> Data:
    """Read class folders."""
    _require_train(setting, folders)
    listed = {split: image_folder.list_classes(folder) for split, folder in folders.items()}
    names = {split: tuple(classes) for split, classes in listed.items()}
    classes = _common_classes(names, {split: str(folder) for split, folder in folders.items()})
    if not _is_held_out(setting, folders):
        splits = {
            split: Split(folder, None, sum(map(len, listed[split].values())))
            for split, folder in folders.items()
        }
        return Data("ImageFolder", setting.root, setting.classes or classes, splits, [])
    root = folders["train"]
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for label, images in enumerate(listed["train"].values()):
        train, val = _shares(images, setting.val_share)
        for split, chosen in (("train", train), ("val", val)):
            parts[split] += [f"{path.relative_to(root).as_posix()} {label}\n" for path in chosen]
    files = cached_files(
        setting.root,
        [],
        ["imagefolder", parts],
        ["train.txt", "val.txt"],
        lambda: {f"{split}.txt": "".join(lines) for split, lines in parts.items()},
    )
    splits = {
        split: Split(root, files[f"{split}.txt"], len(lines)) for split, lines in parts.items()
    }
    return Data("ImageFolder", setting.root, setting.classes or classes, splits, [])


def _require_train(setting: DataSetting, splits: Iterable[str]) -> None:
    """Check that there is something to train on."""
    found = list(splits)
    if "train" not in found:
        raise ConfigError(
            f"data={str(setting.root)!r} has no split to train on, only {', '.join(found)}; name "
            "it by data.train"
        )


def _is_held_out(setting: DataSetting, splits: Iterable[str]) -> bool:
    """Return True if a val split has to be made.

    Raises:
        ConfigError: If there is one already.
    """
    if setting.val_share is not None and "val" in splits:
        raise ConfigError(
            f"data.val_share={setting.val_share} but data={str(setting.root)!r} has a val split; "
            "take one of the two out"
        )
    return setting.val_share is not None


def _shares(items: Sequence, val_share: float) -> tuple[list, list]:
    """Split items at random, always alike, into those for training and for evaluation."""
    order = list(range(len(items)))
    random.Random(_SEED).shuffle(order)
    count = min(max(1, round(val_share * len(items))), len(items) - 1)
    chosen = set(order[:count])
    return (
        [item for index, item in enumerate(items) if index not in chosen],
        [item for index, item in enumerate(items) if index in chosen],
    )


def _hold_out(content: dict, val_share: float) -> dict[str, dict]:
    """Split a COCO file in two."""
    parts = {}
    for split, images in zip(("train", "val"), _shares(content["images"], val_share)):
        ids = {image["id"] for image in images}
        annotations = [item for item in content["annotations"] if item["image_id"] in ids]
        parts[split] = {**content, "images": images, "annotations": annotations}
    return parts


def _common_classes(names: Mapping[str, tuple], sources: Mapping[str, str]) -> tuple[str, ...]:
    """Return the classes that all splits have.

    Raises:
        ConfigError: If two differ.
    """
    first = names["train"]
    for split, classes in names.items():
        if classes != first:
            different = sorted(set(classes) ^ set(first))
            reason = f"only one has {', '.join(different)}" if different else "the order differs"
            raise ConfigError(
                f"{sources[split]} ({split}) has other classes than {sources['train']} (train): "
                f"{reason}; give all splits the same"
            )
    return first


def _detection(
    name: str,
    setting: DataSetting,
    files: Mapping[str, Path],
    images: Mapping[str, Path],
    contents: Mapping[str, dict],
    notes: list[str],
) -> Data:
    """Put together what COCO files hold."""
    names = {split: coco.class_names(content) for split, content in contents.items()}
    classes = _common_classes(names, {split: str(path) for split, path in files.items()})
    chosen = setting.classes or classes
    # Labels are numbered in the order of the file.
    if tuple(name for name in classes if name in chosen) != tuple(chosen):
        raise ConfigError(
            f"data.classes={list(chosen)}, but {files['train']} has the categories "
            f"{list(classes)}; give some of them, each once and in this order"
        )
    splits = {
        split: Split(
            images[split],
            files[split],
            len(content["images"]),
            len(content["annotations"]),
        )
        for split, content in contents.items()
    }
    return Data(name, setting.root, tuple(chosen), splits, notes)


# In the order in which they are looked for.
_FORMATS = {
    "coco": _Format(
        "detection",
        "annotations/*.json or <split>/_annotations.coco.json (COCO)",
        coco.find,
        _read_coco,
    ),
    "voc": _Format("detection", "*.xml (Pascal VOC)", voc.find, _read_voc),
    "yolo": _Format("detection", "data.yaml or labels/ (YOLO)", yolo.find, _read_yolo),
    "imagefolder": _Format(
        "classification",
        "train/<class>/ with images (ImageFolder)",
        image_folder.find,
        _read_image_folder,
    ),
}
