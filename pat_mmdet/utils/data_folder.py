"""One ``data`` for all places of a config: the folder of the data.

``data='FOLDER'``, on the command line or at the top of a user's config, finds out what the folder
holds, see :mod:`pat_mmdet.utils.data_formats`, and puts it into the data sets, evaluators and
classes of a config. The rest of the config stays. A dict says more, for what is not found or to
choose another:

* ``root``: The folder.
* ``train``, ``val``, ``test``: What a split is: of COCO an annotation file, or a dict of it
  (``ann_file``) and the folder of its images (``images``); of Pascal VOC a list in
  ``ImageSets/Main`` or a folder; of YOLO a folder of images or a list of them; of ImageFolder a
  folder. Paths begin in ``root``.
* ``classes``: Names of the classes to learn: of COCO and YOLO some of those there are, in their
  order; of Pascal VOC in any order; of YOLO without names, all by their ids.
* ``format``: ``'coco'``, ``'voc'``, ``'yolo'`` or ``'imagefolder'``, if the folder has several.
* ``val_share``: Share of the training images that is held out for evaluation if there is no val
  split; always the same ones.

Without a test split, that for evaluation is tested on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from pat_mmdet.utils.config_check import check_section
from pat_mmdet.utils.config_files import overriding_file, reads_variable
from pat_mmdet.utils.config_parts import SPLITS, class_names, data_sets, evaluators, join
from pat_mmdet.utils.config_tables import DATA
from pat_mmdet.utils.data_check import compares_scores
from pat_mmdet.utils.data_formats import Data, DataSetting, Split, find_data
from pat_mmdet.utils.data_settings import KEYS, Change, Setting, class_changes, refuse_kept
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.nested import walk
from pat_mmdet.utils.type_names import extends, find_class


def is_set(cfg: Config) -> bool:
    """Return True if a config has a ``data`` that is no variable of its files."""
    value = cfg.get("data")
    is_setting = isinstance(value, str) or (isinstance(value, Mapping) and "root" in value)
    return is_setting and not reads_variable(cfg.filename, "data")


class DataFolder(NamedTuple):
    """A ``data`` and where it stands.

    Attributes:
        setting (DataSetting): What it says.
        place (Setting): Where it stands, and what it must not replace.
    """

    setting: DataSetting
    place: Setting


def pop_data(cfg: Config, options: dict[str, Any]) -> DataFolder | None:
    """Take ``data`` out of a config and of the options of the command line.

    Args:
        cfg (Config): Changed in place.
        options (dict): Values by dotted key, changed in place; ``data.val`` is a part of ``data``.

    Returns:
        DataFolder | None: None if there is none.

    Raises:
        ConfigError: If it is not as it should be, or ``data_root`` or ``classes`` contradict it.
    """
    given = {key: options.pop(key) for key in list(options) if key.split(".")[0] == "data"}
    value = cfg.get("data") if is_set(cfg) else None
    file = overriding_file(cfg.filename, "data") if "data" in cfg else None
    if value is None and not given:
        if file is not None and not reads_variable(cfg.filename, "data"):
            raise ConfigError(
                f"data at the top of {file.path} has no effect: nothing reads it; give the folder "
                "of the data, data='FOLDER' or data=dict(root='FOLDER', ...), or begin a variable "
                "of your own with an underscore"
            )
        return None
    cfg.pop("data", None)
    is_on_line = bool({"data", "data.root"} & set(given))
    written: frozenset = frozenset()
    if is_on_line:
        source = "on the command line"
        rivals = [key for key in KEYS if key in options]
    else:
        source = f"at the top of {cfg.filename}"
        others = {key: overriding_file(cfg.filename, key) for key in KEYS}
        rivals = [key for key, other in others.items() if other and file and other[0] == file.path]
        written = file.written if file else written
    node = _merged(value, given)
    if rivals:
        raise ConfigError(
            f"data={node.get('root')!r} ({source}) and {rivals[0]} are both for all places; take "
            f"one of the two out{', or give data.classes' if rivals == ['classes'] else ''}"
        )
    place = Setting(
        key="data",
        value=node.get("root"),
        source=source,
        before=(None,) if is_on_line else (),
        inherited=() if is_on_line else (None,),
        written=written,
        options=options,
    )
    return DataFolder(_to_setting(node), place)


def _merged(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` as a dict, with what the command line says.

    Raises:
        ConfigError: If a key leads through something that is no dict.
    """
    value = given.get("data", value)
    node = deepcopy(dict(value)) if isinstance(value, Mapping) else {}
    if not isinstance(value, Mapping) and value is not None:
        node["root"] = value
    for key, item in given.items():
        *above, last = key.split(".")[1:] or [""]
        inner: Any = node
        for step in above:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}={item!r}: data.{step} is {inner!r} and no dict")
        if last:
            inner[last] = item
    return node


