"""Predictions on images and videos."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers.configs import build, load
from helpers.detectors import pair_config
from mmdet.apis import inference_detector
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.cli import infer
from pat_mmdet.utils import student_model

CLASSES = tuple("0123456789")


def save(model, cfg, path, **meta):
    """Saves a network as a training does."""
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES), **meta)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["infer", *map(str, args)])
    infer.main()


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """A student of random weights that finds five boxes, and its checkpoint, of a distiller."""
    monkeypatch.chdir(tmp_path)
    cfg = pair_config()
    student_model(cfg).test_cfg.rcnn.score_thr = 0.0
    student_model(cfg).test_cfg.rcnn.max_per_img = 5
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(student_model(cfg)).eval()
    model.cfg = cfg
    return model, save(model, cfg, tmp_path / "iter_1.pth")


@pytest.fixture
def inputs(tmp_path):
    """Two images of the same name, a video, and a file that is no image."""
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(3, 64, 64, 3), dtype=np.uint8)
    folder = tmp_path / "in"
    for name, frame in zip("ab", frames):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "x.png"), frame)
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 64))
    for frame in frames:
        writer.write(frame)
    writer.release()
    (folder / "bad.jpg").write_text("no image")
    return folder


def test_detector_on_images_and_a_video(detector, inputs, monkeypatch, tmp_path, capsys):
    model, checkpoint = detector
    with pytest.raises(SystemExit, match=r"1 files cannot be read: .*bad\.jpg"):
        run(monkeypatch, checkpoint, inputs, inputs / "*/x.png", "--out", tmp_path / "out")
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    clip = [("clip.avi", 0), ("clip.avi", 1), ("clip.avi", 2)]
    sources = [*clip, ("a/x.png", None), ("b/x.png", None)]
    assert sorted({(r["image_id"], r["file_name"], r.get("frame")) for r in records}) == [
        (index, *source) for index, source in enumerate(sources)
    ]
    # MMDetection's own function gives the same for an image.
    expected = inference_detector(model, str(inputs / "b/x.png")).pred_instances
    found = [record for record in records if record["file_name"] == "b/x.png"]
    assert len(found) == len(expected) == 5
    boxes = torch.tensor([record["bbox"] for record in found])
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(boxes, expected.bboxes)
    torch.testing.assert_close(torch.tensor([r["score"] for r in found]), expected.scores)
    labels = expected.labels.tolist()
    assert [r["category_id"] for r in found] == labels
    assert [r["category_name"] for r in found] == [CLASSES[label] for label in labels]
    drawn = cv2.imread(str(tmp_path / "out/vis/b/x.png"))
    assert drawn.shape == (64, 64, 3)
    video = cv2.VideoCapture(str(tmp_path / "out/vis/clip.avi.mp4"))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (3, 5)


def test_boxes_are_drawn_from_the_threshold_on(detector, inputs, monkeypatch, tmp_path):
    _, checkpoint = detector
    image = inputs / "a/x.png"
    for threshold, changed in ((0.0, True), (1.0, False)):
        run(monkeypatch, checkpoint, image, "--out", tmp_path, "--score-thr", threshold)
        drawn = cv2.imread(str(tmp_path / "vis/x.png"))
        assert (drawn != cv2.imread(str(image))).any() == changed
        assert len(json.loads((tmp_path / "predictions.json").read_text())) == 5


def test_classifier(monkeypatch, tmp_path, inputs):
    cfg = load("students/res18_mini_cifar10")
    model = build(cfg).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "weights.pth")
    image = inputs / "a/x.png"
    with pytest.raises(SystemExit, match="has no config inside; give it before the checkpoint"):
        run(monkeypatch, tmp_path / "weights.pth", image)
    run(monkeypatch, cfg.filename, tmp_path / "weights.pth", image, "--out", tmp_path / "out")
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    pixels = cv2.resize(cv2.imread(str(image)), (32, 32))
    data = dict(inputs=[torch.from_numpy(pixels).permute(2, 0, 1)])
    with torch.no_grad():
        scores = model(model.data_preprocessor(data)["inputs"]).softmax(-1)[0]
    expected, labels = scores.topk(5)
    torch.testing.assert_close(torch.tensor([r["score"] for r in records]), expected)
    assert [r["category_name"] for r in records] == [cfg.classes[label] for label in labels]
    assert cv2.imread(str(tmp_path / "out/vis/x.png")).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none.jpg"], "'none.jpg' does not exist"),
        (["*.png"], r"'\*.png' does not exist"),
        (["."], "'.' has no image or video in it"),
        (["notes.txt"], "'notes.txt' is neither an image nor a video"),
    ],
)
def test_inputs_that_are_refused(names, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        infer.find_inputs(names)
