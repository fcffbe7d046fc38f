"""Convert Pascal VOC annotations (an XML file for each image) to COCO annotation files.

Examples:
    python tools/dataset_converters/voc2coco.py data/bccd --classes RBC WBC Platelets
    python tools/dataset_converters/voc2coco.py data/mine --val-share 0.2 --seed 0

write ``annotations/{train,val}.json`` into the folder and print what a config needs. Splits are
those of ``ImageSets/Main/<split>.txt``, as in VOC, or of a folder for each (Roboflow); images in
one folder (LabelImg, CVAT) are split at random. XML files and images are paired by their names.

* VOC counts pixels from 1: 1 is taken from all coordinates, and ``w = xmax - xmin``, as in
  MMDetection's ``XMLDataset``. ``--zero-based`` is for files that count from 0.
* Boxes without area or outside of their image are dropped, those partly outside are clipped, and
  those of other classes than ``--classes`` are left out. All are counted.
* ``difficult`` boxes get ``iscrowd=1``: they are neither trained on nor counted as errors.
* Images without boxes are kept. Sizes that contradict the image are corrected.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from pathlib import Path

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.images import annotated_size, read_image_sizes
from pat_mmdet.utils.io import write_atomic

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SPLITS = ("train", "val", "valid", "test")


def find_splits(args: argparse.Namespace) -> dict[str, list[Path]]:
    """List the XML files of each split; of a random one where the folder has no splits."""
    root = args.voc_root
    xmls = sorted(root.rglob("*.xml"))
    folders = [name for name in SPLITS if any((root / name).rglob("*.xml"))]
    if (root / "ImageSets/Main").is_dir():
        by_name = {xml.stem: xml for xml in xmls}
        lists = {name: root / f"ImageSets/Main/{name}.txt" for name in args.splits or SPLITS[:2]}
        splits = {name: read_list(path, by_name) for name, path in lists.items()}
    elif args.splits or len(folders) > 1:
        splits = {name: sorted((root / name).rglob("*.xml")) for name in args.splits or folders}
    else:
        random.Random(args.seed).shuffle(xmls)
        count = round(args.val_share * len(xmls))
        splits = {"train": sorted(xmls[count:]), "val": sorted(xmls[:count])}
    for name, found in splits.items():
        if not found:
            raise ValueError(f"no XML file under {root} for split {name!r}; see --splits")
    return splits


def read_list(path: Path, xmls: dict[str, Path]) -> list[Path]:
    """Return the XML files that a list of image names asks for."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; write it or name others with --splits")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    for name, count in Counter(filter(None, names)).items():
        if count > 1 or name not in xmls:
            problem = "more than once" if count > 1 else f"but there is no {name}.xml"
            raise ValueError(f"{path} lists {name!r} {problem}; correct it")
    return [xmls[name] for name in names if name]


