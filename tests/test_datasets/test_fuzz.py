"""Damaged images and annotation files: each is read as it stands, or something is said.

A case fails on an error that is not one clear line, on a hang, and on data that differ from the
file without a word. `-m full` runs all of them, the suite a sample.
"""

import io
import json
import math
import random
import signal
from contextlib import contextmanager
from copy import deepcopy

import cv2
import numpy as np
import pytest
import torch
from helpers.coco import TEST, dataset, make_data, messages_with
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image, ImageSequence

from pat_mmdet.datasets import LoadImageOrSkip, coco_api
from pat_mmdet.datasets.transforms import loading
from pat_mmdet.evaluation import CheckedCocoMetric
from pat_mmdet.utils.errors import clear_errors

SECONDS = 60  # of a case that takes 0.1 s by itself


def sample(cases, count):
    """The same cases in every run."""
    return random.Random(0).sample(sorted(cases), count)


@contextmanager
def no_hang():
    def stop(*_):
        raise TimeoutError("the case hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------- annotation files

VALUES = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus": -3,
    "decimal": 0.5,
    "large": 1e300,
    "larger": 10**400,
    "nan": math.nan,
    "inf": -math.inf,
    "text": "../x\n",
    "digits": "7",
    "empty text": "",
    "list": [],
    "lists": [[1, [2]]],
    "object": {"a": 1},
}
# Every kind of place in the file, from the outside in.
PLACES = [
    (),
    *((part,) for part in ("info", "images", "annotations", "categories")),
    *((part, 1) for part in ("images", "annotations", "categories")),
    *(("images", 1, key) for key in ("id", "file_name", "width", "height")),
    *(
        ("annotations", 1, key)
        for key in (
            "id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation",
        )
    ),
    *(("annotations", 1, "bbox", index) for index in range(4)),
    *(("categories", 1, key) for key in ("id", "name")),
]  # fmt: skip


def put(content, place, value):
    """The content with another value in a place."""
    if not place:
        return value
    *path, last = place
    node = content
    for key in path:
        node = node[key]
    node[last] = value
    return content


def drop(content, place):
    *path, last = place
    node = content
    for key in path:
        node = node[key]
    if last in node or isinstance(node, list):
        del node[last]
    return content


def twice(content, place):
    content[place[0]].append(deepcopy(content[place[0]][place[1]]))
    return content


def every(part, **functions):
    """The content with fields of all entries of a part set by functions of index and entry."""

    def apply(content):
        for index, entry in enumerate(content[part]):
            entry.update({key: function(index, entry) for key, function in functions.items()})
        return content

    return apply


WHOLE = {
    "ids from 0": every("annotations", id=lambda i, _: i),
    "one id": every("annotations", id=lambda i, _: 5),
    "ids of text": every("annotations", id=lambda i, _: f"{i}"),
    "image ids of text": lambda content: every(
        "annotations", image_id=lambda _, item: str(item["image_id"])
    )(every("images", id=lambda _, item: str(item["id"]))(content)),
    "image ids from 0": lambda content: every(
        "annotations", image_id=lambda _, item: item["image_id"] - 10
    )(every("images", id=lambda _, item: item["id"] - 10)(content)),
    "category ids from 0": lambda content: every(
        "annotations", category_id=lambda _, item: int(item["category_id"] == 3)
    )(every("categories", id=lambda i, _: i)(content)),
    "no iscrowd": lambda content: json.loads(json.dumps(content).replace('"iscrowd"', '"crowd"')),
    "all crowd": every("annotations", iscrowd=lambda *_: 1),
    "half crowd": every("annotations", iscrowd=lambda i, _: i % 2),
    "corners": every(
        "annotations",
        bbox=lambda _, item: [
            *item["bbox"][:2],
            *np.add(item["bbox"][:2], item["bbox"][2:]).tolist(),
        ],
    ),
    "fractions": every("annotations", bbox=lambda _, item: [v / 100 for v in item["bbox"]]),
    "shifted": every("annotations", bbox=lambda _, item: [v + 30 for v in item["bbox"]]),
    "no boxes": every("annotations", bbox=lambda *_: []),
    "swapped sizes": every(
        "images", width=lambda _, item: item["height"], height=lambda _, item: item["width"]
    ),
    "double sizes": every("images", width=lambda *_: 120, height=lambda *_: 80),
    "sizes of decimals": every("images", width=lambda *_: 60.0, height=lambda *_: 40.0),
    "one image": every("images", file_name=lambda *_: "0.png"),
    "absolute names": every("images", file_name=lambda _, item: f"/img/{item['file_name']}"),
    "names upwards": every("images", file_name=lambda _, item: f"../../{item['file_name']}"),
    "names with a way back": every(
        "images", file_name=lambda _, item: f"../img/{item['file_name']}"
    ),
    "one category": every("categories", name=lambda *_: "cat"),
    "exchanged categories": every("categories", name=lambda i, _: ("dog", "cat")[i]),
    "reversed": lambda content: {part: content[part][::-1] for part in content},
}


