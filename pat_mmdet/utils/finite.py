"""Finding values that are NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pat_mmdet.utils.nested import leaves


def find_non_finite(state: Any) -> list[str]:
    """Return the names of tensors that hold NaN or infinite values.

    Args:
        state (dict): State of a module or an optimizer, or a checkpoint; dicts and lists inside
            are searched too.

    Returns:
        list[str]: Keys, those of nested dicts and lists joined by dots.
    """
    named = [
        (path.removeprefix("."), item)
        for path, item in leaves(state, "")
        if isinstance(item, Tensor) and item.is_floating_point()
    ]
    finite = [tensor.isfinite().all() for _, tensor in named]
    # Ask once for all, as each answer waits for the device.
    if not finite or torch.stack(finite).all():
        return []
    return [name for (name, _), value in zip(named, finite) if not value]


def describe_non_finite(names: list[str]) -> str:
    """Describe tensors in a message: how many there are, and the first three."""
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} tensors with NaN or infinite values ({', '.join(names[:3])}{more})"
