"""The tools that make, convert and show data, run as a user runs them."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def load(path):
    """Import a tool, which belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TOOLS / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(tool, *args, **env):
    return subprocess.run(
        [sys.executable, str(TOOLS / tool), *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        timeout=120,
    )


def assert_one_clear_error(result, *words):
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert str(word) in result.stderr


# ---------------------------------------------------------------------------- voc2coco


def voc_object(name, *corners, difficult=0):
    tags = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{tags}</bndbox></object>"
    )


def add_voc_image(root, split, name, *objects, size="<width>40</width><height>30</height>"):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
    xml = f"<annotation><size>{size}</size>{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(xml)
    with open(root / "ImageSets" / "Main" / f"{split}.txt", "a") as file:
        file.write(f"{name}\n")


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    add_voc_image(
        root, "train", "b", voc_object("cat", 1, 1, 11, 21), voc_object("ant", 5, 5, 9, 9)
    )
    add_voc_image(
        root,
        "train",
        "a",
        voc_object("cat", 7, 7, 7, 7),  # no area
        voc_object("cat", 50, 5, 60, 9),  # outside
        voc_object("ant", 31, 21, 50, 40),  # partly outside
        voc_object("cat", 2, 2, 6, 8, difficult=1),
    )
    add_voc_image(root, "train", "empty")
    add_voc_image(root, "val", "v", voc_object("ant", 3, 4, 8, 10.5), size="<width>0</width>")
    return root


def test_voc2coco_converts_drops_clips_and_counts(voc, tmp_path):
    result = run("dataset_converters/voc2coco.py", voc, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    train = json.loads((tmp_path / "out" / "train.json").read_text())
    val = json.loads((tmp_path / "out" / "val.json").read_text())

    # "ant" is not the first name read, but ids follow the sorted names, the same in both files.
    assert train["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    assert val["categories"] == train["categories"]
    assert [i["file_name"] for i in train["images"]] == ["b.jpg", "a.jpg", "empty.jpg"]
    boxes = [
        (a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in train["annotations"]
    ]
    assert boxes == [
        (1, 2, [0, 0, 10, 20], 0),
        (1, 1, [4, 4, 4, 4], 0),
        (2, 1, [30, 20, 10, 10], 0),
        (2, 2, [1, 1, 4, 6], 1),
    ]
    assert [a["area"] for a in train["annotations"]] == [200, 16, 100, 24]
    # The size is missing in this XML file, so it comes from the image.
    assert (val["images"][0]["width"], val["images"][0]["height"]) == (40, 30)
    assert val["annotations"][0]["bbox"] == [2, 3, 5, 6.5]

    for line in (
        "train: 3 images (1 without a box)",
        "boxes: 4 (ant 2, cat 2), difficult: 1",
        "dropped, no area: 1 (a.jpg)",
        "dropped, outside the image: 1 (a.jpg)",
        "clipped to the image: 1 (a.jpg)",
        "classes=('ant', 'cat')",
    ):
        assert line in result.stdout


def test_voc2coco_result_loads_in_pycocotools(voc, tmp_path):
    load("dataset_converters/voc2coco.py").convert(voc, tmp_path, classes=["cat", "ant"])
    coco = COCO(str(tmp_path / "train.json"))
    assert len(coco.getImgIds()) == 3
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "ant"]
    assert len(coco.getAnnIds(iscrowd=0)) == 3
    detection = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 20], "score": 1.0}]
    assert len(coco.loadRes(detection).getAnnIds()) == 1


def test_voc2coco_matches_the_boxes_of_mmdet(voc, tmp_path):
    from mmdet.datasets import CocoDataset, XMLDataset

    load("dataset_converters/voc2coco.py").convert(voc, tmp_path, classes=["cat", "ant"])
    common = {"metainfo": {"classes": ("cat", "ant")}, "pipeline": []}
    ours = CocoDataset(
        ann_file=str(tmp_path / "train.json"), data_prefix={"img": "JPEGImages/"}, **common
    )
    theirs = XMLDataset(
        ann_file=str(voc / "ImageSets/Main/train.txt"),
        data_prefix={"sub_data_root": str(voc)},
        **common,
    )
    boxes = [
        [i["bbox"] for i in dataset.get_data_info(0)["instances"]] for dataset in (ours, theirs)
    ]
    labels = [
        [i["bbox_label"] for i in dataset.get_data_info(0)["instances"]]
        for dataset in (ours, theirs)
    ]
    assert boxes[0] == boxes[1] and len(boxes[0]) == 2
    assert labels[0] == labels[1]


