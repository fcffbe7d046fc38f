import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from helpers.coco import (
    HEIGHT,
    TRAIN,
    WIDTH,
    change,
    dataset,
    make_data,
    messages_with,
    score,
    write,
)
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from pat_mmdet.datasets import CheckedCocoDataset, LoadImageOrSkip
from pat_mmdet.datasets.transforms import loading
from pat_mmdet.engine.runner.loops import _SeededDataset

FAULTS = ("zero bytes", "text", "cut", "missing")


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path)


def break_image(folder, number, fault):
    path = folder / f"img/{number}.png"
    if fault == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"zero bytes": b"", "text": b"no image", "cut": whole[:300]}[fault])
    return path


@pytest.fixture(autouse=True)
def counter(monkeypatch):
    """Counters of its own for each test."""
    for name in ("_skipped", "_resized", "_turned"):
        monkeypatch.setattr(loading, name, multiprocessing.Value("i", 0))


def skipped(data):
    return loading._skipped.value


@pytest.fixture
def logged():
    with messages_with() as messages:
        yield messages


@pytest.fixture
def warned():
    with messages_with("cannot be read") as messages:
        yield messages


def test_good_data_loads(data, warned):
    loaded = dataset(data)
    assert isinstance(loaded, CheckedCocoDataset) and len(loaded) == 6
    info = loaded.get_data_info(2)
    assert info["img_path"] == f"{data}/img/2.png"
    assert [(x["bbox_label"], x["bbox"]) for x in info["instances"]] == [
        (0, [2, 3, 24, 18]), (1, [30, 10, 55, 32]),
    ]  # fmt: skip
    sample = loaded[2]
    assert sample["inputs"].shape == (3, HEIGHT, WIDTH) and sample["inputs"].min() >= 50
    assert sample["data_samples"].gt_instances.labels.tolist() == [0, 1]
    assert skipped(loaded) == 0 and not warned


def test_some_of_the_classes_in_their_order(data):
    loaded = dataset(data, classes=("dog",))
    assert [[x["bbox_label"] for x in loaded.get_data_info(i)["instances"]] for i in range(6)] == (
        [[0]] * 6
    )


def test_folder_of_images_that_is_missing(data):
    (data / "img").rename(data / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"6 images .* 6 do not exist.*set data_root"):
        dataset(data)
    assert len(dataset(data, data_prefix=dict(img="elsewhere/"))) == 6


def test_images_in_other_folder(data):
    (data / "deep").mkdir()
    (data / "img").rename(data / "deep/img")
    (data / "img").mkdir()
    with pytest.raises(FileNotFoundError, match=r"for example '.*/img/0.png'. Put the images"):
        dataset(data)


def test_missing_image(data):
    break_image(data, 0, "missing")
    assert len(dataset(data)) == 6


def test_no_image_left(data):
    def no_dogs(content):
        content["annotations"] = [x for x in content["annotations"] if x["category_id"] == 7]

    with pytest.raises(ValueError, match=r"none of its images .*min_size': 100"):
        dataset(data, filter_cfg=dict(filter_empty_gt=True, min_size=100))
    change(data, no_dogs)
    with pytest.raises(ValueError, match=r"has no box of the classes \['dog'\]"):
        dataset(data, classes=("dog",))
    assert len(dataset(data, True, classes=("dog",))) == 6, "in evaluation there may be none"


def test_boxes_without_area_are_ignored(data):
    def flatten(content):
        content["annotations"][0]["bbox"][2] = 0
        content["annotations"][3]["area"] = 0
        content["annotations"][4]["bbox"] = [WIDTH + 5, 0, 10, 10]

    change(data, flatten)
    loaded = dataset(data)
    labels = [[x["bbox_label"] for x in loaded.get_data_info(i)["instances"]] for i in range(6)]
    assert labels == [[1], [0], [1], [0, 1], [0, 1], [0, 1]]
    assert loaded[0]["data_samples"].gt_instances.bboxes.tensor.shape == (1, 4)


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_image_in_training_is_replaced(data, fault, warned):
    path = break_image(data, 3, fault)
    loaded = dataset(data)
    np.random.seed(0)
    samples = [loaded[i]["data_samples"] for i in range(6)]
    assert [sample.img_id for sample in samples if sample.img_id == 13] == []
    assert [samples[i].img_id for i in (0, 1, 2, 4, 5)] == [10, 11, 12, 14, 15]
    assert samples[3].img_id in (10, 11, 12, 14, 15)
    assert len(warned) == skipped(loaded) >= 1
    assert f"image '{path}' cannot be read and is skipped" in warned[0]
    assert "skipped so far: 1." in warned[0]
    before = skipped(loaded)
    loaded[3]
    assert f"skipped so far: {before + 1}." in warned[before]


