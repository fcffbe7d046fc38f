"""The page that ``pat-mmdet compare`` writes."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers.configs import load
from helpers.runs import evaluation, log, step
from helpers.tools import ROOT
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from pat_mmdet.cli import compare
from pat_mmdet.utils import load_config, teacher_model


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def save(model, folder, cfg=None, step=1):
    """Saves a network as the last step of a training."""
    folder.mkdir(parents=True, exist_ok=True)
    meta = dict(cfg=cfg.pretty_text) if cfg is not None else {}
    torch.manual_seed(step)
    state = MODELS.build(model).state_dict()
    torch.save(dict(meta=meta, state_dict=state), folder / f"iter_{step}.pth")
    return folder / f"iter_{step}.pth"


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, args)])
    compare.main()


def read(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def test_detectors(digits, tmp_path, monkeypatch):
    config = "configs/pat/swin_p-res18_digits.py"
    cfg = load_config(config)
    init_default_scope("mmdet")
    teacher = save(teacher_model(cfg.model.teacher, "x.pth"), tmp_path / "teacher")
    save(cfg.model.student, tmp_path / "PAT", cfg, step=2)
    log(tmp_path / "PAT", "1", step(1, loss_kd=2.0), evaluation(2, 0.3))
    out = tmp_path / "page.html"
    run(
        monkeypatch, config, f"with PAT={tmp_path / 'PAT'}", "--num-images", 5, "--out", out,
        "--cfg-options",
        f"data_root={digits}/", f"model.teacher_checkpoint={teacher}",
        "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False",
    )  # fmt: skip
    data = read(out)
    assert "loss_kd" in out.read_text()
    assert [x["name"] for x in data["networks"]] == ["teacher", "with PAT"]
    assert [x["checkpoint"] for x in data["networks"]] == ["iter_1.pth", "iter_2.pth"]
    assert data["networks"][0]["parameters"] > data["networks"][1]["parameters"]
    assert (data["task"], data["num_tested"], data["threshold"]) == ("detection", 8, 0.3)
    assert [len(row["values"]) for row in data["metrics"]] == [2] * len(data["metrics"])
    assert {"mAP", "mAP 50"} <= {row["name"] for row in data["metrics"]}
    assert {row["name"] for row in data["class_metrics"]} <= set(data["classes"])
    annotated = json.loads((digits / "annotations/val.json").read_text())
    boxes = {}
    for annotation in annotated["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation)
    names = {f"val/{image['file_name']}": boxes[image["id"]] for image in annotated["images"]}
    assert len(data["images"]) == 5
    for image in data["images"]:
        assert (image["width"], image["height"]) == (64, 64)
        expected = [[*box["bbox"], box["category_id"], 0] for box in names[image["name"]]]
        found = np.array([[*row[:4], row[5]] for row in image["truth"]])
        np.testing.assert_allclose(found, [[*row[:4], 0] for row in expected], atol=0.06)
        for predictions in image["predictions"]:
            assert all(row[5] >= data["min_score"] for row in predictions)
            assert all(row[6] == -1 or image["truth"][row[6]][4] == row[4] for row in predictions)


def test_classifiers(tmp_path, monkeypatch):
    config = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
    student = load("students/res18_mini_cifar10").model
    student.head.num_classes = 2
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for index in range(3):
            path = tmp_path / "data/val" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    init_default_scope("mmpretrain")
    runs = [save(student, tmp_path / "runs", step=index) for index in (1, 2)]
    out = tmp_path / "page.html"
    args = [
        config, *runs, "--no-teacher", "--out", out, "--cfg-options",
        f"data_root={tmp_path / 'data'}/", "classes=('cat','dog')", "test_evaluator.topk=(1,)",
        "test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False",
    ]  # fmt: skip
    run(monkeypatch, *args)
    data = read(out)
    assert (data["task"], data["classes"]) == ("classification", ["cat", "dog"])
    assert [x["name"] for x in data["networks"]] == ["iter_1", "iter_2"]
    assert [image["name"] for image in data["images"]] == [
        f"{name}/{index}.png" for name in ("cat", "dog") for index in range(3)
    ]
    # What is shown of the images adds up to the metrics.
    right = np.array(
        [[top[0][0] == image["truth"] for top in image["predictions"]] for image in data["images"]]
    )
    (top1,) = data["metrics"]
    np.testing.assert_allclose(top1["values"], 100 * right.mean(0), atol=1e-3)
    for label, row in enumerate(data["class_metrics"]):
        np.testing.assert_allclose(
            row["values"], 100 * right[3 * label : 3 * label + 3].mean(0), atol=1e-3
        )


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["{0}"], r"work dir '.*' has no checkpoint"),
        (["a={0}/none.pth"], r"checkpoint '.*none.pth' does not exist"),
        (["a={0}/x.pth", "a={0}/x.pth"], r"same name in \['a', 'a'\]; give NAME=RUN"),
        (["{0}/cat.pth"], r"is for 1 classes \(cat\), the test set of .* has 10 classes \(0, 1, 2"),
    ],
)
def test_runs_that_are_refused(runs, message, tmp_path, monkeypatch, digits):
    torch.save(dict(state_dict={}), tmp_path / "x.pth")
    meta = dict(dataset_meta=dict(classes=("cat",)))
    torch.save(dict(meta=meta, state_dict={}), tmp_path / "cat.pth")
    args = ["configs/pat/swin_p-res18_digits.py", *(run.format(tmp_path) for run in runs)]
    options = ["--no-teacher", "--cfg-options", f"data_root={digits}/"]
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *args, *options)
