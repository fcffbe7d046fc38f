"""Check that ImageNet-1K lies as the configs read it, and write what is missing for that.

Example:
    python tools/dataset_converters/imagenet.py data/imagenet
    python tools/dataset_converters/imagenet.py data/imagenet --val-labels LOC_val_solution.csv

The images, which image-net.org gives to those who ask, have to be unpacked already: for training in
``train/<wnid>/*.JPEG``, a folder for each of the 1000 classes, for validation in ``val``. The
images of ``val`` lie in the same 1000 folders, or all in ``val`` itself. Then a file of
``--val-labels`` has to say which class each belongs to, one image a line, as
``ILSVRC2012_val_00000001.JPEG`` (with or without the suffix), then after a blank or comma its wnid
or the number of its class, counted from 0 in the order of the wnids. Kaggle's
``LOC_val_solution.csv`` and the ``val.txt`` of caffe_ilsvrc12 are such files. It is turned into
``meta/val.txt``, which MMPretrain reads. Nothing is moved, and a second run changes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1281167, "val": 50000}
WNID = re.compile(r"n\d{8}")
SUFFIXES = (".jpeg", ".jpg", ".png")
MAX_LIST_BYTES = 2**26  # of a list of images, which has 2 MB for val and 50 MB for train


def image_names(folder: Path) -> list[str]:
    """Return the sorted file names of the images that lie in a folder itself."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES))


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, each of which counts as a class.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {str(folder)!r}; unpack ImageNet-1K (ILSVRC 2012, from image-net.org) there"
        )
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def check_class_folders(folder: Path, classes: list[str]) -> int:
    """Check the folders of a split, and count its images.

    Raises:
        ValueError: If there are not as many classes as ImageNet-1K has, or one has no images.
    """
    wrong = [name for name in classes if not WNID.fullmatch(name)]
    if wrong:
        raise ValueError(
            f"{str(folder / wrong[0])!r} is no class of ImageNet; only folders with names like "
            f"n01440764 may be in {str(folder)!r}"
        )
    if len(classes) != NUM_CLASSES:
        raise ValueError(
            f"{len(classes)} class folders in {str(folder)!r}, and not {NUM_CLASSES}; unpack "
            "each class into a folder with the name of its wnid, such as n01440764"
        )
    total = 0
    for name in classes:
        count = len(image_names(folder / name))
        if count == 0:
            raise ValueError(f"no images in {str(folder / name)!r}; unpack {name}.tar there")
        total += count
    return total


def read_list(path: Path) -> list[str]:
    """Return the lines of a list of images.

    Raises:
        ValueError: If the file is too large to be one.
    """
    if path.stat().st_size > MAX_LIST_BYTES:
        raise ValueError(f"{str(path)!r} is too large for a list of images; see --help for one")
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()


