import multiprocessing

import numpy as np
import pytest
from helpers.coco import messages_with
from helpers.tools import ROOT
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from pat_mmdet.datasets.transforms import loading
from pat_mmdet.utils import load_config


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Five images of each class and split, of which two cannot be read."""
    monkeypatch.setattr(loading, "_skipped", multiprocessing.Value("i", 0))
    rng = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(5):
                pixels = rng.randint(50, 250, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
        (tmp_path / split / "cat/1.png").write_bytes(b"")
        (tmp_path / split / "dog/3.png").write_bytes(b"<html>not found</html>")
    return tmp_path


def build(config, split, root, **options):
    init_default_scope("mmpretrain")
    cfg = load_config(str(ROOT / f"configs/students/{config}.py"))
    return DATASETS.build({**cfg[f"{split}_dataloader"].dataset, "data_root": str(root), **options})


def small(config):
    """Options of a data set with the two classes of the test."""
    classes = ("cat", "dog") if config == "res18_mini_cifar10" else ("a", "b")
    return dict(metainfo=dict(classes=classes))


CONFIGS = ("res18_mini_cifar10", "res18_imagenet", "deit_t_imagenet")


@pytest.mark.parametrize("config", CONFIGS)
def test_broken_images_in_training_are_replaced(config, folders):
    data = build(config, "train", folders, **small(config))
    with messages_with("cannot be read and is skipped") as messages:
        np.random.seed(0)
        samples = [data[index]["data_samples"] for index in range(10)]
    indices = [sample.sample_idx for sample in samples]
    good = [index for index in range(10) if index not in (1, 8)]
    assert [indices[index] for index in good] == good and {indices[1], indices[8]} <= set(good)
    assert [sample.gt_label.item() for sample in samples] == [int(i >= 5) for i in indices]
    assert f"image '{folders}/train/cat/1.png'" in messages[0]
    assert "skipped so far: 1." in messages[0] and loading._skipped.value == len(messages) >= 2


@pytest.mark.parametrize("config", CONFIGS)
def test_broken_images_in_evaluation_are_black(config, folders):
    data = build(config, "val", folders, **small(config))
    with messages_with("cannot be read and is skipped") as messages:
        samples = [data[index] for index in range(10)]
    black = [index for index, sample in enumerate(samples) if not sample["inputs"].any()]
    assert black == [1, 8] and len({sample["inputs"].shape for sample in samples}) == 1
    assert [sample["data_samples"].gt_label.item() for sample in samples] == [0] * 5 + [1] * 5
    assert [
        str(folders / "val" / name) in message
        for name, message in zip(("cat/1.png", "dog/3.png"), messages)
    ] == [True, True]
    assert len(messages) == 2


def test_images_that_are_not_there(folders):
    (folders / "list.txt").write_text("".join(f"cat/{i}.png 0\n" for i in range(20)))
    with pytest.raises(FileNotFoundError, match=r"20 images of '.*list.txt' .* 15 do not exist"):
        build("res18_mini_cifar10", "val", folders, ann_file="list.txt", **small(CONFIGS[0]))
    (folders / "list.txt").write_text("".join(f"cat/{i}.png 0\n" for i in range(6)))
    with messages_with("6 images of") as messages:
        build("res18_mini_cifar10", "val", folders, ann_file="list.txt", **small(CONFIGS[0]))
    assert "1 do not exist, for example" in messages[0] and len(messages) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_images_that_cannot_be_read(config, folders):
    for i in range(5):
        (folders / f"train/cat/{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"10 images of '.*train' .* 6 cannot be read"):
        build(config, "train", folders, **small(config))
