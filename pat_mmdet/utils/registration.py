"""Registration with the OpenMMLab libraries, by the ``locations`` of their registries.

A registry of mmengine imports the modules at its ``locations`` at the first look-up. The registries
of mmengine, MMDetection and mmpretrain get this package's modules as further locations, now or when
they are imported. Importing this package therefore imports none of these libraries, and a config
finds the package's classes whichever was imported first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType

_ROOT = {
    "MODELS": ["pat_mmdet.models.distillers"],
    "HOOKS": ["pat_mmdet.engine.hooks"],
    "LOOPS": ["pat_mmdet.engine.runner"],
    "METRICS": ["pat_mmdet.evaluation"],
    "TRANSFORMS": ["pat_mmdet.datasets.transforms"],
    "VISBACKENDS": ["pat_mmdet.visualization.mlflow_backend"],
}
# Library -> registry -> modules. What is in mmengine's registries is repeated for the other two:
# there, a look-up that goes on to mmengine's registry finds only what has been imported.
LOCATIONS = {
    "mmengine": _ROOT,
    "mmdet": {
        **_ROOT,
        "MODELS": [*_ROOT["MODELS"], "pat_mmdet.models.backbones"],
        "DATASETS": ["pat_mmdet.datasets"],
    },
    "mmpretrain": {
        **_ROOT,
        "MODELS": [*_ROOT["MODELS"], "pat_mmdet.models.classifiers"],
        "DATASETS": ["pat_mmdet.datasets.classification"],
        "HOOKS": [*_ROOT["HOOKS"], "pat_mmdet.engine.hooks.cls_visualization_hook"],
    },
}


class _RegistryLoader(Loader):
    """Import the registries of a library as usual, then add the locations to them."""

    def __init__(self, library: str, loader: Loader) -> None:
        self.library = library
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _add_locations(self.library, module)


class _RegistryFinder(MetaPathFinder):
    """Find the registries of the libraries where Python finds them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        library, _, module = name.partition(".")
        if library not in LOCATIONS or module != "registry":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegistryLoader(library, spec.loader)
        return spec


def _add_locations(library: str, registries: ModuleType) -> None:
    """Add the locations of a library to its registries.

    mmengine has no public way to do so after a registry was made, so these are private attributes;
    nothing else in this package touches them.
    """
    for name, locations in LOCATIONS[library].items():
        registry = getattr(registries, name)
        # A new list, as registries without locations share one.
        registry._locations = [*registry._locations, *locations]
        registry._imported = False


def add_locations_on_import() -> None:
    """Add the locations to the registries that are imported, and to others once they are."""
    sys.meta_path.insert(0, _RegistryFinder())
    for library in LOCATIONS:
        registries = sys.modules.get(f"{library}.registry")
        if registries is not None:
            _add_locations(library, registries)


def register_all_modules() -> None:
    """Import every module that registers something.

    Scopes other than those of mmengine, mmdet and mmpretrain find the package's classes only after
    this call. Classifiers are left out where mmpretrain is not installed.

    Raises:
        ImportError: If MMDetection or something that it needs is missing.
    """
    import_module("pat_mmdet.models.methods")  # which have a registry of this package
    for library, registries in LOCATIONS.items():
        if library == "mmpretrain" and find_spec(library) is None:
            continue
        for locations in registries.values():
            for location in locations:
                import_module(location)
