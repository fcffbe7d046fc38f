"""Tests of data folders in each format and layout, and of their faults."""

import json
import shutil
import sys
from importlib.util import find_spec

import pytest
from helpers import folders
from helpers.folders import add_coco, add_image, write

from pat_mmdet.utils.data_formats import DataSetting, base, cache, find_data

BOX = [2, 3, 8, 9]
needs_globox = pytest.mark.skipif(find_spec("globox") is None, reason="an extra, pat_mmdet[yolo]")


def find(root, task="detection", **options):
    return find_data(DataSetting(root, **options), task)


def content(split):
    return json.loads(split.ann_file.read_text())


def flat_yolo(root):
    folders.yolo(root, "images", "labels", ("train",))
    write(root / "classes.txt", "cat\ndog\n")


def named_yolo(root):
    folders.yolo(root, "{}2017", "labels/{}2017")
    write(root / "obj.names", "cat\ndog\n")


def listed_yolo(root):
    folders.yolo_yaml(root)
    write(root / "lists/a.txt", "../train/images/0.png\n")
    write(root / "data.yaml", "train: lists/a.txt\nval: [valid/images]\nnames: {1: dog, 0: cat}")


# Format, images and boxes of each split, by layout.
LAYOUTS = {
    "coco": (folders.coco, "COCO", dict(train=(2, 4), val=(1, 2))),
    "roboflow": (folders.roboflow, "COCO", dict(train=(2, 4), val=(2, 4), test=(2, 4))),
    "voc": (folders.voc, "Pascal VOC", dict(train=(2, 4), val=(1, 2))),
    "yolo of Roboflow": (
        lambda root: folders.yolo_yaml(root, "../"), "YOLO", dict(train=(1, 2), val=(1, 2)),
    ),
    "yolo, images beside": (named_yolo, "YOLO", dict(train=(1, 2), val=(1, 2))),
    "yolo, lists": (listed_yolo, "YOLO", dict(train=(1, 2), val=(1, 2))),
    "yolo, no splits": (flat_yolo, "YOLO", dict(train=(1, 2))),
}  # fmt: skip


@pytest.mark.parametrize(
    "layout",
    [pytest.param(x, marks=needs_globox) if LAYOUTS[x][1] == "YOLO" else x for x in LAYOUTS],
)
def test_layouts(layout, tmp_path):
    make, name, counts = LAYOUTS[layout]
    make(tmp_path)
    data = find(tmp_path)
    assert (data.format, data.classes) == (name, ("cat", "dog"))
    assert {x: (split[2], split[3]) for x, split in data.splits.items()} == counts
    for split in data.splits.values():
        coco = content(split)
        assert all((split.images / image["file_name"]).is_file() for image in coco["images"])
        assert {tuple(item["bbox"]) for item in coco["annotations"]} == {tuple(BOX)}
    # What was converted is read again.
    made = [split.ann_file.stat().st_mtime_ns for split in data.splits.values()]
    assert [split.ann_file.stat().st_mtime_ns for split in find(tmp_path).splits.values()] == made


def test_image_folder(tmp_path):
    folders.image_folder(tmp_path)
    data = find(tmp_path, "classification")
    assert data.classes == ("cat", "dog")
    assert data.splits["val"] == base.Split(tmp_path / "val", None, 6)


