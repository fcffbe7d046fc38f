"""One ``data_root`` and one ``classes`` for all places of a config, and what has to agree in them.

MMEngine knows no such settings: a config has the folder in each data set and in the evaluators, the
classes in ``metainfo``, and their number in each head. What a user writes in these places is what
runs. A ``data_root`` or ``classes`` on the command line, or at the top of a user's config, is put
into the places that still have the value that it replaces, and into no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.fileio import isdir, list_dir_or_file

from pat_mmdet.registry import build_method
from pat_mmdet.structures import Requires
from pat_mmdet.utils.config_check import BUILDER_KEYS, find_type
from pat_mmdet.utils.config_files import overriding_file
from pat_mmdet.utils.errors import ConfigError

SPLITS = ("train", "val", "test")
KEYS = ("data_root", "classes")
# They have an output for each class of the data; other heads of a detector count something else.
_HEADS = ("bbox_head", "head", "mask_head")


class Change(NamedTuple):
    """A value that a setting has for a place of a config.

    Attributes:
        node (dict): The dict of the place, a part of the config.
        key (str): Its key there.
        path (str): Dotted path of the place.
        old (Any): What it has now, None if nothing.
        new (Any): What the setting has.
        state (str): ``'replaced'`` if the place has what the setting replaces, ``'set'`` if a user
            wrote just that in this place, ``'other'`` if it has another value.
    """

    node: dict
    key: str
    path: str
    old: Any
    new: Any
    state: str


class _Setting(NamedTuple):
    """A ``data_root`` or ``classes`` for all places.

    Attributes:
        key (str): Its name.
        value (Any): Its value.
        source (str): Where it stands.
        before (tuple): What the config had before the command line; None stands for any value.
        inherited (tuple): What the bases of the user's config have; None stands for any value.
        written (frozenset[tuple[str, str]]): Key and value (by ``repr``) of what the user's files
            write themselves, which is not inherited then.
        options (Mapping): Values of the command line by dotted key.
    """

    key: str
    value: Any
    source: str
    before: tuple
    inherited: tuple
    written: frozenset[tuple[str, str]]
    options: Mapping[str, Any]

    def state(self, path: str, value: Any, matches: Callable[[Any], bool] | None = None) -> str:
        """Return the state of a place, see :class:`Change`.

        Args:
            path (str): Dotted path of the place.
            value (Any): What it has.
            matches (Callable, optional): Tells whether that belongs to a replaced setting; by
                default it does if it is equal.
        """

        def among(replaced: tuple) -> bool:
            if value is None and replaced:
                return True
            return any(
                old is None or (value == old if matches is None else matches(old))
                for old in replaced
            )

        before = among(self.before)
        if not before and not among(self.inherited):
            return "other"
        by_hand = not before and (path.rpartition(".")[2], repr(value)) in self.written
        return "set" if by_hand or path in self.options else "replaced"


def spread(cfg: Config, options: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Put ``data_root`` and ``classes`` into their places, where that is asked for.

    Args:
        cfg (Config): Changed in place; has the options already.
        options (Mapping): Values of the command line by dotted key.
        before (Mapping): ``data_root`` and ``classes`` of the config without the options.

    Raises:
        ConfigError: If a place was given another value; it names both values and both places.
    """
    if isinstance(cfg.get("classes"), str):  # a single name of the command line
        cfg.classes = (cfg.classes,)
    # Files first: the evaluators of a split follow the folder that its data set has in the end.
    for key in KEYS:
        for change in pending(cfg, key, options, before):
            change.node[change.key] = change.new


