"""Make a small detection data set: handwritten digits on photographs, with exact boxes.

Example:
    python tools/dataset_converters/make_digits.py data/digits

writes ``data/digits/{train,val}/*.png`` and ``data/digits/annotations/{train,val}.json`` (COCO,
10 classes ``0`` to ``9``). Nothing is downloaded: the 1797 digits and the two photographs come
with scikit-learn.

* train and val share no digit and no pixel: val has the last fifth of the digits, which other
  people wrote, and the right 30 % of each photograph.
* Boxes are tight around the ink, and no box hides more than a tenth of another one's area.
* ``--seed`` decides everything. Each image has its own random stream, so image i is the same
  however many images are made. Only integer arithmetic is used, so that machines agree.
* ``OUT_DIR/digits.json``, finished last, says how the set was made. A second run with the same
  arguments does nothing; with others it makes the set anew. A folder with other content is
  refused, and no file is removed that this tool did not make.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "val")
CLASSES = tuple(str(digit) for digit in range(10))
MANIFEST = "digits.json"
MADE_BY = "make_digits.py, version 1"

TRAIN_DIGITS = 0.8  # share of the digits; the file is ordered by writer
TRAIN_PHOTO = 0.7  # share of the width of each photograph
INK_THRESHOLD = 64  # alpha (0 to 255) from which on a pixel counts as ink
MIN_CONTRAST = 90  # between the grey values of the ink and of what lies behind it
MAX_HIDDEN = 0.1  # of the smaller of two boxes
PLACEMENT_TRIES = 30
SMALLEST_DIGIT = 8  # the originals have 8 × 8 pixels


class DigitsError(Exception):
    """The set cannot be made; the message says what, where and what to do."""


@dataclass(frozen=True)
class Options:
    """What determines the data set.

    Args:
        train: Number of training images.
        val: Number of validation images.
        size: Side of the square images in pixels.
        seed: Seed of all random numbers.
        min_digit: Smallest longer side of a digit in pixels, its faint rim included.
        max_digit: Largest longer side of a digit.
        max_digits: Largest number of digits in an image.
    """

    train: int = 2000
    val: int = 200
    size: int = 128
    seed: int = 0
    min_digit: int = 16
    max_digit: int = 48
    max_digits: int = 5

    def check(self) -> None:
        """Raise an error that names the first impossible value."""
        for name in ("train", "val", "max_digits"):
            if getattr(self, name) < 1:
                raise DigitsError(f"--{name.replace('_', '-')} must be at least 1")
        if self.seed < 0:
            raise DigitsError("--seed must not be negative")
        if not SMALLEST_DIGIT <= self.min_digit <= self.max_digit <= self.size:
            raise DigitsError(
                f"need {SMALLEST_DIGIT} <= --min-digit <= --max-digit <= --size, got "
                f"{self.min_digit}, {self.max_digit}, {self.size}"
            )


@dataclass(frozen=True)
class Source:
    """Digits and photographs of one split.

    Args:
        digits: Array (N, 8, 8) of uint8 ink, 0 to 255.
        labels: Array (N,) of the digits' values.
        first: Number of the first digit in scikit-learn's file.
        photos: The split's regions of the photographs, each (H, W, 3) uint8.
        names: File names of the photographs.
        offsets: Column of each photograph at which its region begins.
        max_crop: Largest side of a crop; the same for both splits, so that backgrounds look alike.
    """

    digits: np.ndarray
    labels: np.ndarray
    first: int
    photos: list[np.ndarray]
    names: list[str]
    offsets: list[int]
    max_crop: int


@lru_cache(maxsize=1)
def load_sources() -> dict[str, Source]:
    """Return the disjoint sources of the two splits."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise DigitsError(
            f"scikit-learn, which brings the digits, cannot be imported ({error})\n"
            f"Install it: pip install scikit-learn"
        ) from error
    digits = load_digits()
    ink = (digits.images * 255 / 16).astype(np.uint8)
    samples = load_sample_images()
    cuts = [int(photo.shape[1] * TRAIN_PHOTO) for photo in samples.images]
    border = int(len(ink) * TRAIN_DIGITS)
    parts = {
        "train": (slice(0, border), [slice(0, cut) for cut in cuts]),
        "val": (slice(border, None), [slice(cut, None) for cut in cuts]),
    }
    regions = {
        split: [photo[:, columns] for photo, columns in zip(samples.images, column_slices)]
        for split, (_, column_slices) in parts.items()
    }
    max_crop = min(side for photos in regions.values() for p in photos for side in p.shape[:2])
    return {
        split: Source(
            digits=ink[rows],
            labels=digits.target[rows],
            first=rows.start,
            photos=regions[split],
            names=[Path(name).name for name in samples.filenames],
            offsets=[columns.start for columns in column_slices],
            max_crop=max_crop,
        )
        for split, (rows, column_slices) in parts.items()
    }