def test_voc2coco_zero_based(voc, tmp_path, capsys):
    tool = load("dataset_converters/voc2coco.py")
    add_voc_image(voc, "test", "z", voc_object("cat", 0, 4, 8, 10))
    tool.convert(voc, tmp_path, ["test"], zero_based=True)
    assert json.loads((tmp_path / "test.json").read_text())["annotations"][0]["bbox"] == [
        0,
        4,
        8,
        6,
    ]
    assert "--zero-based" not in capsys.readouterr().out
    tool.convert(voc, tmp_path, ["test"])
    assert json.loads((tmp_path / "test.json").read_text())["annotations"][0]["bbox"] == [
        0,
        3,
        7,
        6,
    ]
    assert "use --zero-based" in capsys.readouterr().out


def break_xml(root):
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")


def break_number(root):
    add_voc_image(root, "train", "n", voc_object("cat", 1, "nan", 5, 5))


def break_object(root):
    add_voc_image(root, "train", "n", "<object><name>cat</name></object>")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "Annotations" / "a.xml").unlink(), ["not found", "a.xml"]),
        (break_xml, ["not readable XML", "a.xml"]),
        (break_number, ["bndbox/ymin", "'nan'", "object 1 of", "n.xml"]),
        (break_object, ["bndbox/xmin", "missing", "n.xml"]),
        (lambda root: (root / "JPEGImages" / "b.jpg").unlink(), ["no image", "'b'"]),
        (lambda root: (root / "JPEGImages" / "b.jpg").write_text("x"), ["cannot read", "b.jpg"]),
        (lambda root: (root / "ImageSets/Main/val.txt").unlink(), ["val.txt", "--splits"]),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("\n"), ["empty", "val.txt"]),
        (lambda root: (root / "ImageSets/Main/val.txt").write_text("v\nv\n"), ["more than once"]),
    ],
)
def test_voc2coco_names_what_is_wrong_and_writes_nothing(voc, tmp_path, damage, words):
    damage(voc)
    tool = load("dataset_converters/voc2coco.py")
    with pytest.raises(tool.ConversionError) as error:
        tool.convert(voc, tmp_path / "out")
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) == 2  # what and where, then the remedy
    assert not (tmp_path / "out").exists()


def test_voc2coco_unknown_class_is_one_message(voc, tmp_path):
    result = run("dataset_converters/voc2coco.py", voc, tmp_path / "out", "--classes", "cat")
    assert_one_clear_error(result, "unknown class 'ant'", "b.xml", "--classes")
    assert not (tmp_path / "out").exists()


def test_voc2coco_default_output_respects_read_only_data(voc):
    tool = load("dataset_converters/voc2coco.py")
    assert tool.default_out_dir(voc) == voc / "annotations"
    voc.chmod(0o555)  # does not stop root, so the tool has to look
    try:
        with pytest.raises(tool.ConversionError, match="read-only"):
            tool.default_out_dir(voc)
    finally:
        voc.chmod(0o755)


# ------------------------------------------------------------------------- make_digits

SMALL = {"train": 4, "val": 3, "size": 64, "min_digit": 16, "max_digit": 30, "max_digits": 3}


@pytest.fixture(scope="module")
def digits():
    return load("dataset_converters/make_digits.py")


def flags(**changes):
    return [f"--{key.replace('_', '-')}={value}" for key, value in {**SMALL, **changes}.items()]


@pytest.fixture(scope="module")
def make(digits):
    """Makes a small set in a folder."""
    return lambda out, **changes: digits.make_digits(
        digits.parse_args([str(out), *flags(**changes)])
    )


