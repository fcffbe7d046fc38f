"""Look-up of the types of a config in the registries of MMEngine and of this project."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

from pat_mmdet.registry import METHODS

REGISTRIES = {
    registry.name: registry
    for registry in vars(mmengine.registry).values()
    if isinstance(registry, Registry)
} | {METHODS.name: METHODS}


@cache
def find_type(registry: str, name: Any, scope: str) -> Callable | None:
    """Return what a type of a config stands for in a registry and scope, None if nothing."""
    if not isinstance(name, str):
        return name
    return _scoped(registry, scope).get(name)


def find_class(registry: str, node: Any, cfg: Mapping) -> Any:
    """Return the class of a dict in a config, None if it has none or there is none of this name."""
    scope = cfg.get("default_scope") or "mmengine"
    return find_type(registry, node.get("type"), scope) if isinstance(node, Mapping) else None


def extends(target: Any, *names: str) -> bool:
    """Return True if a class, or one that it extends, has one of some names."""
    return any(base.__name__ in names for base in getattr(target, "__mro__", ()))


def near_type(registries: Sequence[str], name: str, scope: str, cutoff: float) -> str | None:
    """Return the name in registries, of a scope and its parents, that is nearest to a wrong one."""
    # A name whose registry is not known may be none at all, as `conv` in FPG's necks.
    fold = str.lower if len(registries) < len(REGISTRIES) else str
    known: dict[str, str] = {}
    for key in registries:
        registry: Registry | None = _scoped(key, scope)
        while registry is not None:
            known.update((fold(item), item) for item in registry.module_dict)
            registry = registry.parent
    near = get_close_matches(fold(name), known, 1, cutoff=cutoff)
    return known[near[0]] if near else None


@cache
def _scoped(registry: str, scope: str) -> Registry:
    """Return a registry of a scope, mmengine's own if the scope has none of this name."""
    root = REGISTRIES[registry]
    with contextlib.suppress(ImportError):
        importlib.import_module(f"{scope}.registry")
    return root.children.get(scope, root)
