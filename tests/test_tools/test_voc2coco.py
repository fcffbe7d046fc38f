"""Pascal VOC in the layouts that annotation tools write, converted as a user does it."""

import json
import sys

import pytest
from helpers.tools import ROOT, load_tool
from mmdet.datasets import CocoDataset, XMLDataset
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO

from pat_mmdet.utils import load_config

SIZE = "<width>40</width><height>30</height>"


def voc_object(name, *corners, difficult=0):
    tags = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{tags}</bndbox></object>"
    )


def add(image, xml, *objects, size=SIZE, orientation=1):
    """Write an image of 40 x 30 pixels as stored, and its XML file."""
    for path in (image, xml):
        path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(image, exif=exif)
    xml.write_text(f"<annotation><size>{size}</size>{''.join(objects)}</annotation>")


def add_voc(root, split, name, *objects, **options):
    """Add an image to a folder in VOC's own layout."""
    add(root / f"JPEGImages/{name}.jpg", root / f"Annotations/{name}.xml", *objects, **options)
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    with open(root / f"ImageSets/Main/{split}.txt", "a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    add_voc(root, "train", "b", voc_object("cat", 1, 1, 11, 21), voc_object("ant", 5, 5, 9, 9))
    add_voc(
        root,
        "train",
        "a",
        voc_object("cat", 7, 7, 7, 7),  # no area
        voc_object("cat", 50, 5, 60, 9),  # outside
        voc_object("ant", 31, 21, 50, 40),  # partly outside
        voc_object("cat", 2, 2, 6, 8, difficult=1),
    )
    add_voc(root, "train", "empty")
    add_voc(root, "val", "v", voc_object("ant", 3, 4, 8, 10.5), size="<width>0</width>")
    return root


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the tool in this process; gives the COCO files by split, and the output."""
    tool = load_tool("dataset_converters/voc2coco.py")

    def run(root, *args, out=None):
        out = out or root / "annotations"
        monkeypatch.setattr(sys, "argv", ["voc2coco.py", str(root), str(out), *map(str, args)])
        tool.main()
        coco = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
        return coco, capsys.readouterr().out

    return run


def names(coco, split):
    return [image["file_name"] for image in coco[split]["images"]]


def boxes(coco, split):
    return [
        (item["image_id"], item["category_id"], item["bbox"], item["iscrowd"])
        for item in coco[split]["annotations"]
    ]


def test_boxes_are_dropped_clipped_and_counted(voc, convert):
    coco, output = convert(voc)
    # "ant" is not the first name read, but ids follow the sorted names, the same in both files.
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert coco["train"]["categories"] == coco["val"]["categories"] == categories
    assert names(coco, "train") == ["b.jpg", "a.jpg", "empty.jpg"]
    assert boxes(coco, "train") == [
        (1, 2, [0, 0, 10, 20], 0),
        (1, 1, [4, 4, 4, 4], 0),
        (2, 1, [30, 20, 10, 10], 0),
        (2, 2, [1, 1, 4, 6], 1),
    ]
    assert [item["area"] for item in coco["train"]["annotations"]] == [200, 16, 100, 24]
    # The size is missing in this XML file, so it comes from the image.
    assert (coco["val"]["images"][0]["width"], coco["val"]["images"][0]["height"]) == (40, 30)
    assert boxes(coco, "val") == [(1, 1, [2, 3, 5, 6.5], 0)]
    for line in (
        "train: 3 images, 4 boxes (ant 2, cat 2)",
        "images without a box: 1, for example empty.jpg",
        "dropped, no area: 1, for example a.jpg",
        "dropped, outside the image: 1, for example a.jpg",
        "clipped to the image: 1, for example a.jpg",
    ):
        assert line in output


def test_only_named_classes_are_kept(voc, convert):
    coco, output = convert(voc, "--classes", "cat")
    assert coco["train"]["categories"] == [{"id": 1, "name": "cat"}]
    assert [box[2] for box in boxes(coco, "train")] == [[0, 0, 10, 20], [1, 1, 4, 6]]
    assert len(names(coco, "train")) == 3, "images of other classes are kept as background"
    assert "left out, of another class: 2, for example b.jpg" in output


@pytest.mark.parametrize(("zero_based", "box"), [(True, [0, 4, 8, 6]), (False, [0, 3, 7, 6])])
def test_first_pixel(voc, convert, zero_based, box):
    add_voc(voc, "test", "z", voc_object("cat", 0, 4, 8, 10))
    coco, output = convert(voc, "--splits", "test", *(["--zero-based"] if zero_based else []))
    assert boxes(coco, "test")[0][2] == box
    assert ("--zero-based" in output) != zero_based


# Where the image and the XML file of "1" lie.
FLAT = {
    "labelimg": ("1.jpg", "1.xml", ""),
    "cvat": ("images/1.png", "Annotations/1.xml", "images/"),
    "side by side": ("images/1.jpeg", "annotations/1.xml", "images/"),
    "deep": ("data/photos/1.jpg", "data/labels/1.xml", "data/photos/"),
}


@pytest.mark.parametrize("layout", FLAT)
def test_folders_without_splits_are_split_by_seed(layout, tmp_path, convert):
    image, xml, prefix = FLAT[layout]
    root = tmp_path / "mine"
    for i in range(10):
        place = (root / path.replace("1.", f"{i}.") for path in (image, xml))
        add(*place, voc_object("cat", 2, 2, 9, 9))
    Image.new("RGB", (4, 4)).save((root / image).with_name("unlabelled.png"))
    coco, output = convert(root, "--val-share", 0.3)
    train, val = names(coco, "train"), names(coco, "val")
    assert (len(train), len(val), len({*train, *val})) == (7, 3, 10)
    assert all((root / prefix / name).is_file() for name in (*train, *val))
    assert "1 images are in no split or have no XML file" in output
    assert f"data_prefix=dict(img='{prefix or './'}')" in output
    assert names(convert(root, "--val-share", 0.3)[0], "val") == val
    assert names(convert(root, "--val-share", 0.3, "--seed", 1)[0], "val") != val


def test_a_folder_for_every_split(tmp_path, convert):
    root = tmp_path / "roboflow"
    for split in ("train", "valid", "test"):
        # One name in all folders.
        add(root / split / "1.jpg", root / split / "1.xml", voc_object(split, 2, 2, 9, 9))
    coco, output = convert(root)
    assert [names(coco, split) for split in ("train", "valid", "test")] == [
        ["train/1.jpg"], ["valid/1.jpg"], ["test/1.jpg"],
    ]  # fmt: skip
    assert "annotations/valid.json" in output
    assert set(convert(root, "--splits", "test", out=tmp_path / "out")[0]) == {"test"}


@pytest.mark.parametrize(
    ("orientation", "size", "corners", "expected", "note"),
    [
        (6, (30, 40), (2, 30, 9, 39), (30, 40), ""),  # all as shown
        (6, (40, 30), (30, 2, 39, 9), (40, 30), ""),  # all as stored
        (6, (40, 30), (2, 30, 9, 39), (30, 40), "size corrected"),
        (1, (30, 40), (30, 2, 39, 9), (40, 30), "size corrected"),
        (1, (80, 60), (30, 2, 39, 9), (80, 60), "image of another size"),
    ],
)
def test_size_is_that_of_the_frame_of_the_boxes(
    orientation, size, corners, expected, note, tmp_path, convert
):
    xml_size = "<width>{}</width><height>{}</height>".format(*size)
    for split in ("train", "val"):
        box = voc_object("cat", *corners)
        add_voc(tmp_path, split, split, box, size=xml_size, orientation=orientation)
    coco, output = convert(tmp_path)
    image = coco["train"]["images"][0]
    assert (image["width"], image["height"]) == expected
    x1, y1, x2, y2 = corners
    assert boxes(coco, "train")[0][2] == [x1 - 1, y1 - 1, x2 - x1, y2 - y1]
    assert note in output and ("size" in output.split("In a config")[0]) == bool(note)


def test_result_loads_in_pycocotools(voc, convert):
    convert(voc, "--classes", "cat", "ant")
    coco = COCO(str(voc / "annotations/train.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cat", "ant"]
    assert len(coco.getAnnIds(iscrowd=0)) == 3
    detection = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20], "score": 1.0}]
    assert len(coco.loadRes(detection).getAnnIds()) == 1


def test_boxes_are_those_of_mmdet(voc, convert):
    convert(voc, "--classes", "cat", "ant")
    common = dict(metainfo=dict(classes=("cat", "ant")), pipeline=[])
    ours = CocoDataset(
        data_root=str(voc), ann_file="annotations/train.json", data_prefix=dict(img="JPEGImages/"),
        **common,
    )  # fmt: skip
    theirs = XMLDataset(
        ann_file=str(voc / "ImageSets/Main/train.txt"),
        data_prefix=dict(sub_data_root=str(voc)),
        **common,
    )
    first, second = (data.get_data_info(0)["instances"] for data in (ours, theirs))
    for key in ("bbox", "bbox_label"):
        assert [item[key] for item in first] == [item[key] for item in second]
    assert len(first) == 2


def test_printed_config(voc, tmp_path, convert):
    _, output = convert(voc)
    lines = output.split("In a config:\n")[1].split("In plain MMDetection")[0]
    assert "num_classes=2 in the heads" in output.splitlines()[-1]
    base = ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py"
    (tmp_path / "mine.py").write_text(f"_base_ = {str(base)!r}\n{lines}")
    here, plain = load_config(str(tmp_path / "mine.py")), Config.fromfile(tmp_path / "mine.py")
    assert here.model.roi_head.bbox_head.num_classes == 2
    for cfg in (here, plain):
        for name in ("train", "val", "test"):
            options = cfg[f"{name}_dataloader"].dataset
            keys = ("data_root", "ann_file", "data_prefix", "metainfo")
            data = CocoDataset(**{key: options[key] for key in keys}, pipeline=[], test_mode=True)
            info = data.get_data_info(0)
            assert Image.open(info["img_path"]).size == (info["width"], info["height"])
            assert data.metainfo["classes"] == ("ant", "cat")
        assert len(COCO(cfg.val_evaluator.ann_file).imgs) == 1


def remove(path):
    return lambda root: (root / path).unlink()


def overwrite(path, text):
    return lambda root: (root / path).write_text(text)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("Annotations/a.xml"), ["'a'", "a.xml"]),
        (overwrite("Annotations/a.xml", "<annotation><object>"), ["no readable XML", "a.xml"]),
        (
            lambda root: add_voc(root, "train", "n", size="<width>x</width>"),
            ["<size>", "'x'", "n.xml"],
        ),
        (
            lambda root: add_voc(root, "train", "n", voc_object("cat", 1, "nan", 5, 5)),
            ["<bndbox>", "'nan'", "object 1 of", "n.xml"],
        ),
        (
            lambda root: add_voc(root, "train", "n", "<object><name>cat</name></object>"),
            ["<bndbox>", "n.xml"],
        ),
        (lambda root: add_voc(root, "train", "n", voc_object("", 1, 1, 5, 5)), ["<name>", "n.xml"]),
        (remove("JPEGImages/b.jpg"), ["no image", "b.xml"]),
        (overwrite("JPEGImages/b.jpg", "x"), ["cannot be read", "b.jpg"]),
        (remove("ImageSets/Main/val.txt"), ["val.txt", "name other splits"]),
        (overwrite("ImageSets/Main/val.txt", "\n"), ["'val'", "no XML file under"]),
        (overwrite("ImageSets/Main/val.txt", "v\nv\n"), ["more than once"]),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(voc, tmp_path, convert, damage, words):
    damage(voc)
    with pytest.raises(SystemExit) as stop:
        convert(voc, out=tmp_path / "out")
    error = stop.value.code
    assert error.startswith("error: ") and "\n" not in error
    assert all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--classes", "cat", "dog"], ["cat dog", "ant, cat"]),
        (["--classes", "cat", "cat"], ["each class once"]),
        (["--splits", "train", "test"], ["test.txt"]),
    ],
)
def test_wrong_arguments(voc, tmp_path, convert, args, words):
    with pytest.raises(SystemExit) as stop:
        convert(voc, *args, out=tmp_path / "out")
    assert all(word in stop.value.code for word in words), stop.value.code
    assert not (tmp_path / "out").exists()


def test_folder_without_annotations(tmp_path, convert):
    with pytest.raises(SystemExit, match="no XML file under"):
        convert(tmp_path)
