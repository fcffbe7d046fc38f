"""Convert Pascal VOC annotations (an XML file for every image) to COCO annotation files.

Examples:
    python tools/dataset_converters/voc2coco.py data/bccd --classes RBC WBC Platelets
    python tools/dataset_converters/voc2coco.py data/mine --val-share 0.2 --seed 0

write ``annotations/{train,val}.json`` into the folder and print what a config needs. Three layouts
are known:

* VOC's own: ``ImageSets/Main/<split>.txt`` names the images of a split;
* a folder for every split, as Roboflow writes: ``train/``, ``valid/``, ``test/``;
* no splits, as LabelImg and CVAT write: the images are split at random.

XML files and images are paired by their names; they may lie together or in different folders.

Conventions:

* VOC counts pixels from 1, so 1 is taken from all four coordinates, and ``w = xmax - xmin``, as
  in MMDetection's ``XMLDataset``. ``--zero-based`` is for files that count from 0.
* A box without area or outside of its image is dropped, and one that is partly outside is clipped.
  Boxes of classes that ``--classes`` does not name are left out. All are counted.
* ``difficult`` boxes get ``iscrowd=1``: they are neither trained on nor counted as errors.
* Images without boxes are kept. Sizes that contradict the image are corrected, see
  :func:`pat_mmdet.utils.images.annotated_size`.
* Category ids count from 1 in the order of ``--classes``; by default those are all names, sorted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.images import annotated_size, read_image_sizes
from pat_mmdet.utils.io import write_atomic

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SPLIT_FOLDERS = ("train", "val", "valid", "test")


def find_splits(
    root: Path, splits: Sequence[str] | None, val_share: float, seed: int
) -> dict[str, list[Path]]:
    """List the XML files of every split; without splits in the folder, of a random one."""
    xmls = sorted(root.rglob("*.xml"))
    if not xmls:
        raise FileNotFoundError(f"no XML file under {root}; give the folder of a VOC data set")
    lists = root / "ImageSets" / "Main"
    folders = [name for name in SPLIT_FOLDERS if any((root / name).rglob("*.xml"))]
    if lists.is_dir():
        found = {
            split: _listed(lists / f"{split}.txt", xmls) for split in splits or SPLIT_FOLDERS[:2]
        }
    elif splits or len(folders) > 1:
        found = {split: sorted((root / split).rglob("*.xml")) for split in splits or folders}
    else:
        random.Random(seed).shuffle(xmls)
        count = round(val_share * len(xmls))
        found = {"train": sorted(xmls[count:]), "val": sorted(xmls[:count])}
    for split, paths in found.items():
        if not paths:
            raise ValueError(f"split {split!r} of {root} has no image; name others with --splits")
    return found


def _listed(path: Path, xmls: Sequence[Path]) -> list[Path]:
    """Return the XML files that a list of image names asks for."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; write it (an image name a line) or name others with --splits"
        )
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    by_name = {xml.stem: xml for xml in xmls}
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{path} lists {name!r} more than once; remove the repeated lines")
        if name not in by_name:
            raise FileNotFoundError(f"{path} lists {name!r}, but there is no {name}.xml; add it")
    return [by_name[name] for name in names]


def find_image(xml: Path, images: dict[str, list[Path]]) -> Path:
    """Return the image of an XML file: of those with its name, the one nearest by folder."""
    if xml.stem not in images:
        raise FileNotFoundError(f"there is no image for {xml}; add it or remove the XML file")
    return max(images[xml.stem], key=lambda path: len(os.path.commonpath([path, xml])))