def render_digit(digit: np.ndarray, side: int) -> np.ndarray:
    """Enlarge a digit smoothly.

    Args:
        digit: Array (8, 8) of uint8 ink.
        side: Longer side of the result.

    Returns:
        Alpha mask (h, w) of uint8 whose longer side is ``side``.
    """
    # Enlarged much further than needed, the strokes get clear edges from a steep curve; the
    # averaging on the way down then leaves them a rim of about one pixel at every size.
    large = Image.fromarray(np.pad(digit, 1)).resize((240, 240), Image.Resampling.BICUBIC)
    large = large.point([min(max(3 * value - 255, 0), 255) for value in range(256)])
    large = large.crop(large.getbbox())
    scale = side / max(large.size)
    size = tuple(max(1, round(length * scale)) for length in large.size)
    return np.asarray(large.resize(size, Image.Resampling.BOX))


def ink_box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Return (x, y, w, h) of the pixels of a mask that count as ink."""
    rows = np.flatnonzero((alpha >= INK_THRESHOLD).any(axis=1))
    columns = np.flatnonzero((alpha >= INK_THRESHOLD).any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _grey(colour: np.ndarray) -> int:
    """Return the grey value of a colour."""
    return int(colour.astype(np.int64) @ (299, 587, 114)) // 1000


def pick_ink(rng: np.random.Generator, behind: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return a random colour that stands out from what the digit will cover.

    Args:
        rng: Random numbers.
        behind: Pixels (h, w, 3) under the mask.
        alpha: The mask (h, w).
    """
    grey = _grey(behind[alpha >= INK_THRESHOLD].mean(axis=0).round())
    for _ in range(20):
        colour = rng.integers(0, 256, 3)
        if abs(_grey(colour) - grey) >= MIN_CONTRAST:
            return colour
    return np.full(3, 0 if grey >= 128 else 255)


def paste(image: np.ndarray, alpha: np.ndarray, x: int, y: int, ink: np.ndarray) -> None:
    """Blend ink into ``image`` (H, W, 3) in place, the mask's corner at (x, y)."""
    height, width = alpha.shape
    part = image[y : y + height, x : x + width]
    weight = alpha[..., None].astype(np.int64)
    part[:] = (part * (255 - weight) + ink * weight + 127) // 255


def hides_too_much(box: tuple[int, ...], others: list[tuple[int, ...]]) -> bool:
    """Tell whether a box shares more than a tenth of the smaller area with another one."""
    x, y, w, h = box
    for x2, y2, w2, h2 in others:
        shared_w = min(x + w, x2 + w2) - max(x, x2)
        shared_h = min(y + h, y2 + h2) - max(y, y2)
        shared = max(shared_w, 0) * max(shared_h, 0)
        if shared > MAX_HIDDEN * min(w * h, w2 * h2):
            return True
    return False


