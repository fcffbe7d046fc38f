"""Reading the config in a checkpoint as data."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from typing import Any

from mmengine.config import Config

from pat_mmdet.utils.nested import walk

_SCOPES = ("mmengine", "mmcv", "mmdet", "mmpretrain", "pat_mmdet")


def parse_config_text(text: str) -> Config:
    """Parse the text of a config, as checkpoints hold it, without running any of it.

    Args:
        text (str): What ``Config.pretty_text`` gives: assignments of plain values and
            ``dict(...)``.

    Returns:
        Config: The config.

    Raises:
        ValueError: If the text has anything else in it, or a type that is not a name in a registry
            of OpenMMLab, so that MMEngine would import it.
    """
    try:
        body = ast.parse(text).body
        values = {statement.targets[0].id: _value(statement.value) for statement in body}  # type: ignore[attr-defined]
    except (AttributeError, SyntaxError, ValueError):
        raise ValueError(
            "the config in the checkpoint has more in it than plain values, and is not run; give "
            "the path of a config"
        ) from None
    for _, node in walk(values):
        name = node.get("type")
        if isinstance(name, str) and "." in name and not _is_in_registry(*name.rsplit(".", 1)):
            raise ValueError(
                f"the config in the checkpoint has type={name!r}, which is not imported; give the "
                "path of a config, if you trust it"
            )
    return Config(values)


def _value(node: ast.expr) -> Any:
    """Evaluate a literal, in which ``dict(...)`` may occur."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        # The text of a dict whose keys are no identifiers is `dict({...})`.
        pairs = dict(_value(node.args[0])) if node.args else {}
        return {**pairs, **{keyword.arg: _value(keyword.value) for keyword in node.keywords}}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    return ast.literal_eval(node)


def _is_in_registry(scope: str, name: str) -> bool:
    """Return False for a type that MMEngine may import, functions such as ``mmengine.load`` too."""
    if scope not in _SCOPES:
        return False
    found = getattr(import_module(scope), name, None)
    return found is None or inspect.isclass(found)