def _to_setting(node: dict[str, Any]) -> DataSetting:
    """Check what a ``data`` says.

    Raises:
        ConfigError: If a key is unknown or missing, or a value has the wrong type.
    """
    check_section("data", node, DATA)
    if "root" not in node:
        raise ConfigError("data has no root; give the folder of the data")
    share = node.get("val_share")
    if share is not None and not 0 < share < 1:
        raise ConfigError(f"data.val_share={share}: give a share between 0 and 1")
    return DataSetting(
        Path(node["root"]).expanduser(),
        {split: node[split] for split in SPLITS if split in node},
        class_names(node.get("classes")),
        node.get("format"),
        share,
    )


def spread_folder(cfg: Config, folder: DataFolder) -> None:
    """Put what a folder holds into the places of a config, and say what it is.

    Args:
        cfg (Config): Changed in place.
        folder (DataFolder): The folder, see :func:`pop_data`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If a package is missing that reads the format.
        ValueError: If there is nothing for the config, it is ambiguous, faulty, or contradicts what
            a user wrote in one of the places.
    """
    is_classification = cfg.get("default_scope") == "mmpretrain"
    data = find_data(folder.setting, "classification" if is_classification else "detection")
    _require_val(cfg, data)
    changes: list[Change] = []
    for split in SPLITS:
        for path, node in _data_set(cfg, split):
            found = data.splits.get(split) or data.splits["val"]
            changes += _file_changes(cfg, split, path, node, data.root, found, folder.place)
    names = folder.place._replace(value=data.classes)
    keeps_heads = _keeps_heads(cfg)
    changes += [
        change
        for change in class_changes(cfg, names)
        if not (keeps_heads and change.path.startswith("model.teacher"))
    ]
    changes = [change for change in changes if change.old != change.new]
    refuse_kept(folder.place, changes)
    for change in changes:
        change.node[change.key] = change.new
    if is_classification:
        _read_class_folders(cfg)
    cfg.data_root, cfg.classes = str(data.root), data.classes
    method = (cfg.get("model") or {}).get("method") or {}
    if "num_data" in method and "model.method.num_data" not in folder.place.options:
        method["num_data"] = data.splits["train"].num_images  # CRD's memory has one place for each
    _say(cfg, data, changes)


def _require_val(cfg: Mapping, data: Data) -> None:
    """Check that there is a split for evaluation if the config evaluates.

    Raises:
        ConfigError: If there is none; it says how to make one.
    """
    if "val" in data.splits:
        return
    wanted = [split for split in SPLITS[1:] if split not in data.splits and data_sets(cfg, split)]
    if wanted:
        raise ConfigError(
            f"data={str(data.root)!r} has no val split, only {_describe_splits(data)}; add one, "
            "name it by data.val, or hold a share of the training images out by data.val_share=0.2"
        )


def _data_set(cfg: Mapping, split: str) -> list[tuple[str, Any]]:
    """Return path and config of the data set of a split; none if the split is not used.

    Raises:
        ConfigError: If there are several.
    """
    found = data_sets(cfg, split)
    if len(found) > 1:
        raise ConfigError(
            f"{split}_dataloader has {len(found)} data sets, {found[0][0]} and others; data=FOLDER "
            "is for one, write the values of each in their places"
        )
    return found


