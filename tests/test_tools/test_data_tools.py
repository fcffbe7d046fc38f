"""The tools that make, convert and show data, run as a user runs them."""

import hashlib
import json
import os
import sys

import numpy as np
import pytest
from helpers.tools import ROOT, load_tool, run_tool
from PIL import Image
from pycocotools.coco import COCO

# ------------------------------------------------------------------------- make_digits

SMALL = {"train": 4, "val": 3, "size": 64, "min_digit": 16, "max_digit": 30, "max_digits": 3}


@pytest.fixture(scope="module")
def digits():
    return load_tool("dataset_converters/make_digits.py")


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


def test_digits_are_reproducible(digits_dir, tmp_path):
    output = run_tool("dataset_converters/make_digits.py", tmp_path / "again", *flags())
    assert "train: 4/4 images" in output
    assert tree_hash(tmp_path / "again") == tree_hash(digits_dir)


def test_digits_checksum(digits_dir):
    digest = hashlib.sha256()
    for path in sorted(digits_dir.rglob("*.*")):
        pixels = path.suffix == ".png" and np.asarray(Image.open(path)).tobytes()
        digest.update(pixels or path.read_bytes())
    assert digest.hexdigest() == "93dc03b2f41298dfe7e331a5ac81df0e810b852cec599d479c07fdde32590005"


def test_digits_seeding(digits):
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


def test_digits_splits_are_disjoint(digits):
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


def test_digit_boxes(digits, monkeypatch):
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


def test_digits_second_run(make, tmp_path, capsys):
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
def test_digits_refuse_foreign_folder(make, tmp_path, content):
    (tmp_path / "photo.jpg").write_text("mine")
    if content is not None:
        (tmp_path / "digits.json").write_text(content)
    before = tree_hash(tmp_path)
    with pytest.raises(ValueError, match="not made by this tool"):
        make(tmp_path)
    assert tree_hash(tmp_path) == before


def test_digits_impossible_arguments(tmp_path):
    args = (tmp_path / "out", "--max-digit", 200)
    output = run_tool("dataset_converters/make_digits.py", *args, code=2)
    assert "--max-digit <= --size" in output
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
default_scope = 'mmdet'
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
"""


@pytest.fixture
def config(digits_dir, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(root=str(digits_dir)))
    return path


def test_browse_dataset_without_display(config, digits_dir, tmp_path):
    out = tmp_path / "pictures"
    environment = {**os.environ, "DISPLAY": "", "MPLBACKEND": ""}
    run_tool("browse_dataset.py", config, "--output-dir", out, "--number", 6, env=environment)
    # Two rounds over four images: equal names do not overwrite each other.
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{index:05d}_{index % 4:06d}.png" for index in range(6)]
    original = Image.open(digits_dir / "train" / "000000.png").resize((96, 96))
    picture = Image.open(out / names[0])
    assert picture.size == (96, 96)
    assert not np.array_equal(np.asarray(picture), np.asarray(original))


def test_browse_dataset_boxes(config, digits_dir, tmp_path, monkeypatch):
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.config import Config

    drawn = []
    monkeypatch.setattr(
        DetLocalVisualizer,
        "add_datasample",
        lambda self, name, image, sample, **_: drawn.append((image, sample.gt_instances.bboxes)),
    )
    from pat_mmdet.cli.browse_dataset import browse

    assert browse(Config.fromfile(config), "val", 99, tmp_path) == 3
    items = [a for a in annotations(digits_dir, "val")["annotations"] if a["image_id"] == 1]
    expected = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in items)]) * 1.5
    assert np.allclose(drawn[0][1], expected)
    # RGB, as the visualizer expects: the mean colour is that of the file.
    file = np.asarray(Image.open(digits_dir / "val" / "000000.png"))
    assert np.allclose(drawn[0][0].mean((0, 1)), file.mean((0, 1)), atol=3)


def test_print_config(tmp_path):
    from mmengine.config import Config

    pair = ROOT / "configs/pat/swin_p-res18_digits.py"
    saved = tmp_path / "new" / "saved.py"
    options = ["model.method.kd_weight=0.5", "train_dataloader.batch_size=7", "data_root=mine/"]
    output = run_tool(
        "print_config.py", pair, "--method", "kd", "--save-path", saved, "--cfg-options", *options
    )
    assert "batch_size=7" in output
    cfg = Config.fromfile(saved)
    assert cfg.model.method.type == "KD" and cfg.model.method.kd_weight == 0.5
    assert cfg.val_dataloader.dataset.data_root == "mine/"
    output = run_tool("print_config.py", pair, "--method", "wrong", code=1)
    assert "unknown method" in output and "Traceback" not in output


@pytest.mark.parametrize("tool", ["print_config.py", "browse_dataset.py"])
def test_missing_config_is_one_line(tool, tmp_path, monkeypatch):
    # In this process: importing mmdet once more takes seconds.
    monkeypatch.setattr(sys, "argv", [tool, str(tmp_path / "nope.py")])
    with pytest.raises(SystemExit) as error:
        load_tool(tool).main()
    assert "nope.py" in error.value.code and "\n" not in error.value.code
