"""Unpack CIFAR-100 for training; nothing is downloaded.

Example:
    python tools/dataset_converters/cifar100.py ~/Downloads/cifar-100-python.tar.gz

writes ``data/cifar100/cifar-100-python/{train,test,meta}``, which the configs read as they are.
The archive is the public one, the "python version" of https://www.cs.toronto.edu/~kriz/cifar.html
(161 MB). Every file is compared with its published MD5 sum before it is kept, so an archive packed
anew by someone else will do as long as the files in it are the same. What is there already and
right is left alone; without an archive the tool only checks.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
FOLDER = "cifar-100-python"
# Published MD5 sums of the archive's files; the first two hold 50,000 and 10,000 images.
MD5_SUMS = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
# Of all files together; the published ones have 187 MB. A small archive may stand for any amount.
MAX_BYTES = 2**28
OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def md5(content: bytes) -> str:
    """Return the MD5 sum of some bytes, in hexadecimal digits."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that are not in a folder, or are not the published ones."""
    return [
        name
        for name, known in MD5_SUMS.items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size > MAX_BYTES
        or md5((folder / name).read_bytes()) != known
    ]


def read_members(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read files of the archive that are known by name; whatever else is in it is not touched.

    Args:
        archive: The archive.
        names: Names of files in its folder ``cifar-100-python``.

    Yields:
        The name and the content of each, as published.

    Raises:
        ValueError: If the archive cannot be read, is too large, or has not the published files.
    """
    try:
        with open(archive, "rb") as file:
            start = file.read(2)
        with OPENERS.get(start, open)(archive, "rb") as file:
            unpacked = file.read(MAX_BYTES + 1)
        if len(unpacked) > MAX_BYTES:
            raise ValueError(
                f"{str(archive)!r} holds more than {MAX_BYTES // 2**20} MB and is not the archive "
                f"of CIFAR-100; download it again from {URL}"
            )
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for name in names:
                member = tar.getmember(f"{FOLDER}/{name}")
                file = tar.extractfile(member) if member.size <= MAX_BYTES else None
                if file is None:
                    raise KeyError(f"{FOLDER}/{name} has not its published size")
                content = file.read()
                if md5(content) != MD5_SUMS[name]:
                    raise ValueError(
                        f"{FOLDER}/{name} in {str(archive)!r} is not the published file (its MD5 "
                        f"sum is {md5(content)}); download the archive again from {URL}"
                    )
                yield name, content
    except KeyError as error:
        raise ValueError(
            f"{str(archive)!r} is not the archive of CIFAR-100: {error.args[0]}; it has to hold "
            f"{', '.join(f'{FOLDER}/{name}' for name in MD5_SUMS)}"
        ) from None
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{str(archive)!r} cannot be read as a tar archive ({type(error).__name__}); download "
            f"it again from {URL}"
        ) from None


def prepare(archive: Path | None, out: Path) -> list[str]:
    """Unpack what is not there yet.

    Args:
        archive: The archive; ``None`` to check only.
        out: The ``data_root`` of the configs.

    Returns:
        The names of the files that were written.

    Raises:
        FileNotFoundError: If files are missing and there is no archive.
        ValueError: If the archive is not the right one, or the folder cannot be written to.
    """
    folder = out / FOLDER
    missing = missing_files(folder)
    if not missing:
        return []
    if archive is None or not archive.is_file():
        why = "" if archive is None else f", and there is no archive {str(archive)!r}"
        raise FileNotFoundError(
            f"{', '.join(missing)} not in {str(folder)!r}, or not as published{why}. Download "
            f"{URL} and give its path"
        )
    for name, content in read_members(archive, missing):
        try:
            write_atomic(folder / name, content)
        except OSError as error:
            raise ValueError(f"cannot write to {str(folder)!r} ({error}); see --out") from None
    return missing


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "archive", type=Path, nargs="?", help="cifar-100-python.tar.gz; without it, only check"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/cifar100"), help="default: data/cifar100"
    )
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    """Unpack and say what was done."""
    args = parse_args()
    with clear_errors(args.traceback):
        written = prepare(args.archive, args.out)
    done = f"wrote {', '.join(written)}" if written else "nothing to do"
    print(f"{args.out / FOLDER}: complete and as published ({done})")


if __name__ == "__main__":
    main()
