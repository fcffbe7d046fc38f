"""Check the keys and type names of a config against the classes that they are for.

A misspelt key is found before anything is built, and named together with the key that was meant.
What a class takes is read from the signature of its ``__init__``; where that hands its ``**kwargs``
on to the parent, from the parent's as well. Where a class does anything else with them, other keys
are refused only if they are nearly one of its own.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import mmengine.registry
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from pat_mmdet.registry import METHODS
from pat_mmdet.utils.errors import ConfigError

# What mmengine and the data transforms take out of a dict before the class gets it, by registry.
BUILDER_KEYS = {
    "hook": {"priority"},
    "loop": {"by_epoch"},
    "optim_wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "parameter scheduler": {"convert_to_iter_based"},
    # Parts of models that another part builds: norms, convolutions, losses of DETR, encoders.
    "model": {
        "bg_cls_weight",
        "deformable_groups",
        "fallback_on_stride",
        "pretrained",
        "requires_grad",
        "scale_factor",
    },
    "transform": {"magnitude_key", "magnitude_range"},  # the policies of mmpretrain's AutoAugment
    "method": {"input_size", "detection", "classification"},  # of configs of earlier versions
}
_EVERYWHERE = {"type", "_scope_", "_delete_"}
_LOADER_KEYS = {
    "batch_sampler",
    "collate_fn",
    "dataset",
    "num_batch_per_epoch",
    "sampler",
    *inspect.signature(DataLoader.__init__).parameters,
}
_PARAMWISE_KEYS = {
    "base_lr",
    "bias_decay_mult",
    "bias_lr_mult",
    "bypass_duplicate",
    "custom_keys",
    "dcn_offset_lr_mult",
    "dwconv_decay_mult",
    "flat_decay_mult",
    "norm_decay_mult",
}
# The top level: the Runner's arguments, and what tools read.
_TOP_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    "classes",
    "compile",
    "custom_imports",
    "data_root",
    "method_options",
    "model_wrapper_cfg",
    "published",
    "settings",
    "tta_model",
    "tta_pipeline",
    "vis_backends",
}
_USUAL_VARIABLES = {"test_pipeline", "train_pipeline", "val_pipeline"}
_UNTYPED = {
    "auto_scale_lr": {"base_batch_size", "enable"},
    "env_cfg": {"cudnn_benchmark", "dist_cfg", "mp_cfg", "resource_limit"},
    "randomness": set(inspect.signature(Runner.set_randomness).parameters) - {"self"},
}
# The registry of a dict by its key; elsewhere a type is looked up in all of them.
_REGISTRY_OF_KEY = {
    "data_preprocessor": "model",
    "dataset": "dataset",
    "method": "method",
    "optim_wrapper": "optim_wrapper",
    "optimizer": "optimizer",
    "param_scheduler": "parameter scheduler",
    "pipeline": "transform",
    "student": "model",
    "teacher": "model",
    "backbone": "model",
    "neck": "model",
    "head": "model",
    "bbox_head": "model",
    "roi_head": "model",
    "rpn_head": "model",
}
_TOP_REGISTRIES = {
    "custom_hooks": "hook",
    "default_hooks": "hook",
    "log_processor": "log_processor",
    "model": "model",
    "test_cfg": "loop",
    "test_evaluator": "evaluation",
    "train_cfg": "loop",
    "val_cfg": "loop",
    "val_evaluator": "evaluation",
    "vis_backends": "vis_backend",
    "visualizer": "visualizer",
}
_REGISTRIES = {
    registry.name: registry
    for registry in vars(mmengine.registry).values()
    if isinstance(registry, Registry)
} | {METHODS.name: METHODS}
_GROUPS = {"evaluation": ("metric", "evaluator")}
# What these hold is for another library.
_FOREIGN = {"Albu"}


def check_keys(cfg: Mapping[str, Any]) -> None:
    """Check that no key or type name of a config is misspelt.

    Keys of the top level are free, as a config may define variables: one is refused if it is nearly
    a known one.

    Args:
        cfg (Mapping): The config, with default scope and custom imports in effect.

    Raises:
        ConfigError: If a key is not known to the class that gets it, or a type to its registry.
    """
    for key in cfg:
        near = get_close_matches(key, _TOP_KEYS, 1, cutoff=0.88)
        # A variable may have a known name as a part of its own: `data_root_val`, `_classes`.
        if near and key not in _TOP_KEYS | _USUAL_VARIABLES and near[0] not in key:
            raise ConfigError(f"{key} at the top of the config: did you mean {near[0]!r}?")
    scope = cfg.get("default_scope") or "mmengine"
    for key, value in cfg.items():
        if key not in _TOP_KEYS:
            continue  # a variable, or a part that another package reads
        if key.endswith("_dataloader") and isinstance(value, Mapping):
            unknown = [name for name in value if name not in _LOADER_KEYS]
            _refuse(key, "a data loader", unknown, _LOADER_KEYS)
        if key in _UNTYPED and isinstance(value, Mapping):
            unknown = [name for name in value if name not in _UNTYPED[key]]
            _refuse(key, key, unknown, _UNTYPED[key])
        for path, node, inner_scope, registry in _typed(
            key, value, scope, _TOP_REGISTRIES.get(key)
        ):
            _check_node(path, node, inner_scope, registry)


def _check_node(path: str, node: Mapping, scope: str, registry: str | None) -> None:
    """Check a dict that has a type.

    Raises:
        ConfigError: If the type is unknown, or no class of this name takes all keys.
    """
    name = node["type"]
    if isinstance(name, str):
        names = _GROUPS.get(registry, (registry,)) if registry else tuple(_REGISTRIES)
        found = [(item, find_type(item, name, scope)) for item in names]
        found = [(item, target) for item, target in found if target is not None]
        near = None if found else _near_type(names, name, scope, cutoff=0.8 if registry else 0.9)
        if near is not None:
            raise ConfigError(f"{path}.type={name!r} is not known; did you mean {near!r}?")
    else:
        found = [("", name)] if callable(name) else []
    refused: list[tuple] = []
    for item, target in found:
        accepted = accepted_keys(target)
        known = accepted.keys | _EVERYWHERE | BUILDER_KEYS.get(item, set())
        if "ema_type" in node:  # EMAHook hands the rest on to it
            known |= accepted_keys(find_type("model", node["ema_type"], scope)).keys
        unknown = [key for key in node if key not in known]
        if accepted.others != "refused":
            unknown = [key for key in unknown if get_close_matches(key, known, 1, cutoff=0.85)]
        if not unknown:
            refused = []
            break
        refused.append((unknown, known, accepted.keys - {"self"}))
    if refused:
        _refuse(path, name if isinstance(name, str) else name.__name__, *refused[0])
    paramwise = node.get("paramwise_cfg")
    if isinstance(paramwise, Mapping) and "constructor" not in node:
        unknown = [key for key in paramwise if key not in _PARAMWISE_KEYS]
        _refuse(f"{path}.paramwise_cfg", "paramwise_cfg", unknown, _PARAMWISE_KEYS)


def _refuse(
    path: str,
    owner: str,
    unknown: Sequence[str],
    known: Collection[str],
    listed: Collection[str] | None = None,
) -> None:
    """Refuse unknown keys.

    Args:
        path (str): Dotted path of the dict.
        owner (str): What gets the dict.
        unknown (Sequence[str]): The keys.
        known (Collection[str]): What is legal there.
        listed (Collection[str], optional): What to name if nothing is near, by default all.

    Raises:
        ConfigError: If there is any; it names the first, and the nearest known one or else all.
    """
    for key in unknown:
        near = get_close_matches(str(key), known, 1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"it takes {', '.join(sorted(listed or known))}"
        )
        raise ConfigError(f"{path}.{key}: {owner} has no argument {key!r}; {hint}")


def _typed(
    path: str, value: Any, scope: str, registry: str | None
) -> Iterator[tuple[str, Mapping, str, str | None]]:
    """Yield the dicts with a type inside a value: path, dict, scope, name of the registry."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _typed(f"{path}.{index}", item, scope, registry)
    elif isinstance(value, Mapping):
        scope = value.get("_scope_", scope)
        if "type" in value:
            yield path, value, scope, registry
        if value.get("type") in _FOREIGN:
            return
        for key, item in value.items():
            inner = _REGISTRY_OF_KEY.get(key)
            if registry == "hook" and "type" not in value:
                inner = registry  # default_hooks, by name
            yield from _typed(f"{path}.{key}", item, scope, inner)


