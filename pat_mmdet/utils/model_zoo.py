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
        name (str): Its name.
        config (Path): Its config file.
        url (str | None): Its weights.
        checkpoint (str): The same as ``teacher_checkpoint`` and ``load_from`` take it by name,
            ``'mmdet://NAME'``.
    """

    name: str
    config: Path
    url: str | None
    checkpoint: str


@cache
def _models(package: str) -> dict[str, ZooModel]:
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
            checkpoint = f"{package}://{model['Name'].lower()}"
            entry = ZooModel(model["Name"], root / model["Config"], url, checkpoint)
            for name in (model["Name"], *([alias] if isinstance(alias, str) else alias)):
                found[name.lower()] = entry
    return found


def list_weights(package: str) -> dict[str, str]:
    """Return the URLs of the weights in a package's zoo by the names of the models."""
    return {name: model.url for name, model in _models(package).items() if model.url}


def find_model(name: str) -> ZooModel | None:
    """Find a model in the zoos of the installed packages.

    Args:
        name (str): Its name or alias in a metafile, as MMDetection's ``DetInferencer`` takes it.

    Returns:
        ZooModel | None: None if there is none.
    """
    found = (_models(package).get(name.lower()) for package in ZOOS)
    return next(filter(None, found), None)


def find_checkpoint(checkpoint: str) -> ZooModel | None:
    """Find the model of a zoo that weights belong to.

    Args:
        checkpoint (str): Their URL, or ``'mmdet://NAME'``.

    Returns:
        ZooModel | None: None if there is none.
    """
    models = (model for package in ZOOS for model in _models(package).values())
    return next((model for model in models if checkpoint in (model.url, model.checkpoint)), None)


def near_names(name: str) -> list[str]:
    """Return names of models that are nearly a given one."""
    known = [model.name for package in ZOOS for model in _models(package).values()]
    return get_close_matches(name.lower(), known)