def pending(
    cfg: Config, key: str, options: Mapping[str, Any] = {}, before: Mapping[str, Any] = {}
) -> list[Change]:
    """Return what :func:`spread` would change for one of its keys; raises the same error."""
    setting = _setting(cfg, key, options, before)
    if setting is None:
        return []
    find = _folder_changes if key == "data_root" else _class_changes
    changes = [change for change in find(cfg, setting) if change.old != change.new]
    wanted = [change for change in changes if change.state == "replaced"]
    kept = [change for change in changes if change.state != "replaced"]
    # With a value of its own in every place, a setting at the top is a variable.
    if kept and (wanted or any(change.state == "set" for change in kept)):
        raise ConfigError(
            f"{key}={setting.value!r} ({setting.source}) is for all places, but "
            f"{kept[0].path}={kept[0].old!r} has another value; take one of the two out, or write "
            "the value of each place in its place"
        )
    return wanted


def _setting(
    cfg: Config, key: str, options: Mapping[str, Any], before_options: Mapping[str, Any]
) -> _Setting | None:
    """Return a setting that replaces something: of the command line, or of a user's file."""
    value = cfg.get(key)
    if value is None:
        return None
    names = _names if key == "classes" else lambda folder: folder
    checked = _has_check(cfg)
    file = overriding_file(cfg.filename, key) if checked else None
    before: tuple = ()
    inherited: tuple = ()
    written: frozenset = frozenset()
    sources: list[str] = []
    if key in options:
        sources.append("on the command line")
        before = (names(before_options.get(key)) if checked else None,)
    if file is not None:
        sources.append(f"at the top of {file.path}")
        inherited, written = (names(file.replaced),), file.written
    if not sources:
        return None
    return _Setting(key, names(value), sources[0], before, inherited, written, options)


def _names(classes: Any) -> tuple[str, ...] | None:
    """Return classes as a tuple; a single name of the command line is a string."""
    if classes is None:
        return None
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _has_check(cfg: Mapping) -> bool:
    """Return True if plain MMEngine runs the check of the settings on this config too.

    In configs of other projects a `classes` at the top is a variable.
    """
    hooks = (cfg.get("default_hooks") or {}).values()
    return any(hook and hook.get("type") == "CheckConfigHook" for hook in hooks)


def _folder_changes(cfg: Config, setting: _Setting) -> Iterator[Change]:
    """Yield what ``data_root`` has for the data sets, and for the evaluators that follow them."""
    for split in SPLITS:
        parts = data_sets(cfg, split)
        folder = None
        for path, node in parts:
            old = node.get("data_root")
            path = f"{path}.data_root"
            state = setting.state(path, old)
            yield Change(node, "data_root", path, old, setting.value, state)
            folder = setting.value if state == "replaced" else old
        if len(parts) != 1 or "ann_file" not in parts[0][1]:
            continue
        for path, node in evaluators(cfg, split):
            old, path = node.get("ann_file"), f"{path}.ann_file"
            if not old:
                continue
            if setting.state(path, old, matches=old.startswith) == "replaced":
                new = join(folder, parts[0][1]["ann_file"])
                yield Change(node, "ann_file", path, old, new, "replaced")


def _class_changes(cfg: Config, setting: _Setting) -> Iterator[Change]:
    """Yield what ``classes`` has for data sets, heads, and the k of top-k accuracies."""
    for split in SPLITS:
        for path, node in data_sets(cfg, split):
            metainfo = node.get("metainfo") or {}
            old: Any = _names(metainfo.get("classes"))
            path = f"{path}.metainfo.classes"
            new: Any = {**metainfo, "classes": setting.value}
            if old != setting.value:
                yield Change(node, "metainfo", path, old, new, setting.state(path, old))
    number = len(setting.value)
    for part in ("model", "data_preprocessor"):
        for path, node in _walk(cfg.get(part) or {}, part):
            if "num_classes" in node and ".rpn_head" not in path:
                path, old = f"{path}.num_classes", node["num_classes"]
                state = setting.state(
                    path,
                    old,
                    matches=lambda names, count=old: len(names) == count,  # type: ignore[misc]
                )
                yield Change(node, "num_classes", path, old, number, state)
    for split in SPLITS[1:]:
        for path, node in evaluators(cfg, split):
            path, old = f"{path}.topk", node.get("topk")
            if isinstance(old, (list, tuple)) and max(old) > number:
                new = tuple(k for k in old if k <= number)
                if setting.state(path, old, matches=lambda names: True) == "replaced":
                    yield Change(node, "topk", path, old, new, "replaced")


