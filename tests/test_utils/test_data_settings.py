"""One ``data_root`` and ``classes`` for all places, and what has to agree in a config."""

import pytest
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.config import Config

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config import BOOKKEEPING, check_config
from pat_mmdet.utils.errors import ConfigError

COCO = "configs/pat/swin_t-res18_coco.py"
CIFAR10 = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
SPLITS = ("train", "val", "test")
LEAVES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("pat", "students", "teachers")
    for path in (ROOT / "configs" / folder).glob("*.py")
)
# Every value in its place, as in MMDetection.
IN_PLACE = """
data_root = 'mine/'
metainfo = dict(classes=('a', 'b'))
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, ann_file='t.json'))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, ann_file='v.json'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'v.json')
test_evaluator = val_evaluator
heads = dict(roi_head=dict(bbox_head=dict(num_classes=2)))
model = dict(student=heads, teacher=heads)
"""
FOLDERS_IN_PLACE = """
metainfo = dict(classes=('cat', 'dog'))
train_dataloader = dict(dataset=dict(data_root='mine/', metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root='mine/', metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
model = dict(student=dict(head=dict(num_classes=2)), teacher=dict(num_classes=2))
"""


@pytest.fixture
def write(tmp_path):
    """Writes a user's config on top of a shipped one, and gives its path."""

    def write(text, base=PAIR, name="mine.py"):
        path = tmp_path / name
        path.write_text(f"_base_ = {str(ROOT / base)!r}\n{text}")
        return str(path)

    return write


def coco(**options):
    return load_config(str(ROOT / COCO), options)


def roots(cfg):
    return [cfg[f"{split}_dataloader"].dataset.data_root for split in SPLITS]


def classes(cfg):
    return {tuple(cfg[f"{split}_dataloader"].dataset.metainfo.classes) for split in SPLITS}


def heads(cfg):
    return [
        network.roi_head.bbox_head.num_classes for network in (cfg.model.student, cfg.model.teacher)
    ]


def plain(cfg):
    return {key: value for key, value in cfg.to_dict().items() if key not in BOOKKEEPING}


@pytest.mark.parametrize("path", LEAVES)
def test_shipped_config_in_mmengine(path):
    read = Config.fromfile(ROOT / path)
    check_config(read)
    ours, theirs = plain(load_config(str(ROOT / path))), plain(read)
    if "teacher" in theirs["model"]:
        # The distiller reads the model of the teacher's config itself.
        teacher = theirs["model"]["teacher"]
        whole = Config.fromfile(ROOT / "configs" / teacher.pop("config")).model.to_dict()
        changes = Config(dict(model=whole))
        changes.merge_from_dict(dict(model=teacher))
        theirs["model"]["teacher"] = changes.to_dict()["model"]
    assert ours == theirs


def test_command_line_settings():
    cfg = coco(data_root="my/data", classes=["left", "right", "both"])
    assert roots(cfg) == ["my/data"] * 3 and classes(cfg) == {("left", "right", "both")}
    assert cfg.val_evaluator.ann_file == "my/data/annotations/instances_val2017.json"
    assert cfg.test_evaluator.ann_file == "my/data/annotations/instances_val2017.json"
    assert heads(cfg) == [3, 3] and "ann_file" not in cfg.model


def test_ann_file_reaches_evaluators():
    options = {
        "data_root": "mine/",
        "val_dataloader.dataset.ann_file": "v.json",
        "test_dataloader.dataset.ann_file": "/abs/t.json",
    }
    cfg = coco(**options)
    assert cfg.val_evaluator.ann_file == "mine/v.json"
    assert cfg.test_evaluator.ann_file == "/abs/t.json"


def test_single_class_of_the_command_line():
    cfg = coco(classes="person")  # --cfg-options classes=person gives a string
    assert classes(cfg) == {("person",)} and heads(cfg) == [1, 1]


