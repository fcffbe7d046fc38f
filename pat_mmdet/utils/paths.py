"""Paths of the project's configs and tools."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout they lie beside the package; a wheel has them inside, in OpenMMLab's `.mim` folder.
ROOT = PACKAGE / ".mim" if (PACKAGE / ".mim").is_dir() else PACKAGE.parent
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"


def find_config(path: str | os.PathLike) -> Path:
    """Find a config, here or else among those of the project.

    Args:
        path (str | os.PathLike): Path of the file. A relative path that does not exist is looked
            for in the project's ``configs``, with or without this folder's name.

    Returns:
        Path: Path of the file.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    for candidate in (Path(path), CONFIGS / path, ROOT / path):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"config {str(path)!r} does not exist, neither here nor in {CONFIGS}")
