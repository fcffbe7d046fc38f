"""Generate a small detection dataset: handwritten digits on photographs, with exact boxes.

Example:
    python tools/dataset_converters/make_digits.py data/digits

writes ``data/digits/{train,val}/*.png`` and ``data/digits/annotations/{train,val}.json`` (COCO,
10 classes ``0`` to ``9``). Nothing is downloaded: the 1797 digits and the two photographs come
with scikit-learn.

* train and val share no digit and no pixel: val has the last fifth of the digits, which other
  people wrote, and the right 30 % of each photograph.
* Boxes are tight around the ink, and no two boxes share more than a tenth of the smaller one.
* ``--seed`` decides everything. Each image has its own random stream, so image i is the same
  however many images are made. Only integer arithmetic is used, so that machines agree.
* ``OUT_DIR/digits.json``, written last, holds the arguments. A second run with the same arguments
  does nothing, one with others replaces the images. A folder with other content is refused.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

SPLITS = ("train", "val")
MANIFEST = "digits.json"
MADE_BY = "make_digits.py, version 1"

TRAIN_DIGITS = 0.8  # share of the digits; scikit-learn's file is ordered by writer
TRAIN_PHOTO = 0.7  # share of the width of each photograph
INK_THRESHOLD = 64  # alpha (0 to 255) from which on a pixel counts as ink
MIN_CONTRAST = 90  # between the grey values of the ink and of the background
MAX_OVERLAP = 0.1  # of the smaller of two boxes
MAX_PLACEMENTS = 30  # random positions tried for a digit


class Source(NamedTuple):
    """Digits and photographs of one split.

    Attributes:
        digits (np.ndarray): Ink (N, 8, 8), uint8 from 0 to 255.
        labels (np.ndarray): Values of the digits, (N,).
        first (int): Index of the first digit in scikit-learn's file.
        photos (list[tuple[str, int, np.ndarray]]): File name of each photograph, the column at
            which the split's region begins, and the region (H, W, 3), uint8.
        max_crop (int): Largest side of a crop, the same for both splits.
    """

    digits: np.ndarray
    labels: np.ndarray
    first: int
    photos: list[tuple[str, int, np.ndarray]]
    max_crop: int


@cache
def load_sources() -> dict[str, Source]:
    """Load scikit-learn's digits and photographs, divided into the two splits.

    Raises:
        ValueError: If scikit-learn cannot be imported.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ValueError(
            f"scikit-learn, which has the digits, cannot be imported ({error}); install it with: "
            "pip install scikit-learn"
        ) from None
    digits = load_digits()
    ink = (digits.images * 255 / 16).astype(np.uint8)
    border = int(len(ink) * TRAIN_DIGITS)
    samples = load_sample_images()
    photos: dict[str, list] = {"train": [], "val": []}
    for file, photo in zip(samples.filenames, samples.images):
        cut = int(photo.shape[1] * TRAIN_PHOTO)
        photos["train"].append((Path(file).name, 0, photo[:, :cut]))
        photos["val"].append((Path(file).name, cut, photo[:, cut:]))
    max_crop = min(min(p.shape[:2]) for split in SPLITS for *_, p in photos[split])
    rows = {"train": slice(0, border), "val": slice(border, None)}
    return {
        split: Source(
            ink[rows[split]],
            digits.target[rows[split]],
            rows[split].start,
            photos[split],
            max_crop,
        )
        for split in SPLITS
    }


def render_digit(digit: np.ndarray, side: int) -> np.ndarray:
    """Enlarge a digit (8, 8) to a smooth alpha mask (h, w) whose longer side is ``side``."""
    # Enlarged much further than needed, the strokes get clear edges from a steep curve; the
    # averaging on the way down then leaves them a rim of about one pixel at every size.
    large = Image.fromarray(np.pad(digit, 1)).resize((240, 240), Image.Resampling.BICUBIC)
    large = large.point([min(max(3 * value - 255, 0), 255) for value in range(256)])
    large = large.crop(large.getbbox())
    scale = side / max(large.size)
    width, height = (max(1, round(length * scale)) for length in large.size)
    return np.asarray(large.resize((width, height), Image.Resampling.BOX))