def check_data_settings(cfg: Config) -> None:
    """Check that data sets, heads and evaluators of a config agree.

    Raises:
        ConfigError: If two of them do not; it names both values and where they stand.
    """
    if "language_model" not in (cfg.get("model") or {}):  # whose classes are words
        _check_classes(cfg)
    for split in SPLITS[1:]:
        _check_annotations(cfg, split)


def _check_classes(cfg: Config) -> None:
    """Compare the classes of all data sets, and those of the first one with the heads."""
    for split in SPLITS:
        for path, node in data_sets(cfg, split):
            # MMDetection would take the classes of COCO.
            if _names(_written_classes(node)) == ():
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
        if number < len(classes) or (written and number != len(classes)):
            if path.startswith("model.teacher") and not _compares_scores(cfg.model.method):
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
    scope = cfg.get("default_scope") or "mmengine"
    for path, node in given:
        if _extends(find_type("metric", node.get("type"), scope), "CocoMetric"):
            raise ConfigError(
                f"{path}.ann_file={node['ann_file']!r} but {files[0][0]} reads {files[0][1]!r}, "
                "which is its data_root and ann_file; set both to the same file"
            )


def data_sets(cfg: Mapping, split: str) -> list[tuple[str, Any]]:
    """Return path and config of the data sets of a split, inside of wrappers and concatenations."""
    loader = cfg.get(f"{split}_dataloader") or {}
    loaders = loader if isinstance(loader, (list, tuple)) else [loader]
    found: list[tuple[str, Any]] = []
    for item in loaders:
        _add_data_sets(item, f"{split}_dataloader", found)
    return found


def _add_data_sets(node: Mapping, path: str, found: list[tuple[str, Any]]) -> None:
    inner = {key: node[key] for key in ("dataset", "datasets") if key in node}
    if not inner and ("data_root" in node or "ann_file" in node):
        found.append((path, node))
    for key, value in inner.items():
        items = value.items() if key == "datasets" and isinstance(value, Mapping) else None
        listed = enumerate(value) if isinstance(value, (list, tuple)) else items
        for name, item in listed or [(None, value)]:
            inner_path = f"{path}.{key}" if name is None else f"{path}.{key}.{name}"
            if isinstance(item, Mapping):
                _add_data_sets(item, inner_path, found)


def evaluators(cfg: Mapping, split: str) -> list[tuple[str, Any]]:
    """Return path and config of the evaluators of a split."""
    value = cfg.get(f"{split}_evaluator") or []
    path = f"{split}_evaluator"
    if isinstance(value, (list, tuple)):
        return [(f"{path}.{index}", item) for index, item in enumerate(value)]
    return [(path, value)] if isinstance(value, Mapping) else []


def heads(cfg: Mapping) -> list[tuple[str, dict]]:
    """Return path and config of the heads that have an output for each class of the data."""
    model = cfg.get("model") or {}
    networks = [("model", model)]
    if "student" in model and "teacher" in model:
        networks = [(f"model.{name}", model[name]) for name in ("student", "teacher")]
    found = []
    for start, network in networks:
        if not isinstance(network, Mapping):
            continue  # the path of a config
        for path, node in _walk(network, start):
            steps = path.split(".")
            name = steps[-2] if steps[-1].isdigit() else steps[-1]
            if "num_classes" in node and (path == start or name in _HEADS):
                found.append((path, node))
    return found


def _compares_scores(method: Mapping) -> bool:
    """Return True if a method compares the logits of student and teacher."""
    own = {key: value for key, value in method.items() if key not in BUILDER_KEYS["method"]}
    of_tasks = {**method.get("detection", {}), **method.get("classification", {})}
    return bool(build_method({**of_tasks, **own}).requires & Requires.STUDENT_LOGITS)


