"""One ``data`` for all places of a config."""

import pytest
import torch
from helpers import folders
from helpers.coco import messages_with
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.config import Config

from pat_mmdet.cli.export import choose_config
from pat_mmdet.utils import check_data, load_config
from pat_mmdet.utils.config import check_config
from pat_mmdet.utils.errors import ConfigError

COCO = "pat/swin_t-res18_coco.py"
IMAGENET = "pat/deit_t-res18_imagenet.py"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder in each format."""
    root = tmp_path_factory.mktemp("folders")
    for make in (folders.coco, folders.roboflow, folders.voc, folders.image_folder):
        make(root / make.__name__)
    return root


@pytest.fixture
def write(tmp_path):
    """Writes a user's config on top of a shipped one, and gives its path."""

    def write(text, base=PAIR):
        path = tmp_path / "mine.py"
        path.write_text(f"_base_ = {str(ROOT / base)!r}\n{text}")
        return str(path)

    return write


def data_sets(cfg, *keys):
    return [tuple(cfg[f"{split}_dataloader"].dataset.get(key) for key in keys) for split in SPLITS]


def num_classes(cfg):
    heads = [cfg.model[name] for name in ("student", "teacher")]
    return [getattr(head.get("roi_head"), "bbox_head", head).num_classes for head in heads]


def test_detection(root, tmp_path):
    cfg = load_config(COCO, {"data": str(root / "roboflow"), "train_dataloader.batch_size": 3})
    assert data_sets(cfg, "ann_file", "data_prefix", "metainfo") == [
        (f"{name}/_annotations.coco.json", dict(img=f"{name}/"), dict(classes=("cat", "dog")))
        for name in ("train", "valid", "test")
    ]
    assert data_sets(cfg, "data_root") == [(str(root / "roboflow"),)] * 3
    for split, folder in (("val", "valid"), ("test", "test")):
        evaluator = cfg[f"{split}_evaluator"]
        assert evaluator.ann_file == str(root / "roboflow" / folder / "_annotations.coco.json")
        assert (evaluator.type, evaluator.metric) == ("CheckedCocoMetric", "bbox")
    assert num_classes(cfg) == [2, 2] and cfg.train_dataloader.batch_size == 3
    assert cfg.train_dataloader.dataset.pipeline == load_config(COCO).train_pipeline
    check_data(cfg, "val", "test")
    # A run's own config needs no `data` any more.
    cfg.dump(tmp_path / "run.py")
    check_config(Config.fromfile(tmp_path / "run.py"))
    assert load_config(str(tmp_path / "run.py")).to_dict() == cfg.to_dict()


def test_converted_data_without_teacher(root):
    options = {"data": dict(root=str(root / "voc"), classes=["dog"])}
    cfg = load_config("students/faster-rcnn_r18_fpn_digits.py", options)
    assert cfg.model.roi_head.bbox_head.num_classes == 1
    check_data(cfg, *SPLITS)
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
    assert data_sets(cfg, "data_prefix")[1:] == [(dict(img="JPEGImages/"),)] * 2


@pytest.mark.parametrize("config", [IMAGENET, "pat/swin_t-res18_cifar100.py"])
def test_classification(config, root):
    cfg = load_config(config, {"data": str(root / "image_folder")})
    assert data_sets(cfg, "type", "data_prefix", "split") == [
        ("TolerantCustomDataset", f"{name}/", None) for name in ("train", "val", "val")
    ]
    assert num_classes(cfg) == [2, 2] and cfg.val_evaluator.topk == (1,)
    for split in SPLITS:
        pipeline = cfg[f"{split}_dataloader"].dataset.pipeline
        assert [step.type for step in pipeline].count("LoadImageOrSkip") == 1
    # Files are loaded as BGR, arrays of CIFAR-100 are RGB.
    networks = (cfg.model.student, cfg.model.teacher)
    assert all(network.data_preprocessor.to_rgb for network in networks)
    check_data(cfg, "val")


def test_teacher_of_other_classes(root, tmp_path):
    data = {"data": str(root / "image_folder")}
    with pytest.raises(ConfigError, match=r"the weights of timm are for 1000 classes"):
        check_data(load_config(IMAGENET, data), "train")
    with pytest.raises(ConfigError, match=r"mask_rcnn_swin-t.*pth' are for 80 classes, .* have 2"):
        check_data(load_config(COCO, {"data": str(root / "coco")}), "train")
    data = {"data": str(root / "coco"), "model.teacher_checkpoint": str(tmp_path / "teacher.pth")}
    for classes, message in ((("cat",), "on 1 classes"), (("dog", "cat"), "on 2 classes, .'dog'")):
        torch.save(dict(meta=dict(dataset_meta=dict(classes=classes))), tmp_path / "teacher.pth")
        with pytest.raises(ConfigError, match=f"teacher.pth' was trained {message}"):
            check_data(load_config(PAIR, data), "train")
        check_data(load_config(PAIR, data, "pkd"), "train")
    torch.save(dict(meta=dict(CLASSES=("Cat", "Dog"))), tmp_path / "teacher.pth")
    with messages_with("classes of other names") as messages:
        check_data(load_config(PAIR, data), "train")
    assert len(messages) == 1
    # Features of a teacher of other classes can be learnt from.
    cfg = load_config(COCO, {"data": str(root / "coco")}, "pkd")
    assert num_classes(cfg) == [2, 80]


