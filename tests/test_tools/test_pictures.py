"""Pictures of data and predictions, as the tools write them."""

import numpy as np
import pytest
import torch
from helpers.tools import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from pat_mmdet.utils import load_config, student_model

CLASSIFIER = ROOT / "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
DETECTOR = ROOT / "configs/pat/swin_p-res18_digits.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Cats and dogs with equal names, all black, cats with a red half on the left."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.zeros((32, 32, 3), np.uint8)
                if name == "cat":
                    pixels[:, :16, 0] = 255
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def options(root):
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    return [
        f"data_root={root}/", "classes=('cat','dog')",
        *(f"{name}.num_workers=0" for name in loaders),
        *(f"{name}.persistent_workers=False" for name in loaders),
    ]  # fmt: skip


def is_red(path):
    """Which halves of a picture are red, left and right."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[100:]  # below the text
    red = pixels[..., 0] - pixels[..., 1] > 128
    half = red.shape[1] // 2
    return bool(red[:, :half].mean() > 0.5), bool(red[:, half:].mean() > 0.5)


@pytest.mark.parametrize("tta", [pytest.param(False, marks=pytest.mark.full), True])
def test_predictions_of_a_classifier(tta, folders, tmp_path):
    cfg = load_config(str(CLASSIFIER), {"classes": ("cat", "dog")})
    init_default_scope("mmpretrain")
    torch.save(MODELS.build(student_model(cfg)).state_dict(), tmp_path / "student.pth")
    run_tool(
        "test.py", CLASSIFIER, tmp_path / "student.pth", "--work-dir", tmp_path / "work",
        "--show-dir", tmp_path / "shown", *(["--tta"] if tta else []),
        "--cfg-options", *options(folders), cwd=ROOT,
    )  # fmt: skip
    pictures = sorted((tmp_path / "shown").iterdir())
    assert [path.name for path in pictures] == [
        "00000_0.png", "00001_1.png", "00002_0.png", "00003_1.png",
    ]  # fmt: skip
    # Those of the files, neither flipped nor as the network gets them.
    assert [is_red(path) for path in pictures] == [(True, False)] * 2 + [(False, False)] * 2


def test_predictions_of_a_detector_with_flips(digits, tmp_path):
    model = Config.fromfile(ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py").model
    init_default_scope("mmdet")
    torch.save(MODELS.build(model).state_dict(), tmp_path / "student.pth")
    run_tool(
        "test.py", DETECTOR, tmp_path / "student.pth", "--tta", "--work-dir", tmp_path,
        "--show-dir", "shown", "--cfg-options", f"data_root={digits}/",
        "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False", cwd=ROOT,
    )  # fmt: skip
    assert len(list(tmp_path.glob("*/shown/*"))) == 8


@pytest.mark.parametrize("mode", ["train", pytest.param("val", marks=pytest.mark.full)])
def test_classification_data_is_browsed(mode, folders, tmp_path):
    run_tool(
        "analysis_tools/browse_dataset.py", CLASSIFIER, "--mode", mode, "--output-dir", tmp_path,
        "--cfg-options", *options(folders), cwd=ROOT,
    )  # fmt: skip
    pictures = sorted(tmp_path.iterdir())
    assert len(pictures) == 4
    assert [any(is_red(path)) for path in pictures] == [True, True, False, False]
    # The name of the class is written into the upper left corner.
    corner = np.asarray(Image.open(pictures[2]).convert("L"))[:20]
    assert corner.max() > 200