def flip(text, seed):
    """One bit of the file is another."""
    rng, text = random.Random(seed), bytearray(text)
    text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return bytes(text)


TEXTS = {
    "bom": lambda text: b"\xef\xbb\xbf" + text,
    "utf-16": lambda text: text.decode().encode("utf-16"),
    "latin-1": lambda text: text.replace(b"cat", "kät".encode("latin-1")),
    "empty": lambda text: b"",
    "blank": lambda text: b" \n",
    "more text": lambda text: text + b"}",
    "two": lambda text: text + text,
    "comment": lambda text: b"// COCO\n" + text,
    "zeros": lambda text: bytes(len(text)),
    "deep list": lambda text: b"[" * 10**5,
    "deep object": lambda text: b'{"images":' * 10**5,
    "many digits": lambda text: text.replace(b"40", b"4" * 5000, 1),
    **{f"cut {i}": lambda text, i=i: text[: len(text) * i // 40] for i in range(1, 40)},
    **{f"flip {seed}": lambda text, seed=seed: flip(text, seed) for seed in range(60)},
}


def annotation_cases():
    """Function of the good content to the bytes of a bad file, by name."""

    def dumped(function):
        return lambda text: json.dumps(function(json.loads(text))).encode()

    cases = {
        f"{'.'.join(map(str, place))} = {name}": dumped(
            lambda content, place=place, value=value: put(content, place, value)
        )
        for place in PLACES
        for name, value in VALUES.items()
    }
    for place in PLACES[1:]:
        name = ".".join(map(str, place))
        cases[f"{name} dropped"] = dumped(lambda content, place=place: drop(content, place))
        if len(place) == 2:
            cases[f"{name} twice"] = dumped(lambda content, place=place: twice(content, place))
    return {**cases, **{name: dumped(function) for name, function in WHOLE.items()}, **TEXTS}


ANNOTATIONS = annotation_cases()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_data(tmp_path_factory.mktemp("fuzz"))
    return folder, (folder / "ann.json").read_bytes()


def truth(content):
    """Content of an annotation file: images in order, with boxes, classes and crowds."""
    names = {item["id"]: item["name"] for item in content["categories"]}
    images = {
        item["id"]: (item["file_name"], item["width"], item["height"], [])
        for item in content["images"]
    }
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        label = ("cat", "dog").index(names[item["category_id"]])
        images[item["image_id"]][-1].append(
            ([x, y, x + w, y + h], label, int(item.get("iscrowd", 0)))
        )
    return images


def loaded(data_set):
    """The same of a data set."""
    images = {}
    for index in range(len(data_set)):
        info = data_set.get_data_info(index)
        instances = [
            (item["bbox"], item["bbox_label"], item["ignore_flag"]) for item in info["instances"]
        ]
        name = info["img_path"].split("/img/", 1)[-1]
        images[info["img_id"]] = (name, info["width"], info["height"], instances)
    return images


def evaluate(file, images):
    """COCO mAP of predictions that are just the single objects of the images."""
    metric = CheckedCocoMetric(ann_file=str(file))
    metric.dataset_meta = dict(classes=("cat", "dog"))
    for number, (_, width, height, instances) in images.items():
        single = [item for item in instances if not item[2]]
        pred = dict(
            bboxes=torch.tensor([box for box, _, _ in single], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([label for _, label, _ in single], dtype=torch.long),
            scores=torch.ones(len(single)),
        )
        sample = dict(img_id=number, ori_shape=(height, width), pred_instances=pred)
        metric.process({}, [sample])
    return metric.evaluate(len(images)).get("coco/bbox_mAP")


def check_annotation_file(data, name):
    folder, text = data
    file = folder / "ann.json"
    file.write_bytes(ANNOTATIONS[name](text))
    coco_api._warn_once.cache_clear()
    with messages_with("") as messages, no_hang():
        try:
            with clear_errors():
                train, test = (dataset(folder, test=test) for test in (False, True))
                for index in range(len(train)):
                    train[index], test[index]
                said = list(messages)
                content = json.loads(file.read_bytes())
                expected = truth(content)
                is_same = loaded(test) == expected
                value = evaluate(file, expected) if is_same else None
        except SystemExit as stop:
            assert stop.code.startswith("error: "), stop.code
            assert "\n" not in stop.code and "--traceback" not in stop.code, stop.code
            return
    assert said or (is_same and value == 1.0), (is_same, value)


@pytest.mark.parametrize("name", sample(ANNOTATIONS, 40))
def test_annotation_files(data, name):
    check_annotation_file(data, name)


@pytest.mark.full
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_all_annotation_files(data, name):
    check_annotation_file(data, name)


def test_good_file_passes_without_a_word(data):
    folder, text = data
    (folder / "ann.json").write_bytes(text)
    coco_api._warn_once.cache_clear()
    with messages_with("") as messages:
        assert loaded(dataset(folder)) == truth(json.loads(text))
        assert evaluate(folder / "ann.json", truth(json.loads(text))) == 1.0
    assert not messages


# ---------------------------------------------------------------------------------- images


def picture(size=(60, 40)):
    """Smooth colours, which lossy formats keep."""
    y, x = np.mgrid[: size[1], : size[0]]
    rgb = np.stack([40 + 2 * x % 200, 220 - 3 * y % 200, 90 + (x + y) % 100], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(), "JPEG", exif=exif)


def animated(kind):
    frames = [picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def deep(kind):
    grey = np.asarray(picture().convert("L"), dtype=np.uint16) * 257
    return encode(Image.fromarray(grey), kind)


KINDS = {
    **{
        f"{kind.lower()} {mode}": encode(picture().convert(mode), kind)
        for kind, modes in {
            "JPEG": ("RGB", "L", "CMYK"),
            "PNG": ("RGB", "RGBA", "P", "L", "LA", "1"),
            "BMP": ("RGB", "P", "L"),
            "GIF": ("P", "L"),
            "WEBP": ("RGB", "RGBA"),
            "TIFF": ("RGB", "CMYK", "F", "L"),
            "PPM": ("RGB", "L"),
        }.items()
        for mode in modes
    },
    "jpeg progressive": encode(picture(), "JPEG", progressive=True),
    "webp lossless": encode(picture(), "WEBP", lossless=True),
    "tiff lzw": encode(picture(), "TIFF", compression="tiff_lzw"),
    "png 16 bit": deep("PNG"),
    "tiff 16 bit": deep("TIFF"),
    "gif animated": animated("GIF"),
    "webp animated": animated("WEBP"),
    "png animated": animated("PNG"),
    "png 1x1": encode(picture((1, 1)), "PNG"),
    "jpeg wide": encode(picture((3000, 1)), "JPEG"),
    "png high": encode(picture((1, 3000)), "PNG"),
    **{f"jpeg turned {i}": turned(i) for i in range(2, 9)},
}
UNKNOWN = ("tiff F",)  # to OpenCV
CHECKED = {kind for kind in KINDS if kind.startswith("png")}  # by checksums
DAMAGES = {
    "as it is": lambda content, _: content,
    **{
        f"cut {n}": lambda content, _, n=n: content[: len(content) * n // 100]
        for n in (5, 50, 90, 99)
    },
    "last byte missing": lambda content, _: content[:-1],
    "first bytes missing": lambda content, _: content[4:],
    "zeros at the end": lambda content, _: content[: len(content) // 2] + bytes(len(content) // 2),
    "more at the end": lambda content, _: content + b"<html>",
    **{f"flip {n}": lambda content, seed, n=n: flip(content, f"{seed} {n}") for n in range(3)},
}
OTHERS = {
    "no bytes": b"",
    "a zero": b"\0",
    "zeros": bytes(5000),
    "html": b"<html>404 not found</html>",
    "json": b"{}",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"/>',
    "pdf": b"%PDF-1.4\n",
    "pickle": b"\x80\x04\x95",
    "jpeg begin": b"\xff\xd8",
    "jpeg begin and end": b"\xff\xd8\xff\xd9",
    "png begin": b"\x89PNG\r\n\x1a\n",
    "large bmp": b"BM"
    + bytes(12)
    + b"(\0\0\0"
    + b"\xff\xff\xff\x7f" * 2
    + b"\x01\0\x18\0"
    + bytes(24),
}
IMAGES = {
    **{f"{kind}, {damage}": (kind, damage) for kind in KINDS for damage in DAMAGES},
    **{name: (None, name) for name in OTHERS},
}


def test_number_of_cases():
    assert len(ANNOTATIONS) >= 300 and len(IMAGES) >= 300


@pytest.fixture(scope="module")
def pipeline():
    init_default_scope("mmdet")
    return Compose([*TEST[:3], dict(type="PackDetInputs", meta_keys=("img_path", "ori_shape"))])


def read(content, path):
    """Load an image with the annotations of the undamaged picture; gives what is said, too."""
    path.write_bytes(content)
    box = dict(bbox=[0, 0, 1, 1], bbox_label=0, ignore_flag=0)
    for name in ("_skipped", "_resized", "_turned"):
        getattr(loading, name).value = 0
    with messages_with("") as messages, no_hang():
        info = dict(img_path=str(path), height=40, width=60, instances=[box])
        image = LoadImageOrSkip()(dict(info))
    assert all(str(path) in message and "\n" not in message for message in messages)
    return None if image is None else image["img"], messages, info


def check_image(pipeline, name, folder):
    kind, damage = IMAGES[name]
    # The extension says nothing about the content.
    path = folder / f"image.{'jpg' if damage == 'more at the end' else 'png'}"
    content = OTHERS[damage] if kind is None else DAMAGES[damage](KINDS[kind], kind)
    image, messages, info = read(content, path)
    if image is None:
        (message,) = messages
        assert "cannot be read and is skipped" in message
        assert damage != "as it is" or kind in UNKNOWN, message
        return
    assert image.dtype == np.uint8 and image.shape[2] == 3 and kind is not None
    packed = pipeline(info)
    assert min(packed["inputs"].shape[1:]) >= 1
    good, said, _ = read(KINDS[kind], path)
    if damage == "as it is":
        return
    if damage.startswith(("flip", "zeros")) and kind not in CHECKED:
        # No reader knows better than OpenCV, with or without the orientation.
        assert messages or any(
            np.array_equal(image[: other.shape[0], : other.shape[1]], other)
            for flag in (cv2.IMREAD_COLOR, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if (other := cv2.imdecode(np.frombuffer(content, np.uint8), flag)) is not None
        )
    else:
        assert np.array_equal(image, good) or len(messages) > len(said), "changed in silence"


@pytest.mark.parametrize("name", sample(IMAGES, 40))
def test_images(pipeline, name, tmp_path):
    check_image(pipeline, name, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", IMAGES)
def test_all_images(pipeline, name, tmp_path):
    check_image(pipeline, name, tmp_path)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "turned" not in kind and kind not in UNKNOWN]
)
def test_undamaged_images_are_those_of_pillow(kind, tmp_path):
    image, _, _ = read(KINDS[kind], tmp_path / "image.png")
    assert (image is None) == (kind in UNKNOWN)
    if image is None:
        return
    with Image.open(io.BytesIO(KINDS[kind])) as file:
        first = next(iter(ImageSequence.Iterator(file)))
        if first.mode == "I;16":
            rgb = np.stack([np.asarray(first) / 257] * 3, axis=-1)
        else:
            rgb = np.asarray(first.convert("RGB"))
    tolerance = 30 if "CMYK" in kind else 6 if kind.startswith(("jpeg", "webp")) else 1
    height, width = rgb.shape[:2]
    assert np.abs(image[:height, :width, ::-1].astype(int) - rgb).max() <= tolerance