@pytest.fixture(scope="module")
def digits_dir(make, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "set"
    make(out)
    return out


def tree_hash(root):
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def annotations(root, split):
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def test_digits_are_the_same_in_another_process(digits_dir, tmp_path):
    result = run("dataset_converters/make_digits.py", tmp_path / "again", *flags())
    assert result.returncode == 0, result.stderr
    assert "train: 4/4 images" in result.stdout
    assert tree_hash(tmp_path / "again") == tree_hash(digits_dir)


def test_digits_are_those_of_the_documented_results(digits_dir):
    digest = hashlib.sha256()
    for path in sorted(digits_dir.rglob("*.*")):
        pixels = path.suffix == ".png" and np.asarray(Image.open(path)).tobytes()
        digest.update(pixels or path.read_bytes())
    assert digest.hexdigest() == "93dc03b2f41298dfe7e331a5ac81df0e810b852cec599d479c07fdde32590005"


def test_digits_depend_on_seed_split_and_index_but_not_on_the_number(digits):
    def image(split="train", index=1, **changes):
        return digits.make_image(split, index, digits.parse_args(["out", *flags(**changes)]))[0]

    assert np.array_equal(image(), image(train=9, val=9))
    for other in (image(seed=1), image(split="val"), image(index=2)):
        assert not np.array_equal(image(), other)


def test_digits_form_a_coco_set(digits_dir):
    for split, count in (("train", 4), ("val", 3)):
        coco = COCO(str(digits_dir / "annotations" / f"{split}.json"))
        assert [c["name"] for c in coco.loadCats(range(1, 11))] == list("0123456789")
        assert len(coco.getImgIds()) == count == len(list((digits_dir / split).iterdir()))
        for info in coco.loadImgs(coco.getImgIds()):
            assert Image.open(digits_dir / split / info["file_name"]).size == (64, 64)
            assert 1 <= len(coco.getAnnIds(imgIds=info["id"])) <= 3
        for item in coco.loadAnns(coco.getAnnIds()):
            x, y, w, h = item["bbox"]
            assert x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64
            assert 15 <= max(w, h) <= 30
            assert item["area"] == w * h and item["iscrowd"] == 0


def test_digits_of_val_share_no_digit_and_no_pixel_with_train(digits):
    options = digits.parse_args(["out"])
    used, left, right = {}, {}, {}
    for split in digits.SPLITS:
        made = [digits.make_image(split, index, options)[1:] for index in range(40)]
        used[split] = {item["digit"] for _, objects in made for item in objects}
        for photo in {origin["photo"] for origin, _ in made}:
            crops = [origin["crop"] for origin, _ in made if origin["photo"] == photo]
            left[split, photo] = min(x for x, *_ in crops)
            right[split, photo] = max(x + w for x, _, w, _ in crops)
    assert not used["train"] & used["val"]
    assert len(left) == 4  # both photographs in both splits
    for split, photo in left:
        if split == "train":
            assert right["train", photo] <= left["val", photo]


def test_digit_boxes_are_tight_and_overlap_little(digits, monkeypatch):
    white = np.full((128, 128, 3), 255, np.uint8)
    monkeypatch.setattr(digits, "make_background", lambda *_: (white.copy(), {}))
    monkeypatch.setattr(digits, "pick_ink", lambda *_: np.zeros(3, np.int64))
    several = 0
    for index in range(30):
        image, _, objects = digits.make_image("train", index, digits.parse_args(["out"]))
        # Black on white: the value is 255 minus the alpha of a pixel.
        ink = image[..., 0] <= 255 - digits.INK_THRESHOLD
        boxes = [item["bbox"] for item in objects]
        several += len(boxes) > 1
        covered = np.zeros_like(ink)
        for x, y, w, h in boxes:
            inside = ink[y : y + h, x : x + w]
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()
            covered[y : y + h, x : x + w] = True
        # Where two rims lie on each other they may just pass the threshold outside both boxes.
        assert (ink & ~covered).sum() <= (0 if len(boxes) == 1 else 3)
        for number, box in enumerate(boxes):
            assert not digits.overlaps(box, boxes[:number])
    assert several > 5


def test_ink_stands_out(digits):
    rng = np.random.default_rng(0)
    alpha = np.full((4, 4), 255, np.uint8)
    for value in (0, 60, 128, 200, 255):
        behind = np.full((4, 4, 3), value, np.uint8)
        for _ in range(10):
            grey = digits.pick_ink(rng, behind, alpha) @ (299, 587, 114) / 1000
            assert abs(grey - value) >= 85


def test_digits_second_run_does_nothing_and_other_arguments_remake(make, tmp_path, capsys):
    out = tmp_path / "set"
    make(out)
    before = tree_hash(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    make(out)
    assert "nothing to do" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    # A smaller set: the surplus image goes, a file of the user's stays.
    (out / "train" / "mine.txt").write_text("keep")
    make(out, train=3)
    names = sorted(path.name for path in (out / "train").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "mine.txt"]
    assert len(annotations(out, "train")["images"]) == 3

    # Back again, then a lost file: both are repaired.
    for lost in ("train/000003.png", "annotations/val.json"):
        (out / lost).unlink(missing_ok=True)
        make(out)
        assert (out / lost).is_file()
    (out / "train" / "mine.txt").unlink()
    assert tree_hash(out) == before


def test_digits_interrupted_run_is_made_again(digits, make, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(digits, "make_split", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(out)
    make(out)
    assert json.loads((out / "digits.json").read_text())["complete"]


@pytest.mark.parametrize("content", [None, "{}", '{"made_by": "somebody"}', "no json"])
def test_digits_refuse_a_folder_of_somebody_else(make, tmp_path, content):
    (tmp_path / "photo.jpg").write_text("mine")
    if content is not None:
        (tmp_path / "digits.json").write_text(content)
    before = tree_hash(tmp_path)
    with pytest.raises(ValueError, match="not made by this tool"):
        make(tmp_path)
    assert tree_hash(tmp_path) == before


def test_digits_impossible_arguments_are_one_message(tmp_path):
    result = run("dataset_converters/make_digits.py", tmp_path / "out", "--max-digit", 200)
    assert result.returncode == 2 and "--max-digit <= --size" in result.stderr
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------- print_config and browse_dataset

CONFIG = """
metainfo = dict(classes=tuple('0123456789'))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=dict(
    type='CocoDataset', data_root={root!r}, metainfo=metainfo,
    ann_file='annotations/train.json', data_prefix=dict(img='train/'), pipeline=train_pipeline)))
val_dataloader = dict(batch_size=1, dataset=dict(
    type='CocoDataset', data_root={root!r}, metainfo=metainfo, test_mode=True,
    ann_file='annotations/val.json', data_prefix=dict(img='val/'), pipeline=test_pipeline))
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""


@pytest.fixture
def config(digits_dir, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(root=str(digits_dir)))
    return path


def test_browse_dataset_writes_pictures_without_a_display(config, digits_dir, tmp_path):
    out = tmp_path / "pictures"
    result = run(
        "browse_dataset.py", config, "--output-dir", out, "--number", 6, DISPLAY="", MPLBACKEND=""
    )
    assert result.returncode == 0, result.stderr
    # Two rounds over four images: equal names do not overwrite each other.
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{index:05d}_{index % 4:06d}.png" for index in range(6)]
    original = Image.open(digits_dir / "train" / "000000.png").resize((96, 96))
    picture = Image.open(out / names[0])
    assert picture.size == (96, 96)
    assert not np.array_equal(np.asarray(picture), np.asarray(original))


def test_browse_dataset_val_boxes_fit_the_resized_image(config, digits_dir, tmp_path, monkeypatch):
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.config import Config

    drawn = []
    monkeypatch.setattr(
        DetLocalVisualizer,
        "add_datasample",
        lambda self, name, image, sample, **_: drawn.append((image, sample.gt_instances.bboxes)),
    )
    browse = load("browse_dataset.py").browse
    assert browse(Config.fromfile(config), "val", 99, tmp_path) == 3
    items = [a for a in annotations(digits_dir, "val")["annotations"] if a["image_id"] == 1]
    expected = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in items)]) * 1.5
    assert np.allclose(drawn[0][1], expected)
    # RGB, as the visualizer expects: the mean colour is that of the file.
    file = np.asarray(Image.open(digits_dir / "val" / "000000.png"))
    assert np.allclose(drawn[0][0].mean((0, 1)), file.mean((0, 1)), atol=3)


def test_print_config_merges_method_and_options(tmp_path):
    from mmengine.config import Config

    pair = TOOLS.parent / "configs/pat/swin_p-res18_digits.py"
    saved = tmp_path / "new" / "saved.py"
    options = ["model.method.kd_weight=0.5", "train_dataloader.batch_size=7", "data_root=mine/"]
    result = run(
        "print_config.py", pair, "--method", "kd", "--save-path", saved, "--cfg-options", *options
    )
    assert result.returncode == 0, result.stderr
    assert "batch_size=7" in result.stdout
    cfg = Config.fromfile(saved)
    assert cfg.model.method.type == "KD" and cfg.model.method.kd_weight == 0.5
    assert cfg.val_dataloader.dataset.data_root == "mine/"
    assert_one_clear_error(run("print_config.py", pair, "--method", "wrong"), "unknown method")


@pytest.mark.parametrize("tool", ["print_config.py", "browse_dataset.py"])
def test_missing_config_is_one_line(tool, tmp_path, monkeypatch):
    # In this process: importing mmdet once more takes seconds.
    monkeypatch.setattr(sys, "argv", [tool, str(tmp_path / "nope.py")])
    with pytest.raises(SystemExit) as error:
        load(tool).main()
    assert "nope.py" in error.value.code and "\n" not in error.value.code