def _file_changes(
    cfg: Mapping, split: str, path: str, node: Any, root: Path, found: Split, place: Setting
) -> Iterator[Change]:
    """Yield what the folder has for a data set, and for the evaluators that follow it.

    Raises:
        ConfigError: If the data set reads no COCO files.
    """
    ann_file = _below(root, found.ann_file) if found.ann_file else ""
    new: dict[str, str] = {"data_root": str(root), "ann_file": ann_file}
    images = _below(root, found.images, "/")
    if found.num_boxes is None:
        new["data_prefix"] = images
    else:
        target = find_class("dataset", node, cfg)
        if not extends(target, "CocoDataset"):
            raise ConfigError(
                f"{path}.type={node.get('type')!r} reads no COCO files; set CheckedCocoDataset"
            )
        prefix, key = node.setdefault("data_prefix", {}), f"{path}.data_prefix.img"
        old = prefix.get("img")
        yield Change(prefix, "img", key, old, images, place.state(key, old))
    for name, value in new.items():
        old, key = node.get(name), f"{path}.{name}"
        if value or old:
            yield Change(node, name, key, old, value, place.state(key, old))
    # Others are for another file, such as that of segments.
    was = os.path.normpath(join(node.get("data_root"), node.get("ann_file") or ""))
    for key, evaluator in evaluators(cfg, split):
        old, key = evaluator.get("ann_file"), f"{key}.ann_file"
        if old and os.path.normpath(old) == was:
            whole = join(str(root), ann_file)
            yield Change(evaluator, "ann_file", key, old, whole, place.state(key, old))


def _below(root: Path, path: Path, end: str = "") -> str:
    """Return a path as it is below a folder, or the whole path if it lies elsewhere.

    Args:
        root (Path): The folder.
        path (Path): The path.
        end (str): What a path that is not empty ends with.
    """
    below = os.path.relpath(path, root)
    if below == os.curdir:
        return ""
    return f"{os.path.abspath(path) if below.startswith(os.pardir) else below}{end}"


def _keeps_heads(cfg: Mapping) -> bool:
    """Return True if the heads of a teacher need not fit the data.

    They are not compared, and the weights of a URL were trained on other data.
    """
    model = cfg.get("model") or {}
    if "teacher" not in model or "student" not in model:
        return False
    return "://" in str(model.get("teacher_checkpoint")) and not compares_scores(model["method"])


def _read_class_folders(cfg: Any) -> None:
    """Have the data sets of classification read class folders, if they read something else.

    Data sets in arrays, such as CIFAR-100, need no loading, and have their channels in the order of
    RGB.
    """
    loads = True
    for split in SPLITS:
        for _, node in _data_set(cfg, split):
            target = find_class("dataset", node, cfg)
            if not extends(target, "CustomDataset") or extends(target, "ImageNet"):
                node["type"] = "TolerantCustomDataset"
                for key in ("split", "download"):
                    node.pop(key, None)
            pipeline = node.get("pipeline")
            if pipeline and not str(pipeline[0].get("type")).startswith("LoadImage"):
                node["pipeline"] = [dict(type="LoadImageOrSkip"), *pipeline]
                loads = False
    for path, node in walk({key: cfg.get(key) for key in ("model", "data_preprocessor")}, ""):
        if not loads and path.endswith("data_preprocessor") and node.get("to_rgb") is False:
            node["to_rgb"] = True


def _describe_splits(data: Data) -> str:
    """Return the splits and what is in them."""
    return "; ".join(
        f"{name}: {split.num_images} images"
        + ("" if split.num_boxes is None else f", {split.num_boxes} boxes")
        for name, split in data.splits.items()
    )


def _say(cfg: Mapping, data: Data, changes: list[Change]) -> None:
    """Log what was found, in the first process."""
    if os.environ.get("RANK", "0") != "0":
        return
    names = ", ".join(data.classes[:10]) + (", ..." if len(data.classes) > 10 else "")
    print_log(
        f"data: {data.format} in {str(data.root)!r}; {len(data.classes)} classes: {names}; "
        f"{_describe_splits(data)}",
        "current",
    )
    notes = list(data.notes)
    if "test" not in data.splits:
        notes.append("no test split, val is tested on")
    checkpoint = (cfg.get("model") or {}).get("teacher_checkpoint")
    if checkpoint and any(change.path.startswith("model.teacher.") for change in changes):
        notes.append(f"the teacher {checkpoint!r} has to be trained on these classes")
    if notes:
        print_log(f"data: {'; '.join(notes)}", "current")