def test_settings_without_teacher():
    path = str(ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py")
    for cfg in (
        load_config(path, dict(classes=("a", "b"))),
        load_config(str(ROOT / PAIR), dict(classes=("a", "b")), "none"),
    ):
        assert cfg.model.roi_head.bbox_head.num_classes == 2 and classes(cfg) == {("a", "b")}


@pytest.mark.parametrize("base", [PAIR, COCO])
def test_settings_at_the_top_of_a_users_config(write, base):
    path = write("data_root = 'mine/'\nclasses = ('a', 'b')\n", base)
    cfg = load_config(path)
    assert roots(cfg) == ["mine/"] * 3 and classes(cfg) == {("a", "b")} and heads(cfg) == [2, 2]
    # The same by a further config on top, and by the command line over that.
    above = write("optim_wrapper = dict(optimizer=dict(lr=1.0))\n", path, "above.py")
    cfg = load_config(above)
    assert roots(cfg) == ["mine/"] * 3 and heads(cfg) == [2, 2]
    assert roots(load_config(above, dict(data_root="other/"))) == ["other/"] * 3
    # A plain Runner would train on the data of the base.
    for name in (path, above):
        with pytest.raises(ConfigError, match=r"data_root='mine/' at the top of .* but train_data"):
            check_config(Config.fromfile(name))


def test_config_written_by_the_tools_is_plain(write, tmp_path):
    cfg = load_config(write("data_root = 'mine/'\nclasses = ('a', 'b')\n"))
    cfg.dump(tmp_path / "plain.py")
    again = Config.fromfile(tmp_path / "plain.py")
    check_config(again)
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(("text", "base"), [(IN_PLACE, COCO), (FOLDERS_IN_PLACE, CIFAR10)])
def test_values_in_place(write, text, base):
    path = write(text, base)
    read = Config.fromfile(path)
    check_config(read)
    cfg = load_config(path)
    assert roots(cfg) == ["mine/"] * 3
    for key in ("train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator"):
        assert cfg[key] == read[key]
    assert cfg.model.student == read.model.student


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (
            "teacher=heads",
            r"model.teacher.*num_classes=80 but train_dataloader.dataset has .*'a', 'b'",
        ),
        ("student=heads, ", r"model.student.*num_classes=80 but train_dataloader.dataset has"),
        (
            "test_dataloader = val_dataloader",
            r"train_dataloader.*'b'\) and test_dataloader.*person",
        ),
        (" metainfo=metainfo,", r"train_dataloader.dataset has .*person.* and val_dataloader"),
    ],
)
def test_missing_place_is_named(write, left_out, message):
    text = IN_PLACE.replace(left_out, "", 1)
    assert text != IN_PLACE
    with pytest.raises(ConfigError, match=message):
        load_config(write(text, COCO))


def test_evaluator_of_another_file_is_named(write):
    text = IN_PLACE.replace("ann_file=data_root + 'v.json'", "ann_file='data/coco/v.json'")
    text = text.replace("data_root = ", "folder = ").replace("=data_root", "=folder")
    message = r"val_evaluator.ann_file='data/coco/v.json' but val_data.* reads 'mine/v.json'"
    with pytest.raises(ConfigError, match=message):
        load_config(write(text, COCO))


def test_folders_of_all_loaders_at_once():
    options = {f"{split}_dataloader.dataset.data_root": "x/" for split in SPLITS}
    with pytest.raises(
        ConfigError, match=r"val_evaluator.ann_file='data/coco/.*reads 'x/annotations"
    ):
        coco(**options)
    annotations = "x/annotations/instances_val2017.json"
    options |= {f"{split}_evaluator.ann_file": annotations for split in SPLITS[1:]}
    assert roots(coco(**options)) == ["x/"] * 3
    assert roots(load_config(str(ROOT / CIFAR10), dict(list(options.items())[:3]))) == ["x/"] * 3


def test_folder_of_one_loader():
    assert roots(coco(**{"train_dataloader.dataset.data_root": "x/"})) == [
        "x/", "data/coco/", "data/coco/",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {"data_root": "y/", "val_dataloader.dataset.data_root": "x/"},
         r"data_root='y/' \(on the command line\).*val_dataloader.dataset.data_root='x/'"),
        ("", {"data_root": "y/", "val_dataloader.dataset.data_root": "data/digits/"},
         r"data_root='y/' .*val_dataloader.dataset.data_root='data/digits/'"),
        ("data_root = 'y/'\nval_dataloader = dict(dataset=dict(data_root='x/'))\n", {},
         r"data_root='y/' \(at the top of .*mine.py\).*val_dataloader.dataset.data_root='x/'"),
        ("data_root = 'y/'\nval_dataloader = dict(dataset=dict(data_root='data/coco/'))\n", {},
         r"data_root='y/' .*val_dataloader.dataset.data_root='data/coco/'"),
        ("classes = ('a',)\nhead = dict(bbox_head=dict(num_classes=7))\n"
         "model = dict(teacher=dict(roi_head=head))\n", {},
         r"classes=\('a',\) .*model.teacher.roi_head.bbox_head.num_classes=7"),
    ],
)  # fmt: skip
def test_contradiction_names_both_values(write, text, options, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text), options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {"classes": ()}),
        ("", {"val_dataloader.dataset.metainfo.classes": []}),
        ("classes = ()\n", {}),
    ],
)
def test_no_classes_are_refused(write, text, options):
    with pytest.raises(ConfigError, match=r"classes is empty; name the classes of the data"):
        load_config(write(text), options)