def test_in_a_users_config(write, root):
    path = write(f"data = {str(root / 'coco')!r}\noptim_wrapper = dict(optimizer=dict(lr=1.0))\n")
    cfg = load_config(path)
    assert data_sets(cfg, "data_prefix")[0] == (dict(img="train2017/"),)
    assert cfg.optim_wrapper.optimizer.lr == 1.0 and "data" not in cfg
    assert load_config(path, {"data.classes": ["dog"]}).classes == ("dog",)
    cfg = load_config(path, {"data": str(root / "voc")})
    assert cfg.data_root == str(root / "voc")
    with pytest.raises(ConfigError, match=r"MMEngine does not read it; run it by the tools"):
        check_config(Config.fromfile(path))


def test_variable_of_that_name(write):
    path = write("data = dict(batch_size=7)\nval_dataloader = data\n")
    assert load_config(path).val_dataloader.batch_size == 7
    path = write("data = 'data/digits/'\nval_dataloader = dict(dataset=dict(data_root=data))\n")
    assert data_sets(load_config(path), "data_root")[1] == ("data/digits/",)


def test_checkpoint_without_config_file(root, monkeypatch):
    cfg = load_config(PAIR)
    cfg.data = "/never/read"
    monkeypatch.chdir(root)
    chosen = choose_config(None, "x.pth", dict(cfg=cfg.pretty_text), {"data": "coco"})
    assert data_sets(chosen, "data_root") == [("coco",)] * 3
    chosen = choose_config(None, "x.pth", dict(cfg=cfg.pretty_text), None)
    assert data_sets(chosen, "data_root") == data_sets(cfg, "data_root")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {"data": "{coco}", "classes": ["cat"]}, r"and classes are .*give data.classes"),
        ("", {"data": "{coco}", "data_root": "x"}, r"and data_root are both for all places"),
        ("", {"data": "{coco}", "val_dataloader.dataset.ann_file": "x.json"},
         r"command line\) is for all places, but val_dataloader.dataset.ann_file='x.json'"),
        ("", {"data.rot": "{coco}"}, r"data has no argument 'rot'; did you mean 'root'"),
        ("", {"data.val": "x"}, r"data has no root"),
        ("", {"data": "{coco}", "data.val.ann_file.x": "x"}, r"data.val=\{'x': 'x'\}: give a path"),
        ("", {"data.root": "{coco}", "data.val": ["x"]}, r"data.val=\['x'\]: data takes"),
        ("data = '{coco}'\ndata_root = 'x'\n", {}, r"and data_root are both for all places"),
        ("data = '{coco}'\ntrain_dataloader = dict(dataset=dict(ann_file='t.json'))\n", {},
         r"mine.py\) is for all places, but train_dataloader.dataset.ann_file='t.json'"),
        ("data = dict(folder='{coco}')\n", {}, r"data at the top of .*has no effect.*data='FOLD"),
        ("", {"data": "{train}"}, r"has no val split, only train: 2 images, 4 boxes; .*val_share"),
        ("part = dict(type='CheckedCocoDataset', ann_file='x')\ntrain_dataloader = dict(dataset="
         "dict(_delete_=True, type='ConcatDataset', datasets=[part, part]))\n", {"data": "{coco}"},
         r"train_dataloader has 2 data sets"),
        ("val_dataloader = dict(dataset=dict(type='VOCDataset'))\n", {"data": "{coco}"},
         r"val_dataloader.dataset.type='VOCDataset' reads no COCO files"),
    ],
)  # fmt: skip
def test_contradictions(write, root, text, options, message, tmp_path):
    folders.add_coco(tmp_path / "train", "annotations/train.json", "train")
    places = dict(coco=str(root / "coco"), train=str(tmp_path / "train"))
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
        options = {key: place if x == f"{{{name}}}" else x for key, x in options.items()}
    with pytest.raises(ConfigError, match=message) as error:
        load_config(write(text), options)
    assert "\n" not in str(error.value)