@cache
def find_type(registry: str, name: Any, scope: str) -> Callable | None:
    """Return what a type of a config stands for in a registry and scope, None if nothing."""
    if not isinstance(name, str):
        return name
    return _scoped(registry, scope).get(name)


def _near_type(registries: Sequence[str], name: str, scope: str, cutoff: float) -> str | None:
    """Return the name in registries, of a scope and its parents, that is nearest to a wrong one."""
    # A name whose registry is not known may be none at all, as `conv` in FPG's necks.
    fold = str.lower if len(registries) < len(_REGISTRIES) else str
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
    root = _REGISTRIES[registry]
    with contextlib.suppress(ImportError):
        importlib.import_module(f"{scope}.registry")
    return root.children.get(scope, root)


class Accepted(NamedTuple):
    """Arguments of a class or function.

    Attributes:
        keys (frozenset[str]): Names of its arguments.
        others (str): What becomes of keys that are not among them: ``'refused'``, ``'ignored'``, or
            ``'used'``, which is assumed where it cannot be told.
    """

    keys: frozenset[str]
    others: str


@cache
def accepted_keys(target: Callable) -> Accepted:
    """Return the keyword arguments that a class or function takes.

    Args:
        target (Callable): A class, or a function that a registry calls.

    Returns:
        Accepted: Their names, and what becomes of others.
    """
    if not inspect.isclass(target):
        return _accepted(target, ())
    makers = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    return _accepted(makers[0], tuple(makers[1:]))


