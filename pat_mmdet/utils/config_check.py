"""Check keys, types and values of a config against the classes that they are for.

What a class takes is read from its signature, see :mod:`pat_mmdet.utils.signatures`: names of
arguments, their types, and ranges that are declared there, see
:mod:`pat_mmdet.utils.argument_types`. Where there is no type, the default has one. What other
libraries leave open is in :mod:`pat_mmdet.utils.config_tables`. Nothing is built and no data read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from pat_mmdet.utils.config_files import unread_variables
from pat_mmdet.utils.config_parts import has_config_check
from pat_mmdet.utils.config_tables import (
    BUILDER_KEYS,
    CLOSED_SECTIONS,
    EVERYWHERE,
    FOREIGN,
    GIVEN_BY_BUILDER,
    HINTS,
    PARAMWISE,
    RANGES,
    REGISTRY_OF_KEY,
    SECTIONS,
    TOP_KEYS,
    TOP_REGISTRIES,
    TOP_TYPES,
    UNTYPED,
    USUAL_VARIABLES,
)
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.nested import leaves
from pat_mmdet.utils.signatures import Accepted, Argument, accepted_arguments
from pat_mmdet.utils.type_names import REGISTRIES, extends, find_type, near_type

# "evaluation" is either of two registries.
_GROUPS = {"evaluation": ("metric", "evaluator")}
_LOADER = Accepted(
    {
        **accepted_arguments(DataLoader).arguments,
        "collate_fn": Argument(dict),
        "dataset": Argument(dict),
        "num_batch_per_epoch": Argument(int),
        "sampler": Argument(dict),
        "batch_sampler": Argument(dict, None),
    },
    "refused",
)


class _Part(NamedTuple):
    """A dict of a config.

    Attributes:
        path (str): Its dotted path.
        node (Mapping): The dict.
        scope (str): Scope in which its type is looked up.
        registry (str | None): Name of the registry, None if any.
    """

    path: str
    node: Mapping
    scope: str
    registry: str | None


def check_arguments(cfg: Mapping[str, Any]) -> None:
    """Check the keys, types and values of a config.

    Args:
        cfg (Mapping): The config, with default scope and custom imports in effect.

    Raises:
        ConfigError: If a key is unknown to the class that gets it or a type to its registry, a
            required argument is missing, or a value has the wrong type or is out of its range.
    """
    _check_top_keys(cfg)
    check_sections(cfg)
    scope = cfg.get("default_scope") or "mmengine"
    # In configs of other projects, classes may be missing that were not asked for.
    complete = has_config_check(cfg)
    for key, value in cfg.items():
        if key not in TOP_KEYS:
            continue  # a variable, or a part that another package reads
        for path, item in leaves(value, key):
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"{path}={item}: give a finite number")
        for part in _parts(key, value, scope, TOP_REGISTRIES.get(key, REGISTRY_OF_KEY.get(key))):
            _check_part(part, complete)


def check_sections(cfg: Mapping) -> None:
    """Check the types of what stands at the top of a config, and of the parts of a distiller.

    Raises:
        ConfigError: If one is wrong.
    """
    arguments = dict(accepted_arguments(Runner).arguments)
    arguments.update((key, Argument(hint)) for key, hint in TOP_TYPES.items())
    for key in set(arguments) & set(cfg):
        allowed = arguments[key].refuses(cfg[key])
        if allowed:
            raise ConfigError(f"{key}={_short(cfg[key])}: give {allowed}")
    model = cfg.get("model") or {}
    if "student" in model and "teacher" in model:
        for key in ("student", "method"):
            part = model.get(key)
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise ConfigError(f"model.{key}={_short(part)}: give a dict with a type")
        if not isinstance(model["teacher"], (str, Mapping)):
            raise ConfigError(
                f"model.teacher={_short(model['teacher'])}: give a dict, the path of a config, "
                "or a name of a model zoo"
            )


def _check_top_keys(cfg: Mapping) -> None:
    """Check that the keys at the top are known, or variables that are read.

    Raises:
        ConfigError: If a key is nearly a known one, or no one reads it.
    """
    for key in cfg:
        near = get_close_matches(key, TOP_KEYS, 1, cutoff=0.88)
        # A variable may have a known name as a part of its own: `data_root_val`, `_classes`.
        if near and key not in TOP_KEYS | USUAL_VARIABLES and near[0] not in key:
            raise ConfigError(f"{key} at the top of the config: did you mean {near[0]!r}?")
    for file, name in unread_variables(getattr(cfg, "filename", None) or ""):
        if name not in TOP_KEYS and name != "data" and not name.startswith("_"):
            raise ConfigError(
                f"{name} at the top of {file} has no effect: nothing reads it; {_remedy(name)}"
            )


def check_options(options: Mapping[str, Any]) -> None:
    """Check that options of the command line can have an effect.

    Args:
        options (Mapping): Values by dotted key.

    Raises:
        ConfigError: If one changes a variable, which the config has used already.
    """
    for key in options:
        name = key.partition(".")[0]
        if name not in TOP_KEYS and not name.startswith("_"):
            raise ConfigError(f"--cfg-options {key} has no effect: {_remedy(name)}")


def _remedy(name: str) -> str:
    """Return what to do about a key that no one reads."""
    near = get_close_matches(name, TOP_KEYS, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return (
        "set the values in the places that are for them, for example train_cfg.max_iters; a "
        "variable of your own begins with an underscore"
    )


def _check_part(part: _Part, complete: bool) -> None:
    """Check a dict.

    Args:
        part (_Part): The dict.
        complete (bool): Whether a type that is missing or in no registry is wrong.

    Raises:
        ConfigError: If its type is unknown, or no class of this name takes its keys and values.
    """
    path, node, scope, registry = part
    section = path.rpartition(".")[2]
    if path.endswith("_dataloader"):
        _raise_if(_problem(path, node, "a data loader", "data loader", _LOADER))
    if section in SECTIONS:
        check_section(path, node, SECTIONS[section], section not in CLOSED_SECTIONS)
    if isinstance(node.get("paramwise_cfg"), Mapping) and "constructor" not in node:
        check_section(f"{path}.paramwise_cfg", node["paramwise_cfg"], PARAMWISE)
    if "type" not in node:
        if registry is not None and section not in UNTYPED and complete:
            raise ConfigError(f"{path} has no type; name the {registry} in {path}.type")
        return
    owner = node["type"] if isinstance(node["type"], str) else getattr(node["type"], "__name__", "")
    problems = []
    for item, target in _targets(part, complete):
        accepted = accepted_arguments(target)
        receiver = _receiver(target, node, scope)
        if receiver is not None:
            arguments = {
                name: value._replace(required=False)
                for name, value in accepted_arguments(receiver).arguments.items()
            }
            accepted = Accepted({**arguments, **accepted.arguments}, accepted.others)
        problem = _problem(path, node, owner, item, accepted)
        problems.append(problem or _unknown_depth(path, node, target))
    if problems and all(problems):
        raise ConfigError(problems[0])


def _targets(part: _Part, complete: bool) -> list[tuple[str, Callable]]:
    """Return what the type of a dict may stand for, with the names of the registries.

    Raises:
        ConfigError: If it is no type, or unknown; arguments as in :func:`_check_part`.
    """
    path, node, scope, registry = part
    name = node["type"]
    if not isinstance(name, str):
        if callable(name):
            return [("", name)]
        raise ConfigError(f"{path}.type={name!r}: give the name of a class")
    registries = _GROUPS.get(registry, (registry,)) if registry else tuple(REGISTRIES)
    found = [(item, find_type(item, name, scope)) for item in registries]
    found = [(item, target) for item, target in found if target is not None]
    if found:
        return found
    near = near_type(registries, name, scope, cutoff=0.8 if registry else 0.9)
    if near is not None:
        raise ConfigError(f"{path}.type={name!r} is not known; did you mean {near!r}?")
    if registry and complete:
        raise ConfigError(
            f"{path}.type={name!r}: there is no {registry} of this name in {scope}; if it is "
            "yours, import its module by custom_imports"
        )
    return []


def _unknown_depth(path: str, node: Mapping, target: Callable) -> str | None:
    """Return what is wrong with a depth that is not in the table of a backbone of OpenMMLab."""
    known = getattr(target, "arch_settings", None)
    if not isinstance(known, Mapping) or node.get("depth", next(iter(known))) in known:
        return None
    return (
        f"{path}.depth={node['depth']!r}: {node['type']} takes one of {', '.join(map(repr, known))}"
    )


def _receiver(target: Callable, node: Mapping, scope: str) -> Callable | None:
    """Return what gets the keys that a class hands on to something else than its parents."""
    if "ema_type" in node:  # EMAHook
        return find_type("model", node["ema_type"], scope)
    if extends(target, "TimmClassifier"):
        from timm import create_model

        return create_model
    return None


def check_section(path: str, node: Mapping, types: Mapping, others: bool = False) -> None:
    """Check a dict that has no class.

    Args:
        path (str): Its dotted path.
        node (Mapping): The dict.
        types (Mapping): What it takes.
        others (bool): Whether other keys are legal.

    Raises:
        ConfigError: If it is wrong.
    """
    arguments = {name: Argument(hint, exact=True) for name, hint in types.items()}
    accepted = Accepted(arguments, "used" if others else "refused")
    _raise_if(_problem(path, node, path.rpartition(".")[2], "", accepted))


def _is_misspelt(key: str, known: Collection[str]) -> bool:
    """Return True if a key is nearly a known one, and not one with a word more."""
    near = get_close_matches(key, known, 1, cutoff=0.8)
    return bool(near) and not key.endswith(f"_{near[0]}") and not key.startswith(f"{near[0]}_")


def _raise_if(problem: str | None) -> None:
    if problem:
        raise ConfigError(problem)


def _problem(path: str, node: Mapping, owner: str, registry: str, accepted: Accepted) -> str | None:
    """Return what is wrong with the keys and values of a dict.

    Args:
        path (str): Dotted path of the dict.
        node (Mapping): The dict.
        owner (str): What gets it, for the message.
        registry (str): Name of the owner's registry.
        accepted (Accepted): What the owner takes.
    """
    arguments = accepted.arguments
    known = set(arguments) | EVERYWHERE | BUILDER_KEYS.get(registry, set())
    unknown = [key for key in node if key not in known]
    if accepted.others != "refused":
        unknown = [key for key in unknown if _is_misspelt(str(key), known)]
    for key in unknown:
        near = get_close_matches(str(key), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(arguments))}"
        return f"{path}.{key}: {owner} has no argument {key!r}; {hint}"
    given = GIVEN_BY_BUILDER.get(registry)
    for key, argument in arguments.items():
        wanted = argument.required and key not in node and (argument.exact or given is not None)
        if wanted and key not in (given or ()):
            return f"{path}: {owner} needs the argument {key!r}; set {path}.{key}"
    ranges, hints = RANGES.get(registry, {}), HINTS.get(owner, {})
    for key, value in node.items():
        argument = arguments.get(key, Argument())
        if key in hints:
            argument = Argument(hints[key])
        # Without its default, as that of an interval may stand for "never".
        limits = Argument(ranges.get(key, object), exact=True)
        allowed = argument.refuses(value) or limits.refuses(value)
        if allowed:
            return f"{path}.{key}={_short(value)}: {owner} takes {allowed}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _parts(path: str, value: Any, scope: str, registry: str | None) -> Iterator[_Part]:
    """Yield the dicts inside a value, from the outside in.

    Raises:
        ConfigError: If a number or a string stands where an object is meant.
    """
    if registry is not None and isinstance(value, (bool, int, float, str)):
        raise ConfigError(f"{path}={_short(value)}: give a dict with a type")
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _parts(f"{path}.{index}", item, scope, registry)
    elif isinstance(value, Mapping):
        scope = value.get("_scope_", scope)
        yield _Part(path, value, scope, registry)
        if value.get("type") in FOREIGN or path.endswith("paramwise_cfg"):
            return
        for key, item in value.items():
            inner = REGISTRY_OF_KEY.get(f"{path}.{key}", REGISTRY_OF_KEY.get(key))
            if path == "default_hooks":
                inner = registry
            yield from _parts(f"{path}.{key}", item, scope, inner)
