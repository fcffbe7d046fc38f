"""Checks of the folders of the data."""

import pytest
from helpers.detectors import PAIR
from helpers.tools import ROOT

from pat_mmdet.utils import check_data, load_config
from pat_mmdet.utils.config_parts import SPLITS
from pat_mmdet.utils.errors import ConfigError

CIFAR10 = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"


def test_folders_of_the_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(str(ROOT / PAIR))
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/{name}.json").touch()
    for root in (f"{tmp_path}/", ""):
        for split in SPLITS:
            cfg[f"{split}_dataloader"].dataset.data_root = root
        check_data(cfg, *SPLITS)
    part = dict(type="CheckedCocoDataset", data_root="nowhere/")
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=part)
    check_data(cfg, "val", "test")
    with pytest.raises(FileNotFoundError, match="'nowhere/' does not exist; put the data there"):
        check_data(cfg, "val", "train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("load_from", "nowhere.pth"),
        ("train_dataloader.dataset.ann_file", "nowhere.json"),
        ("train_dataloader.dataset.data_prefix", "nowhere"),
    ],
)
def test_missing_file_is_named(tmp_path, key, value):
    cfg = folders(tmp_path, train=["dog", "cat"], val=["cat", "dog"])
    cfg.merge_from_dict({key: value})
    with pytest.raises(FileNotFoundError, match=rf"^{key}.*=.*nowhere.* does not exist"):
        check_data(cfg, "train")


def folders(root, **splits):
    """A classifier's config on images in folders."""
    for split, names in splits.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
    return load_config(str(ROOT / CIFAR10), dict(data_root=f"{root}/", classes=("cat", "dog")))


def test_classes_are_those_of_the_folders(tmp_path):
    cfg = folders(tmp_path, train=["dog", "cat"], val=["cat", "dog"])
    check_data(cfg, *SPLITS)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo.classes = ("dog", "cat")
    with pytest.raises(
        ConfigError, match=r"classes is \('dog', 'cat'\) but the folders .*'cat', 'dog'"
    ):
        check_data(cfg, "train")
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo.classes = ("Felis catus", "Canis lupus")  # for display
    check_data(cfg, *SPLITS)


@pytest.mark.parametrize(
    ("train", "val", "difference"),
    [
        (["cat", "dog", "horse"], ["cat", "dog"], "'horse'"),
        (["cat", "dogs"], ["cat", "dogs"], "'dog', 'dogs'"),
        (["cat", "dog"], ["cat", "cow"], "'cow', 'dog'"),
    ],
)
def test_difference_to_the_folders_is_named(tmp_path, train, val, difference):
    cfg = folders(tmp_path, train=train, val=val)
    with pytest.raises(ConfigError, match=rf"\(the difference: \({difference}\)\)"):
        check_data(cfg, *SPLITS)


def test_splits_have_the_same_folders(tmp_path):
    cfg = folders(tmp_path, train=["a", "b"], val=["a", "c"])
    with pytest.raises(ConfigError, match=r"val' has the class folders .*'a', 'c'.*'a', 'b'"):
        check_data(cfg, *SPLITS)


@pytest.mark.parametrize("key", ["proposal_file", "ann_file"])
def test_pickled_data(key):
    with pytest.raises(ConfigError, match=rf"{key}='made/elsewhere.pkl' is a pickle.* JSON"):
        load_config(str(ROOT / PAIR), {f"train_dataloader.dataset.{key}": "made/elsewhere.pkl"})


def listed(root, train, val="", **options):
    """A classifier's config on images with lists of labels."""
    root.mkdir(exist_ok=True)
    for split, lines in (("train", train), ("val", val)):
        (root / f"{split}.txt").write_text(lines)
    cfg = load_config(str(ROOT / CIFAR10), dict(data_root=f"{root}/", classes=("cat", "dog")))
    for split in SPLITS:
        name = "val" if split == "test" else split
        (root / name).mkdir(exist_ok=True)
        cfg[f"{split}_dataloader"].dataset.update(ann_file=f"{name}.txt", **options)
    return cfg


GOOD = "cat/1.jpg 0\ndog/1 1.jpg 1\n"


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("cat/1.jpg 1\ndog/1.jpg 0\n", GOOD, r"folder 'cat' the label 1, but .*\('cat', 'dog'\)"),
        (GOOD, "a/dog/7.jpg 0\n", r"val.txt' gives images in the folder 'dog' the label 0"),
        (GOOD, "cat/1.jpg 0\ncat/2.jpg 1\n", "folder 'cat' the label 0 and others"),
        (GOOD, "x/1.jpg 2\n", "has the label 2, but .* has 2 classes"),
        (GOOD, "cat/1.jpg\n", r"line 1 of '.*val.txt' is 'cat/1.jpg'"),
        (GOOD, "cat/1.jpg 0\n\n", r"line 2 of '.*val.txt' is ''"),
        (GOOD, "cat/1.jpg cat\n", r"line 1 of '.*val.txt' is 'cat/1.jpg cat'"),
        (
            "x/1.jpg 0\ny/1.jpg 1\n",
            "x/1.jpg 1\ny/1.jpg 0\n",
            "folder '[xy]' have the label [01] by",
        ),
    ],
)
def test_labels_of_lists(tmp_path, train, val, message):
    check_data(listed(tmp_path, GOOD, GOOD), *SPLITS)
    with pytest.raises(ConfigError, match=message):
        check_data(listed(tmp_path, train, val), *SPLITS)


def test_labels_of_a_list_and_of_folders(tmp_path):
    """Without classes of their own, both splits have to number the folders alike."""
    cfg = listed(tmp_path, GOOD, "x/1.jpg 1\ny/1.jpg 0\n")
    for name in ("x", "y"):
        (tmp_path / "train" / name).mkdir()
    for split in SPLITS:
        cfg[f"{split}_dataloader"].dataset.metainfo.classes = ("first", "second")
    del cfg.train_dataloader.dataset["ann_file"]
    with pytest.raises(ConfigError, match=r"label 0 by '.*/train' and 1 by '.*/val.txt'"):
        check_data(cfg, *SPLITS)


@pytest.mark.parametrize("type_name", ["CustomDataset", "mmpretrain.CustomDataset"])
def test_types_of_mmpretrain_are_checked_too(tmp_path, type_name):
    cfg = folders(tmp_path, train=["dog", "cat"], val=["cat", "cow"])
    for split in SPLITS:
        cfg[f"{split}_dataloader"].dataset.type = type_name
    with pytest.raises(ConfigError, match="the difference: "):
        check_data(cfg, *SPLITS)


def test_folders_of_imagenet(tmp_path):
    cfg = load_config(
        str(ROOT / "configs/students/res18_imagenet.py"), dict(data_root=str(tmp_path))
    )
    for split, first in (("train", 0), ("val", 1)):
        for number in range(first, first + 1000):
            (tmp_path / split / f"n{number:08d}").mkdir(parents=True)
    check_data(cfg, "train")
    with pytest.raises(ConfigError, match=r"\('n00000000', 'n00001000'\)\); give all splits"):
        check_data(cfg, "train", "val")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/val.txt").write_text("1.JPEG 0\n2.JPEG 999\n")
    check_data(cfg, "train", "val")