@pytest.mark.parametrize("make", [folders.coco, folders.voc, folders.image_folder])
def test_held_out_share(make, tmp_path):
    make(tmp_path)
    for path in tmp_path.glob("**/*val*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    task = "classification" if make is folders.image_folder else "detection"
    data = find(tmp_path, task, val_share=0.3)
    assert {name: split.num_images for name, split in data.splits.items()} == (
        dict(train=4, val=2) if task == "classification" else dict(train=1, val=1)
    )
    texts = [data.splits[name].ann_file.read_text() for name in ("train", "val")]
    names = [set(text.split('"file_name": ')[1:] or text.splitlines()) for text in texts]
    assert not names[0] & names[1]
    again = find(tmp_path, task, val_share=0.3).splits
    assert [again[name].ann_file.read_text() for name in ("train", "val")] == texts
    if task == "classification":
        assert {line.split("/")[0] + line[-2:] for line in texts[1].splitlines()} == {
            "cat 0", "dog 1",
        }  # fmt: skip


def test_conversion_follows_the_files(tmp_path, monkeypatch):
    folders.voc(tmp_path)
    first = find(tmp_path).splits["val"].ann_file
    xml = tmp_path / "Annotations/3.xml"
    xml.write_text(xml.read_text().replace("<xmax>11", "<xmax>21"))
    second = find(tmp_path).splits["val"]
    boxes = content(second)["annotations"]
    assert second.ann_file != first and boxes[0]["bbox"] == [2, 3, 18, 9]
    shutil.rmtree(tmp_path / base.CACHE)
    # A folder that cannot be written.
    write_atomic = cache.write_atomic

    def refuse(path, text):
        if base.CACHE in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        write_atomic(path, text)

    monkeypatch.setattr(cache, "write_atomic", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    third = find(tmp_path).splits["val"]
    assert (tmp_path / "home") in third.ann_file.parents and content(third)["annotations"] == boxes
    assert third.images == tmp_path / "JPEGImages"


def test_chosen_splits_and_classes(tmp_path):
    folders.coco(tmp_path)
    shutil.copy(tmp_path / "annotations/instances_train2017.json", tmp_path / "annotations/v2.json")
    shutil.copytree(tmp_path / "train2017", tmp_path / "copy")
    (tmp_path / "train2017").rename(tmp_path / "pictures")
    splits = dict(
        train="annotations/v2.json", val=dict(ann_file="annotations/v2.json", images="copy")
    )
    with pytest.raises(ValueError, match=r"more than one folder: .*data.train.images=FOLDER"):
        find(tmp_path, splits=splits)
    shutil.rmtree(tmp_path / "pictures")
    data = find(tmp_path, splits=splits, classes=("dog",))
    assert data.classes == ("dog",)
    assert {split.images.name for split in data.splits.values()} == {"copy"}


@pytest.mark.parametrize("make", [folders.coco, folders.image_folder])
def test_named_split_is_not_ambiguous(make, tmp_path):
    make(tmp_path)
    task, name = "classification", "train"
    if make is folders.coco:
        task, name = "detection", "annotations/instances_train2017.json"
    place, other = tmp_path / name, (tmp_path / name).with_stem(f"{(tmp_path / name).stem}_new")
    shutil.copytree(place, other) if place.is_dir() else shutil.copy(place, other)
    with pytest.raises(ValueError, match=f"choose by data.train={name}"):
        find(tmp_path, task)
    train = find(tmp_path, task, splits=dict(train=other.relative_to(tmp_path).as_posix()))
    assert other in (train.splits["train"].ann_file, train.splits["train"].images)


def test_chosen_format(tmp_path):
    folders.coco(tmp_path)
    folders.voc(tmp_path)
    assert find(tmp_path).format == "COCO"
    assert find(tmp_path, format="voc", classes=("dog", "cat")).classes == ("dog", "cat")


def test_yolo_without_globox(tmp_path, monkeypatch):
    folders.yolo_yaml(tmp_path)
    monkeypatch.setitem(sys.modules, "globox", None)
    with pytest.raises(ImportError, match=r"pip install 'pat_mmdet\[yolo\]'"):
        find(tmp_path)


@needs_globox
def test_yolo_photograph_with_orientation(tmp_path):
    folders.yolo(tmp_path)
    add_image(tmp_path / "images/train/0.jpg", orientation=6)
    (tmp_path / "images/train/0.png").unlink()
    data = find(tmp_path, classes=("cat", "dog"))
    image, box = (content(data.splits["train"])[part][0] for part in ("images", "annotations"))
    assert (image["width"], image["height"]) == (30, 40)
    assert box["bbox"] == pytest.approx([1.5, 4, 6, 12])


def without(*names):
    def make(root):
        folders.coco(root)
        for name in names:
            shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()

    return make


def other_classes(root):
    folders.coco(root)
    add_coco(root, "annotations/instances_val2017.json", "val2017", ("cat", "bird"))


def other_folders(root):
    folders.image_folder(root)
    add_image(root / "val/bird/0.png")


def two_files(root):
    folders.coco(root)
    add_coco(root, "annotations/train_new.json", "train2017")


def wrong_label(text):
    def make(root):
        folders.yolo_yaml(root)
        write(root / "train/labels/0.txt", text)

    return make


def unlabelled(root):
    folders.yolo_yaml(root)
    shutil.rmtree(root / "train/labels")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda root: root.rmdir(), {}, r"does not exist; give the folder"),
        (lambda root: None, {}, r"no annotations/\*\.json .* It has 0 images$"),
        (lambda root: add_image(root / "1.jpg"), {}, r"It has 1 images; annotate them"),
        (folders.image_folder, {}, r"train/<class>/ .*take a config for classif"),
        (folders.voc, dict(task="classification"), r"\*\.xml .*take a config for detection"),
        (folders.coco, dict(format="imagefolder"), r"data.format='imagefolder': for detection"),
        (two_files, {}, r"more than one file for train: 'annotations/instances_train2017.json'"),
        (other_classes, {}, r"\(val\) has other classes .*: only one has bird, dog;"),
        (other_folders, dict(task="classification"), r"only one has bird; give all splits"),
        (folders.coco, dict(classes=("dog", "cat")), r"in this order"),
        (folders.coco, dict(splits=dict(val="annotations/x.json")), r"data.val='annot.*not exist"),
        (folders.coco, dict(val_share=0.1), r"has a val split"),
        (without("annotations/instances_train2017.json"), {}, r"no split to train on, only val"),
        (without("train2017"), {}, r"none of the images of .*'1.png', is in .*data.train.images="),
        (lambda root: write(root / "annotations/train.json", "[]"), {}, r"is no COCO file"),
        (lambda root: write(root / "annotations/train.json", "{"), {}, r"is no COCO file"),
        (folders.voc, dict(classes=("cow",)), r"classes cow: name each class once"),
        (folders.yolo, {}, r"no names of their classes; write data.yaml"),
        pytest.param(
            wrong_label("2 .5 .5 .1 .1"),
            {},
            r"line 1 of .*0.txt has the class 2, but there are 2",
            marks=needs_globox,
        ),
        pytest.param(
            wrong_label("\n0 .5 .5"),
            {},
            r"line 2 of .*0.txt is '0 .5 .5'; it has",
            marks=needs_globox,
        ),
        pytest.param(wrong_label("0 .5 .5 nan 1"), {}, r"line 1 of .*nan", marks=needs_globox),
        (lambda root: flat_yolo(root) or (root / "classes.txt").write_bytes(b"\xff"), {}, r"UTF-8"),
        (unlabelled, {}, r"no image of split 'train' has a label file"),
        (
            lambda root: write(root / "data.yaml", "train: a\nval: b\nnames: [cat]"),
            {},
            r"data.yaml: train: 'a' does not exist",
        ),
        (lambda root: write(root / "data.yaml", "names: {"), {}, r"data.yaml is no readable YAML"),
    ],
)
def test_what_is_wrong_is_named(make, options, message, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        find(root, **options)
    assert "\n" not in str(error.value)