def make_background(rng: np.random.Generator, source: Source, size: int) -> tuple[np.ndarray, dict]:
    """Cut a square out of a photograph.

    Returns:
        The image (size, size, 3) of uint8, and the photograph's name with the [x, y, w, h] of
        the crop in it.
    """
    which = int(rng.integers(len(source.photos)))
    photo = source.photos[which]
    side = int(rng.integers(source.max_crop // 2, source.max_crop + 1))
    y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
    crop = Image.fromarray(photo[y : y + side, x : x + side])
    background = np.array(crop.resize((size, size), Image.Resampling.BICUBIC))
    if rng.integers(2):
        background = np.ascontiguousarray(background[:, ::-1])
    where = [source.offsets[which] + x, y, side, side]
    return background, {"photo": source.names[which], "crop": where}


def make_image(split: str, index: int, options: Options) -> tuple[np.ndarray, dict, list[dict]]:
    """Make one image.

    Args:
        split: ``train`` or ``val``.
        index: Number of the image in the split.
        options: The arguments of the set.

    Returns:
        The image (size, size, 3) of uint8, where its background comes from, and for each digit
        its ``bbox``, its ``category_id`` and ``digit``, its number in scikit-learn's file.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    source = load_sources()[split]
    image, origin = make_background(rng, source, options.size)
    boxes: list[tuple[int, ...]] = []
    objects = []
    for _ in range(int(rng.integers(1, options.max_digits + 1))):
        label = int(rng.integers(len(CLASSES)))
        digit = int(rng.choice(np.flatnonzero(source.labels == label)))
        side = int(rng.integers(options.min_digit, options.max_digit + 1))
        alpha = render_digit(source.digits[digit], side)
        height, width = alpha.shape
        dx, dy, box_w, box_h = ink_box(alpha)
        for _ in range(PLACEMENT_TRIES):
            x = int(rng.integers(0, options.size - width + 1))
            y = int(rng.integers(0, options.size - height + 1))
            box = (x + dx, y + dy, box_w, box_h)
            if hides_too_much(box, boxes):
                continue
            ink = pick_ink(rng, image[y : y + height, x : x + width], alpha)
            paste(image, alpha, x, y, ink)
            boxes.append(box)
            objects.append(
                {"bbox": list(box), "category_id": label + 1, "digit": source.first + digit}
            )
            break
    return image, origin, objects


def image_name(index: int) -> str:
    """Return the file name of an image."""
    return f"{index:06d}.png"


def write_json(content: dict, path: Path) -> None:
    """Write ``content`` so that ``path`` is either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_split(split: str, out_dir: Path, options: Options) -> None:
    """Write the images of one split, then its annotation file."""
    count = getattr(options, split)
    images, annotations = [], []
    for index in range(count):
        image, origin, objects = make_image(split, index, options)
        # Speed: the small files matter less than the time to compress them further.
        Image.fromarray(image).save(out_dir / split / image_name(index), compress_level=1)
        images.append(
            {
                "id": index + 1,
                "file_name": image_name(index),
                "width": options.size,
                "height": options.size,
                **origin,
            }
        )
        for item in objects:
            area = item["bbox"][2] * item["bbox"][3]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": index + 1, "area": area, "iscrowd": 0}
                | item
            )
        if (index + 1) % 500 == 0 or index + 1 == count:
            print(f"{split}: {index + 1}/{count} images, {len(annotations)} digits", flush=True)
    coco = {
        "info": {"description": f"{MADE_BY}, seed {options.seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)],
    }
    write_json(coco, out_dir / "annotations" / f"{split}.json")


def read_manifest(out_dir: Path) -> dict | None:
    """Return what an earlier run left in ``out_dir``; None for a new or empty folder.

    Raises:
        DigitsError: If there is something that this tool did not make.
    """
    if out_dir.exists() and not out_dir.is_dir():
        raise DigitsError(f"{out_dir} is a file\nGive a folder.")
    if not out_dir.is_dir() or not any(out_dir.iterdir()):
        return None
    try:
        manifest = json.loads((out_dir / MANIFEST).read_text(encoding="utf-8"))
        if manifest["made_by"].startswith("make_digits.py"):
            return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # without a manifest of ours, the folder is somebody else's
    raise DigitsError(
        f"{out_dir} is not empty and was not made by this tool (it has no {MANIFEST} of it)\n"
        f"Give a new folder."
    )


def is_complete(out_dir: Path, manifest: dict, options: Options) -> bool:
    """Tell whether the set with these options is there, every file of it."""
    if not manifest["complete"] or manifest["made_by"] != MADE_BY:
        return False
    if manifest["arguments"] != vars(options):
        return False
    return all(
        (out_dir / "annotations" / f"{split}.json").is_file()
        and all(
            (out_dir / split / image_name(index)).is_file()
            for index in range(getattr(options, split))
        )
        for split in SPLITS
    )


def make_digits(out_dir: Path, options: Options) -> None:
    """Make the set in ``out_dir``, unless it is there already."""
    options.check()
    old = read_manifest(out_dir)
    if old is not None and is_complete(out_dir, old, options):
        print(f"{out_dir} already holds this set; nothing to do")
        return

    load_sources()  # a missing scikit-learn is reported before anything is touched
    counts = {split: getattr(options, split) for split in SPLITS}
    # The numbers of the images that this tool ever wrote here: a smaller set leaves surplus files.
    written = {s: max(n, old["images"][s] if old else 0) for s, n in counts.items()}
    manifest = {
        "made_by": MADE_BY,
        "complete": False,
        "arguments": vars(options),
        "images": written,
    }
    for folder in (*SPLITS, "annotations"):
        (out_dir / folder).mkdir(parents=True, exist_ok=True)
    write_json(manifest, out_dir / MANIFEST)
    for split in SPLITS:
        # Old boxes must not be found beside new images if this run is interrupted.
        (out_dir / "annotations" / f"{split}.json").unlink(missing_ok=True)
    for split in SPLITS:
        make_split(split, out_dir, options)
        for index in range(counts[split], written[split]):
            (out_dir / split / image_name(index)).unlink(missing_ok=True)
    write_json(manifest | {"complete": True, "images": counts}, out_dir / MANIFEST)
    print(f"wrote {out_dir}")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, help="folder of the data set")
    for name, text in {
        "train": "number of training images",
        "val": "number of validation images",
        "size": "side of the images in pixels",
        "seed": "seed of all random numbers",
        "min_digit": "smallest longer side of a digit",
        "max_digit": "largest longer side of a digit",
        "max_digits": "largest number of digits in an image",
    }.items():
        default = getattr(Options, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"{text} (default: {default})")
    return parser.parse_args()


def main() -> None:
    """Make the set, turning every expected error into one message."""
    arguments = vars(parse_args())
    out_dir = arguments.pop("out_dir")
    try:
        make_digits(out_dir, Options(**arguments))
    except DigitsError as error:
        sys.exit(f"make_digits: {error}")
    except OSError as error:
        sys.exit(f"make_digits: cannot write to {out_dir}: {error}\nGive another folder.")


if __name__ == "__main__":
    main()
