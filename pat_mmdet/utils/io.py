"""File writing that an interrupted process cannot leave half done, and checksums."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path


def write_atomic(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file so that readers see either its old content or the whole new one.

    Args:
        path (Path): The file; missing parent folders are made.
        content (str | bytes | memoryview): The whole content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written, for example because the disk is full; it names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave an empty file by the name
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def is_compressed(path: str | Path) -> bool:
    """Return True for a zip file whose content is larger than the file."""
    try:
        with zipfile.ZipFile(path) as file:
            return sum(info.file_size for info in file.infolist()) > os.path.getsize(path)
    except Exception:  # no zip file, or a damaged one
        return False


def is_whole(path: str | Path) -> bool:
    """Compare the checksums in a file of ``torch.save`` with its content.

    It is a zip file, for which torch writes checksums that it does not compare itself.

    Args:
        path (str | Path): The file.

    Returns:
        bool: False if it is damaged or no zip file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # of many kinds, as any byte may be wrong
        return False