def test_explicit_base_value_is_kept(write):
    text = "data_root = 'y/'\nval_dataloader = dict(dataset=dict(data_root='data/digits/'))\n"
    with pytest.raises(ConfigError, match=r"data_root='y/' .*data_root='data/digits/'"):
        load_config(write(text))


def test_wrapped_and_concatenated_data_sets(write):
    text = """
part = dict(
    type='CheckedCocoDataset', data_root='data/digits/', ann_file='a.json', metainfo=dict(
        classes={{_base_.classes}}), pipeline={{_base_.train_pipeline}})
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict(
    type='ConcatDataset', datasets=[part, dict(type='ClassBalancedDataset', oversample_thr=0.1,
    dataset=part)])))
val_dataloader = None
val_cfg = None
val_evaluator = None
"""
    path = write(text)
    check_config(Config.fromfile(path))
    cfg = load_config(path, dict(data_root="mine/", classes=("a", "b")))
    first, second = cfg.train_dataloader.dataset.dataset.datasets
    for part in (first, second.dataset):
        assert part.data_root == "mine/" and part.metainfo.classes == ("a", "b")
    assert cfg.test_evaluator.ann_file == "mine/annotations/val.json"
    second.dataset.metainfo.classes = ("a", "c")
    with pytest.raises(ConfigError, match=r"train_dataloader.*datasets.0 .*datasets.1.dataset has"):
        check_config(cfg)


def test_several_evaluators(write):
    text = """val_evaluator = [
    dict(type='CocoMetric', ann_file='data/digits/annotations/val.json', metric='bbox'),
    dict(type='DumpDetResults', out_file_path='y.pkl')]
"""
    cfg = load_config(write(text), dict(data_root="my/"))
    assert cfg.val_evaluator[0].ann_file == "my/annotations/val.json"
    assert "ann_file" not in cfg.val_evaluator[1]


def test_classifier_of_two_classes():
    cfg = load_config(str(ROOT / CIFAR10), dict(classes=("cat", "dog")))
    assert cfg.val_evaluator.topk == cfg.test_evaluator.topk == (1,)
    assert cfg.model.student.data_preprocessor.num_classes == cfg.model.teacher.num_classes == 2
    with pytest.raises(ConfigError, match=r"val_evaluator.topk=\(1, 5\) but train_dataloader"):
        load_config(str(ROOT / CIFAR10), {"classes": ("a", "b"), "val_evaluator.topk": (1, 5)})


def test_other_classes_of_feature_teacher():
    options = {"classes": ("a", "b"), "model.teacher.roi_head.bbox_head.num_classes": 80}
    with pytest.raises(ConfigError, match=r"for all places, but model.teacher"):
        load_config(str(ROOT / COCO), options, "pkd")
    cfg = load_config(str(ROOT / COCO), dict(classes=("a", "b")), "pkd")
    cfg.model.teacher.roi_head.bbox_head.num_classes = 80
    check_config(cfg)


def test_config_of_another_project(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(
        "data_root, classes = 'd/', ('x',)\nmodel = dict(heads=[dict(num_classes=5)])\n"
        "train_dataloader = None\n"
    )
    assert load_config(str(path)).model.heads[0].num_classes == 5
    path.write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\nclasses = ('x',)\n"
    )
    assert load_config(str(path)).model.roi_head.bbox_head.num_classes == 80
    cfg = load_config(str(path), dict(classes=("a", "b"), data_root="mine/"))
    assert cfg.model.roi_head.bbox_head.num_classes == 2 and roots(cfg) == ["mine/"] * 3