def _accepted(function: Callable, parents: tuple[Callable, ...]) -> Accepted:
    """Return what a function takes; ``parents`` are those that ``super()`` leads to, in order."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return Accepted(frozenset(), "used")
    stars = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    keys = {item.name for item in parameters if item.kind not in stars}
    rest = [item.name for item in parameters if item.kind is stars[0]]
    if not rest:
        return Accepted(frozenset(keys), "refused")
    read = _kwargs_of(inspect.unwrap(function), rest[0])
    if read is None or (read.handed_on and (not parents or parents[0] is object.__init__)):
        return Accepted(frozenset(keys), "used")
    keys |= read.taken
    if not read.handed_on:
        return Accepted(frozenset(keys), "ignored")
    inherited = _accepted(parents[0], parents[1:])
    return Accepted(frozenset(keys | inherited.keys), inherited.others)


class _Kwargs(NamedTuple):
    taken: set[str]
    handed_on: bool


def _is_next(node: ast.expr, function: Callable) -> bool:
    """Return True for ``super()`` of the class that a function belongs to."""
    if not isinstance(node, ast.Call) or getattr(node.func, "id", None) != "super":
        return False
    return (
        not node.args or getattr(node.args[0], "id", None) == function.__qualname__.split(".")[-2]
    )


def _kwargs_of(function: Callable, kwargs: str) -> _Kwargs | None:
    """Return what a function reads in its ``**kwargs``, and whether the parent gets the rest.

    None if it does anything else with them, or its source is not there.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    taken, handed_on, understood = set(), 0, 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = node.func.value, node.func.attr
        if getattr(owner, "id", None) == kwargs and name in ("get", "pop", "setdefault"):
            if not node.args or not isinstance(node.args[0], ast.Constant):
                return None
            taken.add(str(node.args[0].value))
            understood += 1
        elif name == "__init__" and _is_next(owner, function):
            rest = [item.value for item in node.keywords if item.arg is None]
            handed_on += sum(getattr(value, "id", None) == kwargs for value in rest)
    uses = sum(isinstance(node, ast.Name) and node.id == kwargs for node in ast.walk(tree))
    return _Kwargs(taken, handed_on > 0) if uses == understood + handed_on else None
