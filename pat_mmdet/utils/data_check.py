"""Check that data sets, heads and evaluators of a config agree, with each other and the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.fileio import exists, isdir, list_dir_or_file, list_from_file
from mmengine.logging import print_log

from pat_mmdet.registry import build_method
from pat_mmdet.structures import Requires
from pat_mmdet.utils.config_parts import (
    SPLITS,
    class_names,
    data_sets,
    evaluators,
    heads,
    join,
)
from pat_mmdet.utils.config_tables import BUILDER_KEYS
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.model_zoo import find_checkpoint
from pat_mmdet.utils.type_names import extends, find_class


def check_data_settings(cfg: Config) -> None:
    """Check that data sets, heads and evaluators of a config agree, and that no data are pickled.

    Raises:
        ConfigError: If two of them do not, with both values and where they stand, or data are.
    """
    _check_pickles(cfg)
    if "language_model" not in (cfg.get("model") or {}):  # whose classes are words
        _check_classes(cfg)
    for split in SPLITS[1:]:
        _check_annotations(cfg, split)


def _check_pickles(cfg: Config) -> None:
    """Refuse files such as ``proposal_file=*.pkl``: to read them is to run what is in them."""
    for split in SPLITS:
        for path, node in data_sets(cfg, split):
            for key, value in node.items():
                if isinstance(value, str) and value.endswith((".pkl", ".pickle")):
                    raise ConfigError(
                        f"{path}.{key}={value!r} is a pickle, which could run foreign code; "
                        "convert it to JSON, or take a detector that makes its own proposals"
                    )


def _check_classes(cfg: Config) -> None:
    """Compare the classes of all data sets, and those of the first one with the heads."""
    for split in SPLITS:
        for path, node in data_sets(cfg, split):
            # MMDetection would take the classes of COCO.
            if class_names(_written_classes(node)) == ():
                raise ConfigError(f"{path}.metainfo.classes is empty; name the classes of the data")
    known = [
        (path, node, classes)
        for split in SPLITS
        for path, node in data_sets(cfg, split)
        if (classes := _classes_of(node, cfg)) is not None
    ]
    for path, node, classes in known[1:]:
        first, other, expected = known[0]
        # What two classes of data sets have by default may differ, as in tracking.
        comparable = node.get("type") == other.get("type") or (
            _written_classes(node) and _written_classes(other)
        )
        if comparable and classes != expected:
            raise ConfigError(
                f"{first} has the classes {_short(expected)} and {path} has {_short(classes)}; "
                "give all splits the same metainfo.classes"
            )
    if known:
        path, node, classes = known[0]
        _check_heads(cfg, path, classes, written=bool(_written_classes(node)))


def _check_heads(cfg: Config, source: str, classes: tuple[str, ...], written: bool) -> None:
    """Compare the classes of the data with the heads, and with the k of top-k accuracies."""
    for path, node in heads(cfg):
        # By default a data set may have fewer classes than a pretrained head.
        number = node["num_classes"]
        # A preprocessor needs it to mix labels alone.
        if path.endswith("data_preprocessor") and not node.get("batch_augments"):
            continue
        if number < len(classes) or (written and number != len(classes)):
            if path.startswith("model.teacher") and not compares_scores(cfg.model.method):
                continue
            raise ConfigError(
                f"{path}.num_classes={number} but {source} has the {len(classes)} "
                f"classes {_short(classes)}; set both to the same"
            )
    for split in SPLITS[1:]:
        for path, node in evaluators(cfg, split):
            topk = node.get("topk") or ()
            if max(topk if isinstance(topk, (list, tuple)) else [topk], default=0) > len(classes):
                raise ConfigError(
                    f"{path}.topk={topk!r} but {source} has the {len(classes)} classes "
                    f"{_short(classes)}; set {path}.topk to numbers up to that"
                )


def _check_annotations(cfg: Config, split: str) -> None:
    """Compare the annotation file of a split's data set with that of its evaluators."""
    files = [
        (path, join(node.get("data_root"), node["ann_file"]))
        for path, node in data_sets(cfg, split)
        if node.get("ann_file")
    ]
    if len(files) != 1:
        return
    given = [(path, node) for path, node in evaluators(cfg, split) if node.get("ann_file")]
    # A further evaluator may need another file, as for boxes beside panoptic segments.
    if any(
        os.path.normpath(node["ann_file"]) == os.path.normpath(files[0][1]) for _, node in given
    ):
        return
    for path, node in given:
        if extends(find_class("metric", node, cfg), "CocoMetric"):
            raise ConfigError(
                f"{path}.ann_file={node['ann_file']!r} but {files[0][0]} reads {files[0][1]!r}, "
                "which is its data_root and ann_file; set both to the same file"
            )


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the files of a run are there, and classes of folders and teacher as in the config.

    Args:
        cfg (Config): The config to run.
        splits (str): What will be read: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ConfigError: If the class folders do not fit the classes or differ between splits, or the
            teacher was trained on other classes.
    """
    load_from = cfg.get("load_from") if "train" in splits else None
    if load_from and "://" not in load_from and not exists(load_from):
        raise FileNotFoundError(f"load_from={load_from!r} does not exist; check the path")
    for split in splits:
        for path, node in data_sets(cfg, split):
            root = node.get("data_root")
            if root and not isdir(root):
                raise FileNotFoundError(
                    f"data folder {root!r} does not exist; put the data there (the tools in "
                    "tools/dataset_converters unpack and check it), or set data_root in the config"
                )
            _check_files(path, node)
    check_class_folders(cfg, *splits)
    if "train" in splits:
        _check_teacher(cfg)


def _check_teacher(cfg: Config) -> None:
    """Check that a teacher whose class scores are compared was trained on the classes of the data.

    What has to be downloaded is left to the distiller, but for weights of a model zoo, whose config
    is known.

    Raises:
        ConfigError: If it was trained on others.
    """
    from pat_mmdet.utils.checkpoint import read_checkpoint, trained_classes

    model = cfg.get("model") or {}
    data = [_classes_of(node, cfg) for _, node in data_sets(cfg, "train")]
    if "teacher" not in model or not data or not data[0] or not compares_scores(model["method"]):
        return
    checkpoint, classes = model.get("teacher_checkpoint"), data[0]
    remedy = (
        f"train one on {_short(classes)} by a config of configs/teachers, or take a method on "
        "features, such as pkd"
    )
    known, source = None, repr(checkpoint)
    if checkpoint is None:
        known, source = _pretrained_classes(model["teacher"]), "of timm"
    elif "://" in checkpoint:
        known = _zoo_classes(checkpoint)
    if known is not None and known != len(classes):
        raise ConfigError(
            f"model.teacher: the weights {source} are for {known} classes, and the data have "
            f"{len(classes)}; {remedy}"
        )
    if checkpoint is None or not os.path.isfile(checkpoint):
        return
    trained = trained_classes(read_checkpoint(checkpoint))
    if trained and trained != classes:
        if len(trained) != len(classes) or set(trained) == set(classes):
            raise ConfigError(
                f"model.teacher_checkpoint={checkpoint!r} was trained on {len(trained)} classes, "
                f"{_short(trained)}; {remedy}"
            )
        print_log(
            f"the teacher {checkpoint!r} was trained on classes of other names, {_short(trained)} "
            f"in place of {_short(classes)}: scores are compared in this order",
            "current",
            logging.WARNING,
        )


def _pretrained_classes(teacher: Mapping) -> int | None:
    """Return for how many classes timm has weights of a teacher, None if it does not take them."""
    if not teacher.get("pretrained") or not str(teacher.get("type")).endswith("TimmClassifier"):
        return None
    from timm.models import get_pretrained_cfg

    pretrained = get_pretrained_cfg(teacher["model_name"])
    return None if pretrained is None else pretrained.num_classes


def _check_files(path: str, node: Mapping) -> None:
    """Check that the annotation file and the image folders of a data set are there.

    Raises:
        FileNotFoundError: If one is missing.
    """
    prefix = node.get("data_prefix") or {}
    prefix = prefix if isinstance(prefix, Mapping) else {"": prefix}
    places = {f"data_prefix.{key}".rstrip("."): value for key, value in prefix.items()}
    for key, place in {"ann_file": node.get("ann_file"), **places}.items():
        whole = join(node.get("data_root"), place) if place and isinstance(place, str) else ""
        if whole and "://" not in whole and not exists(whole):
            raise FileNotFoundError(
                f"{path}.{key}={place!r}: {whole!r} does not exist; put the data there, or set "
                f"{path}.{key} to where it is below data_root"
            )


def _zoo_classes(checkpoint: str) -> int | None:
    """Return for how many classes weights of a model zoo are, None if that is not known."""
    model = find_checkpoint(checkpoint)
    found = heads(Config.fromfile(model.config)) if model is not None else []
    return found[0][1]["num_classes"] if found else None


def check_class_folders(cfg: Config, *splits: str) -> None:
    """Check the labels that mmpretrain's ``CustomDataset`` gives to the folders of its images.

    It numbers labels by the folders' alphabetical order, or reads them from ``ann_file``, and takes
    the names from ``classes``, whatever their order. Names that have nothing in common with the
    folders' are for display.

    Args:
        cfg (Config): The config to run.
        splits (str): What will be read; a split whose files are missing is left out.

    Raises:
        ConfigError: If names or their order differ, or two splits label a folder differently.
    """
    first: tuple[str, dict[str, set[int]], bool] | None = None
    for split in splits:
        for path, node in data_sets(cfg, split):
            source, is_list = _label_source(node, cfg)
            if not source:
                continue
            if is_list:
                labels = _read_labels(source)
                classes = list(_classes_of(node, cfg) or ())
                _check_listed_labels(source, labels, classes, path)
            else:
                found = sorted(list_dir_or_file(source, list_file=False))
                labels = {name: {label} for label, name in enumerate(found)}
                classes = list(_classes_of(node, cfg) or found)
                related = set(classes) & set(found)
                if classes != found and (related or len(classes) != len(found)):
                    raise ConfigError(
                        f"{path}.metainfo.classes is {_short(classes)} but the folders in "
                        f"{source!r} are {_short(found)}{_difference(classes, found)}; labels "
                        "follow the folders' alphabetical order, so set classes to them"
                    )
            first = first or (source, labels, is_list)
            other, expected, _ = first
            if not (is_list or first[2]) and list(labels) != list(expected):
                raise ConfigError(
                    f"{source!r} has the class folders {_short(labels)} and {other!r} has "
                    f"{_short(expected)}{_difference(list(labels), list(expected))}; give all "
                    "splits the same"
                )
            for name in sorted(labels.keys() & expected.keys()):
                if labels[name] != expected[name]:
                    raise ConfigError(
                        f"images in the folder {name!r} have the label {_labels(expected[name])} "
                        f"by {other!r} and {_labels(labels[name])} by {source!r}; give all splits "
                        "the same"
                    )


def _label_source(node: Mapping, cfg: Mapping) -> tuple[str, bool]:
    """Return where a data set has its labels from, and whether that is a list and no folder.

    The path is empty for data sets of other types, without labels or without files.
    """
    target = find_class("dataset", node, cfg)
    if not extends(target, "CustomDataset") or not node.get("with_label", True):
        return "", False
    root, split, file = node.get("data_root"), node.get("split"), node.get("ann_file")
    if split and not file and exists(join(root, f"meta/{split}.txt")):  # mmpretrain's ImageNet
        file = f"meta/{split}.txt"
    prefix = node.get("data_prefix") or split or ""
    prefix = prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix
    path = join(root, file or prefix)
    is_there = exists(path) if file else isdir(path) and split != "test"
    return (path if is_there else ""), bool(file)


def _read_labels(path: str) -> dict[str, set[int]]:
    """Return the labels of images by the folders that hold them, from a list of images.

    Raises:
        ConfigError: If a line is not the path of an image and a label.
    """
    labels: dict[str, set[int]] = {}
    for number, line in enumerate(list_from_file(path), 1):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise ConfigError(
                f"line {number} of {path!r} is {line[:80]!r}; it has to be the path of an image, a "
                "blank and its label, counted from 0"
            )
        labels.setdefault(os.path.basename(os.path.dirname(name)), set()).add(int(label))
    return labels


def _check_listed_labels(
    source: str, labels: Mapping[str, set[int]], classes: list[str], path: str
) -> None:
    """Check labels of a list against the classes, if there are any."""
    if not classes:
        return
    for folder, found in labels.items():
        if folder in classes and found != {classes.index(folder)}:
            raise ConfigError(
                f"{source!r} gives images in the folder {folder!r} the label {_labels(found)}, but "
                f"{path}.metainfo.classes is {_short(classes)}; set classes in the order of the "
                "labels"
            )
        if max(found) >= len(classes):
            raise ConfigError(
                f"{source!r} has the label {max(found)}, but {path} has {len(classes)} classes, "
                "whose labels count from 0; correct the list, or set metainfo.classes"
            )


def _labels(found: set[int]) -> str:
    """Show labels, the first of many."""
    return f"{min(found)}{' and others' if len(found) > 1 else ''}"


def _classes_of(node: Mapping, cfg: Mapping) -> tuple[str, ...] | None:
    """Return the classes of a data set, those of its type by default.

    None if it finds them in its files, if things and stuff have heads of their own, or if it is a
    video, where only some classes are tracked.
    """
    target = find_class("dataset", node, cfg)
    default = {} if extends(target, "BaseVideoDataset") else getattr(target, "METAINFO", {})
    classes = _written_classes(node) or default.get("classes")
    if "thing_classes" in default or not isinstance(classes, (list, tuple)):
        return None
    return tuple(classes)


def _written_classes(node: Mapping) -> Any:
    return (node.get("metainfo") or {}).get("classes")


def compares_scores(method: Mapping) -> bool:
    """Return True if a method compares the logits of student and teacher."""
    own = {key: value for key, value in method.items() if key not in BUILDER_KEYS["method"]}
    of_tasks = {**method.get("detection", {}), **method.get("classification", {})}
    return bool(build_method({**of_tasks, **own}).requires & Requires.STUDENT_LOGITS)


def _difference(one: list[str], other: list[str]) -> str:
    """Describe by which names two lists differ, if not by their order alone."""
    different = sorted(set(one) ^ set(other))
    return f" (the difference: {_short(different)})" if different else ""


def _short(names: Iterable[str]) -> str:
    """Show names, the first ten of many."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"({', '.join(map(repr, names[:10]))}{more})"
