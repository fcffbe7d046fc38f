"""Files that are made from data once, and used as long as the data are the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pat_mmdet.utils.data_formats.base import CACHE
from pat_mmdet.utils.io import write_atomic


def cached_files(
    root: Path,
    sources: Iterable[Path],
    options: Sequence[Any],
    names: Sequence[str],
    make: Callable[[], Mapping[str, str]],
) -> dict[str, Path]:
    """Return files that are made from others, making them if they are not there.

    They lie in ``.pat_mmdet`` beside the data, or where that cannot be written in
    ``pat_mmdet/data`` of the user's cache (``XDG_CACHE_HOME``, by default ``~/.cache``). The name
    of their folder follows from the names, sizes and times of the sources and from the options.

    Args:
        root (Path): Folder of the data.
        sources (Iterable[Path]): What the files are made from.
        options (Sequence): What else they depend on, as plain data.
        names (Sequence[str]): Names of the files.
        make (Callable): Gives their contents by name.

    Returns:
        dict[str, Path]: Their paths by name.

    Raises:
        ValueError: If they cannot be written.
    """
    stats = [(os.path.relpath(path, root), path.stat()) for path in sorted(set(sources))]
    state = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    content = json.dumps([*options, list(names), state], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = (root / CACHE / digest, home / "pat_mmdet/data" / digest)
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            return {name: folder / name for name in names}
    contents = make()
    for folder in folders:
        try:
            for name in names:
                write_atomic(folder / name, contents[name])
            return {name: folder / name for name in names}
        except OSError as error:
            refused = error
    raise ValueError(
        f"cannot write the converted annotations of {str(root)!r}, neither beside them nor to "
        f"{str(folders[1])!r} ({refused}); set XDG_CACHE_HOME to a folder that can be written"
    )
