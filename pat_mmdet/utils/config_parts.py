"""Where data sets, evaluators and heads stand in a config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pat_mmdet.utils.nested import walk

SPLITS = ("train", "val", "test")
# They have an output for each class of the data; other heads of a detector count something else.
# So has mmpretrain's preprocessor, which makes vectors of the labels that it mixes.
_HEADS = ("bbox_head", "data_preprocessor", "head", "mask_head")


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
    networks.append(("data_preprocessor", cfg.get("data_preprocessor")))
    found = []
    for start, network in networks:
        if not isinstance(network, Mapping):
            continue  # the path of a config, or none
        for path, node in walk(network, start):
            steps = path.split(".")
            name = steps[-2] if steps[-1].isdigit() else steps[-1]
            if "num_classes" in node and (path == start or name in _HEADS):
                found.append((path, node))
    return found


def class_names(classes: Any) -> tuple[str, ...] | None:
    """Return classes as a tuple; a single name of the command line is a string."""
    if classes is None:
        return None
    return (classes,) if isinstance(classes, str) else tuple(classes)


def join(root: str | None, path: str) -> str:
    """Join a path to a folder as mmengine's data sets do."""
    return path if "://" in path else os.path.join(root or "", path)


def has_config_check(cfg: Mapping) -> bool:
    """Return True if a config is based on one of this project, by its ``CheckConfigHook``.

    Plain MMEngine then runs the checks too. Configs of other projects need not be complete here.
    """
    hooks = (cfg.get("default_hooks") or {}).values()
    return any(
        isinstance(hook, Mapping) and hook.get("type") == "CheckConfigHook" for hook in hooks
    )
