"""Unpack a zip file of CIFAR-10 as images in folders; nothing is downloaded.

Example:
    python tools/dataset_converters/cifar10.py cifar10_jpeg.zip

writes ``data/cifar10/{train,val}/<class>/*.jpg``. In the zip file the same folders lie at the top
or in one folder of any name. Only images of the ten classes are taken out of it. What is there
already in its full size is left alone.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SPLITS = ("train", "val")
SUFFIXES = (".jpg", ".jpeg", ".png")
COMPRESSION = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others are unpacked without a limit
# Images of 32×32 pixels have a few kB, the list of 60,000 some MB; a small zip file may hold more.
MAX_IMAGE_BYTES, MAX_BYTES, MAX_LIST_BYTES = 2**20, 2**30, 2**25


class BoundedFile(io.FileIO):
    """A file of which no single read may fill the memory, as a list of members would."""

    def read(self, size: int | None = -1) -> bytes:
        """Read as a file does.

        Raises:
            zipfile.BadZipFile: If that is more than the list of members may have.
        """
        remaining = os.fstat(self.fileno()).st_size - self.tell()
        if (remaining if size is None or size < 0 else min(size, remaining)) > MAX_LIST_BYTES:
            raise zipfile.BadZipFile("it lists too many files")
        return super().read(size)


def target(name: str) -> PurePosixPath | None:
    """Return the place of a member of the zip file below the output folder.

    Args:
        name: Name of the member.

    Returns:
        ``<split>/<class>/<file>``, or ``None`` for what is no image of the data set.
    """
    parts = name.split("/")
    split, label, file = ("", "", *parts)[-3:]
    # A name with backslashes would be a path on Windows; hidden files are no images.
    plain = "\\" not in file and not file.startswith(".") and file.lower().endswith(SUFFIXES)
    if plain and split in SPLITS and label in CLASSES and len(parts) <= 4:
        return PurePosixPath(split, label, file)
    return None


def find_images(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """List the images of the zip file by their places.

    Raises:
        ValueError: If a class has no image, or images are larger than those of CIFAR-10.
        zipfile.BadZipFile: If an image is compressed by another method than the usual one.
    """
    images = {
        place: info
        for info in archive.infolist()
        if not info.is_dir() and (place := target(info.filename)) is not None
    }
    if not {info.compress_type for info in images.values()} <= COMPRESSION:
        raise zipfile.BadZipFile("it is compressed in an unusual way")
    found = {place.parent for place in images}
    lacking = [
        f"{split}/{label}"
        for split in SPLITS
        for label in CLASSES
        if PurePosixPath(split, label) not in found
    ]
    if lacking:
        raise ValueError(
            f"{archive.filename!r} has no images (.jpg, .png) in {', '.join(lacking[:3])}"
            f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}; it has to hold "
            "train/<class>/ and val/<class>/ for the classes " + ", ".join(CLASSES)
        )
    largest = max(images.values(), key=lambda info: info.file_size)
    total = sum(info.file_size for info in images.values())
    if largest.file_size > MAX_IMAGE_BYTES or total > MAX_BYTES:
        raise ValueError(
            f"{archive.filename!r} would unpack to {total:,} bytes, the largest image "
            f"({largest.filename!r}) to {largest.file_size:,}; those of CIFAR-10 have at most "
            f"{MAX_IMAGE_BYTES:,} each and {MAX_BYTES:,} together"
        )
    return images


def unpack(path: Path, out: Path) -> tuple[Counter[str], int]:
    """Write the images that are not there yet.

    Args:
        path: The zip file.
        out: The ``data_root`` of the configs.

    Returns:
        The number of images of each split, and how many of all were written now.

    Raises:
        FileNotFoundError: If there is no such zip file.
        ValueError: If it is damaged or another one, or the folder cannot be written to.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no zip file {str(path)!r}; give one with the images of CIFAR-10 in folders, "
            "{train,val}/<class>/*.jpg"
        )
    written = 0
    try:
        with BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            images = find_images(archive)
            for place, info in images.items():
                target_file = out / place
                if target_file.is_file() and target_file.stat().st_size == info.file_size:
                    continue
                with archive.open(info) as member:
                    content = member.read(info.file_size)  # and no more, whatever is in there
                try:
                    write_atomic(target_file, content)
                except OSError as error:
                    raise ValueError(f"cannot write to {str(out)!r} ({error}); see --out") from None
                written += 1
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
        OSError, RuntimeError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{str(path)!r} cannot be read as a zip file ({error}); copy or download it again"
        ) from None
    return Counter(place.parts[0] for place in images), written


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="zip file of the images")
    parser.add_argument(
        "--out", type=Path, default=Path("data/cifar10"), help="default: data/cifar10"
    )
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    """Unpack and say what is there."""
    args = parse_args()
    with clear_errors(args.traceback):
        counts, written = unpack(args.archive, args.out)
    images = ", ".join(f"{counts[split]} images in {split}" for split in SPLITS)
    print(f"{args.out}: {images} ({written} written now)")
    print(f"for CRD: model.method.num_data={counts['train']}")


if __name__ == "__main__":
    main()