def read_xml(path: Path, zero_based: bool) -> tuple[tuple[int, int], list[dict]]:
    """Read (width, height), zero where it is not given, and the objects of an XML file.

    Their boxes are (x, y, width, height), counted from 0.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no readable XML ({error}); correct it") from None
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"object {number} of {path} has no <name>; add it")
        x1, y1, x2, y2 = (
            _number(element, f"bndbox/{key}", f"object {number} of {path}") - (not zero_based)
            for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = (element.findtext("difficult") or "0").strip() != "0"
        objects.append(dict(name=name, box=[x1, y1, x2 - x1, y2 - y1], difficult=difficult))
    size = [(root.findtext(f"size/{key}") or "0").strip() or 0 for key in ("width", "height")]
    return (int(float(size[0])), int(float(size[1]))), objects


def _number(element: ET.Element, path: str, where: str) -> float:
    """Return a finite number, an ``int`` where it is whole."""
    text = (element.findtext(path) or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{path}> of {where} is {text!r}, not a number; correct it")
    return int(number) if number.is_integer() else number


def convert_split(
    xmls: Sequence[Path],
    images: dict[str, list[Path]],
    image_root: Path,
    classes: Sequence[str],
    zero_based: bool = False,
) -> tuple[dict, dict[str, list[str]]]:
    """Convert the images of a split.

    Args:
        xmls (Sequence[Path]): XML files.
        images (dict[str, list[Path]]): Image files by name without suffix.
        image_root (Path): Folder to which ``file_name`` is relative.
        classes (Sequence[str]): Class names; category ids are their positions, counted from 1.
        zero_based (bool): Whether the files count pixels from 0 instead of 1.

    Returns:
        tuple[dict, dict[str, list[str]]]: Content of the COCO file, and for every change the names
        of the images, one for every box.
    """
    categories = {name: index for index, name in enumerate(classes, 1)}
    coco: dict = dict(
        # Some COCO readers copy `info` without asking whether it is there.
        info=dict(description="converted from Pascal VOC by voc2coco.py"),
        images=[],
        annotations=[],
        categories=[dict(id=index, name=name) for name, index in categories.items()],
    )
    notes = defaultdict(list)
    # Ids begin at 1, as COCO's evaluation takes annotation id 0 for "no match".
    for image_id, xml in enumerate(xmls, 1):
        path = find_image(xml, images)
        size, objects = read_xml(xml, zero_based)
        file_name = path.relative_to(image_root).as_posix()
        try:
            shown, stored = read_image_sizes(str(path))
        except OSError as error:
            raise ValueError(f"image {path} cannot be read ({error}); replace it") from None
        boxes = [item["box"] for item in objects]
        width, height = annotated_size(str(path), size, boxes) if all(size) else shown
        if all(size) and size != (width, height):
            notes["size corrected, width and height were swapped"].append(file_name)
        elif (width, height) not in (shown, stored):
            notes["warning: image of another size than its XML says"].append(file_name)
        coco["images"].append(dict(id=image_id, file_name=file_name, width=width, height=height))
        count = len(coco["annotations"])
        for item in objects:
            x, y, w, h = item["box"]
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if not zero_based and min(x, y) == -1:
                notes["warning: begins at 0; if pixels count from 0, use --zero-based"].append(
                    file_name
                )
            problem = (
                "left out, of another class"
                if item["name"] not in categories
                else "dropped, no area"
                if min(w, h) <= 0
                else "dropped, outside the image"
                if right <= left or bottom <= top
                else ""
            )
            if problem:
                notes[problem].append(file_name)
                continue
            if (left, top, right, bottom) != (x, y, x + w, y + h):
                notes["clipped to the image"].append(file_name)
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]) + 1,
                    image_id=image_id,
                    category_id=categories[item["name"]],
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=int(item["difficult"]),
                )
            )
        if len(coco["annotations"]) == count:
            notes["images without a box"].append(file_name)
    return coco, notes


def convert(args: argparse.Namespace) -> None:
    """Convert all splits, write them once all of them could be read, and print a report."""
    root = args.voc_root
    splits = find_splits(root, args.splits, args.val_share, args.seed)
    images = defaultdict(list)
    for path in root.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images[path.stem].append(path)
    xmls = [xml for paths in splits.values() for xml in paths]
    names = sorted({item["name"] for xml in xmls for item in read_xml(xml, True)[1]})
    classes = args.classes or names
    if not classes or not set(classes) <= set(names) or len(set(classes)) != len(classes):
        raise ValueError(
            f"--classes {' '.join(classes)}: name each class once, of those with boxes in the "
            f"splits {', '.join(splits)} of {root}: {', '.join(names) or 'none'}"
        )
    image_root = Path(os.path.commonpath([find_image(xml, images).parent for xml in xmls]))
    results = {
        split: convert_split(paths, images, image_root, classes, args.zero_based)
        for split, paths in splits.items()
    }
    out = args.out or root / "annotations"
    try:
        for split, (coco, _) in results.items():
            write_atomic(out / f"{split}.json", json.dumps(coco, ensure_ascii=False))
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error}); name another folder") from None
    for split, (coco, notes) in results.items():
        count = Counter(annotation["category_id"] for annotation in coco["annotations"])
        each = ", ".join(f"{name} {count[index]}" for index, name in enumerate(classes, 1))
        print(f"{split}: {len(coco['images'])} images, {count.total()} boxes ({each})")
        for what, where in notes.items():
            print(f"  {what}: {len(where)}, for example {where[0]}")
    if len(set(xmls)) < len(xmls):
        print("warning: splits share images")
    unused = sum(map(len, images.values())) - len(set(xmls))
    if unused:
        print(f"{unused} images are in no split or have no XML file; they are left out")
    print(config_lines(root, out, image_root, list(results), tuple(classes)))


def config_lines(
    root: Path, out: Path, image_root: Path, splits: Sequence[str], classes: tuple[str, ...]
) -> str:
    """Return the lines of a config that read the data, here and in plain MMDetection."""
    prefix = image_root.relative_to(root).as_posix() + "/"
    file = {
        part: os.path.join(
            os.path.relpath(out, root), f"{splits[min(index, len(splits) - 1)]}.json"
        )
        for index, part in enumerate(("train", "val", "test"))
    }
    return f"""In a config:
data_root = {f"{root.as_posix()}/"!r}
classes = {classes!r}
data = dict(
    data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img={prefix!r})
)
train_dataloader = dict(dataset=dict(ann_file={file["train"]!r}, **data))
val_dataloader = dict(dataset=dict(ann_file={file["val"]!r}, **data))
test_dataloader = dict(dataset=dict(ann_file={file["test"]!r}, **data))
val_evaluator = dict(ann_file=data_root + {file["val"]!r})
test_evaluator = dict(ann_file=data_root + {file["test"]!r})
In plain MMDetection also num_classes={len(classes)} in the heads of the model."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("voc_root", type=Path, help="folder of the data set")
    parser.add_argument(
        "out", type=Path, nargs="?", help="output folder (default: VOC_ROOT/annotations)"
    )
    parser.add_argument("--splits", nargs="+", help="names of the splits (default: those found)")
    parser.add_argument(
        "--classes", nargs="+", help="classes to keep, in the order of their ids (default: all)"
    )
    parser.add_argument(
        "--val-share", type=float, default=0.2, help="share of a random val split (default: 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of a random split (default: 0)")
    parser.add_argument("--zero-based", action="store_true", help="the files count pixels from 0")
    return parser.parse_args()


def main() -> None:
    """Run the conversion."""
    args = parse_args()
    with clear_errors():
        convert(args)


if __name__ == "__main__":
    main()
