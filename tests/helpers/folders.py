"""Tiny data sets in the formats that annotation tools write, as folders."""

import json

from PIL import Image

WIDTH, HEIGHT = 40, 30


def add_image(path, orientation=1):
    """Write an image of 40 x 30 pixels as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def add_coco(root, ann_file, images, classes=("cat", "dog"), names=("1.png", "2.png"), **more):
    """Write images with a box of each class, and their annotation file."""
    for name in names:
        add_image(root / images / name)
    content = dict(
        images=[
            dict(id=i, file_name=name, width=WIDTH, height=HEIGHT) for i, name in enumerate(names)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)],
        annotations=[
            dict(id=10 * i + j, image_id=i, category_id=j, bbox=[2, 3, 8, 9], area=72, iscrowd=0)
            for i in range(len(names))
            for j in range(1, len(classes) + 1)
        ],
    )
    return write(root / ann_file, json.dumps({**content, **more}))


def coco(root):
    add_coco(root, "annotations/instances_train2017.json", "train2017")
    add_coco(root, "annotations/instances_val2017.json", "val2017", names=("3.png",))
    write(root / "annotations/captions_train2017.json", "{}")


def roboflow(root):
    above = [dict(id=0, name="pets", supercategory="none")]
    below = [dict(id=i, name=x, supercategory="pets") for i, x in enumerate(("cat", "dog"), 1)]
    for split in ("train", "valid", "test"):
        add_coco(root, f"{split}/_annotations.coco.json", split, categories=above + below)


def voc(root):
    for split, names in dict(train=("1", "2"), val=("3",)).items():
        for name in names:
            add_image(root / f"JPEGImages/{name}.jpg")
            objects = "".join(
                f"<object><name>{label}</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>11</xmax>"
                "<ymax>13</ymax></bndbox></object>"
                for label in ("dog", "cat")
            )
            write(root / f"Annotations/{name}.xml", f"<annotation>{objects}</annotation>")
        write(root / f"ImageSets/Main/{split}.txt", "\n".join(names))


# A box at (2, 3, 8, 9) of each class.
LABELS = "".join(
    f"{label} {6 / WIDTH} {7.5 / HEIGHT} {8 / WIDTH} {9 / HEIGHT}\n" for label in (0, 1)
)


def yolo(root, images="images/{}", labels="labels/{}", splits=("train", "val")):
    for index, split in enumerate(splits):
        add_image(root / images.format(split) / f"{index}.png")
        write(root / labels.format(split) / f"{index}.txt", LABELS)


def yolo_yaml(root, prefix=""):
    """As Roboflow writes it."""
    yolo(root, "{}/images", "{}/labels", ("train", "valid"))
    lines = (f"train: {prefix}train/images", f"val: {prefix}valid/images", "names: [cat, dog]")
    write(root / "data.yaml", "\n".join(lines))


def image_folder(root, splits=("train", "val"), classes=("cat", "dog"), count=3):
    for split in splits:
        for name in classes:
            for index in range(count):
                add_image(root / split / name / f"{index}.png")
