"""Model zoos of MMDetection and mmpretrain: configs and weights by the names of their metafiles."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import yaml

ZOOS = ("mmdet", "mmpretrain")


class ZooModel(NamedTuple):
    """A model of a zoo.

    Attributes:
        config (Path): Its config file.
        checkpoint (str): Its weights, as ``teacher_checkpoint`` and ``load_from`` take them:
            ``'mmdet://NAME'``.
    """

    config: Path
    checkpoint: str


class _Entry(NamedTuple):
    name: str
    config: Path
    url: str | None


@cache
def _entries(package: str) -> dict[str, _Entry]:
    """Read the model index of an installed package; by lower-case names and aliases."""
    spec = find_spec(package)
    if spec is None:
        return {}
    root = Path(spec.submodule_search_locations[0])
    root = root / ".mim" if (root / ".mim").is_dir() else root.parent  # installed, or a checkout
    if not (root / "model-index.yml").is_file():
        return {}
    # In C where there is one, as MMDetection has 100 files.
    read = partial(yaml.load, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = {}
    for metafile in read((root / "model-index.yml").read_text())["Import"]:
        content = read((root / metafile).read_text())
        for model in content["Models"] if isinstance(content, dict) else content:
            weights, alias = model.get("Weights"), model.get("Alias") or []
            url = weights[0] if isinstance(weights, list) else weights
            entry = _Entry(model["Name"], root / model["Config"], url)
            for name in (model["Name"], *([alias] if isinstance(alias, str) else alias)):
                found[name.lower()] = entry
    return found


def list_weights(package: str) -> dict[str, str]:
    """Return the URLs of the weights in a package's zoo by the names of the models."""
    return {name: entry.url for name, entry in _entries(package).items() if entry.url}


def find_model(name: str) -> ZooModel | None:
    """Find a model in the zoos of the installed packages.

    Args:
        name (str): Its name or alias in a metafile, as MMDetection's ``DetInferencer`` takes it.

    Returns:
        ZooModel | None: None if there is none.
    """
    for package in ZOOS:
        entry = _entries(package).get(name.lower())
        if entry is not None:
            return ZooModel(entry.config, f"{package}://{entry.name.lower()}")
    return None


def near_names(name: str) -> list[str]:
    """Return names of models that are nearly a given one."""
    known = [entry.name for package in ZOOS for entry in _entries(package).values()]
    return get_close_matches(name.lower(), known, cutoff=0.7)
