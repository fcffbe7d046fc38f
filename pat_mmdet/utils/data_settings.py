"""One ``data_root`` and one ``classes`` for all places of a config.

MMEngine knows no such settings: a config has the folder in each data set and in the evaluators, the
classes in ``metainfo``, and their number in each head. What a user writes in these places is what
runs. A ``data_root`` or ``classes`` on the command line, or at the top of a user's config, is put
into the places that still have the value that it replaces, and into no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from pat_mmdet.utils.config_files import overriding_file
from pat_mmdet.utils.config_parts import (
    SPLITS,
    class_names,
    data_sets,
    evaluators,
    has_config_check,
    join,
)
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.nested import walk

KEYS = ("data_root", "classes")


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


class Setting(NamedTuple):
    """A ``data_root``, ``classes`` or ``data`` for all places.

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
    find = _folder_changes if key == "data_root" else class_changes
    changes = [change for change in find(cfg, setting) if change.old != change.new]
    wanted = [change for change in changes if change.state == "replaced"]
    # With a value of its own in every place, a setting at the top is a variable.
    if wanted or any(change.state == "set" for change in changes):
        refuse_kept(setting, changes)
    return wanted


def refuse_kept(setting: Setting, changes: Sequence[Change]) -> None:
    """Refuse to change what a user wrote in a place.

    Raises:
        ConfigError: If a change is not to replace; it names both values.
    """
    kept = next((change for change in changes if change.state != "replaced"), None)
    if kept is not None:
        raise ConfigError(
            f"{setting.key}={setting.value!r} ({setting.source}) is for all places, but "
            f"{kept.path}={kept.old!r} has another value; take one of the two out, or write the "
            "value of each place in its place"
        )


def _setting(
    cfg: Config, key: str, options: Mapping[str, Any], before_options: Mapping[str, Any]
) -> Setting | None:
    """Return a setting that replaces something: of the command line, or of a user's file."""
    value = cfg.get(key)
    if value is None:
        return None
    if key == "classes" and not value:
        raise ConfigError("classes is empty; name the classes of the data")
    names = class_names if key == "classes" else lambda folder: folder
    checked = has_config_check(cfg)
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
    return Setting(key, names(value), sources[0], before, inherited, written, options)


def _folder_changes(cfg: Config, setting: Setting) -> Iterator[Change]:
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


def class_changes(cfg: Config, setting: Setting) -> Iterator[Change]:
    """Yield what ``classes`` has for data sets, heads, and the k of top-k accuracies."""
    for split in SPLITS:
        for path, node in data_sets(cfg, split):
            metainfo = node.get("metainfo") or {}
            old: Any = class_names(metainfo.get("classes"))
            path = f"{path}.metainfo.classes"
            new: Any = {**metainfo, "classes": setting.value}
            if old != setting.value:
                yield Change(node, "metainfo", path, old, new, setting.state(path, old))
    number = len(setting.value)
    for part in ("model", "data_preprocessor"):
        for path, node in walk(cfg.get(part) or {}, part):
            if "num_classes" in node and ".rpn_head" not in path:
                path, old = f"{path}.num_classes", node["num_classes"]
                state = setting.state(
                    path,
                    old,
                    matches=lambda names, count=old: len(names) == count,  # type: ignore[misc]
                )
                yield Change(node, "num_classes", path, old, number, state)
    for path, node in walk(cfg.get("model") or {}, "model"):
        # timm has a default of its own, 1000 as a rule.
        if str(node.get("type")).endswith("TimmClassifier") and "num_classes" not in node:
            path = f"{path}.num_classes"
            yield Change(node, "num_classes", path, None, number, setting.state(path, None))
    for split in SPLITS[1:]:
        for path, node in evaluators(cfg, split):
            path, old = f"{path}.topk", node.get("topk")
            if isinstance(old, (list, tuple)) and max(old) > number:
                new = tuple(k for k in old if k <= number)
                if setting.state(path, old, matches=lambda names: True) == "replaced":
                    yield Change(node, "topk", path, old, new, "replaced")
