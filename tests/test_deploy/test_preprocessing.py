"""The runtime's own steps against the transforms of mmcv and mmpretrain."""

import numpy as np
import pytest
from helpers.tools import ROOT
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image
from PIL import __version__ as pillow

from pat_mmdet.deploy.onnx_export import read_pipeline
from pat_mmdet.deploy.preprocessing import PILLOW_FILTERS, apply_pipeline, read_image
from pat_mmdet.utils import load_config

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SHAPES = [(37, 53), (120, 41), (64, 64), (500, 333), (7, 90)]


def picture(shape, seed=0):
    """Noise, on which every rounding shows."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def pipeline_config(*steps, scope="mmdet"):
    """A config with a test pipeline."""
    load = dict(type="LoadImageFromFile")
    pack = dict(type="PackDetInputs" if scope == "mmdet" else "PackInputs")
    cfg = load_config(str(ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py"))
    cfg.test_dataloader.dataset.pipeline = [load, *steps, pack]
    init_default_scope(scope)
    return cfg


@pytest.mark.skipif(int(pillow.split(".")[0]) < 13, reason="resized the width first, always")
@pytest.mark.parametrize("interpolation", PILLOW_FILTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pillow_resize(interpolation, shape):
    image = picture(shape)
    for size in ((64, 64), (31, 200), (shape[1], 20)):
        step = dict(
            type="Resize", scale=size, keep_ratio=False, interpolation=interpolation,
            backend="pillow",
        )  # fmt: skip
        expected = np.asarray(Image.fromarray(image).resize(size, PILLOW[interpolation]))
        assert np.array_equal(apply_pipeline(image, [step]), expected)


@pytest.mark.parametrize(
    ("scope", "steps"),
    [
        ("mmdet", [dict(type="Resize", scale=(133, 80), keep_ratio=True)]),
        ("mmdet", [dict(type="Resize", scale=(80, 80), keep_ratio=True, backend="pillow")]),
        ("mmdet", [dict(type="Resize", scale=(96, 64), interpolation="area")]),
        ("mmpretrain", [dict(type="Resize", scale=48)]),
        ("mmpretrain", [dict(type="ResizeEdge", scale=33, edge="long", interpolation="bicubic")]),
        ("mmpretrain", [dict(type="CenterCrop", crop_size=(40, 31))]),
    ],
)
def test_steps_equal_transforms(scope, steps):
    cfg = pipeline_config(*steps, scope=scope)
    transforms = [TRANSFORMS.build(step) for step in steps]
    for shape in SHAPES:
        results = dict(img=picture(shape), img_shape=shape)
        for transform in transforms:
            results = transform(results)
        assert np.array_equal(apply_pipeline(picture(shape), read_pipeline(cfg)), results["img"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("faster-rcnn_r18_fpn_digits", ["Resize"]),
        ("res18_imagenet", ["ResizeEdge", "CenterCrop"]),
    ],
)
def test_shipped_pipelines_are_read(name, expected):
    cfg = load_config(str(ROOT / f"configs/students/{name}.py"))
    init_default_scope(cfg.default_scope)
    steps = read_pipeline(cfg)
    assert [step["type"] for step in steps] == expected
    assert apply_pipeline(picture((300, 280)), steps).shape[2] == 3


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (dict(type="RandomFlip", prob=1.0), "RandomFlip(prob=1.0) cannot be exported"),
        (dict(type="Resize", scale_factor=0.5), "Resize with a scale"),
        (dict(type="Pad", size_divisor=32), "Pad(size_divisor=32) cannot"),
        (
            dict(type="Resize", scale=8, backend="pillow", interpolation="nearest"),
            "'nearest' with backend='pillow'",
        ),
        (dict(type="LoadImageFromFile", to_float32=True), "to_float32=True) cannot"),
    ],
)
def test_other_steps_are_refused(step, message):
    with pytest.raises(ValueError) as error:
        read_pipeline(pipeline_config(step))
    assert message in str(error.value)


def test_unreadable_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_image(tmp_path / "none.png")
    for content in (b"", b"no image"):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no image"):
            read_image(tmp_path / "bad.png")
