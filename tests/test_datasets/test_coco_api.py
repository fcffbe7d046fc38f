import numpy as np
import pytest
import torch
from helpers.coco import HEIGHT, WIDTH, change, dataset, make_data, messages_with, score, write

from pat_mmdet.datasets.coco_api import CheckedCOCO
from pat_mmdet.evaluation import CheckedCocoMetric


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path)


@pytest.fixture
def logged():
    with messages_with() as messages:
        yield messages


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
    with pytest.raises(ValueError, match=f"ann.json': 1 of 12 annotations lack '{key}'"):
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
    with pytest.raises(
        ValueError, match=r"values of category_id that none .* as id, for example \[1, 99\]"
    ):
        dataset(data)


def test_evaluation_without_iscrowd(data):
    change(data, lambda content: [item.pop("iscrowd") for item in content["annotations"]])
    assert score(data) == 1.0
    assert all(not item["ignore_flag"] for item in dataset(data).get_data_info(0)["instances"])


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


@pytest.mark.parametrize("classes", [(), []])
def test_no_classes(data, classes):
    with pytest.raises(ValueError, match=r"no classes are set for annotation file .*metainfo"):
        dataset(data, classes=classes)


def edit(part, index, **fields):
    """A change of the fields of an entry."""
    return lambda content: content[part][index].update(fields)


def box(*values, index=0):
    return edit("annotations", index, bbox=list(values))


def each(part, function):
    """A change of every entry of a part by a function of its position and itself."""

    def apply(content):
        for index, entry in enumerate(content[part]):
            function(index, entry)

    return apply


def numbered(function):
    return each("annotations", lambda index, item: item.update(id=function(index)))


def as_corners(content):
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["bbox"] = [x, y, x + w, y + h]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (box(1, 2, 3), "1 of 12 annotations have a 'bbox' that is not four numbers"),
        (box(1, 2, "3", 4), "'bbox' that is not four numbers, the first is .*'3'"),
        (box(1, 2, None, 4), "'bbox' that is not four numbers"),
        (box(1, 2, True, 4), "'bbox' that is not four numbers"),
        (edit("annotations", 3, bbox="1 2 3 4"), "'bbox' that is no list"),
        (edit("annotations", 3, area="9"), "'area' that is no int or float"),
        (edit("annotations", 3, iscrowd="0"), "an 'iscrowd' other than 0 and 1"),
        (edit("annotations", 3, iscrowd=None), "an 'iscrowd' other than 0 and 1"),
        (edit("annotations", 3, image_id=99), r"values of image_id that none .*\[99\]"),
        (edit("annotations", 3, image_id=[10]), "'image_id' that is no int or str"),
        (edit("images", 1, id=10), "more than one of its images with the id 10"),
        (edit("images", 1, id="a"), "numbers and texts as ids of images"),
        (edit("images", 1, file_name=None), "1 of 6 images have a 'file_name' that is no str"),
        (edit("images", 1, width="60"), "'width' that is no int or float"),
        (edit("images", 1, width=0), "a width or height that no image has"),
        (edit("images", 1, height=float("nan")), "a width or height that no image has"),
        (edit("images", 1, height=40.5), "a width or height that no image has"),
        (edit("images", 1, height=10**9), "a width or height that no image has"),
        (edit("images", 1, file_name="../1.png/../../x.png"), "a file_name that leads out of"),
        (edit("images", 1, file_name="/etc/x.png"), "a file_name that leads out of"),
        (edit("categories", 1, id=7), "more than one of its categories with the id 7"),
        (edit("categories", 1, name="cat"), r"no categories named \['dog'\]"),
        (edit("categories", 1, name=5), "'name' that is no str"),
        (lambda content: content["images"].append(None), "1 of 7 images are no objects"),
        (lambda content: content.update(annotations={}), "has no annotations"),
        (lambda content: content.update(images={"0": 1}), "has no images"),
        (
            lambda content: content["categories"].append(dict(id=9, name="cat")),
            "more than one category named 'cat'",
        ),
        (each("annotations", lambda _, item: item.update(iscrowd=1)), "marks all boxes as crowds"),
        (
            each("annotations", lambda _, item: item.update(bbox=[float("nan")] * 4)),
            "no box whose numbers are finite",
        ),
        (
            each("annotations", lambda _, item: item.update(bbox=[0.5, 0.25, 0.1, 0.2])),
            r"look normalised \(0 to 1\), for example \[0.5, 0.25.*; COCO wants pixels",
        ),
        (as_corners, r"look like \(x1, y1, x2, y2\): as \(x, y, width, height\) 6 of 12"),
    ],
)
def test_what_has_no_right_meaning_is_refused(data, fault, message):
    change(data, fault)
    for build in (lambda: dataset(data), lambda: dataset(data, test=True)):
        with pytest.raises(ValueError, match=f"annotation file '.*ann.json'.* {message}") as error:
            build()
        assert "\n" not in str(error.value)


def test_file_names_within_the_data_root(data):
    change(data, edit("images", 0, file_name="../img/./0.png"))
    assert dataset(data).get_data_info(0)["img_path"].endswith("img/../img/./0.png")
    # The config, and not the file, may lead elsewhere.
    change(data, edit("images", 0, file_name="0.png"))
    (data / "other").mkdir()
    options = dict(ann_file="../ann.json", data_prefix=dict(img="../img"))
    assert len(dataset(data / "other", **options)) == 6


