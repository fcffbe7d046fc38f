"""The registry of distillation methods."""

from __future__ import annotations

from mmengine.registry import Registry
from torch import nn

from pat_mmdet.structures import Requires
from pat_mmdet.utils.signatures import accepted_arguments

METHODS = Registry("method", scope="pat_mmdet", locations=["pat_mmdet.models.methods"])


def build_method(cfg: dict) -> nn.Module:
    """Build a method from its hyper-parameters.

    Args:
        cfg (dict): ``type`` is a name in :data:`METHODS`, the rest are its arguments.

    Returns:
        nn.Module: The method, a :class:`pat_mmdet.models.methods.BaseMethod`, still without its
        layers.

    Raises:
        TypeError: If what it requires is not told by :class:`Requires`.
        ValueError: If the name is unknown, the known ones are listed; or an argument has a wrong
            type or is out of its range.
    """
    name = cfg.get("type")
    if name not in METHODS:
        known = ", ".join(sorted(METHODS.module_dict))
        raise ValueError(
            f"unknown distillation method {name!r}; known methods: {known}. "
            "Set model.method.type to one of them"
        )
    # The scope is named because the search would otherwise begin in mmdet's registries.
    for key, argument in accepted_arguments(METHODS.get(name)).arguments.items():
        allowed = argument.refuses(cfg[key]) if key in cfg else None
        if allowed:
            raise ValueError(f"model.method.{key}={cfg[key]!r}: {name} takes {allowed}")
    method = METHODS.build({**cfg, "_scope_": "pat_mmdet"})
    if not isinstance(method.requires, Requires):
        raise TypeError(
            f"{type(method).__name__}.requires is {method.requires!r}; combine members of "
            f"pat_mmdet.structures.Requires: {', '.join(Requires.__members__)}"
        )
    return method
