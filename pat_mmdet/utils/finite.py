"""Finding values that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def find_non_finite(state: Any) -> list[str]:
    """Return the names of tensors that hold NaN or infinite values.

    Args:
        state (dict): State of a module or an optimizer, or a checkpoint; dicts and lists inside
            are searched too.

    Returns:
        list[str]: Keys, those of nested dicts and lists joined by dots.
    """
    named = [(name, tensor) for name, tensor in _tensors(state) if tensor.is_floating_point()]
    finite = [tensor.isfinite().all() for _, tensor in named]
    # Ask once for all, as each answer waits for the device.
    if not finite or torch.stack(finite).all():
        return []
    return [name for (name, _), value in zip(named, finite) if not value]


def describe_non_finite(names: list[str]) -> str:
    """Describe tensors in a message: how many there are, and the first three."""
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} tensors with NaN or infinite values ({', '.join(names[:3])}{more})"


def _tensors(node: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside a value by their dotted names."""
    if isinstance(node, Tensor):
        yield prefix, node
        return
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (Tensor, dict, list, tuple)):
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))