def read_xml(path: Path) -> tuple[list[float], list[tuple[str, list[float], bool]]]:
    """Return [width, height], 0 if not given, and name, corners and difficulty of the objects."""
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is no readable XML ({error}); correct it") from None
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"object {number} of {path} has no <name>; add it")
        texts = [element.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
        corners = to_numbers(texts, f"<bndbox> of object {number} of {path}")
        objects.append((name, corners, (element.findtext("difficult") or "0").strip() != "0"))
    size = [root.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    return [int(side) for side in to_numbers(size, f"<size> of {path}")], objects


def to_numbers(texts: list[str], where: str) -> list[float]:
    """Return finite numbers, ``int`` where they are whole."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} has {texts} for numbers; correct it")
    return [int(number) if number.is_integer() else number for number in numbers]


def convert_image(
    coco: dict, path: Path, xml: Path, root: Path, classes: list[str], first: int
) -> list[str]:
    """Add an image and its boxes to a COCO file; return what was changed, once for each box."""
    size, objects = read_xml(xml)
    try:
        shown, stored = read_image_sizes(str(path))
    except OSError as error:
        raise ValueError(f"image {path} cannot be read ({error}); replace it") from None
    corners = [[value - first for value in values] for _, values, _ in objects]
    boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in corners]
    fits = all(x + w <= size[0] + 1 and y + h <= size[1] + 1 for x, y, w, h in boxes)
    width, height = annotated_size(str(path), tuple(size), fits) if all(size) else shown
    notes = []
    if all(size) and size != [width, height]:
        notes.append("size corrected, width and height were swapped")
    elif (width, height) not in (shown, stored):
        notes.append("warning: image of another size than its XML says")
    image_id, count = len(coco["images"]) + 1, len(coco["annotations"])
    file_name = path.relative_to(root).as_posix()
    coco["images"].append(dict(id=image_id, file_name=file_name, width=width, height=height))
    for (name, _, difficult), (x, y, w, h) in zip(objects, boxes):
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if first == 1 and min(x, y) == -1:
            notes.append("warning: begins at 0; if pixels count from 0, use --zero-based")
        if name not in classes:
            notes.append("left out, of another class")
        elif min(w, h) <= 0:
            notes.append("dropped, no area")
        elif right <= left or bottom <= top:
            notes.append("dropped, outside the image")
        else:
            if (left, top, right, bottom) != (x, y, x + w, y + h):
                notes.append("clipped to the image")
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]) + 1,
                    image_id=image_id,
                    category_id=classes.index(name) + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=int(difficult),
                )
            )
    return notes if len(coco["annotations"]) > count else [*notes, "images without a box"]


def convert(args: argparse.Namespace) -> None:
    """Convert all splits, write them once all of them could be read, and print a report."""
    root, splits = args.voc_root, find_splits(args)
    by_name = defaultdict(list)
    for path in root.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            by_name[path.stem].append(path)
    images = {}
    for xml in (xml for xmls in splits.values() for xml in xmls):
        if xml.stem not in by_name:
            raise FileNotFoundError(f"there is no image for {xml}; add it or remove the XML file")
        # Of those with its name, the one nearest by folder.
        images[xml] = max(by_name[xml.stem], key=lambda path: len(os.path.commonpath([path, xml])))
    names = sorted({name for xml in images for name, *_ in read_xml(xml)[1]})
    classes = args.classes or names
    if not classes or not set(classes) <= set(names) or len(set(classes)) != len(classes):
        raise ValueError(
            f"--classes {' '.join(classes)}: name each class once, of those with boxes in the "
            f"splits {', '.join(splits)} of {root}: {', '.join(names) or 'none'}"
        )
    image_root = Path(os.path.commonpath([image.parent for image in images.values()]))
    out = args.out or root / "annotations"
    results, report = {}, []
    for split, xmls in splits.items():
        # Some COCO readers copy `info` without asking whether it is there.
        info = dict(description="converted from Pascal VOC by voc2coco.py")
        categories = [dict(id=index, name=name) for index, name in enumerate(classes, 1)]
        coco = dict(info=info, images=[], annotations=[], categories=categories)
        changed = defaultdict(list)
        for xml in xmls:
            first = 0 if args.zero_based else 1
            for note in convert_image(coco, images[xml], xml, image_root, classes, first):
                changed[note].append(coco["images"][-1]["file_name"])
        results[split] = coco
        count = Counter(annotation["category_id"] for annotation in coco["annotations"])
        each = ", ".join(f"{name} {count[index]}" for index, name in enumerate(classes, 1))
        report.append(f"{split}: {len(xmls)} images, {count.total()} boxes ({each})")
        report.extend(
            f"  {what}: {len(where)}, for example {where[0]}" for what, where in changed.items()
        )
    try:
        for split, coco in results.items():
            write_atomic(out / f"{split}.json", json.dumps(coco, ensure_ascii=False))
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error}); name another folder") from None
    print("\n".join(report))
    if len(images) < sum(map(len, splits.values())):
        print("warning: splits share images")
    unused = sum(map(len, by_name.values())) - len(images)
    if unused:
        print(f"{unused} images are in no split or have no XML file; they are left out")
    print(config_lines(root, out, image_root, list(splits), tuple(classes)))


def config_lines(
    root: Path, out: Path, image_root: Path, splits: list[str], classes: tuple[str, ...]
) -> str:
    """Return the lines of a config that read the data, here and in plain MMDetection."""
    prefix = image_root.relative_to(root).as_posix() + "/"
    files = [os.path.join(os.path.relpath(out, root), f"{split}.json") for split in splits]
    train, val, test = (*files, files[-1], files[-1])[:3]
    return f"""In a config:
data_root = {f"{root.as_posix()}/"!r}
classes = {classes!r}
data = dict(
    data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img={prefix!r})
)
train_dataloader = dict(dataset=dict(ann_file={train!r}, **data))
val_dataloader = dict(dataset=dict(ann_file={val!r}, **data))
test_dataloader = dict(dataset=dict(ann_file={test!r}, **data))
val_evaluator = dict(ann_file=data_root + {val!r})
test_evaluator = dict(ann_file=data_root + {test!r})
In plain MMDetection also num_classes={len(classes)} in the heads of the model."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("voc_root", type=Path, help="folder of the data set")
    add("out", type=Path, nargs="?", help="output folder (default: VOC_ROOT/annotations)")
    add("--splits", nargs="+", help="names of the splits (default: those found)")
    add("--classes", nargs="+", help="classes to keep, in the order of their ids (default: all)")
    add("--val-share", type=float, default=0.2, help="of a random val split (default: 0.2)")
    add("--seed", type=int, default=0, help="of a random split (default: 0)")
    add("--zero-based", action="store_true", help="the files count pixels from 0")
    add_traceback(parser)
    return parser.parse_args()


def main() -> None:
    """Run the conversion."""
    args = parse_args()
    with clear_errors(args.traceback):
        convert(args)


if __name__ == "__main__":
    main()
