"""The files that a config is made of, how they are read, and what each of them sets."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml
from mmengine.config import Config
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import YamlHandler


@register_handler(["yaml", "yml"])
class SafeYamlHandler(YamlHandler):
    """Read YAML in MMEngine, configs too, without the tags that call Python functions."""

    def load_from_fileobj(self, file: IO, **kwargs: Any) -> Any:
        """Read a file; a tag such as ``!!python/object`` is a ``yaml.YAMLError``."""
        return super().load_from_fileobj(file, **{"Loader": yaml.SafeLoader, **kwargs})


class Override(NamedTuple):
    """A config file which gives a key of the top level another value than its bases.

    Attributes:
        path (str): The file.
        replaced (Any): The value in its bases, None if they have none.
        written (frozenset[tuple[str, str]]): Key and value of what it and the files on the way to
            it write themselves.
    """

    path: str
    replaced: Any
    written: frozenset[tuple[str, str]]


def overriding_file(path: str | None, key: str) -> Override | None:
    """Find the file which gives a key of the top level another value than its bases.

    Args:
        path (str, optional): A config; its bases are looked through as well.
        key (str): The key.

    Returns:
        Override | None: The file that is nearest to the config.
    """
    if path is None or not os.path.isfile(path) or not path.endswith(".py"):
        return None
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    bases = base_files(path)
    if key in _assigned(tree):
        merged: dict = {}
        for base in bases:
            merged.update(Config.fromfile(base).to_dict())
        return Override(path, merged.get(key), _written(tree)) if bases else None
    for base in bases:
        found = overriding_file(base, key)
        if found is not None:
            return found._replace(written=found.written | _written(tree))
    return None


def unread_variables(path: str, read_above: frozenset = frozenset()) -> Iterator[tuple[str, str]]:
    """Find variables of a config that nothing reads: neither its file nor one that is based on it.

    A file that reads no variable at all was written out by a program, with all variables in their
    places. Files in folders named ``_base_`` and those of libraries hold variables for
    others.

    Args:
        path (str): A config; its bases are looked through as well.
        read_above (frozenset[str]): Variables that files based on it read.

    Yields:
        tuple[str, str]: File and variable.
    """
    if not path.endswith(".py") or not os.path.isfile(path) or _is_shared(path):
        return
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    bases = base_files(path)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    from_bases = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "_base_"
    }
    if bases or read - {"dict"}:
        for name in _assigned(tree):
            if name not in read | read_above:
                yield path, name
    for base in bases:
        yield from unread_variables(base, read_above | from_bases)


def reads_variable(path: str | None, name: str) -> bool:
    """Return True if a config, or a base of it, reads a variable of its top level."""
    if path is None or not path.endswith(".py") or not os.path.isfile(path) or _is_shared(path):
        return False
    nodes = list(ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))))
    return (
        any(isinstance(node, ast.Name) and _is_read(node, name) for node in nodes)
        or any(
            isinstance(node, ast.Attribute)
            and node.attr == name
            and getattr(node.value, "id", None) == "_base_"
            for node in nodes
        )
        or any(reads_variable(base, name) for base in base_files(path))
    )


def _is_read(node: ast.Name, name: str) -> bool:
    return node.id == name and isinstance(node.ctx, ast.Load)


def _is_shared(path: str) -> bool:
    """Return True for a file that holds variables for others."""
    return not {"_base_", ".mim", "site-packages"}.isdisjoint(Path(path).parts)


def _assigned(tree: ast.Module) -> list[str]:
    """Return the names that a config assigns at its top level, and does not delete."""
    assigned: dict[str, None] = {}
    for node in tree.body:
        targets = getattr(node, "targets", [])
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign):
            assigned.update(dict.fromkeys(names))
        elif isinstance(node, ast.Delete):
            for name in names:
                assigned.pop(name, None)
    return list(assigned)


def base_files(path: str) -> list[str]:
    """Return the paths of the bases of a config."""
    bases = Config._get_base_files(path)
    return [Config._get_cfg_path(base, path)[0] for base in bases]


def _written(tree: ast.Module) -> frozenset[tuple[str, str]]:
    """Return key and value, by ``repr``, of what a config's text writes as ``key=<constant>``."""
    pairs = [(node.arg, node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs += [
                (getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)
            ]
    found = set()
    for key, value in pairs:
        try:
            found.add((key, repr(ast.literal_eval(value))))
        except ValueError:
            continue  # a variable
    return frozenset(found)
