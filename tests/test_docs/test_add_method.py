"""The methods of docs/add_method.md, run as its reader would."""

import json
import re

import pytest
import torch
from helpers.tools import ROOT, run_tool

import pat_mmdet.models.methods  # noqa: F401  registers the shipped methods first
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


def blocks():
    text = (ROOT / "docs/add_method.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Methods that are registered here are not there for other tests."""
    monkeypatch.setattr(METHODS, "_module_dict", {**METHODS.module_dict})


def test_method_of_the_page(digits, tmp_path, monkeypatch):
    method, config, _, test = blocks()
    (tmp_path / "my_methods.py").write_text(method)
    base = str(ROOT / "configs/pat/swin_p-res18_digits.py")
    (tmp_path / "at.py").write_text(re.sub(r'(?<=_base_ = )".*"', repr(base), config))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}", prepend=":")
    run_tool(
        "train.py", "at.py", "--work-dir", "out", "--cfg-options", f"data_root={digits}/",
        "model.teacher_checkpoint=None", "train_cfg.max_iters=2", "train_dataloader.batch_size=2",
        "default_hooks.logger.interval=1", "model.input_size=(64,64)",
        cwd=tmp_path,
    )  # fmt: skip
    (log,) = tmp_path.glob("out/*/vis_data/scalars.json")
    first = json.loads(log.read_text().splitlines()[0])
    assert first["loss_fd"] > 0 and first["loss"] > first["loss_fd"]
    monkeypatch.syspath_prepend(tmp_path)
    page = {}
    exec(test, page)
    page["test_scale_of_features_does_not_matter"]()


def test_layers_of_the_page():
    page = {}
    exec(blocks()[2], page)
    method = page["MeanFeature"]()
    method.build_layers(FeatureSpec(((4, 2, 2),)), FeatureSpec(((8, 2, 2),)))
    student, teacher = (NetworkOutputs([torch.ones(2, width, 2, 2)]) for width in (4, 8))
    method(student, teacher, None)["loss_fd"].backward()
    assert all(param.grad.abs().sum() > 0 for param in method.parameters())
