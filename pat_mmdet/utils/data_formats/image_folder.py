"""Images of classification in a folder for each class."""

from __future__ import annotations

from pathlib import Path

from pat_mmdet.utils.data_formats.base import DataSetting, choose, named_path
from pat_mmdet.utils.errors import ConfigError

# Those of mmpretrain's CustomDataset.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")


def find(setting: DataSetting) -> dict[str, Path] | None:
    """Find the folder of each split: ``train``, ``val``, ``test`` or the like.

    Without any, the folder itself is for training if it has folders with images.

    Args:
        setting (DataSetting): The folder; a split that it names is a folder in it.

    Returns:
        dict[str, Path] | None: None if there is none with folders of classes.

    Raises:
        ConfigError: If there are two for a split.
        FileNotFoundError: If what is named does not exist.
    """
    root = setting.root
    named = {split: named_path(setting, split, name) for split, name in setting.splits.items()}
    folders = [path for path in root.iterdir() if path.is_dir() and _has_classes(path)]
    found = choose(setting, folders, "folder")
    # All of its folders, or it is something else.
    classes = [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    if (
        not found
        and not named
        and classes
        and all(any(map(_is_image, x.rglob("*"))) for x in classes)
    ):
        found["train"] = root
    return {**found, **named} or None


def _has_classes(folder: Path) -> bool:
    return any(
        _is_image(path) for path in folder.glob("*/*") if not path.parent.name.startswith(".")
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """List the images of each class, sorted.

    Args:
        folder (Path): A folder with a folder for each class, which are gone through to any depth.

    Raises:
        ConfigError: If a class has no image.
    """
    classes = {
        path.name: sorted(filter(_is_image, path.rglob("*")))
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    }
    for name, images in classes.items():
        if not images:
            raise ConfigError(
                f"{str(folder / name)!r} has no image ({', '.join(_SUFFIXES)}); add some, or "
                "remove the folder, which is taken for a class"
            )
    return classes