def read_labels(path: Path, classes: list[str]) -> dict[str, int]:
    """Read the classes of validation images.

    Args:
        path: The file of ``--val-labels``.
        classes: The wnids in order.

    Returns:
        The number of the class by the image's name without suffix.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line cannot be understood.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of labels {str(path)!r}; see --help for what to give")
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    labels = {}
    for place, line in enumerate(read_list(path), 1):
        fields = line.replace(",", " ").split()
        if not fields or (place == 1 and fields[0] == "ImageId"):
            continue
        if len(fields) == 1:
            raise ValueError(
                f"line {place} of {str(path)!r} names no image: {line!r}. The numbers of the "
                "development kit's ground truth are in another order than the classes here, so "
                "give a file with image names"
            )
        name, label = fields[0].rsplit("/", 1)[-1].split(".")[0], fields[1]
        number = numbers.get(label, int(label) if label.isdecimal() else -1)
        if not 0 <= number < len(classes):
            raise ValueError(
                f"line {place} of {str(path)!r}: {label!r} is neither a wnid of the training "
                f"images nor a number from 0 to {len(classes) - 1}"
            )
        labels[name] = number
    return labels


def flat_labels(names: list[str], labels: dict[str, int], source: Path) -> str:
    """Return the lines of ``meta/val.txt``.

    Args:
        names: File names of the images in ``val``.
        labels: What :func:`read_labels` gave.
        source: The file that it read.

    Returns:
        The text of the file.

    Raises:
        ValueError: If an image has no label.
    """
    unknown = [name for name in names if name.split(".")[0] not in labels]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(names)} images in val have no label in {str(source)!r}, "
            f"{unknown[0]} among them"
        )
    return "".join(f"{name} {labels[name.split('.')[0]]}\n" for name in names)


def listed_images(path: Path) -> set[str]:
    """Return the image names of a file in ``meta``."""
    return {line.rsplit(" ", 1)[0] for line in read_list(path) if line.strip()}


def check_val(root: Path, classes: list[str], labels: Path | None) -> int:
    """Check the validation images, and write ``meta/val.txt`` if they are not in folders.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If the labels are missing or wrong, or cannot be written.
    """
    folder, meta = root / "val", root / "meta" / "val.txt"
    own = class_folders(folder)
    if own:
        refuse_list(meta)
        if own != classes:
            other = sorted(set(own) ^ set(classes))
            raise ValueError(
                f"the classes of {str(folder)!r} are not those of train: {other[0]} is in one only"
                f"{f', and {len(other) - 1} more' if len(other) > 1 else ''}"
            )
        return check_class_folders(folder, own)
    names = image_names(folder)
    if not names:
        raise FileNotFoundError(
            f"no images in {str(folder)!r}; unpack ILSVRC2012_img_val.tar there"
        )
    if labels is None:
        if meta.is_file() and listed_images(meta) == set(names):
            return len(names)
        raise ValueError(
            f"the images in {str(folder)!r} are not in folders of classes, and {str(meta)!r} does "
            "not have their labels; give a file of labels with --val-labels (see --help)"
        )
    text = flat_labels(names, read_labels(labels, classes), labels)
    if not meta.is_file() or meta.read_text(encoding="utf-8") != text:
        try:
            write_atomic(meta, text)
        except OSError as error:
            raise ValueError(f"cannot write {str(meta)!r} ({error})") from None
        print(f"wrote {meta}")
    return len(names)


def refuse_list(meta: Path) -> None:
    """Refuse a list beside folders of classes.

    Raises:
        ValueError: If there is one; MMPretrain would read it and not the folders.
    """
    if meta.is_file():
        raise ValueError(
            f"{str(meta)!r} would be read instead of the folders of {meta.stem}; move it away"
        )


def check(root: Path, labels: Path | None) -> dict[str, int]:
    """Check everything.

    Args:
        root: The ``data_root`` of the configs.
        labels: The file of ``--val-labels``.

    Returns:
        The number of images of each split.

    Raises:
        FileNotFoundError: If something is missing.
        ValueError: If something is not as it has to be.
    """
    classes = class_folders(root / "train")
    refuse_list(root / "meta" / "train.txt")
    train = check_class_folders(root / "train", classes)
    return dict(train=train, val=check_val(root, classes, labels))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "root", type=Path, nargs="?", default=Path("data/imagenet"), help="default: data/imagenet"
    )
    parser.add_argument("--val-labels", type=Path, help="classes of the images in val")
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    """Check and say what is there."""
    args = parse_args()
    with clear_errors(args.traceback):
        counts = check(args.root, args.val_labels)
    for split, count in counts.items():
        print(f"{args.root / split}: {count} images of {NUM_CLASSES} classes")
        if count != NUM_IMAGES[split]:
            print(f"  warning: the published set has {NUM_IMAGES[split]}")
    if counts["train"] != NUM_IMAGES["train"]:
        print(f"for CRD: model.method.num_data={counts['train']}")


if __name__ == "__main__":
    main()
