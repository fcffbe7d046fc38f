from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmdet.structures import DetDataSample
from mmengine.registry import HOOKS, init_default_scope
from mmengine.visualization import Visualizer
from PIL import Image


class Drawn(list):
    """A visualizer that keeps what it is given."""

    def add_datasample(self, name, image, data_sample, out_file=None, **_):
        self.append((image, data_sample.img_path, out_file))


@pytest.fixture
def hook(monkeypatch):
    drawn = Drawn()
    monkeypatch.setattr(Visualizer, "get_current_instance", classmethod(lambda cls: drawn))
    init_default_scope("mmdet")
    cfg = dict(type="TolerantVisualizationHook", draw=True, interval=2, test_out_dir="shown")
    return HOOKS.build(cfg), drawn


@pytest.fixture
def samples(tmp_path):
    """A broken image, and one with an EXIF orientation, loaded as stored and as shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (200, 100, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"")
    names = (("broken.png", (20, 40)), ("photo.png", (20, 40)), ("photo.png", (40, 20)))
    return [
        DetDataSample(metainfo=dict(img_path=str(tmp_path / name), ori_shape=shape))
        for name, shape in names
    ]


def test_images_are_drawn_as_they_were_loaded(hook, samples, tmp_path):
    hook, drawn = hook
    runner = SimpleNamespace(work_dir=str(tmp_path), timestamp="now", iter=0)
    for _ in range(2):
        hook.after_test_iter(runner, 0, {}, samples)
    images, paths, files = zip(*drawn)
    assert [image.shape[:2] for image in images] == [(20, 40), (40, 20)] * 2
    assert np.array_equal(images[0], np.asarray(Image.open(paths[0])))
    assert np.array_equal(images[1][..., ::-1], cv2.imread(paths[1]))
    assert set(files) == {str(tmp_path / "now/shown/photo.png")}


def test_drawing_interval(hook, samples):
    hook, drawn = hook
    for step in range(4):
        hook.after_val_iter(SimpleNamespace(iter=0), step, {}, samples)
    assert len(drawn) == 2 and all(image.shape[:2] == (20, 40) for image, _, _ in drawn)
    hook.draw = False
    hook.after_val_iter(SimpleNamespace(iter=0), 0, {}, samples)
    hook.after_test_iter(SimpleNamespace(iter=0), 0, {}, samples)
    assert len(drawn) == 2
