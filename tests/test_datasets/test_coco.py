import json
import logging
import multiprocessing

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch.utils.data import DataLoader

from pat_mmdet.datasets import CheckedCocoDataset, LoadImageOrSkip
from pat_mmdet.datasets.transforms import loading
from pat_mmdet.engine.runner.loops import _SeededDataset
from pat_mmdet.evaluation import CheckedCocoMetric

HEIGHT, WIDTH = 40, 60
TRAIN = [
    dict(type="LoadImageOrSkip"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
TEST = [
    dict(type="LoadImageOrSkip"),
    dict(type="Resize", scale=(90, 60), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
FAULTS = ("zero bytes", "text", "cut", "missing")


@pytest.fixture
def data(tmp_path):
    """Six images with a cat and a dog each; category ids are not in the order of numbers."""
    (tmp_path / "img").mkdir()
    rng = np.random.RandomState(0)
    images, annotations = [], []
    for i in range(6):
        image = rng.randint(50, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"img/{i}.png"), image)
        images.append(dict(id=10 + i, file_name=f"{i}.png", height=HEIGHT, width=WIDTH))
        for category, box in ((7, [2, 3, 20 + i, 15]), (3, [30, 10, 25, 20 + i])):
            annotations.append(
                dict(
                    id=len(annotations) + 1, image_id=10 + i, category_id=category, bbox=box,
                    area=box[2] * box[3], iscrowd=0,
                )
            )  # fmt: skip
    categories = [dict(id=7, name="cat"), dict(id=3, name="dog")]
    write(tmp_path, dict(images=images, annotations=annotations, categories=categories))
    return tmp_path


def write(folder, content):
    (folder / "ann.json").write_text(json.dumps(content))


def change(folder, function):
    """Changes the annotation file by a function of its content."""
    content = json.loads((folder / "ann.json").read_text())
    function(content)
    write(folder, content)


def break_image(folder, number, fault):
    path = folder / f"img/{number}.png"
    if fault == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"zero bytes": b"", "text": b"no image", "cut": whole[:300]}[fault])
    return path


def dataset(folder, test=False, classes=("cat", "dog"), **options):
    init_default_scope("mmdet")
    cfg = dict(
        type="CheckedCocoDataset",
        data_root=str(folder),
        ann_file="ann.json",
        data_prefix=dict(img="img/"),
        metainfo=dict(classes=classes),
        filter_cfg=None if test else dict(filter_empty_gt=True, min_size=1),
        pipeline=TEST if test else TRAIN,
        test_mode=test,
    )
    return DATASETS.build({**cfg, **options})


@pytest.fixture(autouse=True)
def counter(monkeypatch):
    """A counter of its own for each test."""
    monkeypatch.setattr(loading, "_skipped", multiprocessing.Value("i", 0))


def skipped(data):
    return loading._skipped.value


def messages_with(words):
    """Collect the warnings that MMEngine's logger gets with these words in them."""
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            if words in record.getMessage():
                messages.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep(logging.WARNING)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def logged():
    yield from messages_with("")


@pytest.fixture
def warned():
    yield from messages_with("cannot be read")


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


def test_missing_annotation_file(data):
    (data / "ann.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"ann.json' does not exist.*set data_root"):
        dataset(data)


@pytest.mark.parametrize(
    "content", [b"", b'{"images": [', b"null", b"[]", b"no JSON", b"\xff\xfe\x00\x80", b"7"]
)
def test_invalid_annotation_file(data, content):
    (data / "ann.json").write_bytes(content)
    message = rf"ann.json' \({len(content)} bytes\) is no valid COCO JSON.*convert it again"
    with pytest.raises(ValueError, match=message) as error:
        dataset(data)
    assert error.value.__suppress_context__, "one line without the error behind it"


def test_truncated_annotation_file(data):
    whole = (data / "ann.json").read_bytes()
    for share in (0.01, 0.3, 0.6, 0.99):
        (data / "ann.json").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"is no valid COCO JSON.*may be truncated"):
            dataset(data)


def test_empty_annotation_file(data):
    write(data, {})
    with pytest.raises(ValueError, match="has no images"):
        dataset(data)


@pytest.mark.parametrize("test", [False, True])
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_incomplete_annotation_file(data, key, test):
    change(data, lambda content: content.pop(key))
    if (key, test) == ("annotations", True):
        assert len(dataset(data, test)) == 6, "the images of a test server"
    else:
        message = "has no box of the classes" if key == "annotations" else f"has no {key}"
        with pytest.raises(ValueError, match=f"ann.json' {message}"):
            dataset(data, test)
    change(data, lambda content: content.update({key: []}))
    with pytest.raises(ValueError, match=f"ann.json' has no {key}"):
        dataset(data, test)


@pytest.mark.parametrize("key", ["id", "image_id", "category_id"])
def test_annotations_without_ids(data, key):
    change(data, lambda content: content["annotations"][3].pop(key))
    with pytest.raises(ValueError, match=f"is no valid COCO JSON: KeyError: '{key}'"):
        dataset(data)


def test_unknown_classes(data):
    message = r"no categories named \['bird', 'cow'\]; it has \['cat', 'dog'\].*Set the classes"
    with pytest.raises(ValueError, match=message):
        dataset(data, classes=("cat", "bird", "cow"))


@pytest.mark.parametrize("test", [False, True])
def test_class_order(data, test):
    message = r"order \['cat', 'dog'\], the config has the classes \['dog', 'cat'\]"
    with pytest.raises(ValueError, match=message):
        dataset(data, test, classes=("dog", "cat"))


def test_annotations_of_undefined_categories(data):
    def use_unknown(content):
        content["annotations"][0]["category_id"] = 99
        content["annotations"][5]["category_id"] = 1

    change(data, use_unknown)
    with pytest.raises(ValueError, match=r"use the category ids \[1, 99\], which its categories"):
        dataset(data)


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


def score(data):
    """COCO mAP of predictions that are right wherever there is something to see."""
    loaded = dataset(data, test=True)
    metric = CheckedCocoMetric(ann_file=str(data / "ann.json"), metric="bbox")
    metric.dataset_meta = loaded.metainfo
    for batch in DataLoader(loaded, batch_size=4, collate_fn=pseudo_collate):
        predictions = []
        for image, sample in zip(batch["inputs"], batch["data_samples"]):
            truth = sample.gt_instances[slice(None, None if image.any() else 0)]
            # Boxes of the test pipeline are those of the file, as predictions are.
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth))
            )
            predictions.append(sample.to_dict())
        metric.process(batch, predictions)
    return metric.evaluate(size=len(loaded))["coco/bbox_mAP"]


def test_evaluation_with_broken_images(data):
    assert score(data) == 1.0
    for number, fault in ((1, "zero bytes"), (3, "missing"), (4, "cut")):
        break_image(data, number, fault)
    # Half of the objects of both classes are found, which is 51 of 101 points of recall.
    assert score(data) == pytest.approx(51 / 101, abs=1e-3)


def test_evaluation_without_iscrowd(data):
    change(data, lambda content: [item.pop("iscrowd") for item in content["annotations"]])
    assert score(data) == 1.0
    assert all(not item["ignore_flag"] for item in dataset(data).get_data_info(0)["instances"])


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


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("annotations", "area"),
        ("annotations", "bbox"),
        ("images", "height"),
        ("images", "file_name"),
        ("categories", "name"),
    ],
)
def test_entries_that_lack_a_field(data, part, key):
    change(data, lambda content: content[part][1].pop(key))
    with pytest.raises(ValueError, match=f"ann.json'.*{key}"):
        dataset(data)


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


@pytest.mark.parametrize("classes", [(), []])
def test_no_classes(data, classes):
    with pytest.raises(ValueError, match=r"no classes are set for annotation file .*metainfo"):
        dataset(data, classes=classes)
