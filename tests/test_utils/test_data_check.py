"""What the folders of the data have to agree with."""

import pytest
from helpers.detectors import PAIR
from helpers.tools import ROOT

from pat_mmdet.utils import check_data, load_config
from pat_mmdet.utils.config_parts import SPLITS
from pat_mmdet.utils.errors import ConfigError

CIFAR10 = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"


def test_folders_of_the_data_are_looked_for(tmp_path):
    cfg = load_config(str(ROOT / PAIR))
    for root in (f"{tmp_path}/", ""):
        for split in SPLITS:
            cfg[f"{split}_dataloader"].dataset.data_root = root
        check_data(cfg, *SPLITS)
    part = dict(type="CheckedCocoDataset", data_root="nowhere/")
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=part)
    check_data(cfg, "val", "test")
    with pytest.raises(FileNotFoundError, match="'nowhere/' does not exist; put the data there"):
        check_data(cfg, "val", "train")


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