@pytest.mark.parametrize(
    ("numbers", "warning"),
    [
        (
            numbered(lambda index: index),
            "from 1 on, for each annotation, and their ids are others",
        ),
        (
            numbered(lambda index: index // 2 + 1),
            "and 6 have the id of another; they are numbered",
        ),
        (numbered(lambda index: f"a{index}"), "they are numbered anew in memory"),
        (numbered(lambda index: -index - 1), "they are numbered anew in memory"),
        (numbered(lambda index: index + 2**53), "they are numbered anew in memory"),
    ],
    ids=["from zero", "repeated", "texts", "negative", "large"],
)
@pytest.mark.parametrize("kind", ["CheckedCocoMetric", "CocoMetric"])
def test_annotation_ids_do_not_change_the_score(data, logged, numbers, warning, kind):
    change(data, numbers)
    assert score(data, kind) == 1.0
    (message,) = [message for message in logged if "ann.json" in message]
    assert warning in message, "once for data set and evaluator"


def test_plain_metric_and_id_zero(data):
    """Show the fault that ids are numbered for; once MMDetection counts right, that can go."""
    from mmdet.evaluation import CocoMetric

    change(data, numbered(lambda index: index))
    metric = CocoMetric(ann_file=str(data / "ann.json"))
    good = CheckedCocoMetric(ann_file=str(data / "ann.json"))
    values = []
    for item in (metric, good):
        item.dataset_meta = dict(classes=("cat", "dog"))
        boxes = np.array([2, 3, 22, 18]), np.array([30, 10, 55, 30])
        pred = dict(
            bboxes=torch.tensor(np.array(boxes)), scores=torch.ones(2), labels=torch.arange(2)
        )
        item.process({}, [dict(img_id=10, ori_shape=(HEIGHT, WIDTH), pred_instances=pred)])
        values.append(item.evaluate(1)["coco/bbox_mAP"])
    assert values[0] < values[1]


def test_boxes_that_are_not_trained_on_are_counted(data, logged):
    faults = (
        box(float("nan"), 3, 20, 15, index=0),
        box(2, 3, float("inf"), 15, index=1),
        edit("annotations", 2, area=0),
        box(2, 3, 20, 0.5, index=3),
        box(WIDTH + 5, 0, 10, 10, index=4),
        edit("annotations", 5, ignore=1),
        box(50, 3, 30, 15, index=6),
        box(50, 3, 10.5, 15, index=7),
    )
    for fault in faults:
        change(data, fault)
    loaded = dataset(data, test=True)
    messages = [message for message in logged if "ann.json" in message]
    assert "2 of 12 boxes are not finite and left out, the first is annotation 1" in messages[0]
    assert messages[1].endswith(
        ": of 10 boxes, 1 marked ignore: not trained on (the first is annotation 6); 2 smaller "
        "than a pixel or without area: not trained on (the first is annotation 3); 1 outside of "
        "their image: not trained on (the first is annotation 5); 1 partly outside of their "
        "image: clipped where images are resized (the first is annotation 7)"
    )
    assert len(messages) == 2
    assert sum(len(loaded.get_data_info(i)["instances"]) for i in range(6)) == 12 - 2 - 1 - 2 - 1
    dataset(data)
    assert len(messages) == 2, "once a file"


def test_boxes_that_are_not_finite_are_no_objects(data):
    change(data, box(1, 2, float("nan"), 10))
    change(data, edit("annotations", 3, area=10**400))
    assert score(data) == 1.0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_encodings(data, encoding):
    text = (data / "ann.json").read_text().replace('"cat"', '"Kätzchen"')
    (data / "ann.json").write_bytes(text.encode(encoding))
    assert len(dataset(data, classes=("Kätzchen", "dog"))) == 6


def test_file_that_is_nested_without_end(data):
    (data / "ann.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no valid COCO JSON: RecursionError"):
        dataset(data)


def test_sizes_with_decimals_are_numbers(data):
    change(data, edit("images", 0, width=float(WIDTH), height=float(HEIGHT)))
    info = dataset(data).get_data_info(0)
    assert (type(info["width"]), info["width"], info["height"]) == (int, WIDTH, HEIGHT)


def test_images_that_are_listed_twice(data, logged):
    change(data, edit("images", 1, file_name="0.png"))
    dataset(data)
    assert any("1 images are listed more than once, for example '0.png'" in m for m in logged)


def test_boxes_of_a_few_whole_images_are_no_corners(data):
    """Boxes of the images' size that begin at 2 reach two pixels beyond."""
    change(data, each("annotations", lambda _, item: item.update(bbox=[2, 2, WIDTH, HEIGHT])))
    assert len(dataset(data)) == 6


def test_plain_reader(data):
    """Without a folder of images nothing is looked up in it."""
    coco = CheckedCOCO(str(data / "ann.json"))
    assert sorted(coco.imgs) == [10, 11, 12, 13, 14, 15]
    assert [item["id"] for item in coco.load_anns(coco.get_ann_ids(img_ids=[11]))] == [3, 4]