def ink_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Return (x, y, w, h) of the pixels of a mask that count as ink."""
    columns, rows = (np.flatnonzero((alpha >= INK_THRESHOLD).any(axis)) for axis in (0, 1))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _grey(colour: np.ndarray) -> int:
    return int(colour.astype(np.int64) @ (299, 587, 114)) // 1000


def pick_ink(rng: np.random.Generator, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Draw a colour that contrasts with the pixels (h, w, 3) under a mask (h, w)."""
    grey = _grey(behind[alpha >= INK_THRESHOLD].mean(axis=0).round())
    for _ in range(20):
        colour = rng.integers(0, 256, 3)
        if abs(_grey(colour) - grey) >= MIN_CONTRAST:
            return colour
    return np.full(3, 0 if grey >= 128 else 255)


def overlaps(box: tuple[int, ...], others: list[tuple[int, ...]]) -> bool:
    """Return whether a box (x, y, w, h) overlaps another one by more than ``MAX_OVERLAP``."""
    x, y, w, h = box
    for x2, y2, w2, h2 in others:
        shared_w = min(x + w, x2 + w2) - max(x, x2)
        shared_h = min(y + h, y2 + h2) - max(y, y2)
        if max(shared_w, 0) * max(shared_h, 0) > MAX_OVERLAP * min(w * h, w2 * h2):
            return True
    return False


