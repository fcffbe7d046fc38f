"""Iterating over nested dicts and lists: configs, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and dict of every dict inside a value, from the outside in."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from walk(value, f"{path}.{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from walk(value, f"{path}.{index}")


def leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything inside a value that is neither a dict nor a list."""
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        yield path, node
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}")