def _extends(target: Any, name: str) -> bool:
    """Return True if a class, or one that it extends, has a name."""
    return any(base.__name__ == name for base in getattr(target, "__mro__", ()))


def _written_classes(node: Mapping) -> Any:
    return (node.get("metainfo") or {}).get("classes")


def _classes_of(node: Mapping, cfg: Mapping) -> tuple[str, ...] | None:
    """Return the classes of a data set, those of its type by default.

    None if it finds them in its files, if things and stuff have heads of their own, or if it is a
    video, where only some classes are tracked.
    """
    target = find_type("dataset", node.get("type"), cfg.get("default_scope") or "mmengine")
    default = {} if _extends(target, "BaseVideoDataset") else getattr(target, "METAINFO", {})
    classes = _written_classes(node) or default.get("classes")
    if "thing_classes" in default or not isinstance(classes, (list, tuple)):
        return None
    return tuple(classes)


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the folders of the data are there, and those of the classes as the config says.

    Args:
        cfg (Config): The config to run.
        splits (str): What will be read: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        FileNotFoundError: If a folder is missing.
        ConfigError: If the class folders do not fit the classes, or differ between splits.
    """
    for split in splits:
        for _, node in data_sets(cfg, split):
            root = node.get("data_root")
            if root and not isdir(root):
                raise FileNotFoundError(
                    f"data folder {root!r} does not exist; put the data there (the tools in "
                    "tools/dataset_converters unpack and check it), or set data_root in the config"
                )
    check_class_folders(cfg, *splits)


def check_class_folders(cfg: Config, *splits: str) -> None:
    """Check the classes of mmpretrain's ``CustomDataset`` against the folders of its images.

    It numbers labels by the folders' alphabetical order and takes the names from ``classes``,
    whatever their order. Names that have nothing in common with the folders' are for display.

    Args:
        cfg (Config): The config to run.
        splits (str): What will be read; a split whose folder is missing is left out.

    Raises:
        ConfigError: If names or their order differ, or two splits have different folders.
    """
    first: tuple[str, list[str]] | None = None
    for split in splits:
        for path, node in data_sets(cfg, split):
            prefix = node.get("data_prefix") or ""
            prefix = prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix
            folder = join(node.get("data_root"), prefix)
            plain = node.get("type") in ("CustomDataset", "mmpretrain.CustomDataset")
            if (
                not plain
                or node.get("ann_file")
                or not node.get("with_label", True)
                or not isdir(folder)
            ):
                continue
            found = sorted(list_dir_or_file(folder, list_file=False))
            classes = list(_classes_of(node, cfg) or found)
            related = set(classes) & set(found)
            if classes != found and (related or len(classes) != len(found)):
                raise ConfigError(
                    f"{path}.metainfo.classes is {_short(classes)} but the folders in {folder!r} "
                    f"are {_short(found)}{_difference(classes, found)}; labels follow the folders' "
                    "alphabetical order, so set classes to them"
                )
            first = first or (folder, found)
            if found != first[1]:
                raise ConfigError(
                    f"{folder!r} has the class folders {_short(found)} and {first[0]!r} has "
                    f"{_short(first[1])}{_difference(found, first[1])}; give all splits the same"
                )


def _difference(one: list[str], other: list[str]) -> str:
    """Describe by which names two lists differ, if not by their order alone."""
    different = sorted(set(one) ^ set(other))
    return f" (the difference: {_short(different)})" if different else ""


def join(root: str | None, path: str) -> str:
    """Join a path to a folder as mmengine's data sets do."""
    return path if "://" in path else os.path.join(root or "", path)


def _short(names: Iterable[str]) -> str:
    """Show names, the first ten of many."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"({', '.join(map(repr, names[:10]))}{more})"


def _walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield path and dict of every dict inside a value, from the outside in."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}.{index}")