def make_background(rng: np.random.Generator, source: Source, size: int) -> tuple[np.ndarray, dict]:
    """Cut a square out of a photograph.

    Returns:
        tuple[np.ndarray, dict]: The image (size, size, 3), uint8, and its origin: the name of the
            photograph and the crop's (x, y, w, h) in it.
    """
    name, offset, photo = source.photos[int(rng.integers(len(source.photos)))]
    side = int(rng.integers(source.max_crop // 2, source.max_crop + 1))
    y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    crop = Image.fromarray(photo[y : y + side, x : x + side])
    background = np.array(crop.resize((size, size), Image.Resampling.BICUBIC))
    if rng.integers(2):
        background = np.ascontiguousarray(background[:, ::-1])
    return background, {"photo": name, "crop": [offset + x, y, side, side]}


def make_image(
    split: str, index: int, args: argparse.Namespace
) -> tuple[np.ndarray, dict, list[dict]]:
    """Generate one image.

    Args:
        split (str): ``'train'`` or ``'val'``.
        index (int): Index of the image in the split.
        args (argparse.Namespace): Arguments of the command line.

    Returns:
        tuple[np.ndarray, dict, list[dict]]: The image (size, size, 3), uint8; the origin of its
            background; for each digit ``bbox``, ``category_id`` and its index in scikit-learn's
            file, ``digit``.
    """
    rng = np.random.default_rng([args.seed, SPLITS.index(split), index])
    source = load_sources()[split]
    image, origin = make_background(rng, source, args.size)
    boxes: list[tuple[int, ...]] = []
    objects = []
    for _ in range(int(rng.integers(1, args.max_digits + 1))):
        label = int(rng.integers(10))
        digit = int(rng.choice(np.flatnonzero(source.labels == label)))
        alpha = render_digit(
            source.digits[digit], int(rng.integers(args.min_digit, args.max_digit + 1))
        )
        height, width = alpha.shape
        dx, dy, box_w, box_h = ink_box(alpha)
        for _ in range(MAX_PLACEMENTS):
            x = int(rng.integers(0, args.size - width + 1))
            y = int(rng.integers(0, args.size - height + 1))
            box = (x + dx, y + dy, box_w, box_h)
            if overlaps(box, boxes):
                continue
            part = image[y : y + height, x : x + width]
            ink = pick_ink(rng, part, alpha)
            weight = alpha[..., None].astype(np.int64)
            part[:] = (part * (255 - weight) + ink * weight + 127) // 255
            boxes.append(box)
            objects.append(
                {"bbox": list(box), "category_id": label + 1, "digit": source.first + digit}
            )
            break
    return image, origin, objects


def image_path(out_dir: Path, split: str, index: int) -> Path:
    """Return the path of an image."""
    return out_dir / split / f"{index:06d}.png"


def make_split(split: str, args: argparse.Namespace) -> None:
    """Write the images of a split, then its annotation file."""
    count = getattr(args, split)
    images, annotations = [], []
    for index in range(count):
        image, origin, objects = make_image(split, index, args)
        path = image_path(args.out_dir, split, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)  # a higher level takes time
        size = {"width": args.size, "height": args.size}
        images.append({"id": index + 1, "file_name": path.name, **size, **origin})
        for item in objects:
            area = item["bbox"][2] * item["bbox"][3]
            ids = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append({**ids, "area": area, "iscrowd": 0, **item})
        if (index + 1) % 500 == 0 or index + 1 == count:
            print(f"{split}: {index + 1}/{count} images, {len(annotations)} digits", flush=True)
    coco = {
        "info": {"description": f"{MADE_BY}, seed {args.seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
    }
    write_atomic(args.out_dir / "annotations" / f"{split}.json", json.dumps(coco))


def read_manifest(out_dir: Path) -> dict | None:
    """Return the manifest of an earlier run; None for a new or empty folder.

    Raises:
        ValueError: If the folder holds something that this tool did not write.
    """
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    try:
        manifest = json.loads((out_dir / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"].startswith("make_digits.py"):
            return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # no manifest, or not ours
    raise ValueError(
        f"{out_dir} is not empty and was not made by this tool (there is no {MANIFEST} of it); "
        "give a new folder"
    )


def make_digits(args: argparse.Namespace) -> None:
    """Generate the dataset, unless it is complete already.

    Args:
        args (argparse.Namespace): Arguments of the command line.

    Raises:
        ValueError: If scikit-learn is missing, or the folder is not one of this tool.
    """
    out_dir, options = args.out_dir, vars(args).copy()
    for name in ("out_dir", "traceback"):
        del options[name]
    counts = {split: options[split] for split in SPLITS}
    files = [image_path(out_dir, split, i) for split in SPLITS for i in range(counts[split])]
    annotations = [out_dir / "annotations" / f"{split}.json" for split in SPLITS]
    manifest = {"made_by": MADE_BY, "complete": True, "arguments": options, "images": counts}
    old = read_manifest(out_dir)
    if old == manifest and all(path.is_file() for path in (*files, *annotations)):
        print(f"{out_dir} already holds this dataset; nothing to do")
        return

    load_sources()  # a missing scikit-learn is reported before anything is written
    written = {split: max(counts[split], (old or manifest)["images"][split]) for split in SPLITS}
    # A complete manifest or old boxes beside new images must not survive an interruption.
    unfinished = {**manifest, "complete": False, "images": written}
    write_atomic(out_dir / MANIFEST, json.dumps(unfinished))
    for path in annotations:
        path.unlink(missing_ok=True)
    for split in SPLITS:
        make_split(split, args)
        for index in range(counts[split], written[split]):  # left by an earlier, larger dataset
            image_path(out_dir, split, index).unlink(missing_ok=True)
    write_atomic(out_dir / MANIFEST, json.dumps(manifest))
    print(f"wrote {out_dir}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("out_dir", type=Path, help="folder of the dataset")
    add("--train", type=int, default=2000, help="number of training images")
    add("--val", type=int, default=200, help="number of validation images")
    add("--size", type=int, default=128, help="side of the images in pixels")
    add("--seed", type=int, default=0, help="seed of all random numbers")
    add("--min-digit", type=int, default=16, help="smallest longer side of a digit, from 8")
    add("--max-digit", type=int, default=48, help="largest longer side of a digit")
    add("--max-digits", type=int, default=5, help="largest number of digits in an image")
    add_traceback(parser)
    args = parser.parse_args(argv)
    if min(args.train, args.val, args.max_digits) < 1 or args.seed < 0:
        parser.error("--train, --val and --max-digits must be at least 1, --seed at least 0")
    if not 8 <= args.min_digit <= args.max_digit <= args.size:
        parser.error(
            f"need 8 <= --min-digit <= --max-digit <= --size, got {args.min_digit}, "
            f"{args.max_digit}, {args.size}"
        )
    return args


def main() -> None:
    """Generate the dataset that the command line asks for."""
    args = parse_args()
    with clear_errors(args.traceback):
        try:
            make_digits(args)
        except OSError as error:
            raise ValueError(
                f"cannot write to {args.out_dir} ({error}); give another folder"
            ) from None


if __name__ == "__main__":
    main()