def test_replacement_seed(data):
    break_image(data, 3, "zero bytes")
    loaded = _SeededDataset(dataset(data))

    def chosen(seed):
        torch.rand(1)
        np.random.rand()
        return loaded[(3, (1, 0, 0, seed))]["data_samples"].img_id

    first = [chosen(seed) for seed in range(12)]
    assert first == [chosen(seed) for seed in range(12)] and len(set(first)) > 1


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_image_in_evaluation_is_black(data, fault, warned):
    path = break_image(data, 2, fault)
    loaded = dataset(data, test=True)
    good, black = loaded[1], loaded[2]
    assert skipped(loaded) == len(warned) == 1 and str(path) in warned[0]
    assert torch.count_nonzero(black["inputs"]) == 0 and good["inputs"].min() > 0
    assert black["inputs"].shape == good["inputs"].shape == (3, 60, 90)
    assert black["inputs"].dtype == good["inputs"].dtype == torch.uint8
    sample, other = black["data_samples"], good["data_samples"]
    assert sample.img_id == 12 and sample.img_path == str(path)
    assert sample.ori_shape == other.ori_shape == (HEIGHT, WIDTH)
    assert sample.img_shape == other.img_shape == (60, 90)
    assert sample.scale_factor == other.scale_factor == (1.5, 1.5)
    assert sample.gt_instances.labels.tolist() == [0, 1]


def test_black_image_has_the_annotated_size(data):
    break_image(data, 2, "text")
    change(data, lambda content: content["images"][2].update(height=30, width=90))
    sample = dataset(data, test=True)[2]
    assert sample["data_samples"].ori_shape == (30, 90)
    assert sample["inputs"].shape == (3, 30, 90)


