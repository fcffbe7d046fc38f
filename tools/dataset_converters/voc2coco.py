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
import os
from collections import Counter
from pathlib import Path

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.data_formats import voc
from pat_mmdet.utils.data_formats.base import describe
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic


def convert(args: argparse.Namespace) -> None:
    """Convert all splits, write them once all of them could be read, and print a report."""
    root = args.voc_root
    splits = voc.find_splits(root, args.splits, args.val_share, args.seed)
    images, unused = voc.find_images(root, (xml for xmls in splits.values() for xml in xmls))
    classes = voc.find_classes(splits, root, args.classes)
    converted = voc.convert(splits, images, classes, first_pixel=0 if args.zero_based else 1)
    out = args.out or root / "annotations"
    report = []
    for split, coco in converted.splits.items():
        count = Counter(annotation["category_id"] for annotation in coco["annotations"])
        each = ", ".join(f"{name} {count[index]}" for index, name in enumerate(classes, 1))
        boxes = sum(count.values())
        report.append(f"{split}: {len(coco['images'])} images, {boxes} boxes ({each})")
        report.extend(f"  {line}" for line in describe(converted.changes[split]))
    try:
        for split, coco in converted.splits.items():
            write_atomic(out / f"{split}.json", json.dumps(coco, ensure_ascii=False))
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error}); name another folder") from None
    print("\n".join(report))
    if len(images) < sum(map(len, splits.values())):
        print("warning: splits share images")
    if unused:
        print(f"{unused} images are in no split or have no XML file; they are left out")
    print(config_lines(root, out, converted.images, list(splits), tuple(classes)))


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