def test_evaluation_with_broken_images(data):
    assert score(data) == 1.0
    for number, fault in ((1, "zero bytes"), (3, "missing"), (4, "cut")):
        break_image(data, number, fault)
    # Half of the objects of both classes are found, which is 51 of 101 points of recall.
    assert score(data) == pytest.approx(51 / 101, abs=1e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_faults_are_counted_over_all_workers(data, workers):
    break_image(data, 0, "zero bytes")
    break_image(data, 1, "missing")
    loaded = dataset(data, test=True)
    loader = DataLoader(loaded, num_workers=workers, collate_fn=pseudo_collate)
    found = [bool(batch["inputs"][0].any()) for batch in loader]
    assert found == [False, False, True, True, True, True]
    # One fault in each worker.
    assert skipped(loaded) == 2


def test_loader_gives_what_mmcv_gives(data):
    loader = LoadImageOrSkip(to_float32=True, imdecode_backend="cv2")
    results = loader(dict(img_path=str(data / "img/0.png")))
    expected = cv2.imread(str(data / "img/0.png"))
    assert results["img"].dtype == np.float32 and np.array_equal(results["img"], expected)
    assert results["img_shape"] == results["ori_shape"] == (HEIGHT, WIDTH)
    assert loader(dict(img_path=str(data / "img/nothing.png"))) is None
    assert loading._skipped.value == 1


def test_part_of_a_dataset(data):
    assert len(dataset(data).get_subset([0, 2])) == 2


def save_photo(path, width, height, orientation=None, box=None):
    """Write a grey JPEG with a white box (x, y, w, h) in its stored frame."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    if box is not None:
        x, y, w, h = box
        pixels[y : y + h, x : x + w] = 250
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, "JPEG", quality=95, exif=exif)


def single(folder, width, height, box):
    """An annotation file of one image."""
    annotation = dict(id=1, image_id=1, category_id=1, bbox=box, area=box[2] * box[3], iscrowd=0)
    write(
        folder,
        dict(
            images=[dict(id=1, file_name="0.jpg", width=width, height=height)],
            annotations=[annotation],
            categories=[dict(id=1, name="cat")],
        ),
    )
    (folder / "img").mkdir(exist_ok=True)
    return folder / "img/0.jpg"


SHOWN, STORED = (40, 80), (80, 40)
STORED_BOX = [60, 10, 15, 20]  # as shown after a turn by 90 degrees to the right: [10, 60, 20, 15]
SHOWN_BOX = [10, 60, 20, 15]


@pytest.mark.parametrize(
    ("orientation", "annotated", "box", "loaded"),
    [
        (None, STORED, STORED_BOX, STORED),
        (6, SHOWN, SHOWN_BOX, SHOWN),  # all as shown, as most tools do
        (6, STORED, STORED_BOX, STORED),  # all as stored
        (6, STORED, SHOWN_BOX, SHOWN),  # the size by PIL, the boxes by a browser
        (5, STORED, STORED_BOX, STORED),
        (7, STORED, STORED_BOX, STORED),
        (8, STORED, STORED_BOX, STORED),
        (None, SHOWN, STORED_BOX, STORED),  # width and height swapped
    ],
)
@pytest.mark.parametrize("test", [False, True])
def test_boxes_lie_on_the_loaded_image(orientation, annotated, box, loaded, test, tmp_path):
    save_photo(single(tmp_path, *annotated, box), *STORED, orientation, STORED_BOX)
    pipeline = [dict(type="LoadImageOrSkip"), *TRAIN[1:2], dict(type="PackDetInputs")]
    sample = dataset(tmp_path, test, classes=("cat",), pipeline=pipeline)[0]
    image = sample["inputs"].numpy()
    assert image.shape[1:] == loaded[::-1] == sample["data_samples"].ori_shape
    ((x1, y1, x2, y2),) = sample["data_samples"].gt_instances.bboxes.tensor.int().tolist()
    assert image[:, y1:y2, x1:x2].mean() > 240
    assert image.mean() == pytest.approx(90 + 160 * 300 / 3200, abs=5), "the box is all that shines"


def test_images_of_another_size_are_reported(data, logged):
    change(data, lambda content: content["images"][2].update(width=2 * WIDTH, height=2 * HEIGHT))
    dataset(data)
    assert any("1 are not of the annotated size" in message for message in logged)


def test_swapped_sizes(data, logged):
    change(data, lambda content: content["images"][2].update(width=HEIGHT, height=WIDTH))
    info = dataset(data).get_data_info(2)
    assert (info["width"], info["height"], len(info["instances"])) == (WIDTH, HEIGHT, 2)
    assert any("1 images have width and height swapped" in message for message in logged)


@pytest.mark.parametrize("share", [1.0, 0.999, 0.95])
def test_truncated_jpeg(share, tmp_path, logged):
    path = tmp_path / "0.jpg"
    save_photo(path, 80, 40, box=STORED_BOX)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    image = LoadImageOrSkip()(dict(img_path=str(path)))["img"]
    assert np.array_equal(image, cv2.imread(str(path)))
    assert [f"{str(path)!r} is cut" in message for message in logged] == [True] * (share < 1)


def test_thin_images_are_trained_and_tested_on(tmp_path):
    path = single(tmp_path, 3000, 2, [100, 0, 50, 2])
    for shape in ((2, 3000, 3), (3000, 2, 3)):
        cv2.imwrite(str(path), np.full(shape, 90, np.uint8))
        for test in (False, True):
            resize = dict(type="Resize", scale=(128, 128), keep_ratio=True)
            pipeline = [TRAIN[0], TRAIN[1], resize, TRAIN[3]]
            sample = dataset(tmp_path, test, ("cat",), pipeline=pipeline)[0]
            assert min(sample["inputs"].shape[1:]) == 2 and max(sample["inputs"].shape[1:]) == 128


@pytest.mark.parametrize(
    ("orientation", "size"), [(2, STORED), (3, STORED), (4, STORED), (6, (50, 50))]
)
def test_ambiguous_orientation(orientation, size, tmp_path, logged):
    path = single(tmp_path, *size, [5, 5, 9, 9])
    save_photo(path, *size, orientation, [5, 5, 9, 9])
    loaded = dataset(tmp_path, True, classes=("cat",))
    for _ in range(12):
        info = LoadImageOrSkip()(loaded.get_data_info(0))
    assert np.array_equal(info["img"], cv2.imread(str(path))), "as viewers show it"
    messages = [message for message in logged if f"EXIF orientation {orientation}" in message]
    assert [f"so far: {count}." in message for count, message in zip((1, 10), messages)] == [1, 1]
    assert len(messages) == 2 and str(path) in messages[0]
    loader = LoadImageOrSkip(color_type="color_ignore_orientation")
    for _ in range(12):
        info = loader(loaded.get_data_info(0))
    assert info["img"][5:14, 5:14].mean() > 240 and loading._turned.value == 12, "without a word"


@pytest.mark.parametrize("size", [(30, 20), (HEIGHT, WIDTH)], ids=["another", "swapped"])
def test_wrong_size(size, data, logged):
    """A swapped size in which the boxes fit too is not known from the annotations."""
    change(data, lambda content: content["annotations"][4].update(bbox=[1, 2, 5, 5]))
    change(data, lambda content: content["annotations"][5].update(bbox=[9, 9, 5, 5]))
    cv2.imwrite(str(data / "img/2.png"), np.zeros((size[1], size[0], 3), np.uint8))
    loaded = dataset(data)
    for _ in range(12):
        assert loaded[2]["inputs"].shape == (3, size[1], size[0])
    messages = [message for message in logged if "is annotated with (40, 60)" in message]
    assert len(messages) == 2 and "such images so far: 10" in messages[1]


def test_images_that_cannot_be_read(data):
    for number in range(4):
        break_image(data, number, "text")
    with pytest.raises(ValueError, match=r"6 images .* 4 cannot be read, for example '.*0.png'"):
        dataset(data)
